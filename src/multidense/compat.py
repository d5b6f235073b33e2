"""The one cure for a torchvision that does not load.

The registry's torchvision is built against CUDA: beside a CPU build of torch its compiled operators are missing and `import
torchvision` fails, and with it timm, torchmetrics and lightning, which import it wherever it is installed. Declaring the two
schemas it asks for at import lets everything in Python work (transforms, models); nms, roi operators and its image codecs stay
unavailable.
"""

from __future__ import annotations

import importlib.util
import sys

_kept_alive: list = []


def mend_torchvision() -> bool:
    """Make `import torchvision` succeed where it can; whether it is there. To be called before timm, torchmetrics and
    lightning.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return "torchvision" in sys.modules
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import torch

        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept_alive.append(library)
        import torchvision  # noqa: F401
    return True
