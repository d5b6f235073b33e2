"""Weights from files: what fits is loaded, the rest is said, and too little is refused."""

import pytest
import safetensors.torch
import torch
from torch import nn

from multidense.models.pretrained import load_weights
from multidense.types import MultidenseError


def network() -> nn.Module:
    return nn.ModuleDict({"stem": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "body": nn.Conv2d(4, 8, 3)})


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    drawn = network()
    drawn["bn"].running_mean += 2
    return {name: each.clone() for name, each in drawn.state_dict().items()}


def head() -> dict[str, torch.Tensor]:
    return {"fc.weight": torch.zeros(2, 8), "fc.bias": torch.zeros(2)}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_files_of_all_kinds_are_read(tmp_path, weights, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path)
    module = network()
    fit = load_weights(module, path)
    assert all(torch.equal(each, weights[name]) for name, each in module.state_dict().items())
    assert module.fit is fit
    assert fit.told() == f"9 of 9 tensors from {path}"
    assert fit.parameters_loaded == fit.parameters == sum(p.numel() for p in module.parameters())
    assert len(fit.sha256) == 16
    assert fit.provenance()["loaded"] == 9


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.encoder.", "student.backbone.net."])
@pytest.mark.parametrize("inside", [None, "state_dict", "model"])
def test_prefixes_and_wrappings_are_taken_off(tmp_path, weights, prefix, inside):
    named = {prefix + name: each for name, each in weights.items()} | head()
    torch.save({inside: named, "epoch": 3} if inside else named, tmp_path / "w.pth")
    module = network()
    fit = load_weights(module, tmp_path / "w.pth")
    assert torch.equal(module["body"].weight, weights["body.weight"])
    assert fit.told() == f"9 of 9 tensors from {tmp_path / 'w.pth'}, 2 not used: fc.weight, fc.bias"


def test_what_does_not_fit_is_left_and_said(tmp_path, weights):
    weights["stem.weight"] = torch.zeros(4, 4, 3, 3)
    del weights["bn.bias"], weights["bn.num_batches_tracked"]
    torch.save(weights | head() | {"token": torch.zeros(2)}, tmp_path / "w.pt")
    module = network()
    before = module["stem"].weight.clone()
    fit = load_weights(module, tmp_path / "w.pt")
    assert torch.equal(module["stem"].weight, before)
    assert (fit.missing, fit.reshaped) == (("bn.bias",), ("stem.weight",))
    assert (fit.unused, fit.unexpected) == (("fc.weight", "fc.bias"), ("token",))
    assert fit.told().startswith("6 of 8 tensors")
    assert fit.told().endswith(
        "2 not used: fc.weight, fc.bias, 1 unknown to the network: token, 1 missing: bn.bias, 1 of another shape: stem.weight"
    )


def test_too_few_weights_are_an_error_and_change_nothing(tmp_path, weights):
    weights["body.weight"] = torch.zeros(9, 4, 3, 3)
    renamed = {name.replace("stem", "trunk"): each for name, each in weights.items()}
    torch.save(renamed, tmp_path / "w.pt")
    module = network()
    before = {name: each.clone() for name, each in module.state_dict().items()}
    with pytest.raises(MultidenseError) as error:
        load_weights(module, tmp_path / "w.pt")
    told = str(error.value)
    assert "gives 16 of 416 parameters (4 %), and at least 50 %" in told
    assert "body.weight is (9, 4, 3, 3), expected (8, 4, 3, 3)" in told
    assert "missing: stem.weight, stem.bias" in told
    assert "unknown to the network: trunk.weight" in told
    assert all(torch.equal(each, before[name]) for name, each in module.state_dict().items())
    assert not hasattr(module, "fit")


def test_a_translation_is_used_where_it_fits_better(tmp_path, weights):
    torch.save({name.replace("body", "layers.0"): each for name, each in weights.items()}, tmp_path / "w.pt")

    def fails(found):
        raise KeyError("of another publisher")

    fit = load_weights(
        network(), tmp_path / "w.pt", [fails, lambda found: {k.replace("layers.0", "body"): v for k, v in found.items()}]
    )
    assert not fit.missing
    assert fit.parameters_loaded == fit.parameters


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"\0" * 40, "cannot be read as safetensors"),
        ("w.pth", b"nonsense", "cannot be read as weights"),
        ("w.pth", {"epoch": 3}, "holds no weights: expected tensors by name, found the keys epoch"),
        ("w.pth", [torch.zeros(2)], "found list"),
        ("w.pth", {"model": nn.Conv2d(1, 1, 1)}, "that holds Python objects has to be saved anew"),
        ("w.pth", None, "there is no file"),
    ],
    ids=["torn safetensors", "nonsense", "no tensors", "a list", "a pickled module", "nothing"],
)
def test_files_that_hold_no_weights_are_refused(tmp_path, name, content, message):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(MultidenseError, match=message):
        load_weights(network(), tmp_path / name)
