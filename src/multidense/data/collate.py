"""Samples to batch: every task present, whatever each image is labelled for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from multidense.task import Task
from multidense.types import Batch, FeatureTarget, MultidenseError, Sample, Target


def collate(samples: Sequence[Sample], tasks: Sequence[Task]) -> Batch:
    """One batch of samples of one size; what a sample has not, in `targets` or `discovered`, is valid nowhere.

    `features` holds the tasks that at least one sample has features of; the others' are zero, with confidence zero.
    """
    size = tuple(samples[0].image.shape[-2:])
    for sample in samples:
        if tuple(sample.image.shape[-2:]) != size:
            (height, width), (h, w) = size, sample.image.shape[-2:]
            raise MultidenseError(
                f"images of one batch should have one size, found {height}x{width} ('{samples[0].id}') and {h}x{w} "
                f"('{sample.id}'). Set `size` in the reader or in the augmentation, or use a batch size of one."
            )
    return Batch(
        image=torch.stack([sample.image for sample in samples]),
        clean=torch.stack([sample.image if sample.clean is None else sample.clean for sample in samples]),
        targets={task.name: _stacked([sample.targets for sample in samples], task, size) for task in tasks},
        annotated={task.name: torch.tensor([task.name in sample.targets for sample in samples]) for task in tasks},
        discovered={task.name: _stacked([sample.discovered for sample in samples], task, size) for task in tasks},
        features={
            task.name: _stacked_features(samples, task.name)
            for task in tasks
            if any(task.name in sample.features for sample in samples)
        },
        ids=[sample.id for sample in samples],
    )


def _stacked(found: Sequence[Mapping[str, Target]], task: Task, size: tuple[int, int]) -> Target:
    absent = None if all(task.name in targets for targets in found) else task.unlabelled(size)
    present = [targets.get(task.name, absent) for targets in found]
    value, valid = torch.stack([target.value for target in present]), torch.stack([target.valid for target in present])
    if all(target.weight is None for target in present):
        return Target(value, valid)
    one = torch.ones(1, *size)
    return Target(value, valid, torch.stack([one if target.weight is None else target.weight for target in present]))


def _stacked_features(samples: Sequence[Sample], name: str) -> FeatureTarget:
    present = [sample.features[name] for sample in samples if name in sample.features]
    model = present[0]
    if any((one.stride, one.own) != (model.stride, model.own) or one.value.shape != model.value.shape for one in present):
        found = ", ".join(sorted({f"{list(one.value.shape)} at stride {one.stride}" for one in present}))
        raise MultidenseError(
            f"the saved features of '{name}' in one batch should have one shape and stride, found {found}. "
            "Discover them anew with one model and one size."
        )
    absent = replace(model, value=torch.zeros_like(model.value), confidence=torch.zeros_like(model.confidence))
    padded = [sample.features.get(name, absent) for sample in samples]
    return replace(
        model,
        value=torch.stack([one.value for one in padded]),
        confidence=torch.stack([one.confidence for one in padded]),
    )
