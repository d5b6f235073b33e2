"""Stages of attention within windows, as in Swin (Liu et al., ICCV 2021), on a feature map of any size.

    R [b c h w] ─ blocks ─┬─ merge 2×2 ─ blocks ─┬─ merge 2×2 ─ blocks ─┐
                     LayerNorm              LayerNorm              LayerNorm
                    [b c h w]            [b 2c h/2 w/2]         [b 4c h/4 w/4]

Maps have their channels last inside: `[b h w c]`. What is unusual:
- No patch embedding: the map itself is the first stage's input.
- A map that windows do not divide is padded, and nothing attends to what is not there (Swin lets the zeros be seen). Shifted
  windows are a grid that starts half a window further left and up: at the borders its windows are cut off, which is what
  Swin's cyclic shift and its mask come to.
- An axis that one window covers is not shifted. Keys have no bias: softmax cannot see it, so it would never learn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

HEADS = 2
DEVIATION = 0.02
"""Of the initial weights of linear layers and position biases."""


class WindowStages(nn.Module):
    """A map `[b c h w]` to one map a stage, fine to coarse: `[b 2ⁱc ⌈h/2ⁱ⌉ ⌈w/2ⁱ⌉]`, each through a LayerNorm of its own.

    `depths` are the blocks of each stage; every second one looks through shifted windows.
    """

    def __init__(self, channels: int, depths: Sequence[int], window: int) -> None:
        super().__init__()
        self.channels = tuple(channels * 2**stage for stage in range(len(depths)))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(WindowBlock(width, window, shifted=index % 2 == 1) for index in range(depth)))
            for width, depth in zip(self.channels, depths, strict=True)
        )
        self.merge = nn.ModuleList(Merge(width) for width in self.channels[:-1])
        self.norm = nn.ModuleList(nn.LayerNorm(width) for width in self.channels)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=DEVIATION)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, shared: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        maps, found = shared.permute(0, 2, 3, 1), []
        for stage, (blocks, norm) in enumerate(zip(self.blocks, self.norm, strict=True)):
            maps = blocks(self.merge[stage - 1](maps) if stage else maps)
            found.append(norm(maps).permute(0, 3, 1, 2))
        return found


class WindowBlock(nn.Module):
    """LayerNorm, attention, residual; LayerNorm, a perceptron four times as wide, residual. `[b h w c]` to the same."""

    def __init__(self, channels: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.attend = nn.Sequential(nn.LayerNorm(channels), WindowAttention(channels, HEADS, window, shifted))
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, maps: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        maps = maps + self.attend(maps)
        return maps + self.mlp(maps)


class WindowAttention(nn.Module):
    """Self-attention of the pixels within windows of `window` × `window`, scaled by 1/√(c / heads), `[b h w c]` to the same.

    Each head adds a learnt bias for the relative position of two pixels.
    """

    def __init__(self, channels: int, heads: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.lead = (window - window // 2) % window if shifted else 0
        """Pixels of the first window that lie before the map, in each axis that is shifted."""
        self.to_query = nn.Linear(channels, channels)
        self.to_key = nn.Linear(channels, channels, bias=False)
        self.to_value = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)
        self.position = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.position, std=DEVIATION)
        y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        places = torch.stack([y, x]).flatten(1)
        apart = places[:, :, None] - places[:, None] + window - 1
        self.register_buffer("relative", apart[0] * (2 * window - 1) + apart[1], persistent=False)

    def forward(self, maps: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        height, width = maps.shape[1:3]
        above, left = (self.lead if side > self.window else 0 for side in (height, width))
        below, right = -(above + height) % self.window, -(left + width) % self.window
        border = (left, right, above, below)

        queries, keys, values = (
            self._heads(F.pad(project(maps), (0, 0, *border))) for project in (self.to_query, self.to_key, self.to_value)
        )
        bias = self.position[self.relative].permute(2, 0, 1)
        if any(border):
            there = F.pad(torch.ones(1, height, width, 1, dtype=torch.bool, device=maps.device), (0, 0, *border))
            bias = bias.masked_fill(~partition(there, self.window)[..., None, None, :, 0], -torch.inf)
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias.to(queries.dtype))
        whole = unite(seen.transpose(-3, -2).flatten(-2), self.window)
        return self.to_out(whole[:, above : above + height, left : left + width])

    def _heads(self, maps: Float[Tensor, "b h w c"]) -> Float[Tensor, "b rows columns heads n d"]:
        return partition(maps, self.window).unflatten(-1, (self.heads, -1)).transpose(-3, -2)


class Merge(nn.Module):
    """Four neighbours into one pixel of twice the channels: `[b h w c]` to `[b ⌈h/2⌉ ⌈w/2⌉ 2c]`; zeros complete an odd side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduce = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, maps: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h2 w2 c2"]:
        height, width = maps.shape[1:3]
        cells = partition(F.pad(maps, (0, 0, 0, width % 2, 0, height % 2)), 2)
        return self.reduce(self.norm(cells.flatten(3)))


def partition(
    maps: Float[Tensor, "b h w c"] | Bool[Tensor, "b h w c"], window: int
) -> Float[Tensor, "b rows columns n c"] | Bool[Tensor, "b rows columns n c"]:
    """The windows of maps that they divide: n = `window`² pixels, row by row, of each of rows × columns windows."""
    return maps.unflatten(1, (-1, window)).unflatten(3, (-1, window)).transpose(2, 3).flatten(3, 4)


def unite(windows: Float[Tensor, "b rows columns n c"], window: int) -> Float[Tensor, "b h w c"]:
    """The maps of these windows: the inverse of `partition`."""
    return windows.unflatten(3, (window, window)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
