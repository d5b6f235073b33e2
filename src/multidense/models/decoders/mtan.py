"""MTAN: "End-to-End Multi-Task Learning with Attention" (Liu, Johns, Davison, CVPR 2019), on SegNet.

Every task looks through masks of its own at every stage of one shared network. With f_k and l_k the first and the last shared
map of a stage, u_k the unpooled one, t the task's map and [,] side by side:

    mask     a = σ BN Conv1×1 ReLU BN Conv1×1
    encoder  t ← pool Block(a[f_k, t] ⊙ l_k)                   k = 0 … 4; a[f_0] in the first stage
    decoder  t ← a[u_k, Block(t enlarged to u_k)] ⊙ l_k        k = 4 … 0

What is unusual:
- Masks belong to a task and a stage, blocks (Conv3×3, BatchNorm, ReLU) to a stage: all tasks run through them one after the
  other. In training each normalises by its own statistics; in evaluation all share one running mean, as in the public code.
- Maps are enlarged to the stored size (bilinear, corners aligned), so any size from 32 works.
- Tasks are run to their end one by one, and backward makes products, enlarged maps and maps side by side again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from multidense.models.layers import conv3x3, conv_block, initialise_convolutions, recomputed
from multidense.ops import resize
from multidense.task import Task
from multidense.types import Features, MultidenseError, Outputs


class MultiTaskAttention(nn.Module):
    """The decoder: reads all `Features.stages`; the head of a task is that of the plain decoder, Conv3×3 and Conv1×1.

    The task features `[b c h w]`, c channels of the finest map, are the output of that Conv3×3. No tokens, hence no
    confidence: it counts as one. Source: protocol 4.3.
    """

    needs_stages = True

    def __init__(self, tasks: Sequence[Task], channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        outward = tuple(channels)  # of the decoder's stages, fine to coarse
        inward = (*outward[1:], outward[-1])  # of the encoder's: SegNet's two coarsest are of one width
        deeper = (*inward[1:], inward[-1])
        self.stage_channels = (
            *(width for width in inward for _ in ("first", "last")),
            *(width for pair in zip(reversed(inward), reversed(outward), strict=True) for width in pair),
        )
        self.down = nn.ModuleList(conv_block(here, after) for here, after in zip(inward, deeper, strict=True))
        self.up = nn.ModuleList(conv_block(here, after) for here, after in zip(inward, outward, strict=True))
        self.encoder_masks = nn.ModuleDict(
            {
                task.name: nn.ModuleList(Mask(width if stage == 0 else 2 * width, width) for stage, width in enumerate(inward))
                for task in tasks
            }
        )
        self.decoder_masks = nn.ModuleDict(
            {
                task.name: nn.ModuleList(Mask(here + after, after) for here, after in zip(inward, outward, strict=True))
                for task in tasks
            }
        )
        self.feature = nn.ModuleDict({task.name: conv3x3(outward[0], outward[0]) for task in tasks})
        self.head = nn.ModuleDict({task.name: nn.Conv2d(outward[0], task.channels, kernel_size=1) for task in tasks})
        initialise_convolutions(self)

    def forward(self, features: Features, size: tuple[int, int]) -> Outputs:
        found = tuple(stage.shape[1] for stage in features.stages)
        if found != self.stage_channels:
            raise MultidenseError(
                f"the decoder 'mtan' reads the first and the last map of every stage of its backbone: expected "
                f"{len(self.stage_channels)} maps of {_listed(self.stage_channels)} channels. Found {len(found)}"
                f"{f' of {_listed(found)}' if found else ''}. Take a backbone that returns them, such as 'segnet'."
            )
        task_features = {name: self.task_feature(name, features.stages) for name in self.feature}
        logits = {name: resize(head(task_features[name]), size) for name, head in self.head.items()}
        return Outputs(logits=logits, features=task_features)

    def task_feature(self, name: str, stages: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b c h w"]:
        """What one task makes of all shared maps: its masks from the finest stage down, then up again."""
        pairs = list(zip(stages[::2], stages[1::2], strict=True))
        depth = len(self.down)

        own: tuple[Tensor, ...] = ()
        for mask, block, (first, last) in zip(self.encoder_masks[name], self.down, pairs[:depth], strict=True):
            seen = block[1:](recomputed(block[0], torch.mul, mask(first, *own), last))
            own = (F.max_pool2d(seen, kernel_size=2, stride=2),)

        upward = zip(reversed(self.decoder_masks[name]), reversed(self.up), pairs[depth:], strict=True)
        for mask, block, (unpooled, last) in upward:
            enlarge = partial(_enlarged_product, size=tuple(unpooled.shape[-2:]))
            enlarged = block[1:](recomputed(block[0], enlarge, *own))
            own = (mask(unpooled, enlarged), last)
        return recomputed(self.feature[name], torch.mul, *own)


class Mask(nn.Module):
    """Where, and in which channels, a task looks: σ BN Conv1×1 ReLU BN Conv1×1 of the maps side by side; in 0 … 1."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, kernel_size=1),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, kernel_size=1),
            nn.BatchNorm2d(channels_out),
            nn.Sigmoid(),
        )

    def forward(self, *maps: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b c h w"]:
        if len(maps) == 1:
            return self.layers(*maps)
        return self.layers[1:](recomputed(self.layers[0], _side_by_side, *maps))


def _side_by_side(*maps: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b c h w"]:
    return torch.cat(maps, dim=1)


def _enlarged_product(
    one: Float[Tensor, "b c h2 w2"], other: Float[Tensor, "b c h2 w2"] | None = None, *, size: tuple[int, int]
) -> Float[Tensor, "b c h w"]:
    """The product of two maps (or the one map) at `size`, corners on corners."""
    product = one if other is None else one * other
    return F.interpolate(product, size=size, mode="bilinear", align_corners=True)


def _listed(widths: Sequence[int]) -> str:
    return ", ".join(map(str, widths))
