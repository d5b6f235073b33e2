"""What a training is fed with: the images of each step in their order, this process's part of them, one or two views."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from multidense.data import Augment, Augmented, Reader, collate
from multidense.processes import Share
from multidense.task import Task
from multidense.types import Batch, Sample

SECOND_VIEW = 1 << 32
"""Added to the seed of augmentation for an image's second view."""
AGAIN = 1 << 40
"""Added to it each further time that an image comes in one epoch."""


class Feed:
    """The batches of every epoch of `data`, a function of (seed, epoch) however many processes and workers there are.

    Args:
        data: the reader, with whatever was discovered for it.
        augment: what is drawn for each image.
        seed: of order and augmentation.
        batch_size: images a step, over all processes together.
        tasks: what batches are collated for.
        views: how many differently augmented views of each image.
        workers: processes that load beside the training.
    """

    def __init__(
        self, data: Reader, augment: Augment, seed: int, batch_size: int, tasks: Sequence[Task], views: int, workers: int
    ):
        self.views = [Augmented(data, augment, seed + SECOND_VIEW * view) for view in range(views)]
        self.seed, self.size, self.workers = seed, batch_size, workers
        self.collate = _Collate(tuple(task.with_codebook(None) for task in tasks))

    @property
    def per_epoch(self) -> int:
        """Steps an epoch; the last one takes what is left."""
        return -(-len(self.views[0]) // self.size)

    def order(self, epoch: int) -> list[int]:
        """The order of the images in an epoch, as their reader has it."""
        return self.views[0].order(self.seed, epoch)

    def batches(self, epoch: int, first: int, fabric, views: int | None = None) -> Iterator[tuple[list[Batch], Share]]:
        """The steps of an epoch from step `first` on: a batch for each view, of this process's images."""
        chosen = self.views[:views]
        for view in chosen:
            view.set_epoch(epoch)
        drawn = numbered(self.order(epoch))[first * self.size :]
        indices, shares = parts(drawn, self.size, fabric.global_rank, fabric.world_size)
        loader = DataLoader(
            _Views(chosen),
            batch_sampler=indices,
            num_workers=self.workers,
            collate_fn=self.collate,
            generator=torch.Generator(),  # or making the iterator would draw from the global one
        )
        for batches, share in zip(loader, shares, strict=True):
            yield [batch.to(fabric.device) for batch in batches], share


def numbered(order: Sequence[int]) -> list[tuple[int, int]]:
    """Each image with how often it came before in this order."""
    seen: Counter[int] = Counter()
    drawn = []
    for index in order:
        drawn.append((index, seen[index]))
        seen[index] += 1
    return drawn


T = TypeVar("T")


def parts(order: Sequence[T], size: int, rank: int, world: int) -> tuple[list[list[T]], list[Share]]:
    """Of every `size` images in their order, those of process `rank` of `world`, as evenly as they can be divided.

    An empty part is one image that does not count.
    """
    wholes = [list(order[begin : begin + size]) for begin in range(0, len(order), size)]
    mine = [whole[len(whole) * rank // world : len(whole) * (rank + 1) // world] for whole in wholes]
    shares = [Share(len(whole), counts=bool(part)) for whole, part in zip(wholes, mine, strict=True)]
    return [part or whole[:1] for whole, part in zip(wholes, mine, strict=True)], shares


class _Views(Dataset):
    """Each image as often as there are views of it; its augmentation is another one each time that it comes in an epoch."""

    def __init__(self, views: Sequence[Augmented]):
        self.views = views

    def __len__(self) -> int:
        return len(self.views[0])

    def __getitem__(self, drawn: tuple[int, int]) -> list[Sample]:
        index, before = drawn
        return [_again(view, before)[index] for view in self.views]


def _again(view: Augmented, before: int) -> Augmented:
    """The view with the draws of an image that came `before` so many times; the epoch stays shared."""
    if not before:
        return view
    other = copy.copy(view)
    other.seed = view.seed + AGAIN * before
    return other


@dataclass(frozen=True)
class _Collate:
    """`collate` with its tasks, in a form that worker processes can be sent."""

    tasks: tuple

    def __call__(self, samples: list[list[Sample]]) -> list[Batch]:
        return [collate(list(view), self.tasks) for view in zip(*samples, strict=True)]
