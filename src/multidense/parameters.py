"""Which parameters learn, and how fast: frozen parts, a rate of its own for the backbone, rates that fall toward the image.

A backbone says in `layers()` what its layers are, from image to output: for each the names, or beginnings of names, of its
parameters. One that does not is a single layer. What a backbone's `layers()` leave out is new and learns as the decoder does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from multidense.suggest import nearest
from multidense.types import Features, MultidenseError

BACKBONE = "backbone"


def groups(model: nn.Module, backbone_lr: float = 1.0, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser; "lr_scale" is a group's rate over the training's.

    The last layer of the backbone learns at `backbone_lr`, each nearer to the image at `layer_decay` of the next. The rest of
    the model comes first. What is frozen is in no group.
    """
    if backbone_lr == layer_decay == 1:
        return [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]
    layers = layers_of(model.get_submodule(BACKBONE))
    found: list[list[nn.Parameter]] = [[] for _ in layers]
    rest = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = name.removeprefix(f"{BACKBONE}.") if name.startswith(f"{BACKBONE}.") else None
        place = next((i for i, names in enumerate(layers) if inner and any(_within(inner, each) for each in names)), None)
        (rest if place is None else found[place]).append(parameter)
    scales = [backbone_lr * layer_decay**depth for depth in range(len(layers) - 1, -1, -1)]
    scaled = [{"params": each, "lr_scale": scale} for each, scale in zip(found, scales, strict=True) if each]
    return ([{"params": rest}] if rest else []) + scaled


def layers_of(backbone: nn.Module) -> list[tuple[str, ...]]:
    """Beginnings of parameter names by layer, from image to output; a backbone that says nothing is one layer."""
    told = getattr(backbone, "layers", None)
    if not callable(told) or isinstance(told, nn.Module):
        return [("",)]
    return [(each,) if isinstance(each, str) else tuple(each) for each in told()]


def frozen_names(model: nn.Module, freeze: Sequence[str]) -> list[str]:
    """Names of the parameters that these prefixes freeze; a prefix that matches none is refused, and so is freezing all."""
    parameters = [name for name, _ in model.named_parameters()]
    for prefix in freeze:
        if not any(_within(name, prefix) for name in parameters):
            parts = [name for name, part in model.named_modules() if name and any(True for _ in part.parameters())]
            raise MultidenseError(
                f"training.freeze: no parameter begins with {prefix!r}{nearest(prefix, parts)}. Give names of parts, such as "
                f"{', '.join(repr(name) for name in sorted(parts, key=lambda name: name.count('.'))[:4])}."
            )
    names = [name for name in parameters if any(_within(name, prefix) for prefix in freeze)]
    if parameters and len(names) == len(parameters):
        raise MultidenseError(f"training.freeze: {list(freeze)} leaves nothing that learns; leave some part out.")
    return names


class Frozen:
    """The frozen part of a model while it trains: parameters without gradient, BatchNorm that neither adapts nor counts.

    With `features`, maps of a backbone that are frozen can be asked for a gradient all the same, which methods want that weigh
    tasks by what their losses do to the features.
    """

    def __init__(self, model: nn.Module, freeze: Sequence[str], features: bool = False) -> None:
        names = set(frozen_names(model, freeze))
        self.parameters = [p for name, p in model.named_parameters() if name in names and p.requires_grad]
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        self.norms = [
            layer
            for name, layer in model.named_modules()
            if isinstance(layer, _BatchNorm) and any(_within(name, prefix) for prefix in freeze)
        ]
        watched = features and names
        self._hook = model.get_submodule(BACKBONE).register_forward_hook(_reachable) if watched else None

    def rest(self) -> None:
        """Evaluation mode for the frozen BatchNorms, to be called whenever the model was put into training mode."""
        for layer in self.norms:
            layer.eval()

    def release(self) -> None:
        """Let everything learn again that did before."""
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        if self._hook is not None:
            self._hook.remove()


def _reachable(backbone: nn.Module, inputs: Any, output: Features) -> Features | None:
    """The same maps; a gradient reaches those of the frozen part, and ends there."""
    if not torch.is_grad_enabled():
        return None

    def open_to(each: torch.Tensor) -> torch.Tensor:
        return each if each.requires_grad else each.detach().requires_grad_()

    maps, stages = tuple(map(open_to, output.maps)), tuple(map(open_to, output.stages))
    return replace(output, maps=maps, stages=stages, bottleneck=open_to(output.bottleneck))


def _within(name: str, prefix: str) -> bool:
    """Whether a dotted name is `prefix` or lies below it."""
    return not prefix or name == prefix or name.startswith(f"{prefix}.")
