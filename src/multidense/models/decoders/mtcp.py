"""MT-CP (Fontana, Spratling, Shi, WACV 2025): tasks that look at one another's coherence, and trace it back to the finest map.

    backbone ─ R ─┬─ stages of task 1 ─ E1 E2 E3 ─ X_1 ─┐
                  ├─ stages of task 2 ─ E1 E2 E3 ─ X_2 ─┼─ Coherence Fusion ─ A_t ─ SRM(E3) ─ SRM(E2) ─ SRM(E1) ─ head
                  └─ …                                 ─┘      └ initial        └ head      └ head

R `[b c h w]`, at stride 4, is shared; all after it belongs to one task: three stages of window attention (c, 2c, 4c channels at
strides 4, 8, 16), their fusion X_t, the fusion A_t of what the other tasks know, and three refinements of it, from the deepest
stage to the finest. Rebuilt from a description; the code published with the paper differs from it in what is marked "release".

Settled here, or different:
- R is made from the backbone's own maps by a feature pyramid, gated by one linear channel: R = P · (wᵀP + 1 at the start). The
  release takes a Mask2Former's pixel features for P and the sum of its queries' mask logits for the gate, raw as well; that sum
  is the product of P with one vector, which here is learnt (inferred).
- Any number of tasks from two on: the gated maps of all other tasks, in the order of their names, are mixed into 2c channels
  (inferred; the release has three tasks).
- The affinity of all pixels with all pixels is computed, and backward, without ever being stored: `coherent`.
- An initial prediction is made from A_t, as in the paper's figure (`supervise_initial`; the release has none). It and those of
  the first two refinements are auxiliary logits: the objective supervises them by the task's own loss and adds them up, times
  its weight `auxiliary`, and no balancer weighs them. The release averages a task's two, and supervises those of normals by the
  loss of depth, by mistake.
- All tasks have the same head; the release has another for depth. The last refinement passes nothing on, hence has no layer
  for it. A CBAM has at least eight hidden units, so that in narrow networks some stay alive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from multidense.models.decoders._windows import HEADS, WindowStages
from multidense.models.layers import conv3x3, initialise_convolutions
from multidense.ops import pool, resize
from multidense.task import Task
from multidense.types import Features, MultidenseError, Outputs

STRIDE = 4
"""Of R, against the image."""


class MTCP(nn.Module):
    """The decoder, of at least two tasks: reads all maps of a backbone.

    The task features `[b c h w]`, at stride 4, are the last map before the final head. `Outputs.auxiliary` has, for each task
    and at the image's size, the initial prediction (if `supervise_initial`) and those of all refinements but the last. No
    tokens, hence no confidence: it counts as one.

    Args:
        channels: c, even; by default half those of the backbone's coarsest map, 256 at most (256 of a ResNet of full width).
        window: side of the attention windows, in pixels of their map.
        depths: blocks of each stage; as many stages as numbers.
        scale: of the affinity's logits θᵀφ; None for 1/√(2c).
        residual: whether A_t is added to X_t (an earlier state of the release) or replaces it.
        supervise_initial: whether there is an initial prediction.
    """

    needs_stages = False

    def __init__(
        self,
        tasks: Sequence[Task],
        channels_in: Sequence[int],
        strides: Sequence[int],
        *,
        channels: int | None = None,
        window: int = 7,
        depths: Sequence[int] = (1, 2, 1),
        scale: float | None = 1.0,
        residual: bool = False,
        supervise_initial: bool = True,
    ) -> None:
        super().__init__()
        names = [task.name for task in tasks]
        if len(names) < 2:
            raise MultidenseError(
                "the decoder 'mtcp' needs at least two tasks: each looks at what the others see. "
                f"Found one, '{names[0]}'. Add a task, or take a decoder that works alone: 'aspp' or 'hitts'."
            )
        channels = default_channels(channels_in) if channels is None else channels
        _check(channels, window, depths, scale)
        self.shared = SharedMap(channels_in, strides, channels)
        self.stages = nn.ModuleDict({name: WindowStages(channels, depths, window) for name in names})
        widths = self.stages[names[0]].channels
        self.fuse = nn.ModuleDict({name: FeaturePyramid(widths, channels) for name in names})
        self.coherence = nn.ModuleDict(
            {name: CoherenceFusion(channels, [other for other in names if other != name], scale, residual) for name in names}
        )
        self.trace = nn.ModuleDict({name: TraceBack(channels, widths) for name in names})
        self.initial = nn.ModuleDict({task.name: head(channels, task.channels) for task in tasks if supervise_initial})
        self.intermediate = nn.ModuleDict(
            {task.name: nn.ModuleList(head(channels, task.channels) for _ in depths[1:]) for task in tasks}
        )
        self.head = nn.ModuleDict({task.name: head(channels, task.channels) for task in tasks})
        initialise_convolutions(self)
        nn.init.ones_(self.shared.gate.bias)

    def forward(self, features: Features, size: tuple[int, int]) -> Outputs:
        shared = self.shared(features.maps, size)
        stages = {name: stage(shared) for name, stage in self.stages.items()}
        self._check_batch(next(iter(stages.values()))[-1])
        fused = {name: fuse(stages[name]) for name, fuse in self.fuse.items()}

        logits, auxiliary, task_features = {}, {}, {}
        for name, final in self.head.items():
            coherent_map = self.coherence[name](fused[name], fused)
            *coarser, task_features[name] = self.trace[name](coherent_map, stages[name])
            early = [self.initial[name](coherent_map)] if name in self.initial else []
            early += [each(seen) for each, seen in zip(self.intermediate[name], coarser, strict=True)]
            auxiliary[name] = [resize(each, size) for each in early]
            logits[name] = resize(final(task_features[name]), size)
        return Outputs(logits=logits, auxiliary=auxiliary, features=task_features)

    def _check_batch(self, deepest: Float[Tensor, "b c h w"]) -> None:
        """BatchNorm can learn nothing from a single pixel."""
        if self.training and deepest[:, 0].numel() == 1:
            least = STRIDE * 2 ** (len(self.stages[next(iter(self.stages))].channels) - 1) + 1
            raise MultidenseError(
                f"to train, the deepest maps of 'mtcp' need more than one pixel in a batch: expected images of at least "
                f"{least} pixels on one side, or two of them. Found one smaller image; enlarge it or give a larger batch."
            )


def default_channels(channels_in: Sequence[int]) -> int:
    """Half those of the coarsest map, even, from 2 to 256."""
    return min(256, HEADS * max(1, round(channels_in[-1] / 2 / HEADS)))


class SharedMap(nn.Module):
    """R `[b c ⌈height/4⌉ ⌈width/4⌉]`: the backbone's maps, fine to coarse, fused at stride 4 and gated by one linear channel.

    Finer maps are averaged over the cells of stride 4 first, so that nothing a backbone makes is wasted.
    """

    def __init__(self, channels_in: Sequence[int], strides: Sequence[int], channels: int) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.pyramid = FeaturePyramid(channels_in, channels)
        self.gate = nn.Conv2d(channels, 1, kernel_size=1)

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]], size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        grid = tuple(-(-side // STRIDE) for side in size)
        gathered = [
            resize(pool(each, STRIDE // stride), grid) if stride < STRIDE else each
            for each, stride in zip(maps, self.strides, strict=True)
        ]
        fused = self.pyramid(gathered, grid)
        return fused * self.gate(fused)


class FeaturePyramid(nn.Module):
    """Maps, fine to coarse, as one: 1×1 convolutions to `channels`, added up from coarse to fine (nearest), then Conv3×3."""

    def __init__(self, channels_in: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, kernel_size=1) for width in channels_in)
        self.smooth = conv3x3(channels, channels)

    def forward(
        self, maps: Sequence[Float[Tensor, "b _ _ _"]], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """At the size of the finest map, or enlarged to `size` before the last convolution."""
        *finer, coarsest = [lateral(each) for lateral, each in zip(self.lateral, maps, strict=True)]
        fused = coarsest
        for each in reversed(finer):
            fused = each + resize(fused, each.shape[-2:], mode="nearest")
        return self.smooth(resize(fused, size, mode="nearest") if size else fused)


class CBAM(nn.Module):
    """Where and in which channels to look (Woo et al., ECCV 2018): `[b c h w]` times a gate of channels, then of pixels.

    Channels: σ of one perceptron of their means plus the same of their maxima. Pixels: σ BN Conv7×7 of mean and maximum of the
    channels. Pooled values go through no BatchNorm: of one image there would be one value.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(8, channels // 16)
        self.mlp = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1))
        self.place = nn.Sequential(nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False), nn.BatchNorm2d(1))

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        mean, most = maps.mean((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
        maps = maps * (self.mlp(mean) + self.mlp(most)).sigmoid()
        pooled = torch.cat([maps.mean(1, keepdim=True), maps.amax(1, keepdim=True)], dim=1)
        return maps * self.place(pooled).sigmoid()


class CoherenceFusion(nn.Module):
    """A_t `[b c h w]`: the auxiliaries (all other tasks) say which pixels belong together, the target supplies the values.

    With U = ReLU Conv1×1 of all X_a · σ Conv1×1 X_a side by side, and one CBAM each,

        θ = ReLU BN CBAM U,   φ = ReLU BN CBAM U   [b 2c h w],      g = BN CBAM X_t   [b c h w],
        A_t = BN CBAM (softmax(scale · θᵀφ) g),   the softmax over all pixels of φ.
    """

    def __init__(self, channels: int, auxiliaries: Sequence[str], scale: float | None, residual: bool) -> None:
        super().__init__()
        self.scale, self.residual = scale, residual
        self.auxiliaries = tuple(sorted(auxiliaries))
        self.gates = nn.ModuleDict({name: nn.Conv2d(channels, channels, kernel_size=1) for name in self.auxiliaries})
        self.mix = nn.Conv2d(len(self.auxiliaries) * channels, 2 * channels, kernel_size=1)
        self.theta = nn.Sequential(CBAM(2 * channels), nn.BatchNorm2d(2 * channels), nn.ReLU())
        self.phi = nn.Sequential(CBAM(2 * channels), nn.BatchNorm2d(2 * channels), nn.ReLU())
        self.values = nn.Sequential(CBAM(channels), nn.BatchNorm2d(channels))
        self.out = nn.Sequential(CBAM(channels), nn.BatchNorm2d(channels))

    def forward(
        self, target: Float[Tensor, "b c h w"], maps: Mapping[str, Float[Tensor, "b c h w"]]
    ) -> Float[Tensor, "b c h w"]:
        gated = [maps[name] * self.gates[name](maps[name]).sigmoid() for name in self.auxiliaries]
        mixed = self.mix(torch.cat(gated, dim=1)).relu()
        found = self.out(coherent(self.theta(mixed), self.phi(mixed), self.values(target), self.scale))
        return target + found if self.residual else found


def coherent(
    theta: Float[Tensor, "b d h w"], phi: Float[Tensor, "b d h w"], values: Float[Tensor, "b c h w"], scale: float | None
) -> Float[Tensor, "b c h w"]:
    """softmax(scale · θᵀφ) values, c ≤ d, without the affinity of all pixels with all pixels in memory; `scale` None is 1/√d.

    On a CPU torch has a fused kernel only for values as wide as the keys, pixels in one block: narrower ones get zeros beside.
    """
    rows = [each.flatten(2).mT[:, None].contiguous() for each in (theta, phi, values)]  # [b 1 n d], one head
    if values.device.type == "cpu":
        rows[2] = F.pad(rows[2], (0, theta.shape[1] - values.shape[1]))
    seen = F.scaled_dot_product_attention(*rows, scale=scale)[:, 0, :, : values.shape[1]]
    return seen.mT.unflatten(2, values.shape[-2:])


class TraceBack(nn.Module):
    """A_t `[b c h w]` and the maps of a task's stages, fine to coarse, to one map of c channels a stage, coarse to fine."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        inward = [channels, *reversed(widths[1:])]
        self.refinements = nn.ModuleList(
            SpatialRefinement(traced, own, channels, passes_on=index + 1 < len(widths))
            for index, (traced, own) in enumerate(zip(inward, reversed(widths), strict=True))
        )

    def forward(
        self, coherent_map: Float[Tensor, "b c h w"], stages: Sequence[Float[Tensor, "b _ _ _"]]
    ) -> list[Float[Tensor, "b c _ _"]]:
        traced, found = coherent_map, []
        for refinement, stage in zip(self.refinements, reversed(stages), strict=True):
            refined, traced = refinement(traced, stage)
            found.append(refined)
        return found


class SpatialRefinement(nn.Module):
    """What is traced back meets one stage: both through a CBAM, side by side at the stage's size, then 1×1, BN, ReLU twice.

    Returns the map to predict from `[b channels h w]` and the one to trace on `[b own h w]` (None where `passes_on` is off).
    """

    def __init__(self, traced: int, own: int, channels: int, passes_on: bool) -> None:
        super().__init__()
        self.traced_gate, self.own_gate = CBAM(traced), CBAM(own)
        self.to_prediction = _pointwise(traced + own, channels)
        self.to_next = _pointwise(traced + own, own) if passes_on else None

    def forward(
        self, traced: Float[Tensor, "b c h2 w2"], own: Float[Tensor, "b c2 h w"]
    ) -> tuple[Float[Tensor, "b c3 h w"], Float[Tensor, "b c2 h w"] | None]:
        both = torch.cat([resize(self.traced_gate(traced), own.shape[-2:]), self.own_gate(own)], dim=1)
        return self.to_prediction(both), self.to_next(both) if self.to_next else None


def head(channels: int, channels_out: int) -> nn.Sequential:
    """Conv1×1, BN, ReLU, Conv1×1."""
    return nn.Sequential(*_pointwise(channels, channels), nn.Conv2d(channels, channels_out, kernel_size=1))


def _pointwise(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, kernel_size=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def _check(channels: int, window: int, depths: Sequence[int], scale: float | None) -> None:
    def positive(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value > 0

    if not positive(channels) or channels % HEADS:
        raise MultidenseError(f"channels of 'mtcp' should be an even number of at least 2 ({HEADS} heads). Found {channels!r}.")
    if not positive(window):
        raise MultidenseError(f"window of 'mtcp' should be a whole number of at least 1. Found {window!r}; the usual one is 7.")
    if isinstance(depths, str) or not isinstance(depths, Sequence) or not depths or not all(map(positive, depths)):
        raise MultidenseError(
            f"depths of 'mtcp' should be the blocks of each stage, at least one of each. Found {depths!r}; try [1, 2, 1]."
        )
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0):
        raise MultidenseError(
            f"scale of 'mtcp' should be a number above 0, or null for one over the root of the channels. Found {scale!r}."
        )
