"""Cross-task contrast (CCR: Yang, Ye and Xu, Contrastive Multi-Task Dense Prediction, AAAI 2023), a regulariser.

In every step each target task t draws a source task s, among those that an image is labelled for. The label of s says which
pixels are alike and which differ; the task feature of t, through a projector of the ordered pair, is to say the same, by a
triplet loss. Only s needs a label, t needs none. Nothing of it remains at inference.

Inferred: there is no public code. What is known is the above; thresholds (`Task.contrast`), projector, sampling, margin and
weight are ours. The projector has LayerNorm where one would expect BatchNorm, so that an image does not depend on batch mates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from multidense.chance import Drawing
from multidense.task import Task
from multidense.types import Batch, MultidenseError, Outputs, Target


class CCR(Drawing):
    """Cross-task contrastive regularisation: the mean over target tasks of a triplet loss on their features.

    Args:
        weight: of the loss.
        channels: of the task features: one number, or one a task; 64 is SegNet's at full width.
        width: channels of the space that is contrasted in.
        margin: by how much, in squared distance of unit vectors, what differs is to lie further away than what is alike.
        anchors: pixels an image that are compared with one another, the categories of a label equally often.
        discovered: whether a discovered label may be a source where there is no other.
        ramp_up: over how many steps the weight grows from 0, evenly.
        seed: of sources and pixels.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        weight: float = 0.1,
        channels: int | Mapping[str, int] = 64,
        width: int = 128,
        margin: float = 0.3,
        anchors: int = 256,
        discovered: bool = False,
        ramp_up: int = 0,
        seed: int = 0,
    ):
        super().__init__(tasks, weight=weight, ramp_up=ramp_up, seed=seed)
        if width < 1 or anchors < 3 or not margin > 0:
            raise ValueError(
                f"expected width of at least 1, anchors of at least 3 and margin above 0, found {width}, {anchors} and {margin}"
            )
        self.margin, self.anchors, self.discovered = margin, anchors, discovered
        self.channels = dict(channels) if isinstance(channels, Mapping) else dict.fromkeys(self.task_names, channels)
        if set(self.channels) != set(self.task_names):
            raise ValueError(f"channels should name the tasks {', '.join(self.task_names)}, found {', '.join(self.channels)}")
        self.projectors = nn.ModuleDict(
            {
                _pair(target, source): nn.Sequential(
                    nn.Linear(self.channels[target], width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width)
                )
                for target in self.task_names
                for source in self.task_names
                if source != target
            }
        )

    @classmethod
    def for_model(cls, model: nn.Module, **settings: Any) -> CCR:
        """With projectors that fit this model's task features, if the settings do not say otherwise."""
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            side = model.backbone.minimum_size
            with torch.no_grad():
                features = model(next(model.parameters()).new_zeros(1, 3, side, side)).features
        finally:
            for module, training in modes:
                module.training = training
        return cls(model.tasks, **{"channels": {name: maps.shape[1] for name, maps in features.items()}, **settings})

    def forward(self, model: nn.Module, batches: Sequence[Batch], outputs: Sequence[Outputs]) -> dict[str, Tensor]:
        batch, device = batches[0], batches[0].image.device
        generators, share = self.begin(batch.ids, torch.device("cpu"))
        tasks = {task.name: task for task in model.tasks}
        labels = {task.name: self._label(task, batch) for task in model.tasks}
        total = sum((parameter.sum() * 0 for parameter in self.parameters()), batch.image.new_zeros(len(batch)))
        for (target, source), images in self._pairs(labels, generators).items():
            seeds = [int(torch.randint(2**62, (), generator=generators[image])) for image in images]
            drawn = [torch.Generator(device).manual_seed(seed) for seed in seeds]
            chosen = torch.tensor(images, device=device)
            features, label = self._features(outputs[0], target)[chosen], labels[source]
            label = Target(label.value[chosen], label.valid[chosen])
            loss = self._contrast(features, tasks[source], label, self.projectors[_pair(target, source)], drawn)
            total = total.index_add(0, chosen, loss.to(total.dtype) / len(tasks))
        return {"contrast": share * total}

    def _label(self, task: Task, batch: Batch) -> Target:
        """What is known of a task, with its discovered labels if these may serve."""
        known, found = batch.targets[task.name], batch.discovered.get(task.name)
        if not self.discovered or found is None:
            return known
        labelled = batch.annotated[task.name][:, None, None, None]
        return Target(torch.where(labelled, known.value, found.value), torch.where(labelled, known.valid, found.valid))

    def _pairs(self, labels: Mapping[str, Target], generators: Sequence[torch.Generator]) -> dict[tuple[str, str], list[int]]:
        """The images of each (target, source): every image draws a source for every target, among what it has labels of."""
        known = torch.stack([label.valid.flatten(1).any(1) for label in labels.values()]).T.tolist()
        pairs: dict[tuple[str, str], list[int]] = {}
        for image, (has, generator) in enumerate(zip(known, generators, strict=True)):
            for target in labels:
                sources = [name for name, there in zip(labels, has, strict=True) if there and name != target]
                if sources:
                    source = sources[int(torch.randint(len(sources), (), generator=generator))]
                    pairs.setdefault((target, source), []).append(image)
        return pairs

    def _features(self, output: Outputs, name: str) -> Tensor:
        if name not in output.features:
            raise MultidenseError(f"regularizers.ccr contrasts task features, and this decoder returns none for '{name}'")
        found = output.features[name].shape[1]
        if found != self.channels[name]:
            raise MultidenseError(
                f"regularizers.ccr expects task features of {self.channels[name]} channels, found {found} for '{name}': "
                f"set its channels to {found}"
            )
        return output.features[name]

    def _contrast(
        self, features: Tensor, task: Task, label: Target, projector: nn.Module, generators: Sequence[torch.Generator]
    ) -> Float[Tensor, " n"]:
        size = features.shape[-2:]
        if label.value.shape[-2:] != size:
            value = F.interpolate(label.value.float(), size=size, mode="nearest").to(label.value.dtype)
            label = Target(value, F.interpolate(label.valid.float(), size=size, mode="nearest").bool())
        value = label.value.masked_fill(~label.valid, 0)  # legal for what is only looked at where it is valid
        groups = task.groups(value) if len(task.group_names) > 1 else torch.zeros_like(value[:, 0], dtype=torch.long)
        sizes = (len(task.group_names), self.anchors)
        places, there = pixels(groups.flatten(1), label.valid.flatten(1), *sizes, generators)

        def at(maps: Tensor) -> Tensor:
            return maps.flatten(2).gather(2, places[:, None].expand(-1, maps.shape[1], -1))

        dtype = next(projector.parameters()).dtype
        vectors = F.normalize(projector(at(features).to(dtype).transpose(1, 2)), dim=-1)
        values, count = at(value), places.shape[1]
        ours = values[..., None].expand(-1, -1, -1, count)
        apart = task.label_distance(ours, ours.transpose(2, 3))[:, 0]
        chance = torch.stack([torch.rand(count, count, generator=one, device=features.device) for one in generators])
        close, far = task.contrast
        both = there[:, :, None] & there[:, None, :]
        return triplets(vectors, both & (apart <= close), both & (apart >= far), chance, self.margin)


def pixels(
    groups: Int[Tensor, "n p"], valid: Bool[Tensor, "n p"], count: int, most: int, generators: Sequence[torch.Generator]
) -> tuple[Int[Tensor, "n a"], Bool[Tensor, "n a"]]:
    """Places of up to `most` valid pixels of each image, without repetition, each of `count` groups as likely as another.

    The second says which of them there are: an image may have fewer.
    """
    sizes = torch.zeros(len(groups), count, device=groups.device).scatter_add_(1, groups, valid.float())
    waits = torch.stack(
        [torch.empty(groups.shape[1], device=groups.device).exponential_(generator=each) for each in generators]
    )
    waits = (waits * sizes.gather(1, groups)).masked_fill(~valid, float("inf"))
    shortest, places = waits.topk(min(most, groups.shape[1]), dim=1, largest=False)
    return places, shortest.isfinite()


def triplets(
    vectors: Float[Tensor, "n a c"],
    alike: Bool[Tensor, "n a a"],
    different: Bool[Tensor, "n a a"],
    chance: Float[Tensor, "n a a"],
    margin: float,
) -> Float[Tensor, " n"]:
    """The mean triplet loss of every image's anchors, each with a positive by `chance` and its semi-hard negative.

    Semi-hard is the nearest one that lies further away than the positive, else the furthest. An anchor without both does not
    count, and an image without such anchors has a loss of 0. `vectors` are of length one.
    """
    squared = (2 - 2 * vectors @ vectors.transpose(1, 2)).clamp(min=0)
    alike = alike & ~torch.eye(vectors.shape[1], dtype=torch.bool, device=vectors.device)
    positive = chance.masked_fill(~alike, -1).argmax(2, keepdim=True)
    near = squared.gather(2, positive)[..., 0]
    further = different & (squared > near[..., None])
    nearest = squared.masked_fill(~further, 5.0).amin(2)
    furthest = squared.masked_fill(~different, -1.0).amax(2)
    counts = alike.any(2) & different.any(2)
    loss = (near - torch.where(further.any(2), nearest, furthest) + margin).relu() * counts
    return loss.sum(1) / counts.sum(1).clamp(min=1)


def _pair(target: str, source: str) -> str:
    return f"{target} by {source}"
