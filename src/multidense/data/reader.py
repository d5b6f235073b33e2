"""The contract of a reader, its samples in groups, the base of everything wrapped around one, and a memory with a limit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
from torch.utils.data import Dataset

from multidense.task import Task
from multidense.types import Sample


class Reader(Dataset, ABC):
    """Turns one data set's files into samples.

    `ids` are unique and as many as there are samples. `class_names` gives reports the names of a task's classes, where known.
    `collections` are the data sets that a reader is joined of, by name; empty where it is one.
    """

    name: str
    split: str
    tasks: tuple[Task, ...]
    ids: Sequence[str]
    class_names: Mapping[str, tuple[str, ...]]
    collections: Sequence[str] = ()

    @abstractmethod
    def annotated(self, index: int) -> frozenset[str]:
        """The tasks this image is labelled for. Cheap: no label is read."""

    @abstractmethod
    def load(self, index: int, tasks: Iterable[str]) -> Sample:
        """The image and the targets of those of `tasks` it is annotated for; the files of other tasks are not opened."""

    @abstractmethod
    def provenance(self) -> dict:
        """What was read, as plain data for results: name, split, length, size, settings."""

    def collection_of(self, index: int) -> str | None:
        """The collection that an image belongs to; None where the reader is not joined of several."""
        return None

    def order(self, seed: int, epoch: int, among: Sequence[int] | None = None) -> list[int]:
        """What a training sees in an epoch, in this order: a function of (seed, epoch) alone, as long as there are images.

        `among`: only these images are there; what is returned are then places in this list. Here every image comes once.
        """
        return np.random.default_rng((seed, epoch)).permutation(len(self) if among is None else len(among)).tolist()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        return self.load(index, self.annotated(index))


def batches(reader: Reader, size: int, labels: bool = True) -> Iterator[tuple[list[int], list[Sample]]]:
    """Samples in order, up to `size` of the same height and width and collection; without `labels` no label is read."""
    indices: list[int] = []
    samples: list[Sample] = []
    for index in range(len(reader)):
        sample = reader[index] if labels else reader.load(index, ())
        full = len(samples) == size
        if samples and (full or sample.image.shape != samples[0].image.shape or _apart(reader, index, indices[0])):
            yield indices, samples
            indices, samples = [], []
        indices.append(index)
        samples.append(sample)
    if samples:
        yield indices, samples


def _apart(reader: Reader, index: int, other: int) -> bool:
    return reader.collection_of(index) != reader.collection_of(other)


class Wrapped(Reader):
    """A reader around another one; what a subclass does not change is passed through. An image keeps its id."""

    def __init__(self, reader: Reader):
        self.reader = reader
        self.name, self.split, self.tasks, self.ids = reader.name, reader.split, reader.tasks, reader.ids
        self.class_names, self.collections = reader.class_names, reader.collections

    @cached_property
    def _inner(self) -> Sequence[int]:
        """Which image of the inner reader each one is."""
        if self.ids is self.reader.ids:
            return range(len(self.ids))
        places = {one: index for index, one in enumerate(self.reader.ids)}
        return [places[one] for one in self.ids]

    def collection_of(self, index: int) -> str | None:
        return self.reader.collection_of(self._inner[index]) if self.collections else None

    def order(self, seed: int, epoch: int, among: Sequence[int] | None = None) -> list[int]:
        return self.reader.order(seed, epoch, [self._inner[index] for index in (range(len(self)) if among is None else among)])

    def annotated(self, index: int) -> frozenset[str]:
        return self.reader.annotated(index)

    def load(self, index: int, tasks: Iterable[str]) -> Sample:
        return self.reader.load(index, tasks)

    def provenance(self) -> dict:
        return self.reader.provenance()


class Memory:
    """Groups of arrays, made once and kept until `limit` bytes are held; those beyond are made anew every time.

    It is left behind when its reader is pickled, so worker processes that are not forked begin with an empty one.
    """

    def __init__(self, limit: int = 2 << 30):
        self.limit, self.held = limit, 0
        self._kept: dict[Hashable, Mapping[str, np.ndarray]] = {}

    def recall(self, key: Hashable, make: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        """What is kept under `key`, made now if it is not."""
        arrays = self._kept.get(key)
        if arrays is None:
            arrays = make()
            size = sum(array.nbytes for array in arrays.values())
            if self.held + size <= self.limit:
                self._kept[key] = arrays
                self.held += size
        return arrays

    def __getstate__(self) -> dict:
        return {"limit": self.limit, "held": 0, "_kept": {}}
