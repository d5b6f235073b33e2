"""Packed: the package's own layout of a benchmark, made for training; `multidense data convert` writes it.

    packed.json                         what it was made from and how, and every file with its SHA-256; written last
    {split}/ids.json                    the ids of the images, in order
    {split}/image.npy, {task}.npy       uint8 `[bytes]`: the arrays of all images, one after the other
    {split}/{item}.index.npy            int64 `[images 4]`: where an array begins, its height, its width, its form

Why this format: nothing is decoded, every image is as near as any other, and the files are mapped into memory, so that all
loading processes share one copy in the system's page cache and a reader costs nothing to start or to send to a process.
Images of many sizes lie in it like those of one. NumPy alone reads it (the number of a form is its place in `FORMS`):

    start, height, width, form = np.load("train/image.index.npy")[7]                                    # form 0: pixels
    image = np.load("train/image.npy", mmap_mode="r")[start : start + height * width * 3].reshape(height, width, 3)

No task is known by name; what a layout returns says how it is stored. Where something is valid is kept exactly, and so are
images, classes and floating-point numbers (in single precision; one that is not a number is not valid). Unit vectors are
rounded to 1/32767: a direction is off by at most 0.0016°, a component of it by at most 2.7e-5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Int64, Shaped, UInt8

from multidense.data.benchmark import Layout, Part
from multidense.files import plain, read_json
from multidense.task import Task
from multidense.types import MultidenseError

MANIFEST = "packed.json"
FORMAT = 1
ALIGNED = 64
"""Every array begins at a multiple of so many bytes."""
VOID, STEPS, NOWHERE = 255, 32767, -32768


@dataclass(frozen=True)
class Form:
    """How the array of one image is stored: the type of a number, numbers a pixel, and what they mean."""

    name: str
    dtype: str
    channels: int
    meaning: str

    def bytes(self, height: int, width: int) -> int:
        """What an array of that size takes."""
        return height * width * self.channels * np.dtype(self.dtype).itemsize


FORMS = (
    Form("pixels", "|u1", 3, "RGB"),
    Form("colours", "<f4", 3, "RGB in 0 … 1"),
    Form("classes", "|u1", 1, f"whole numbers, {VOID} where not valid"),
    Form("whole", "|u1", 1, f"floating-point numbers that are whole, {VOID} where not valid"),
    Form("numbers", "<f4", 1, "floating-point numbers, NaN where not valid"),
    Form("directions", "<i2", 3, f"unit vectors in steps of 1/{STEPS}, {NOWHERE} where not valid"),
    Form("vectors", "<f4", 3, "vectors of other lengths, NaN where not valid"),
)
"""A form's number is its place here: a new one is put at the end."""
NUMBER = {form.name: number for number, form in enumerate(FORMS)}


def stored_image(image: Shaped[np.ndarray, "h w 3"]) -> tuple[str, np.ndarray]:
    """The form of an image, and the array as it is stored."""
    return ("pixels", image) if image.dtype == np.uint8 else ("colours", image.astype("<f4"))


def stored_label(value: Shaped[np.ndarray, "h w *c"], valid: Bool[np.ndarray, "h w"]) -> tuple[str, np.ndarray]:
    """The form of a label, and the array as it is stored; ValueError for numbers that no form holds."""
    if value.ndim == 3:
        return _stored_vectors(value, valid)
    if value.dtype.kind == "f":
        numbers = np.where(valid, value, np.nan).astype("<f4")
        held = numbers[~np.isnan(numbers)]
        if ((held >= 0) & (held < VOID) & (np.floor(held) == held)).all():
            return "whole", np.where(np.isnan(numbers), VOID, numbers).astype("|u1")
        return "numbers", numbers
    if valid.any() and not (value[valid].min() >= 0 and value[valid].max() < VOID):
        raise ValueError(f"whole numbers should lie in 0 … {VOID - 1}, found {value[valid].min()} … {value[valid].max()}")
    return "classes", np.where(valid, value, VOID).astype("|u1")


def _stored_vectors(value: Shaped[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"]) -> tuple[str, np.ndarray]:
    vectors = np.where(valid[..., None] & ~np.isnan(value).any(2, keepdims=True), value, np.nan).astype(np.float64)
    length = np.sqrt((vectors * vectors).sum(2, keepdims=True))
    known = ~np.isnan(length)
    if not ((length[known] > 0.5) & (length[known] < 1.5)).all():
        return "vectors", vectors.astype("<f4")
    return "directions", np.where(known, np.nan_to_num(vectors / length * STEPS).round(), NOWHERE).astype("<i2")


def meaning(form: str, stored: Shaped[np.ndarray, "h w *c"]) -> tuple[Shaped[np.ndarray, "h w *c"], Bool[np.ndarray, "h w"]]:
    """What `stored_label` was given: values (0 where not valid) and where they are valid."""
    if form in ("classes", "whole"):
        valid = stored != VOID
        return np.where(valid, stored, np.uint8(0)).astype(np.uint8 if form == "classes" else np.float32), valid
    if form == "directions":
        valid = stored[..., 0] != NOWHERE
        return np.where(valid[..., None], stored / np.float32(STEPS), np.float32(0)), valid
    valid = ~np.isnan(stored if stored.ndim == 2 else stored[..., 0])
    return np.where(valid if stored.ndim == 2 else valid[..., None], stored, np.float32(0)), valid


class Packed(Layout):
    """A packed copy. A benchmark makes it its own with a subclass that says its `benchmark` and `lengths`.

    `indexed` and `notes` are those of the layout it was made from, which is `source`; `size` is the (height, width) it was made
    at, None for images of their own sizes. Options that are passed must be those it was made with.
    """

    name = "packed"
    benchmark: ClassVar[str]

    def __init__(self, root: Path, split: str, tasks: Sequence[Task], **options):
        self.root, self.split = Path(root), split
        manifest = read_manifest(self.root)
        if manifest["benchmark"] != self.benchmark:
            raise MultidenseError(f"{self.root} is a packed copy of {manifest['benchmark']}, not of {self.benchmark}")
        if split not in manifest["splits"]:
            raise _lacks(self.root, f"the split '{split}'", manifest["splits"])
        for task in tasks:
            _agree(self.root, task, manifest["tasks"])
        for name, value in options.items():
            if plain(value) != (made := manifest["options"].get(name)):
                raise MultidenseError(
                    f"{self.root}: {name} should be {made}, as it was packed, found {plain(value)}; leave it out, "
                    "or convert again"
                )
        told = manifest["splits"][split]
        self.source, self.size = manifest["layout"], None if manifest["size"] is None else tuple(manifest["size"])
        self.indexed, self.notes = told["indexed"], told["notes"]
        self._tasks = tuple(task.name for task in tasks)
        for item in ("ids.json", *(f"{item}{end}" for item in ("image", *self._tasks) for end in (".npy", ".index.npy"))):
            _as_long_as_told(self.root, f"{split}/{item}", manifest["files"])
        self.ids = read_json(self.root / split / "ids.json")["ids"]
        self._open()

    def _open(self) -> None:
        self._maps: dict[str, UInt8[np.ndarray, " bytes"]] = {}
        folder = self.root / self.split
        self._index = {item: _load(folder / f"{item}.index.npy") for item in ("image", *self._tasks)}

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps: a pickle would hold all that they show."""
        return {name: value for name, value in vars(self).items() if name not in ("_maps", "_index")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    @classmethod
    def parts(cls) -> tuple[Part, ...]:
        return (Part(MANIFEST, 1, f"what a packed copy is recognised by: multidense data convert {cls.benchmark} writes it"),)

    @classmethod
    def checksums(cls, root: Path) -> dict[str, str]:
        """The SHA-256 of every file of a copy, by its path below the root."""
        return {path: told["sha256"] for path, told in read_manifest(root)["files"].items()}

    @classmethod
    def offered(cls, root: Path, tasks: Sequence[Task]) -> tuple[Task, ...]:
        packed = read_manifest(root)["tasks"]
        return tuple(task for task in tasks if task.name in packed)

    def annotated(self, index: int) -> frozenset[str]:
        return frozenset(name for name in self._tasks if self._index[name][index, 0] >= 0)

    def image(self, index: int) -> np.ndarray:
        return self._stored(index, "image")[1]

    def label(self, index: int, task: str) -> tuple[np.ndarray, np.ndarray]:
        return meaning(*self._stored(index, task))

    def file(self, index: int, task: str | None = None) -> Path:
        return self.root / self.split / f"{task or 'image'}.npy"

    def _stored(self, index: int, item: str) -> tuple[str, Shaped[np.ndarray, "h w *c"]]:
        start, height, width, number = self._index[item][index].tolist()
        if item not in self._maps:
            self._maps[item] = _load(self.root / self.split / f"{item}.npy", "r")
        path, flat = self.root / self.split / f"{item}.index.npy", self._maps[item]
        if not (0 <= number < len(FORMS) and 0 <= start <= flat.size and min(height, width) > 0):
            raise MultidenseError(f"{path}: '{self.ids[index]}' has no array that could be read. Convert again.")
        form = FORMS[number]
        array = flat[start : start + form.bytes(height, width)]
        if array.size != form.bytes(height, width):
            raise MultidenseError(f"{path}: '{self.ids[index]}' would lie beyond the end of {item}.npy. Convert again.")
        shape = (height, width) if form.channels == 1 else (height, width, form.channels)
        return form.name, array.view(form.dtype).reshape(shape)


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a packed copy; one of another version, or that lacks something, is named."""
    manifest = read_json(root / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise MultidenseError(
            f"{root / MANIFEST}: expected format {FORMAT}, found {manifest.get('format')}. Convert again with this version."
        )
    wanted = ("benchmark", "layout", "options", "size", "tasks", "splits", "files")
    if missing := [key for key in wanted if key not in manifest]:
        raise MultidenseError(f"{root / MANIFEST} should say {', '.join(missing)}. Convert again.")
    return manifest


def _load(path: Path, mode: str | None = None) -> Int64[np.ndarray, "images 4"] | UInt8[np.ndarray, " bytes"]:
    try:
        return np.load(path, mmap_mode=mode, allow_pickle=False).view(np.ndarray)
    except (OSError, ValueError, EOFError) as error:
        raise MultidenseError(f"{path} cannot be read as an array: {error}. Convert again.") from error


def _agree(root: Path, task: Task, packed: Mapping[str, Mapping[str, int]]) -> None:
    if task.name not in packed:
        raise _lacks(root, f"labels for '{task.name}'", packed)
    if (classes := packed[task.name]["classes"]) != len(task.group_names):
        raise MultidenseError(
            f"{root} holds {classes} classes of '{task.name}', but the task has {len(task.group_names)}; "
            "use a task of as many, or convert again with this one"
        )


def _as_long_as_told(root: Path, name: str, files: Mapping[str, Mapping[str, Any]]) -> None:
    told, path = files.get(name, {}).get("bytes"), root / name
    found = path.stat().st_size if path.is_file() else None
    if found is None or found != told:
        said = "is not there" if found is None else f"should have {told} bytes, found {found}"
        raise MultidenseError(f"{path} {said}. Copy it again, or convert again.")


def _lacks(root: Path, what: str, there: Mapping[str, Any]) -> MultidenseError:
    return MultidenseError(f"{root} was packed without {what}, it has {', '.join(there)}; convert again with it")
