"""Benchmarks: the data sets that papers compare on, read from whichever layout a copy of them has.

A **benchmark** (`NYUv2`, `Cityscapes`, `PascalContext`) is a reader. How files lie on a disk is a **layout**'s matter: each
knows its **parts** (what files there should be, how many, what they are called and where they come from), recognises itself in
a folder, and hands out images and labels in the house's meaning, so that no sentinel leaves it.

    >>> reader = NYUv2("/data/nyuv2", "train")           # works out which layout this is
    >>> reader.provenance()["layout"]
    'preprocessed'
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from multidense import suggest
from multidense.data.encodings import nearest
from multidense.data.reader import Memory, Reader
from multidense.files import plain
from multidense.task import Task
from multidense.types import MultidenseError, Sample


@dataclass(frozen=True)
class Part:
    """What a layout is made of: one file, or the files of one kind.

    Args:
        files: a path below the root, or a pattern with `*` where files differ ("train/image/*.npy").
        count: how many files the whole benchmark has.
        source: a sentence: what this part is called and where it comes from.
        tasks: the tasks it serves; empty if nothing works without it.
        optional: whether the layout is whole without it.
    """

    files: str
    count: int
    source: str
    tasks: tuple[str, ...] = ()
    optional: bool = False

    def found(self, root: Path) -> list[Path]:
        """The files of this part that are there, sorted."""
        if "*" not in self.files:
            return [path for path in [root / self.files] if path.is_file()]
        return sorted(path for path in root.glob(self.files) if not path.name.startswith("."))


class Layout(ABC):
    """One way in which copies of a benchmark lie on disk; an object of it is one split of one copy.

    `root` is where its files begin and `ids` name the images. `indexed` says that these are the numbers of the preprocessed
    files, on which the published label assignments of some benchmarks rest. `notes` tells, by task, what is peculiar about the
    values (`{"normals": "derived from depth"}`); it goes into results.
    """

    name: ClassVar[str]
    lengths: ClassVar[Mapping[str, int]]
    """Images of each split of the whole benchmark."""
    indexed: ClassVar[bool] = False

    root: Path
    ids: Sequence[str]
    notes: Mapping[str, str]

    @classmethod
    @abstractmethod
    def parts(cls) -> tuple[Part, ...]:
        """What the whole benchmark consists of in this layout."""

    @classmethod
    def present(cls, root: Path) -> int:
        """How many of its parts a folder has at least one file of: 0 says it is not this layout."""
        return sum(any(True for _ in root.glob(part.files)) for part in cls.parts())

    @classmethod
    def offered(cls, root: Path, tasks: Sequence[Task]) -> tuple[Task, ...]:
        """Those of a benchmark's `tasks` that a copy was made with: what is read where nobody says what to read."""
        return tuple(tasks)

    @abstractmethod
    def __init__(self, root: Path, split: str, tasks: Sequence[Task]):
        """Find the images of a split; MultidenseError naming what is missing. Opens no label."""

    @abstractmethod
    def annotated(self, index: int) -> frozenset[str]:
        """The tasks for which this image has a label."""

    @abstractmethod
    def image(self, index: int) -> np.ndarray:
        """RGB `[h w 3]`, uint8, or float32 in 0 … 1 where the files hold that."""

    @abstractmethod
    def label(self, index: int, task: str) -> tuple[np.ndarray, np.ndarray]:
        """Values in the task's units and the house's frame (`[h w]` or `[h w 3]`) and where they are valid (bool `[h w]`).

        A file that is missing, damaged or holds something else is a MultidenseError that names it.
        """

    @abstractmethod
    def file(self, index: int, task: str | None = None) -> Path:
        """Where the image (None) or its label for a task lies; several may share one file."""


class Benchmark(Reader):
    """One split of a benchmark.

    `root`: the folder of a copy, in any of `layouts`; which one it is is found out, or said by `layout`. `tasks`: those to
    read, by default all the benchmark has, without codebooks; a task's number of classes says which of several class lists.
    `size` (height, width): images are resized bilinearly with antialiasing, labels to the nearest pixel; by default the
    layout's own. `cache` keeps what was read in memory, up to 2 GiB. `options` go to the layout.
    """

    name: ClassVar[str]
    layouts: ClassVar[tuple[type[Layout], ...]]

    def __init__(
        self,
        root: str | Path,
        split: str,
        tasks: Sequence[Task] | None = None,
        size: tuple[int, int] | None = None,
        layout: str | None = None,
        cache: bool = True,
        **options,
    ):
        self.root, self.split = Path(root).expanduser(), split
        self.size = None if size is None else (int(size[0]), int(size[1]))
        kind = self.layout_of(self.root, layout)
        self.tasks = kind.offered(self.root, self.default_tasks()) if tasks is None else tuple(tasks)
        known = [task.name for task in self.default_tasks()]
        for task in self.tasks:
            if task.name not in known:
                raise MultidenseError(f"{self.name} has no labels for '{task.name}', only {', '.join(known)}; leave it out")
        if split not in kind.lengths:
            raise MultidenseError(f"{self.name}: expected a split out of {', '.join(kind.lengths)}, found '{split}'")
        known = dict(list(inspect.signature(kind).parameters.items())[3:])
        if size is not None and "resolution" in known:
            options = {"resolution": list(size)} | options  # resized once, from the full pictures
        for option in options if all(one.kind is not one.VAR_KEYWORD for one in known.values()) else ():
            if option not in known:
                has = f"has the options {', '.join(known)}" if known else "has no options"
                near = suggest.nearest(option, known)
                raise MultidenseError(f"{self.name}: the layout '{kind.name}' {has}, found '{option}'{near}")
        self.options = options
        self.layout = kind(self.root, split, self.tasks, **options)
        self.root, self.ids = self.layout.root, self.layout.ids
        self.class_names = {task.name: names for task in self.tasks if (names := self.names_of(task))}
        self._memory = Memory() if cache else Memory(limit=0)

    @classmethod
    @abstractmethod
    def default_tasks(cls) -> tuple[Task, ...]:
        """All tasks it has labels for."""

    @classmethod
    @abstractmethod
    def names_of(cls, task: Task) -> tuple[str, ...]:
        """The names of a task's classes; MultidenseError where there is no list of that many; empty where it has none."""

    @classmethod
    def layout_of(cls, root: Path, name: str | None = None) -> type[Layout]:
        """Which layout a folder has: the one of that name, or the one of which most parts are there."""
        if not root.is_dir():
            raise MultidenseError(
                f"{cls.name}: the folder {root} is not there; pass the folder that holds the data set as root"
            )
        by_name = {kind.name: kind for kind in cls.layouts}
        if name is not None:
            if name not in by_name:
                raise MultidenseError(f"{cls.name}: expected a layout out of {', '.join(by_name)}, found '{name}'")
            return by_name[name]
        best = max(cls.layouts, key=lambda kind: kind.present(root))
        if not best.present(root):
            wanted = "; ".join(f"{kind.name}: {', '.join(part.files for part in kind.parts()[:4])}" for kind in cls.layouts)
            raise MultidenseError(f"{cls.name}: {root} has none of the layouts that are known ({wanted})")
        return best

    def annotated(self, index: int) -> frozenset[str]:
        return self.layout.annotated(index)

    def load(self, index: int, tasks: Iterable[str]) -> Sample:
        wanted = self.annotated(index).intersection(tasks)
        image = self._memory.recall((index, None), lambda: {"image": self.image(index)})["image"]
        image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return Sample(
            image=image.float().div_(255) if image.dtype == torch.uint8 else image,
            targets={task.name: task.encode(*self.label(index, task.name)) for task in self.tasks if task.name in wanted},
            id=self.ids[index],
        )

    def provenance(self) -> dict:
        return {
            "reader": type(self).__name__,
            "name": self.name,
            "split": self.split,
            "length": len(self),
            "whole": len(self) == self.layout.lengths[self.split],
            "size": None if self.size is None else list(self.size),
            "tasks": [task.name for task in self.tasks],
            "layout": self.layout.name,
            "indexed": self.layout.indexed,
            "options": plain(dict(self.options)),
            "notes": {name: note for name, note in self.layout.notes.items() if name in {task.name for task in self.tasks}},
        }

    def image(self, index: int) -> np.ndarray:
        """RGB `[h w 3]` as the layout gives it, at the reader's size."""
        image = self.layout.image(index)
        if self.size is None or image.shape[:2] == self.size:
            return image
        if image.dtype == np.uint8:
            return np.asarray(Image.fromarray(image).resize(self.size[::-1], Image.Resampling.BILINEAR))
        small = torch.nn.functional.interpolate(
            torch.from_numpy(image).permute(2, 0, 1)[None], self.size, mode="bilinear", antialias=True
        )
        return small[0].permute(1, 2, 0).numpy()

    def label(self, index: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Values in a task's units and where they are valid, at the reader's size."""

        def make() -> dict[str, np.ndarray]:
            value, valid = self.layout.label(index, name)
            size = self.size or value.shape[:2]
            return {"value": nearest(value, size), "valid": nearest(valid, size)}

        kept = self._memory.recall((index, name), make)
        return kept["value"], kept["valid"]
