"""Look: what one image of a folder and its labels are like, and what is wrong with them."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from multidense.data.duplicates import sketch
from multidense.data.folder import Folder
from multidense.task import Task
from multidense.types import MultidenseError

LARGEST = 192
"""Pixels of the longer side of a picture that is kept."""

Picture = UInt8[np.ndarray, "_ _ 3"]  # of pictures that stand together each has a size of its own


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong ("error") or worth a look ("warning"). `file` is relative to the set's root."""

    level: str
    split: str
    id: str
    task: str
    file: str
    found: str
    remedy: str

    @property
    def kind(self) -> tuple[str, str, str]:
        """Equal for problems that differ only in file and numbers."""
        return self.level, self.task, re.sub(r"\d+", "0", re.split(r", found|: | at ", self.found)[0])


@dataclass(frozen=True)
class Shown:
    """Pictures that belong together, each under a title."""

    name: str
    pictures: Sequence[tuple[str, Picture]]


@dataclass(frozen=True)
class Label:
    """What one label holds: pixels, valid ones, those of each kind, range, and colours of a palette."""

    pixels: int
    valid: int
    counts: tuple[int, ...]
    range: tuple[float, float] | None
    colours: Mapping[int, str]


@dataclass
class Look:
    """What one image and its labels are like: its (height, width), a sketch to compare it by, each label that can be read."""

    size: tuple[int, int] | None = None
    sketch: Float[np.ndarray, " n"] | None = None
    labels: dict[str, Label] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    shown: Shown | None = None


def look_at(reader: Folder, index: int, show: bool) -> Look:
    """Everything about one image and its labels, with pictures to `show`; nothing that is wrong with a file stops it."""
    one, found, pictures = reader.ids[index], Look(), []

    def attempt(task: str, read: Callable[[], None]) -> None:
        path = reader.file(one, task or None)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
        except MultidenseError as error:
            found.problems.append(problem_of(reader, one, task, str(error)))
        except Exception as error:  # no decoder's surprise may stop the check
            said = f"{path} cannot be read: {type(error).__name__}, {error}. Replace it or take out its id."
            found.problems.append(problem_of(reader, one, task, said))

    def image() -> None:
        pixels = reader.read_image(index)["image"]
        found.size, found.sketch = pixels.shape[1:], sketch(pixels)
        if show:
            pictures.append(("image", small(pixels.transpose(1, 2, 0))))

    def label(task: Task) -> None:
        encoding, path = reader.encodings[task.name], reader.file(one, task.name)
        stored = reader.read_label(index, task.name, None if found.size is None else np.array(found.size))
        values, valid = encoding.meaning(stored)
        for suspicion, remedy in encoding.suspicions(stored):
            found.problems.append(Problem("error", reader.split, one, task.name, short(reader, path), suspicion, remedy))
        if not valid.any():
            said = f"{path}: nothing in it is valid, and its image still counts as labelled. Correct the file, or delete it."
            found.problems.append(problem_of(reader, one, task.name, said))
        measured = encoding.measured(values, valid)
        measured = measured[np.isfinite(measured)]
        extent = (float(measured.min()), float(measured.max())) if measured.size else None
        counts = tuple(encoding.count(values, valid).tolist())
        found.labels[task.name] = Label(valid.size, int(valid.sum()), counts, extent, encoding.colours(path))
        if show:
            target = task.encode(values, valid)
            pictures.append((task.name, small(task.picture(target.value, target.valid))))

    attempt("", image)
    for task in reader.tasks:
        if task.name in reader.annotated(index):
            attempt(task.name, lambda task=task: label(task))
    found.shown = Shown(f"{reader.split} {one}", pictures) if pictures else None
    return found


def small(picture: Picture) -> Picture:
    """The picture, reduced where a side is longer than LARGEST."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    return np.asarray(image)


def short(reader: Folder, path: Path) -> str:
    """A file's name as the description would say it."""
    return path.relative_to(reader.root).as_posix()


def problem_of(reader: Folder, one: str, task: str, message: str) -> Problem:
    """A reader's message about a file of the image `one` as a problem."""
    path = reader.file(one, task or None)
    found, remedy = in_two(message.removeprefix(str(path)).lstrip(": "), reader.root)
    return Problem("error", reader.split, one, task, short(reader, path), found, remedy)


def in_two(message: str, root: Path) -> tuple[str, str]:
    """What a message says was found, up to its first full stop, and the remedy after it; without the root's name."""
    found, *remedy = re.split(r"\.\s+(?=[A-Z`])", message.replace(f"{root}{os.sep}", ""), maxsplit=1)
    return found, "".join(remedy) or "Correct it, or take it out."
