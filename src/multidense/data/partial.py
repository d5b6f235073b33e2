"""Who is labelled for what: label settings, the tables that record them, and readers that hide the rest.

    >>> reader = partial.one_label(Rooms(tasks, "train"), seed=0)      # every image keeps one of its labels
    >>> reader.assignment.to_csv("labels.csv")                         # a table anybody can read
    >>> reader = partial.from_csv(Rooms(tasks, "train"), "labels.csv") # and anybody can bring

What a setting hides is never read: `load` passes only the remaining task names on to the reader.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np

from multidense.data.reader import Reader, Wrapped
from multidense.files import write_text
from multidense.types import MultidenseError, Sample

ID_COLUMNS = ("id", "image", "index")
"""What the first column of a table may be called."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """The label assignment: `table` bool `[images tasks]`, true where an image's label for a task may be used."""

    ids: tuple[str, ...]
    tasks: tuple[str, ...]
    table: np.ndarray
    scheme: str = "unknown"
    seed: int | None = None

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the table as it is written, without its comments."""
        return hashlib.sha256(self._rows().encode()).hexdigest()[:16]

    def counts(self) -> dict[str, int]:
        """Number of labelled images of every task."""
        return {task: int(count) for task, count in zip(self.tasks, self.table.sum(0), strict=True)}

    def to_csv(self, path: str | Path) -> None:
        """Write the table: a comment that says where it came from, the header, a row of 0 and 1 for every image."""
        counts = " ".join(f"{task}={count}" for task, count in self.counts().items())
        head = f"# scheme: {self.scheme}" + ("" if self.seed is None else f", seed: {self.seed}")
        write_text(Path(path), f"{head}, hash: {self.hash}\n# labelled images: {counts}\n{self._rows()}")

    @classmethod
    def from_csv(cls, path: str | Path) -> Assignment:
        """Read such a table, or one from elsewhere: no comments needed, the first column called id, image or index."""
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise MultidenseError(f"{path} cannot be read as a table of labels: {error}") from error
        start = next((number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
        said = dict(part.split(":", 1) for line in lines[:start] for part in line.lstrip("# ").split(",") if ":" in part)
        said = {key.strip(): value.strip() for key, value in said.items()}
        seed = said.get("seed", "")
        rows = csv.reader(lines[start:])
        header = [cell.strip() for cell in next(rows, [])]
        if len(header) < 2 or header[0] not in ID_COLUMNS or len(set(header)) < len(header) or "" in header:
            raise MultidenseError(
                f"{path}, line {start + 1}: the header should be `id` and then one column a task, separated by commas, "
                f"found '{','.join(header)}'"
            )
        ids: dict[str, int] = {}
        table: list[list[bool]] = []
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            line, (name, *marks) = start + rows.line_num, (cell.strip() for cell in row)
            if len(marks) != len(header) - 1:
                raise MultidenseError(f"{path}, line {line}: expected {len(header)} columns, found {len(row)}")
            if set(marks) - {"0", "1"}:
                wrong = next(mark for mark in marks if mark not in ("0", "1"))
                raise MultidenseError(f"{path}, line {line} ('{name}'): expected 0 or 1, found '{wrong}'")
            if name in ids:
                raise MultidenseError(f"{path}, line {line}: '{name}' stands in line {ids[name]} already. Remove one.")
            ids[name] = line
            table.append([mark == "1" for mark in marks])
        return cls(
            ids=tuple(ids),
            tasks=tuple(header[1:]),
            table=np.array(table, bool).reshape(len(ids), len(header) - 1),
            scheme=said.get("scheme", "unknown"),
            seed=int(seed) if seed.isdecimal() else None,
        )

    def _rows(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["id", *self.tasks])
        writer.writerows([name, *row] for name, row in zip(self.ids, self.table.astype(int).tolist(), strict=True))
        return text.getvalue()


class Partial(Wrapped):
    """A reader that shows only the labels its assignment allows, of the images that the assignment lists, in its order."""

    def __init__(self, reader: Reader, assignment: Assignment, origin: str | Path = "the label assignment"):
        super().__init__(reader)
        places = {name: index for index, name in enumerate(reader.ids)}
        _refuse(origin, "lists ids that are not in", [name for name in assignment.ids if name not in places], reader)
        self.assignment, self.ids = assignment, assignment.ids
        self._places = [places[name] for name in assignment.ids]
        self._shown = [
            frozenset(task for task, shown in zip(assignment.tasks, row, strict=True) if shown)
            for row in assignment.table.tolist()
        ]
        for task in assignment.tasks:
            hollow = [
                name
                for name, place, shown in zip(self.ids, self._places, self._shown, strict=True)
                if task in shown and task not in reader.annotated(place)
            ]
            _refuse(origin, f"has a 1 for '{task}' where there is no such label in", hollow, reader)

    def annotated(self, index: int) -> frozenset[str]:
        return self._shown[index]

    def load(self, index: int, tasks: Iterable[str]) -> Sample:
        return self.reader.load(self._places[index], self._shown[index].intersection(tasks))

    def provenance(self) -> dict:
        inner = self.reader.provenance()
        labels = {
            "scheme": self.assignment.scheme,
            "seed": self.assignment.seed,
            "hash": self.assignment.hash,
            "labelled": self.assignment.counts(),
        }
        return inner | {"length": len(self), "labels": [*inner.get("labels", []), labels]}


def full(reader: Reader, seed: int = 0) -> Partial:
    """Every label there is; `seed` changes nothing."""
    return _partial(reader, _available(reader), "full", seed)


def one_label(reader: Reader, seed: int = 0) -> Partial:
    """One label an image, the tasks as equal in number as the labels that exist allow (differing by at most one if all do)."""
    available = _available(reader)
    rng = np.random.default_rng(seed)
    order, rank = rng.permutation(len(available)), rng.permutation(available.shape[1])
    held = np.zeros_like(available)
    counts = np.zeros(available.shape[1], int)
    for image in order[available[order].any(1)]:
        allowed = np.flatnonzero(available[image])
        task = min(allowed, key=lambda task: (counts[task], rank[task]))
        held[image, task] = True
        counts[task] += 1
    while (path := _evening_path(held, available)) is not None:
        for giver, taker in pairwise(path):
            image = rng.choice(np.flatnonzero(held[:, giver] & available[:, taker] & ~held[:, taker]))
            held[image, giver], held[image, taker] = False, True
    return _partial(reader, held, "one-label", seed)


def random_labels(reader: Reader, seed: int = 0) -> Partial:
    """For every image a number of labels, evenly from 1 to one less than it has, then that many of them, evenly."""
    available = _available(reader)
    rng = np.random.default_rng(seed)
    table = np.zeros_like(available)
    for image, has in enumerate(available):
        tasks = np.flatnonzero(has)
        if len(tasks):
            number = rng.integers(1, max(len(tasks), 2))
            table[image, rng.choice(tasks, number, replace=False)] = True
    return _partial(reader, table, "random-labels", seed)


def few_shot(reader: Reader, task: str, k: int = 10, seed: int = 0) -> Partial:
    """`k` images keep the label of `task`; the other tasks keep all of theirs."""
    names = [one.name for one in reader.tasks]
    if task not in names:
        raise MultidenseError(f"few-shot: expected one of {', '.join(names)}, found '{task}'")
    table = _available(reader)
    column = names.index(task)
    labelled = np.flatnonzero(table[:, column])
    if not 1 <= k <= len(labelled):
        raise MultidenseError(f"few-shot: k should lie in 1 … {len(labelled)}, the images labelled for '{task}', found {k}")
    table[:, column] = False
    table[np.random.default_rng(seed).choice(labelled, k, replace=False), column] = True
    return _partial(reader, table, f"few-shot {task} {k}", seed)


def published(reader: Reader, setting: str) -> Partial:
    """The assignment that papers use in the setting "one-label" or "random-labels" on a benchmark.

    Made for "Learning Multiple Dense Prediction Tasks from Partially Annotated Data" (Li, Liu and Bilen, CVPR 2022) and used by
    HiTTs and others. Those of NYUv2 and Cityscapes name images by the number of the preprocessed file, which nobody has traced
    back to the official names, so they fit that layout alone. Tasks and images that the reader leaves out are left out.
    """
    name = reader.provenance()["name"]
    there = {path.stem: path for path in Path(str(files("multidense.data") / "assignments")).glob("*.csv")}
    path = there.get(f"{name}_{setting}")
    if path is None:
        raise MultidenseError(
            f"there is no published {setting} assignment for '{name}', only {', '.join(sorted(there))}; "
            f"the setting {setting} makes one of the same kind"
        )
    given = Assignment.from_csv(path)
    if given.ids[0].isdecimal() and not reader.provenance().get("indexed"):
        raise MultidenseError(
            f"the published {setting} assignment of '{name}' names images by the number of the preprocessed file, but this "
            f"copy has the layout '{reader.provenance().get('layout')}'; the setting {setting} makes one of the same kind"
        )
    names = tuple(task.name for task in reader.tasks)
    missing = [task for task in names if task not in given.tasks]
    if missing:
        raise MultidenseError(f"the published {setting} assignment of '{name}' says nothing of {', '.join(missing)}")
    rows = {one: row for row, one in enumerate(given.ids)}
    _refuse(f"the published {setting} assignment", "does not list all ids of", [o for o in reader.ids if o not in rows], reader)
    table = given.table[[rows[one] for one in reader.ids]][:, [given.tasks.index(task) for task in names]]
    assignment = Assignment(tuple(reader.ids), names, table, f"published {setting}")
    return Partial(reader, assignment, f"the published {setting} assignment")


def by_setting(reader: Reader, setting: str, seed: int = 0, task: str | None = None, k: int = 10) -> Partial:
    """The label setting of that name; `task` and `k` are few-shot's."""
    if setting.startswith("published "):
        return published(reader, setting.removeprefix("published "))
    if setting == "few-shot":
        return few_shot(reader, task, k, seed=seed)
    return {"full": full, "one-label": one_label, "random-labels": random_labels}[setting](reader, seed=seed)


def from_csv(reader: Reader, path: str | Path) -> Partial:
    """The labels that a table allows. It must list exactly the reader's ids; tasks the reader does not read are left out."""
    given = Assignment.from_csv(path)
    known, rows = set(reader.ids), {name: row for row, name in enumerate(given.ids)}
    _refuse(path, "lists ids that are not in", [name for name in given.ids if name not in known], reader)
    _refuse(path, "does not list all ids of", [name for name in reader.ids if name not in rows], reader)
    names = tuple(task.name for task in reader.tasks)
    for name in names:
        if name not in given.tasks:
            near = "".join(f" Is it '{other}'?" for other in get_close_matches(name, given.tasks, 1))
            raise MultidenseError(f"{path}: expected a column '{name}', found {', '.join(given.tasks)}.{near}")
    table = given.table[[rows[name] for name in reader.ids]][:, [given.tasks.index(name) for name in names]]
    return Partial(reader, Assignment(tuple(reader.ids), names, table, given.scheme, given.seed), path)


def hold_out(reader: Reader, share: float = 0.1, seed: int = 0) -> tuple[Partial, Partial]:
    """Split the labels that may be used into those shown to training and a share withheld, task by task.

    Of every labelled task at least one image is withheld and at least one shown. An image may show one label and have another
    withheld; the first reader keeps all images, the second only those with a withheld label, and shows nothing else of them.
    """
    if not 0 < share < 1:
        raise MultidenseError(f"hold_out: share should lie between 0 and 1, found {share}")
    available = _available(reader)
    held = np.zeros_like(available)
    rng = np.random.default_rng(seed)
    for column, task in enumerate(reader.tasks):
        labelled = np.flatnonzero(available[:, column])
        if len(labelled) == 1:
            raise MultidenseError(
                f"hold_out: '{task.name}' is labelled on one image only, so none can be withheld. Label a second one."
            )
        if len(labelled):
            number = min(max(1, round(share * len(labelled))), len(labelled) - 1)
            held[rng.choice(labelled, number, replace=False), column] = True
    scheme = reader.assignment.scheme if isinstance(reader, Partial) else "full"
    kept = held.any(1)
    return (
        _partial(reader, available & ~held, f"{scheme} less {share:g} withheld", seed),
        _partial(reader, held, f"{share:g} withheld of {scheme}", seed, kept),
    )


def _available(reader: Reader) -> np.ndarray:
    """Which labels there are: bool `[images tasks]`."""
    names = [task.name for task in reader.tasks]
    rows = (reader.annotated(index) for index in range(len(reader)))
    return np.array([[name in has for name in names] for has in rows], bool).reshape(len(reader), len(names))


def _partial(reader: Reader, table: np.ndarray, scheme: str, seed: int, kept: np.ndarray | None = None) -> Partial:
    rows = range(len(reader)) if kept is None else np.flatnonzero(kept)
    ids = tuple(reader.ids[row] for row in rows)
    names = tuple(task.name for task in reader.tasks)
    return Partial(reader, Assignment(ids, names, table if kept is None else table[kept], scheme, seed))


def _evening_path(held: np.ndarray, available: np.ndarray) -> list[int] | None:
    """A chain of tasks from one with many labels to one with at least two fewer, each able to give the next an image."""
    counts = held.sum(0)
    gives = (held[:, :, None] & available[:, None, :]).any(0)
    for start in np.argsort(-counts, kind="stable"):
        came: dict[int, int | None] = {int(start): None}
        queue = [int(start)]
        for task in queue:
            if counts[task] <= counts[start] - 2:
                path = [task]
                while came[path[-1]] is not None:
                    path.append(came[path[-1]])
                return path[::-1]
            for other in np.flatnonzero(gives[task]).tolist():
                if other not in came:
                    came[other] = task
                    queue.append(other)
    return None


def _refuse(origin: str | Path, problem: str, ids: Sequence[str], reader: Reader) -> None:
    if ids:
        some = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        raise MultidenseError(
            f"{origin} {problem} '{reader.name}' ({reader.split}): {some}. "
            "Use a table made for this reader, or mend these rows."
        )
