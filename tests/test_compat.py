"""The cure for a torchvision that does not load."""

import subprocess
import sys
import textwrap

BROKEN = "import torch\ntorch.library.register_fake('torchvision::nms')(lambda dets, scores, iou_threshold: None)\n"
"""What a CUDA build of torchvision does at import: beside a CPU build of torch its operators are not there."""


def mended(folder, package: str | None, then: str = "") -> str:
    """What a fresh process prints of `mend_torchvision()` where torchvision is `package`, or missing."""
    if package is not None:
        (folder / "torchvision").mkdir()
        (folder / "torchvision" / "__init__.py").write_text(package + "loaded = True\n")
    code = f"""
        import sys
        sys.path.insert(0, {str(folder)!r})
        from multidense.compat import mend_torchvision
        print(mend_torchvision())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code) + then], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 or "Error" in done.stderr
    return done.stdout + done.stderr


def test_a_torchvision_that_loads_is_left_as_it_is(tmp_path):
    then = "print(mend_torchvision(), sys.modules['torchvision'].loaded, 'torch' in sys.modules)"
    assert mended(tmp_path, "", then).split() == ["True", "True", "True", "False"]


def test_a_torchvision_without_its_operators_is_mended(tmp_path):
    then = "import torchvision; print(torchvision.loaded, mend_torchvision())"
    assert mended(tmp_path, BROKEN, then).split() == ["True", "True", "True"]


def test_another_failure_is_not_hidden(tmp_path):
    assert "RuntimeError: something else" in mended(tmp_path, "raise RuntimeError('something else')\n")


def test_no_torchvision_is_no_trouble(monkeypatch):
    import importlib.util

    from multidense.compat import mend_torchvision

    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert mend_torchvision() is False
