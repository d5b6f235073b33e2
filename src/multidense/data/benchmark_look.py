"""Benchmark look: what one image of a copy of a benchmark and its labels are like, and what is wrong with them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from multidense.data.benchmark import Benchmark
from multidense.data.look import LARGEST, Label, Problem, Shown, in_two
from multidense.task import Task
from multidense.types import MultidenseError, Target


@dataclass
class Seen:
    """One image: its (height, width), the tasks it is annotated for, each label that can be read, and where all of them lie."""

    size: tuple[int, int] | None = None
    annotated: frozenset[str] = frozenset()
    labels: dict[str, Label] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    shown: Shown | None = None


def see(readers: Mapping[str, Benchmark], place: tuple[str, int, bool]) -> Seen:
    """Everything about one image; nothing that is wrong with a file stops it."""
    split, index, show = place
    reader, found, pictures = readers[split], Seen(), []
    layout, one, root = reader.layout, reader.ids[index], reader.root
    found.files = {name: below(layout.file(index, name or None), root) for name in ("", *(task.name for task in reader.tasks))}

    def attempt(name: str, read: Callable[[], None]) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
        except (MultidenseError, ValueError) as error:
            problem = problem_of(str(error), root, split, one, name, found.files[name])
            if name and problem.file == found.files[""] and found.size is None:
                return  # the image is what cannot be read, and that has been said
            found.problems.append(problem)
        except Exception as error:  # no decoder's surprise may stop the check
            said = f"cannot be read: {type(error).__name__}, {error}. Replace it."
            found.problems.append(problem_of(said, root, split, one, name, found.files[name]))

    def image() -> None:
        pixels = layout.image(index)
        found.size = pixels.shape[:2]
        if show:
            eight_bits = pixels if pixels.dtype == np.uint8 else (pixels * 255).round().clip(0, 255).astype(np.uint8)
            pictures.append(("image", _reduced(eight_bits)))

    def annotated() -> None:
        found.annotated = frozenset(task.name for task in reader.tasks if (root / found.files[task.name]).exists())
        found.annotated = layout.annotated(index)

    def label(task: Task) -> None:
        value, valid = layout.label(index, task.name)
        if found.size not in (None, value.shape[:2]):
            (h, w), (height, width) = value.shape[:2], found.size
            raise MultidenseError(
                f"the label should be as large as its image, {height}×{width} (height × width), found {h}×{w}. "
                "Take both from the same copy."
            )
        target = task.encode(value, valid)
        if not target.valid.any():
            said = "the label is valid nowhere"
            remedy = "Let it be if it came so; else take the file anew from its source."
            found.problems.append(Problem("warning", split, one, task.name, found.files[task.name], said, remedy))
        found.labels[task.name] = _label(task, target)
        if show:
            pictures.append((task.name, _reduced(task.picture(target.value, target.valid))))

    attempt("", image)
    attempt("", annotated)
    for task in reader.tasks:
        if task.name in found.annotated:
            attempt(task.name, lambda task=task: label(task))
    found.shown = Shown(f"{split} {one}", pictures) if pictures else None
    return found


def _label(task: Task, target: Target) -> Label:
    """What a label holds: counts of a task's groups, or the range of one that has no groups and one channel."""
    valid, groups = target.valid[0].numpy(), len(task.group_names)
    counts = (
        np.bincount(task.groups(target.value[None])[0].numpy()[valid], minlength=groups) if groups > 1 else np.zeros(0, int)
    )
    numbers = target.value[target.valid] if groups == 1 and task.value_channels == 1 and valid.any() else None
    extent = None if numbers is None else (float(numbers.min()), float(numbers.max()))
    return Label(valid.size, int(valid.sum()), tuple(counts.tolist()), extent, {})


def _reduced(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A picture of which no side is longer than `LARGEST`."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    return np.asarray(image)


def below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def problem_of(message: str, root: Path, split: str, one: str, task: str, file: str) -> Problem:
    """A reader's message as an error; about the file that it begins with, if it does."""
    named = re.match(rf"{re.escape(str(root))}/([^\n]*?\.\w+)(?=[:, ]|$)", message)
    said = message if named is None else message[named.end() :].lstrip(": ")
    return Problem("error", split, one, task, file if named is None else named[1], *in_two(said, root))
