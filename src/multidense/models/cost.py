"""What a model costs: parameters, and multiply–adds by the rule that the papers' tables follow."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call


def count_parameters(model: nn.Module) -> int:
    """Number of learned values."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, size: tuple[int, int]) -> float:
    """Multiply–adds of one image of `size` (height, width), counted as thop 0.1.1 does and the paper's Table 8 with it.

    Convolutions and linear layers without their bias, four operations an element for BatchNorm and LayerNorm, nothing for
    matrix products, attention, interpolation and activations. So it says nothing about the cost of attention.

    Nothing is computed: the model runs on shapes alone (torch's meta device), and is left as it was.
    """
    counts: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts.append(_layer_multiply_adds(layer, inputs[0], output))

    hooks = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, COUNTED)]
    try:
        shapes = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        with torch.no_grad():
            functional_call(model, shapes, torch.empty(1, 3, *size, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return float(sum(counts))


COUNTED = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)


def _layer_multiply_adds(layer: nn.Module, values: Tensor, output: Tensor) -> int:
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
        return output.numel() * layer.weight[0].numel()
    return 4 * values.numel()
