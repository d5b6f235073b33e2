"""SegNet (Badrinarayanan et al., 2017) as MTAN and MTPSL use it: the backbone of all NYUv2 and Cityscapes tables.

Widths 64, 128, 256, 512, 512 times `width`; five encoder stages of 2, 2, 3, 3, 3 blocks (Conv3×3, BatchNorm, ReLU), each
followed by 2×2 max-pooling; five decoder stages mirror them and put every maximum back where it came from. From scratch.

Unusual: unpooling goes to the stored sizes, so any size from 32 works (the public code needs multiples of 32); it is one
scatter, which is deterministic on every device.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from multidense.models.layers import conv_block, initialise_convolutions
from multidense.types import Features, MultidenseError

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = (2, 2, 3, 3, 3)


class SegNet(nn.Module):
    """Image `[b 3 h w]` to the outputs of the decoder stages, fine to coarse: strides 1, 2, 4, 8, 16.

    `maps[0]` has 64 · `width` channels at the image's resolution. With `stages=True`, `Features.stages` lists the first
    and the last map of encoder stages 0 … 4, then of decoder stages 4 … 0 (20 maps): in the encoder the output of the
    first block and of the last, in the decoder the unpooled map and the output of the last block.
    """

    minimum_size = 32
    strides = (1, 2, 4, 8, 16)

    def __init__(self, width: float = 1.0, stages: bool = False) -> None:
        super().__init__()
        widths = [round(full * width) for full in WIDTHS]
        if min(widths) < 1:
            raise MultidenseError(
                f"width {width} leaves SegNet no channels ({WIDTHS[0]} · {width} rounds to {widths[0]}). "
                f"Expected at least 1/{WIDTHS[0]}; give width={1 / WIDTHS[0]} or more."
            )
        self.with_stages = stages
        outward = [widths[0], *widths[:-1]]
        self.channels = tuple(outward)
        self.encoder = nn.ModuleList(
            _stage(before, after, depth) for before, after, depth in zip([3, *widths], widths, DEPTHS, strict=False)
        )
        self.decoder = nn.ModuleList(
            _stage(before, after, depth) for before, after, depth in zip(widths, outward, DEPTHS, strict=True)
        )
        initialise_convolutions(self)

    def layers(self) -> list[str]:
        """Beginnings of parameter names from image to output: the stages of the encoder, then those of the decoder."""
        inward = range(len(DEPTHS))
        return [f"encoder.{i}" for i in inward] + [f"decoder.{i}" for i in reversed(inward)]

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Features:
        pooled, places, stages = image, [], []
        for stage in self.encoder:
            first = stage[0](pooled)
            last = stage[1:](first)
            pooled, indices = F.max_pool2d(last, kernel_size=2, stride=2, return_indices=True)
            places.append((indices, tuple(last.shape[-2:])))
            stages += [first, last]

        bottleneck, last, maps = pooled, pooled, []
        for stage, (indices, size) in zip(reversed(self.decoder), reversed(places), strict=True):
            unpooled = unpool(last, indices, size)
            last = stage(unpooled)
            maps.insert(0, last)
            stages += [unpooled, last]
        return Features(tuple(maps), bottleneck, tuple(stages) if self.with_stages else ())


def unpool(
    pooled: Float[Tensor, "b c h2 w2"], indices: Int[Tensor, "b c h2 w2"], size: tuple[int, int]
) -> Float[Tensor, "b c h w"]:
    """Every value at the place of `size` it was pooled from, zero elsewhere: the inverse of max-pooling."""
    empty = pooled.new_zeros(*pooled.shape[:2], size[0] * size[1])
    return empty.scatter(2, indices.flatten(2), pooled.flatten(2)).unflatten(2, size)


def _stage(before: int, after: int, depth: int) -> nn.Sequential:
    return nn.Sequential(conv_block(before, after), *(conv_block(after, after) for _ in range(depth - 1)))
