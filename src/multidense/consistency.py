"""Cross-task consistency (XTC: Li, Liu and Bilen, CVPR 2022) and two-view consistency (ssl), regularisers for partial labels.

XTC maps what the network predicts of a task s that an image is not labelled for, and the label of a task t that it has,
into one space of the ordered pair s → t; there they are to agree, and half as much with the backbone's own feature F:

    L = Σ_{s → t} [1 − cos(m(ŷ_s), m(y_t))] + ½ ([1 − cos(m(ŷ_s), F)] + [1 − cos(m(y_t), F)])

The mapping network m is SegNet's encoder with a stem for each task, conditioned by FiLM. Nothing of it remains at inference.

Unusual: an image's loss does not depend on its batch mates. The public code maps one image at a time in training mode, where
BatchNorm is InstanceNorm; here it is called that, and all pairs of a batch run through the network at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from multidense.chance import Drawing
from multidense.models.backbones.segnet import DEPTHS, WIDTHS
from multidense.models.layers import conv3x3, initialise_convolutions
from multidense.ops import Geometry, resize
from multidense.processes import world
from multidense.task import Task, at_least_single
from multidense.types import Batch, MultidenseError, Outputs, Target


class XTC(Drawing):
    """Cross-task consistency.

    An image labelled for some tasks pairs each task that it is not labelled for with each that it is; an image labelled for
    all takes all ordered pairs. The loss is summed over the pairs and divided by the number of tasks, because the objective
    divides task losses by it: so the paper's weights keep their meaning.

    The paper's second view is the first one zoomed once more, here a second draw of the training's augmentation.

    Args:
        weight: 2 on NYUv2, 1 on Cityscapes.
        align: weight of the agreement with the backbone's feature.
        width: of the mapping network; the backbone's, as a rule.
        channels: of the backbone's feature; left out, SegNet's of this width.
        film_lr_scale: learning rate of FiLM over that of everything else: 10 on NYUv2, 0.1 on Cityscapes.
        second_view: whether the consistency is asked of a second augmented view, as published; it costs a second forward.
        recompute: whether backward makes the mapping network's maps again instead of keeping them, which are 0.8 GB a pair at
            288 × 384 and full width; it takes longer by one forward.
        ramp_up: over how many steps the weight grows from 0, evenly; 0: constant, as the paper's. From a random start the first
            step's gradient is some hundred times that of the labels (it passes back through normalisations of maps that hardly
            vary) and is gone after three. Adam's second moment keeps it for thousands of steps, which is nothing in 400 epochs,
            and all of a short training.
        seed: of the classes that are drawn from predictions.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        weight: float = 2.0,
        align: float = 0.5,
        width: float = 1.0,
        channels: int | None = None,
        film_lr_scale: float = 10.0,
        second_view: bool = True,
        recompute: bool = False,
        ramp_up: int = 100,
        seed: int = 0,
    ):
        super().__init__(tasks, weight=weight, ramp_up=ramp_up, seed=seed)
        if align < 0 or not film_lr_scale > 0:
            raise ValueError(f"expected align of at least 0 and film_lr_scale above 0, found {align} and {film_lr_scale}")
        self.align, self.film_lr_scale, self.views = align, film_lr_scale, 2 if second_view else 1
        self.mapping = MappingNetwork(tasks, width, channels, recompute) if len(tasks) > 1 else None

    @classmethod
    def for_model(cls, model: nn.Module, **settings: Any) -> XTC:
        """With a mapping network of the size of this model's backbone, if the settings do not say otherwise."""
        channels = _probe(model).shape[1]
        return cls(model.tasks, **{"channels": channels, "width": channels / WIDTHS[-1], **settings})

    def forward(self, model: nn.Module, batches: Sequence[Batch], outputs: Sequence[Outputs]) -> dict[str, Tensor]:
        batch, output = batches[self.views - 1], outputs[self.views - 1]
        generators, share = self.begin(batch.ids, batch.image.device)
        nothing = sum((parameter.sum() * 0 for parameter in self.parameters()), batch.image.new_zeros(len(batch)))
        if self.mapping is None:
            return {"consistency": nothing}
        feature = self._feature(model, batch, output)  # in every process, whatever its images are labelled for
        if world() > 1:  # BatchNorm sums over the processes backward too, so all of them pass through every task's branch
            nothing = sum((0 * logits[:, 0, 0, 0] for logits in output.logits.values()), nothing)
        pairs = ordered_pairs(self.task_names, batch)
        if not pairs:
            return {"consistency": nothing}
        images = torch.tensor([image for image, _, _ in pairs], device=feature.device)
        loss = self._pair_loss(*self._mapped(model.tasks, batch, output, generators, pairs), feature[images])
        total = torch.zeros_like(nothing).index_add(0, images, loss.to(nothing.dtype))
        return {"consistency": share * total / len(self.task_names) + nothing}

    def _mapped(
        self,
        tasks: Sequence[Task],
        batch: Batch,
        output: Outputs,
        generators: Sequence[torch.Generator],
        pairs: Sequence[tuple[int, int, int]],
    ) -> tuple[Tensor, Tensor]:
        """m(ŷ_s) and m(y_t) of every pair, `[p c h/32 w/32]` each."""
        said: dict[tuple[str, int, int], Tensor] = {}
        dtype = next(self.mapping.parameters()).dtype
        for place, task in enumerate(tasks):
            sources = sorted({image for image, source, _ in pairs if source == place})
            targets = sorted({image for image, _, target in pairs if target == place})
            inputs = []
            if sources:
                inputs.append(task.embed_logits(output.logits[task.name][sources], [generators[i] for i in sources]))
            if targets:
                label = batch.targets[task.name]
                inputs.append(task.embed(label.value[targets], label.valid[targets]))
            if inputs:
                whose = [("source", image, place) for image in sources] + [("target", image, place) for image in targets]
                said |= zip(whose, self.mapping.stems[task.name](torch.cat([one.to(dtype) for one in inputs])), strict=True)
        entries = [said["source", image, source] for image, source, _ in pairs]
        entries += [said["target", image, target] for image, _, target in pairs]
        rows = [film_row(source, target, len(tasks)) for _, source, target in pairs]
        mapped = self.mapping(torch.stack(entries), torch.tensor(rows * 2, device=entries[0].device))
        return tuple(mapped.chunk(2))

    def _pair_loss(self, source: Tensor, target: Tensor, feature: Tensor) -> Float[Tensor, " p"]:
        source, target = resize(source, tuple(feature.shape[-2:])), resize(target, tuple(feature.shape[-2:]))
        aligned = unlike(source, feature) + unlike(target, feature)
        return unlike(source, target) + self.align * aligned

    def _feature(self, model: nn.Module, batch: Batch, output: Outputs) -> Tensor:
        """F, without a gradient: the outputs' own bottleneck, where they have it, else that of the backbone run again."""
        found = getattr(output, "bottleneck", None)
        if found is None:
            with torch.no_grad(), unchanged_statistics(model.backbone):
                # forward itself, not a call: hooks that watch the training's own forward must not see this one.
                found = model.backbone.forward(batch.image).bottleneck
        if found.shape[1] != self.mapping.channels:
            raise MultidenseError(
                f"regularizers.xtc maps into {self.mapping.channels} channels, and the backbone's coarsest map has "
                f"{found.shape[1]}: set its channels to {found.shape[1]} (SegNet: set its width to that of the model)"
            )
        return found.detach().to(next(self.mapping.parameters()).dtype)

    def groups(self) -> list[dict[str, Any]]:
        """The convolutions at the training's rate, FiLM at its own."""
        film = [parameter for name, parameter in self.named_parameters() if _is_film(name)]
        rest = [parameter for name, parameter in self.named_parameters() if not _is_film(name)]
        if not rest:
            return []
        return [{"params": rest}, {"params": film, "lr_scale": self.film_lr_scale}]


class MappingNetwork(nn.Module):
    """The mapping network: a stem for each task, then SegNet's encoder, whose 13 convolutions know the ordered pair.

    At full width with 13 classes, depth and normals it has 14,819,328 parameters, 50,688 of them in FiLM.
    """

    def __init__(self, tasks: Sequence[Task], width: float = 1.0, channels: int | None = None, recompute: bool = False):
        super().__init__()
        widths = [max(1, round(full * width)) for full in WIDTHS]
        self.channels = widths[-1] = channels or widths[-1]
        self.recompute = recompute
        count = len(tasks) * (len(tasks) - 1)
        self.stems = nn.ModuleDict(
            {
                task.name: nn.Sequential(conv3x3(task.embedding_channels, widths[0]), _norm(widths[0]), nn.ReLU(inplace=True))
                for task in tasks
            }
        )
        self.stages = nn.ModuleList(
            nn.ModuleList([FiLMBlock(before, after, count), *(FiLMBlock(after, after, count) for _ in range(depth - 1))])
            for (before, after), depth in zip(pairwise([widths[0], *widths]), DEPTHS, strict=True)
        )
        initialise_convolutions(self)

    def forward(self, maps: Float[Tensor, "n c h w"], pairs: Int[Tensor, " n"]) -> Float[Tensor, "n c2 h2 w2"]:
        """What stems returned, mapped into the space of its ordered pair."""
        for stage in self.stages:
            run = partial(checkpoint, _run, use_reentrant=False) if self.recompute else _run
            maps = run(stage, maps, pairs)
        return maps


class FiLMBlock(nn.Module):
    """Conv3×3, InstanceNorm, γ_pair · x + β_pair, ReLU. `gamma` (of ones) and `beta` (of zeros) are `[channels pairs]`."""

    def __init__(self, channels_in: int, channels_out: int, pairs: int):
        super().__init__()
        self.conv, self.norm = conv3x3(channels_in, channels_out), _norm(channels_out)
        self.gamma, self.beta = nn.Parameter(torch.ones(channels_out, pairs)), nn.Parameter(torch.zeros(channels_out, pairs))

    def forward(self, maps: Float[Tensor, "n c h w"], pairs: Int[Tensor, " n"]) -> Float[Tensor, "n c2 h w"]:
        gamma, beta = self.gamma.T[pairs][..., None, None], self.beta.T[pairs][..., None, None]
        return torch.addcmul(beta, self.norm(self.conv(maps)), gamma).relu_()


def _run(stage: nn.ModuleList, maps: Tensor, pairs: Tensor) -> Tensor:
    for block in stage:
        maps = block(maps, pairs)
    return F.max_pool2d(maps, kernel_size=2, stride=2)


def ordered_pairs(names: Sequence[str], batch: Batch) -> list[tuple[int, int, int]]:
    """(image, source, target) of every image: tasks that it is not labelled for, with tasks that it is.

    All ordered pairs of an image that is labelled for all. A label that is valid nowhere is no target.
    """
    annotated = torch.stack([batch.annotated[name] for name in names])
    seen = torch.stack([batch.targets[name].valid.flatten(1).any(1) for name in names]) & annotated
    annotated, seen = annotated.T.tolist(), seen.T.tolist()
    tasks = range(len(names))
    return [
        (image, source, target)
        for image in range(len(batch))
        for source in tasks
        for target in tasks
        if source != target and seen[image][target] and (not annotated[image][source] or all(annotated[image]))
    ]


def film_row(source: int, target: int, tasks: int) -> int:
    """Place of an ordered pair among all T (T − 1)."""
    return source * (tasks - 1) + target - (target > source)


def unlike(a: Float[Tensor, "p c h w"], b: Float[Tensor, "p c h w"]) -> Float[Tensor, " p"]:
    """1 − cosine over the channels, averaged over space."""
    return 1 - F.cosine_similarity(a, b, dim=1).flatten(1).mean(1)


class TwoViews(Drawing):
    """Two-view consistency: what the first view says surely of a task that an image is not labelled for teaches the second.

    The second view is the first, zoomed at a random place. Where a task has a confidence, the value of the first view counts
    above `threshold`; else where both views agree already within the task's tolerance. Inferred: the code of XTC's authors has
    unused functions for it (0.95; a difference below 0.1 of depths, and of 1 − cos for normals), and no training.

    Args:
        weight: of its terms.
        threshold: least confidence.
        scales: zooms to choose from, none below 1.
        ramp_up: over how many steps the weight grows from 0, evenly.
        seed: of the second views.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        weight: float = 1.0,
        threshold: float = 0.95,
        scales: Sequence[float] = (1.0, 1.2, 1.5),
        ramp_up: int = 0,
        seed: int = 0,
    ):
        super().__init__(tasks, weight=weight, ramp_up=ramp_up, seed=seed)
        if not scales or min(scales) < 1:
            raise ValueError(f"scales must be one zoom or more, none below 1, found {list(scales)}")
        self.threshold, self.scales = threshold, tuple(map(float, scales))

    def forward(self, model: nn.Module, batches: Sequence[Batch], outputs: Sequence[Outputs]) -> dict[str, Tensor]:
        batch, first, size = batches[0], outputs[0], tuple(batches[0].image.shape[-2:])
        generators, share = self.begin(batch.ids, torch.device("cpu"))
        draws = [self._draw(generator, size) for generator in generators]
        grid = torch.stack([geometry.grid() for geometry in draws]).to(batch.image.device)
        # The parts' forward, not a call of the model: see XTC.
        features = model.backbone.forward(sampled_at(batch.image, grid, "bilinear"))
        second = model.decoder(features, size)
        terms = {}
        for task in model.tasks:
            logits = second.logits[task.name]
            taught = self._taught(task, first.logits[task.name].detach(), logits.detach(), grid, draws)
            unlabelled = ~batch.annotated[task.name]
            terms[task.name] = share * task.weight / len(model.tasks) * task.loss(logits, taught) * unlabelled
        return terms

    def _taught(self, task: Task, first: Tensor, second: Tensor, grid: Tensor, draws: Sequence[Geometry]) -> Target:
        """The first view's values as the second sees them, valid where they are to be believed."""
        value = task.harden(task.decode(first))
        moved = sampled_at(value, grid, "nearest")
        moved = torch.stack([task.moved_by_zoom(one, geometry.zoom) for one, geometry in zip(moved, draws, strict=True)])
        if task.has_confidence:
            return Target(moved, sampled_at(task.confidence(first), grid, "nearest") > self.threshold)
        return Target(moved, task.distance(task.decode(second), moved) <= task.tolerance)

    def _draw(self, generator: torch.Generator, size: tuple[int, int]) -> Geometry:
        scale, down, right = torch.rand(3, generator=generator).tolist()
        zoom = self.scales[int(scale * len(self.scales))]
        reach = (1 - 1 / zoom) / 2
        centre = (0.5 + reach * (2 * down - 1), 0.5 + reach * (2 * right - 1))
        return Geometry(source=size, size=size, zoom=zoom, centre=centre)


def sampled_at(maps: Tensor, grid: Float[Tensor, "b h w 2"], mode: str) -> Tensor:
    """Maps `[b c h w]` sampled at `grid`, in their own dtype."""
    exact = at_least_single(maps)
    sampled = F.grid_sample(exact, grid.to(exact.dtype), mode=mode, padding_mode="border", align_corners=False)
    return sampled.to(maps.dtype) if maps.dtype.is_floating_point else sampled.round().to(maps.dtype)


@contextmanager
def unchanged_statistics(network: nn.Module) -> Iterator[None]:
    """BatchNorm takes the batch's statistics as it did, and remembers nothing of it."""
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.training]
    before = [layer.track_running_stats for layer in layers]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer, tracked in zip(layers, before, strict=True):
            layer.track_running_stats = tracked


def _probe(model: nn.Module) -> Tensor:
    """The backbone's coarsest map of an empty image."""
    modes = [(module, module.training) for module in model.backbone.modules()]
    model.backbone.eval()
    try:
        weight = next(model.backbone.parameters())
        with torch.no_grad():
            side = model.backbone.minimum_size
            return model.backbone.forward(weight.new_zeros(1, 3, side, side)).bottleneck
    finally:
        for module, training in modes:
            module.training = training


def _norm(channels: int) -> nn.InstanceNorm2d:
    return nn.InstanceNorm2d(channels, affine=True)


def _is_film(name: str) -> bool:
    return name.rpartition(".")[2] in ("gamma", "beta")
