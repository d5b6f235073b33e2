"""Fewer images, or fewer tasks, of a reader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from multidense.data.reader import Reader, Wrapped
from multidense.types import Sample


class Subset(Wrapped):
    """Some images of a reader, by index, in the order given."""

    def __init__(self, reader: Reader, indices: Sequence[int]):
        super().__init__(reader)
        self.indices = list(indices)
        self.ids = [reader.ids[index] for index in self.indices]

    def annotated(self, index: int) -> frozenset[str]:
        return self.reader.annotated(self.indices[index])

    def load(self, index: int, tasks: Iterable[str]) -> Sample:
        return self.reader.load(self.indices[index], tasks)

    def provenance(self) -> dict:
        return self.reader.provenance() | {"images": len(self)}


class Tasks(Wrapped):
    """A reader that knows some of its tasks only."""

    def __init__(self, reader: Reader, names: Iterable[str]):
        super().__init__(reader)
        self.tasks = tuple(task for task in reader.tasks if task.name in set(names))
        self._names = frozenset(task.name for task in self.tasks)

    def annotated(self, index: int) -> frozenset[str]:
        return self.reader.annotated(index) & self._names

    def load(self, index: int, tasks: Iterable[str]) -> Sample:
        return self.reader.load(index, self._names & set(tasks))

    def provenance(self) -> dict:
        return self.reader.provenance() | {"tasks": sorted(self._names)}


def evenly(length: int, wanted: int | None) -> list[int]:
    """`wanted` of `length` indices, evenly spread; all where not so many are there or none are asked for."""
    if wanted is None or wanted >= length:
        return list(range(length))
    return [index * length // wanted for index in range(wanted)]
