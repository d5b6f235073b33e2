"""Joined: several data sets with images of their own as one, each labelled for what it has.

    >>> train = Joined({"streets": Folder(streets, "train", size=size), "people": Folder(people, "train", size=size)}, "sqrt")
    >>> train.ids[0], train.collection_of(0), train.annotated(0)
    ('streets/0001', 'streets', frozenset({'semseg'}))

What one collection does not label, no image of it is annotated for; a network with all tasks learns each where it is told.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import accumulate
from typing import Literal, get_args

import numpy as np

from multidense.data.reader import Reader, Wrapped
from multidense.data.subset import evenly
from multidense.suggest import nearest
from multidense.task import Task
from multidense.types import MultidenseError, Sample

Rule = Literal["size", "equal", "sqrt"]


class Joined(Reader):
    """Several named readers of one split, one after the other; an image's id is `collection/id`.

    `sampling` says how an epoch, as long as there are images, is shared out between the collections: by "size" every image
    comes once; "equal" takes as many of each; "sqrt" goes by the square root of their sizes; or explicit shares by name, such
    as `{"streets": 2, "people": 1}`. A collection's images are drawn without repetition until all were seen, then anew; where
    an epoch leaves some over, the next one goes on with them.

    Readers that do not agree about a task they share, or that have images of different `size`, are refused.
    """

    def __init__(self, readers: Mapping[str, Reader], sampling: str | Mapping[str, float] = "size", name: str | None = None):
        if not readers:
            raise MultidenseError("Joined: expected one collection or more, found none")
        for one in readers:
            if not one or "/" in one:
                raise MultidenseError(f"Joined: the name of a collection should be a word without a slash, found {one!r}")
        self.readers = dict(readers)
        self.collections = tuple(self.readers)
        self.name, self.split = name or " + ".join(self.readers), next(iter(self.readers.values())).split
        self.sampling = dict(sampling) if isinstance(sampling, Mapping) else sampling
        check_sampling(self.sampling, self.collections)
        check_agreement({one: (reader.tasks, reader.class_names) for one, reader in self.readers.items()})
        self._same("split", {one: reader.split for one, reader in self.readers.items()})
        told = {one: reader.provenance().get("size") for one, reader in self.readers.items()}
        self._same("size", {one: "×".join(map(str, size)) if size else "each image's own" for one, size in told.items()})
        self.size = next(iter(told.values()))

        tasks: dict[str, Task] = {}
        names: dict[str, tuple[str, ...]] = {}
        for reader in self.readers.values():
            tasks = tasks | {task.name: task for task in reader.tasks if task.name not in tasks}
            names = dict(reader.class_names) | names
        self.tasks, self.class_names = tuple(tasks.values()), names
        self.ids = [f"{one}/{image}" for one, reader in self.readers.items() for image in reader.ids]
        self._ends = list(accumulate(len(reader) for reader in self.readers.values()))

    def collection_of(self, index: int) -> str:
        return self.collections[self._number(index)]

    def annotated(self, index: int) -> frozenset[str]:
        reader, place = self._at(index)
        return reader.annotated(place)

    def load(self, index: int, tasks: Iterable[str]) -> Sample:
        reader, place = self._at(index)
        return replace(reader.load(place, tasks), id=self.ids[index])

    def order(self, seed: int, epoch: int, among: Sequence[int] | None = None) -> list[int]:
        if self.sampling == "size":
            return super().order(seed, epoch, among)
        members: list[list[int]] = [[] for _ in self.collections]
        for place, index in enumerate(range(len(self)) if among is None else among):
            members[self._number(index)].append(place)
        sizes = {one: len(own) for one, own in zip(self.collections, members, strict=True) if own}
        wanted = quotas(sizes, self.sampling)
        drawn = np.concatenate(
            [
                _stretch(own, wanted[one], epoch, (seed, number))
                for number, (one, own) in enumerate(zip(self.collections, members, strict=True))
                if own
            ]
        )
        return np.random.default_rng((seed, epoch)).permutation(drawn).tolist()

    def provenance(self) -> dict:
        return {
            "reader": "Joined",
            "name": self.name,
            "split": self.split,
            "length": len(self),
            "size": self.size,
            "tasks": [task.name for task in self.tasks],
            "labelled": {
                task.name: sum(task.name in self.annotated(index) for index in range(len(self))) for task in self.tasks
            },
            "sampling": self.sampling,
            "collections": {one: reader.provenance() for one, reader in self.readers.items()},
        }

    def _number(self, index: int) -> int:
        """Which collection an image belongs to, counted from 0."""
        return bisect_right(self._ends, range(len(self))[index])

    def _at(self, index: int) -> tuple[Reader, int]:
        """An image's reader, and its index there."""
        number, index = self._number(index), range(len(self))[index]
        return self.readers[self.collections[number]], index - (self._ends[number - 1] if number else 0)

    def _same(self, what: str, said: Mapping[str, str]) -> None:
        (first, ours), *others = said.items()
        for other, theirs in others:
            if theirs != ours:
                raise MultidenseError(
                    f"the collections of one reader should have one {what}, found {ours} ('{first}') and {theirs} ('{other}'). "
                    f"Give all of them the same {what}."
                )


class Listed(Wrapped):
    """A joined reader that shows of each collection only the labels of the tasks that `listed` names for it."""

    def __init__(self, reader: Reader, listed: Mapping[str, Sequence[str]]):
        super().__init__(reader)
        self.listed = {one: frozenset(names) for one, names in listed.items()}

    def annotated(self, index: int) -> frozenset[str]:
        return self.reader.annotated(index) & self.listed.get(self.collection_of(index), frozenset())

    def load(self, index: int, tasks: Iterable[str]) -> Sample:
        return self.reader.load(index, self.annotated(index).intersection(tasks))

    def provenance(self) -> dict:
        return self.reader.provenance() | {"listed": {one: sorted(names) for one, names in self.listed.items()}}


def quotas(sizes: Mapping[str, int], sampling: str | Mapping[str, float]) -> dict[str, int]:
    """How many images an epoch takes of each collection of so many: together as many as there are, at least one of each.

    The exact shares are rounded down, and what is left goes to the largest remainders.
    """
    total = sum(sizes.values())
    weight = {
        one: float(sampling[one])
        if isinstance(sampling, Mapping)
        else {"size": float(size), "equal": 1.0, "sqrt": math.sqrt(size)}[sampling]
        for one, size in sizes.items()
    }
    exact = {one: total * value / sum(weight.values()) for one, value in weight.items()}
    wanted = {one: math.floor(share + 1e-9) for one, share in exact.items()}
    by_remainder = sorted(sizes, key=lambda one: wanted[one] - exact[one])
    for one in by_remainder[: total - sum(wanted.values())]:
        wanted[one] += 1
    for one in [one for one in sizes if not wanted[one]]:
        wanted[max(wanted, key=wanted.__getitem__)] -= 1
        wanted[one] = 1
    return wanted


def check_sampling(sampling: str | Mapping[str, float], collections: Sequence[str]) -> None:
    """Refuse a sampling that is no rule, or shares that are not positive or not of just these collections."""
    if not isinstance(sampling, Mapping):
        if sampling not in get_args(Rule):
            rules = ", ".join(f"'{rule}'" for rule in get_args(Rule))
            raise MultidenseError(f"sampling should be {rules} or a share for each collection, found {sampling!r}")
        return
    for one, share in sampling.items():
        if one not in collections:
            raise MultidenseError(
                f"sampling: there is no collection {one!r}{nearest(one, collections)}; there are {', '.join(collections)}"
            )
        if not 0 < share < math.inf:
            raise MultidenseError(f"sampling: the share of '{one}' should be positive, found {share}; else leave it out of all")
    for one in collections:
        if one not in sampling:
            raise MultidenseError(f"sampling: the collection '{one}' has no share; give it one, as the others have")


def check_agreement(collections: Mapping[str, tuple[Sequence[Task], Mapping[str, tuple[str, ...]]]]) -> None:
    """Refuse tasks, with the class names that are known, about which two collections say different things."""
    known: dict[str, tuple[str, Task, tuple[str, ...] | None]] = {}
    for one, (tasks, class_names) in collections.items():
        for task in tasks:
            names = class_names.get(task.name)
            other, theirs, their_names = known.setdefault(task.name, (one, task, names))
            different = _difference(theirs, task) or _other_names(their_names, names)
            if different:
                what, before, now = different
                raise MultidenseError(
                    f"the collections '{other}' and '{one}' do not agree about '{task.name}': {what} {before} and {now}. "
                    "Bring both to one meaning (class ids with `remap` in a description), or leave the task out of one of "
                    "them with `tasks`."
                )
            if their_names is None and names is not None:
                known[task.name] = (one, task, names)


def spread(reader: Reader, count: int) -> list[int]:
    """About `count` images to look at, evenly spread; where the reader is joined, as many of each collection, at least one."""
    if not reader.collections:
        return evenly(len(reader), count)
    members = {one: [] for one in reader.collections}
    for index in range(len(reader)):
        members[reader.collection_of(index)].append(index)
    share = -(-count // max(sum(map(bool, members.values())), 1))
    return [own[place] for own in members.values() for place in evenly(len(own), share)]


def _stretch(own: Sequence[int], count: int, epoch: int, seed: tuple[int, int]) -> np.ndarray:
    """The `count` members of an epoch, out of endlessly many shufflings of all, one after the other."""
    first, last = epoch * count, (epoch + 1) * count
    passes = range(first // len(own), -(-last // len(own)))
    shuffled = [np.random.default_rng((*seed, number, 1)).permutation(own) for number in passes]
    begin = first - passes.start * len(own)
    return np.concatenate(shuffled)[begin : begin + count]


def _difference(one: Task, other: Task) -> tuple[str, object, object] | None:
    """The first thing in which two tasks of one name differ, and what each says."""
    if type(one) is not type(other):
        return "type", type(one).__name__, type(other).__name__
    for setting in (setting.name for setting in fields(one) if setting.compare):
        if getattr(one, setting) != getattr(other, setting):
            return setting, getattr(one, setting), getattr(other, setting)
    return ("channels", one.channels, other.channels) if one.channels != other.channels else None


def _other_names(ours: Sequence[str] | None, theirs: Sequence[str] | None) -> tuple[str, object, object] | None:
    """The first class that two lists of names call differently."""
    if ours is None or theirs is None or tuple(ours) == tuple(theirs):
        return None
    number = next((place for place, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    if number is None:
        return "classes", len(ours), len(theirs)
    return f"class {number} is", f"'{ours[number]}'", f"'{theirs[number]}'"
