"""Layers that backbones and decoders are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 3×3 convolution that keeps height and width."""
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1)


def conv_block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Conv3×3, BatchNorm, ReLU: the block all of SegNet is made of."""
    return nn.Sequential(conv3x3(channels_in, channels_out), nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))


def initialise_convolutions(module: nn.Module) -> None:
    """Xavier-normal weights and zero biases for every convolution in `module`, as published for SegNet (protocol 4.1)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Coarsen(nn.Module):
    """A depthwise convolution over `stride` × `stride` cells: `[b c h w]` to `[b c ⌈h/stride⌉ ⌈w/stride⌉]`.

    A map that the stride does not divide is first continued at the right and lower border; `refine` cuts that off again.
    """

    def __init__(self, channels: int, stride: int, *, bias: bool = True) -> None:
        super().__init__()
        self.stride = stride
        self.cells = nn.Conv2d(channels, channels, kernel_size=stride, stride=stride, groups=channels, bias=bias)

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        height, width = maps.shape[-2:]
        below, right = -height % self.stride, -width % self.stride
        if below or right:
            maps = F.pad(maps, (0, right, 0, below), mode="replicate")
        return self.cells(maps)


def refine(maps: Float[Tensor, "b c h2 w2"], stride: int, size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """Bilinear × `stride`, cut to `size`: every cell comes back to the pixels it was made of, at odd sizes too."""
    if stride > 1:
        maps = F.interpolate(maps, scale_factor=float(stride), mode="bilinear", align_corners=False)
    return maps[..., : size[0], : size[1]]


def recomputed(conv: nn.Conv2d, make: Callable[..., Tensor], *inputs: Tensor) -> Float[Tensor, "b c h w"]:
    """`conv(make(*inputs))`, where backward makes the input of the convolution again instead of keeping it.

    For a cheap elementwise `make`, whose own inputs are kept anyway: it saves one map at full resolution.
    """
    made, again = make(*inputs), partial(make, *inputs)
    place = id(made)  # the hooks live as long as the graph, and must not hold what they are to spare
    with saved_tensors_hooks(
        lambda saved: again if id(saved) == place else saved, lambda kept: kept() if kept is again else kept
    ):
        return conv(made)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules made inside have shapes and no values: for looking at what settings make, at next to no cost."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Draws nothing. Without values there is nothing to draw, and torch would import its compiler for not doing it."""

    drawing = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.erfinv_})

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return args[0] if func in self.drawing else func(*args, **(kwargs or {}))
