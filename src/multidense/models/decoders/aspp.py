"""Atrous spatial pyramid pooling for every task (Chen et al., "Rethinking Atrous Convolution for Semantic Image
Segmentation", 2017): the heads of all PASCAL-Context tables (protocol 4.2).

Unusual:
- The branch that sees the mean of the whole map has one value a channel and image, so for a batch of one image BatchNorm has
  no statistics. There, and only there, it normalises by its running statistics, which stay as they are. What counts are the
  images of the whole batch: one on each of two processes are two.
- Behind a backbone that goes on to stride 16 or 32, the coarsest map alone is too coarse: all maps are fused first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from multidense.ops import resize
from multidense.processes import GlobalBatchNorm, all_sum
from multidense.task import Task
from multidense.types import Features, MultidenseError, Outputs

FINE_ENOUGH = 8
"""The stride up to which the coarsest map of a backbone is read as it is."""


class AtrousHeads(nn.Module):
    """The decoder: per task ASPP, then Conv3×3 with BatchNorm and ReLU, then Conv1×1 to the logits.

    The task feature `[b head_channels h w]` is what the last convolution reads, at the size of the map that the heads see:
    the coarsest, or with `fuse` all maps made one. The default fuses where the coarsest map lies beyond stride 8; the fused map
    has the channels of the coarsest, but at most 512. `head_channels` is half as many by default, at most 256 (256 of a ResNet
    of full width). `rates` are the dilations of ASPP's 3×3 convolutions. No tokens, hence no confidence: it counts as one.
    """

    needs_stages = False

    def __init__(
        self,
        tasks: Sequence[Task],
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        rates: Sequence[int] = (12, 24, 36),
        head_channels: int | None = None,
        dropout: float = 0.5,
        fuse: bool | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(rates, Sequence) or any(not isinstance(rate, int) or rate < 1 for rate in rates):
            raise MultidenseError(f"rates should be whole numbers of at least 1, such as (12, 24, 36). Found {rates!r}.")
        if head_channels is not None and (not isinstance(head_channels, int) or head_channels < 1):
            raise MultidenseError(f"head_channels should be a whole number of at least 1. Found {head_channels!r}; try 256.")
        if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise MultidenseError(f"dropout should be at least 0 and below 1. Found {dropout!r}; the published one is 0.5.")
        fuse = strides[-1] > FINE_ENOUGH if fuse is None else fuse
        seen = min(channels[-1], 512) if fuse else channels[-1]
        head_channels = default_head_channels(seen) if head_channels is None else head_channels
        self.fuse = Fuse(channels, seen) if fuse else None
        self.feature = nn.ModuleDict(
            {
                task.name: nn.Sequential(
                    ASPP(seen, head_channels, rates, dropout), *conv_norm_relu(head_channels, head_channels, kernel=3)
                )
                for task in tasks
            }
        )
        self.head = nn.ModuleDict({task.name: nn.Conv2d(head_channels, task.channels, kernel_size=1) for task in tasks})
        initialise_kaiming(self)

    def forward(self, features: Features, size: tuple[int, int]) -> Outputs:
        seen = self.fuse(features.maps) if self.fuse else features.maps[-1]
        task_features = {name: feature(seen) for name, feature in self.feature.items()}
        logits = {name: resize(head(task_features[name]), size) for name, head in self.head.items()}
        return Outputs(logits=logits, features=task_features)


def default_head_channels(seen: int) -> int:
    """Half of the channels that heads see, at most 256."""
    return min(256, max(1, seen // 2))


class Fuse(nn.Module):
    """All maps of a pyramid as one `[b c h w]` at the size of the finest: enlarged, side by side, Conv1×1, BatchNorm, ReLU."""

    def __init__(self, channels: Sequence[int], fused: int) -> None:
        super().__init__()
        self.layers = conv_norm_relu(sum(channels), fused)

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b c h w"]:
        size = tuple(maps[0].shape[-2:])
        return self.layers(torch.cat([resize(each, size) for each in maps], dim=1))


class ASPP(nn.Module):
    """One map at several spacings and as a whole: `[b c h w]` to `[b c2 h w]`.

    Branches side by side (Conv1×1, a Conv3×3 for each of the `rates`, the mean of the map through a Conv1×1), each to c2
    channels with BatchNorm and ReLU; then Conv1×1, BatchNorm, ReLU, dropout. No convolution here has a bias.
    """

    def __init__(self, channels_in: int, channels_out: int, rates: Sequence[int] = (12, 24, 36), dropout: float = 0.5) -> None:
        super().__init__()
        self.local = nn.ModuleList(
            [
                conv_norm_relu(channels_in, channels_out),
                *(conv_norm_relu(channels_in, channels_out, kernel=3, dilation=rate) for rate in rates),
            ]
        )
        self.whole = conv_norm_relu(channels_in, channels_out)
        self.project = nn.Sequential(*conv_norm_relu(channels_out * (len(self.local) + 1), channels_out), nn.Dropout(dropout))

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        conv, norm, relu = self.whole
        whole = relu(normalised(norm, conv(maps.mean(dim=(2, 3), keepdim=True))))
        branches = [branch(maps) for branch in self.local]
        return self.project(torch.cat([*branches, whole.expand_as(branches[0])], dim=1))


def normalised(norm: nn.BatchNorm2d | GlobalBatchNorm, values: Float[Tensor, "b c 1 1"]) -> Float[Tensor, "b c 1 1"]:
    """`norm(values)`, by its running statistics where the whole batch, over all processes, is a single value a channel."""
    if not norm.training:
        return norm(values)
    images = len(values)
    if isinstance(norm, GlobalBatchNorm):
        images = int(all_sum(torch.tensor(float(images * norm.counts), device=values.device)))
    try:
        return norm.train(images > 1)(values)
    finally:
        norm.train()


def conv_norm_relu(channels_in: int, channels_out: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    """A convolution that keeps height and width, without the bias that BatchNorm would take away; BatchNorm, ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def initialise_kaiming(module: nn.Module) -> None:
    """Kaiming-normal weights (fan in) and zero biases for every convolution in `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
