"""Folder: anybody's data set, described by one small YAML file and no code.

    name: my-rooms
    root: /data/my-rooms               # default: the folder this file lies in
    images: rgb/{id}.jpg               # an id may hold slashes
    splits:
      val: {fraction: 0.2, seed: 0}    # that share of the images; or a text file with an id a line; or a list of ids
      train: rest                      # what no other split has. Without `splits` all images are `train`
    tasks:
      semseg:
        files: labels/{id}.png         # an image without this file is simply not labelled for the task
        classes: [floor, wall, chair]  # names, or their number
        void: 255
      depth: {files: "depth/{id}.png", unit: mm}

A task may also say `resize: true`, where labels have another size than their images. What else it says depends on what its
numbers mean: see `ClassMap` (semseg, parts), `Metres` (depth), `Directions` (normals) and `Shares` (edges, saliency) below.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
import yaml
from PIL import Image, ImageOps

from multidense.data.reader import Memory, Reader
from multidense.task import Task
from multidense.tasks import Depth, Edges, HumanParts, Normals, Saliency, SemanticSegmentation
from multidense.types import MultidenseError, Sample

VOID = 255
"""What a pixel that is not valid is kept as in a class map in memory."""


class Folder(Reader):
    """One split of the data set that `description` (a YAML file, or the same as a mapping) describes.

    `tasks`: those to read; by default all that are described, without codebooks. `size` (height, width): images are resized
    with antialiasing, labels to the nearest pixel, both whole (another aspect is stretched); by default everything keeps its
    own size. `root` overrides where the files are. `cache` keeps what was read in memory, up to 2 GiB. A label in which nothing
    is valid (all depth zero) leaves its image annotated, and warns.
    """

    def __init__(
        self,
        description: str | Path | Mapping[str, Any],
        split: str,
        tasks: Sequence[Task] | None = None,
        size: tuple[int, int] | None = None,
        root: str | Path | None = None,
        cache: bool = True,
    ):
        top, beside, name = _read_description(description)
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise MultidenseError(f"Folder: size should be (height, width) in pixels, found {size}")
        self.name, self.split = top.text("name", name), split
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.root = Path(root if root is not None else beside / top.text("root", "")).expanduser()
        if not self.root.is_dir():
            raise MultidenseError(f"{top.where}: the folder {self.root} is not there. Correct `root`, or pass root=.")
        self._images = top.pattern("images", self.root)

        described = top.section("tasks", tuple(ENCODINGS))
        encodings = {
            name: encoding.described(name, described.section(name, encoding.keys), self.root)
            for name, encoding in ENCODINGS.items()
            if name in described.data
        }
        self.tasks = tuple(one.task() for one in encodings.values()) if tasks is None else tuple(tasks)
        for task in self.tasks:
            if task.name not in encodings:
                some = ", ".join(encodings) or "nothing"
                described.refuse(f"no '{task.name}' is described, only {some}. Describe it or leave it out.")
            encodings[task.name].agree(task)
        self._encodings = {task.name: encodings[task.name] for task in self.tasks}
        self.class_names = {name: names for name, one in self._encodings.items() if (names := one.names)}

        self.ids = _ids(top, split, self.root, self._images)
        self._annotated = [
            frozenset(name for name, encoding in self._encodings.items() if self._path(encoding.files, one).is_file())
            for one in self.ids
        ]
        for name, encoding in self._encodings.items():
            if not any(name in labelled for labelled in self._annotated):
                warnings.warn(f"{encoding.where}: no image of the split '{split}' has a label", stacklevel=2)
        self._memory = Memory() if cache else Memory(limit=0)
        self._fingerprint = hashlib.sha256(json.dumps(top.data, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def annotated(self, index: int) -> frozenset[str]:
        return self._annotated[index]

    def load(self, index: int, tasks: Iterable[str]) -> Sample:
        kept = self._memory.recall((index, None), lambda: self._read_image(index))
        wanted = self._annotated[index].intersection(tasks)
        return Sample(
            image=torch.from_numpy(kept["image"]).float().div_(255),
            targets={
                task.name: task.encode(*self._label(index, task.name, kept["native"]))
                for task in self.tasks
                if task.name in wanted
            },
            id=self.ids[index],
        )

    def provenance(self) -> dict:
        return {
            "reader": "Folder",
            "name": self.name,
            "split": self.split,
            "length": len(self),
            "size": None if self.size is None else list(self.size),
            "tasks": [task.name for task in self.tasks],
            "labelled": {name: sum(name in has for has in self._annotated) for name in self._encodings},
            "description": self._fingerprint,
        }

    def _path(self, pattern: str, one: str) -> Path:
        return self.root / pattern.replace("{id}", one)

    def _read_image(self, index: int) -> dict[str, np.ndarray]:
        """`image` uint8 `[3 h w]`, and its `native` (height, width) before it was resized."""
        path = self._path(self._images, self.ids[index])
        picture = _picture(path)
        if picture.mode.startswith(("I", "F")):
            raise MultidenseError(f"{path}: an image should have 8 bits a channel, found mode '{picture.mode}'. Convert it.")
        picture = ImageOps.exif_transpose(picture).convert("RGB")
        native = np.array(picture.size[::-1])
        if self.size is not None and self.size != picture.size[::-1]:
            picture = picture.resize(self.size[::-1], Image.Resampling.LANCZOS, reducing_gap=3.0)
        return {"image": np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)), "native": native}

    def _label(self, index: int, name: str, native: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values in the task's units and where they are valid; kept in memory as stored, interpreted on every use."""
        kept = self._memory.recall((index, name), lambda: {"stored": self._read_label(index, name, native)})
        return self._encodings[name].meaning(kept["stored"])

    def _read_label(self, index: int, name: str, native: np.ndarray) -> np.ndarray:
        encoding = self._encodings[name]
        path = self._path(encoding.files, self.ids[index])
        stored = encoding.stored(path, *_array(path))
        (height, width), (h, w) = native.tolist(), stored.shape[:2]
        if (height, width) != (h, w) and not encoding.resize:
            raise MultidenseError(
                f"{path}: the label should be as large as its image, {height}x{width} (height x width), found {h}x{w}. "
                f"If it shows the same view, say `resize: true` in {encoding.where}."
            )
        stored = _nearest(stored, self.size or (height, width))
        if not encoding.meaning(stored)[1].any():
            warnings.warn(f"{path}: nothing in it is valid; its image still counts as labelled for {name}", stacklevel=2)
        return stored


# What the numbers in label files mean ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Encoding(ABC):
    """How one task's labels are stored and what their numbers mean. `where` names its place in the description."""

    keys: ClassVar[tuple[str, ...]] = ("files", "resize")

    name: str
    where: str
    files: str
    resize: bool = False
    names: tuple[str, ...] = ()

    @classmethod
    def described(cls, name: str, section: Section, root: Path) -> Encoding:
        """The encoding that a section of the description says."""
        files, resize = section.pattern("files", root), section.flag("resize")
        return cls(name=name, where=section.where, files=files, resize=resize, **cls.settings(section))

    @classmethod
    @abstractmethod
    def settings(cls, section: Section) -> dict[str, Any]:
        """The fields that this kind of encoding has beyond the common ones."""

    @abstractmethod
    def stored(self, path: Path, array: np.ndarray, mode: str) -> np.ndarray:
        """A file's array, checked and small. `mode` is Pillow's, or "npy"."""

    @abstractmethod
    def meaning(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values in the task's own units, and where they are valid."""

    def task(self) -> Task:
        """The task without a codebook."""
        return TASKS[self.name]()

    def agree(self, task: Task) -> None:  # noqa: B027
        """Refuse a task that cannot be trained on these labels."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassMap(Encoding):
    """One class id a pixel: a grey or palette PNG (the palette's indices count), or an integer array `[h w]` (.npy).

    `classes`: names, or their number. `void`: the id or ids that mean nothing. `first`: the id of the first class in the files
    (default 0). `remap`: {id in the files: class number, counted from 0, or void}; ids it does not name keep their meaning.
    """

    keys = (*Encoding.keys, "classes", "void", "first", "remap")

    classes: int
    table: np.ndarray
    """Class number of every id up to 65535; VOID for void, −1 for an id that nobody announced."""

    @classmethod
    def settings(cls, section: Section) -> dict[str, Any]:
        classes = section.data.get("classes")
        names = tuple(classes) if isinstance(classes, list) else ()
        number = len(names) if names else classes
        if not all(isinstance(name, str) for name in names) or not _is_whole(number) or not 2 <= number < VOID:
            section.wrong("classes", f"a list of 2 … {VOID - 1} names, or their number", "Quote names such as yes or 1.")
        first = section.whole("first", 0)
        table = np.full(65536, -1, np.int16)
        table[first : first + number] = np.arange(number)
        void = section.data.get("void", [])
        for one in void if isinstance(void, list) else [void]:
            if not _is_whole(one) or not 0 <= one < len(table):
                section.wrong("void", "an id in 0 … 65535, or a list of them")
            table[one] = VOID
        remap = section.data.get("remap", {})
        if not isinstance(remap, dict):
            section.wrong("remap", "a mapping {id in the files: class number or void}")
        for old, new in remap.items():
            if not _is_whole(old) or not 0 <= old < len(table) or not (new == "void" or (_is_whole(new) and 0 <= new < number)):
                section.refuse(f"`remap` should lead from ids to 0 … {number - 1} or void, found {old!r}: {new!r}")
            table[old] = VOID if new == "void" else new
        return {"classes": number, "names": names, "table": table}

    def stored(self, path: Path, array: np.ndarray, mode: str) -> np.ndarray:
        if array.ndim == 3:
            raise MultidenseError(
                f"{path}: class ids should stand in one channel, found colours (mode '{mode}', {array.shape[2]} channels). "
                "Look every colour up in your table of colours once, and save the ids as an 8-bit grey or palette PNG."
            )
        if path.suffix.lower() in (".jpg", ".jpeg"):
            raise MultidenseError(f"{path}: class ids should be stored without loss, found JPEG. Save them as PNG.")
        if array.ndim != 2 or array.dtype.kind not in "uib":
            raise MultidenseError(f"{path}: class ids should be whole numbers [h w], found {array.dtype} {list(array.shape)}")
        ids = array.astype(np.int64)
        classes = np.where((ids >= 0) & (ids < len(self.table)), self.table[ids.clip(0, len(self.table) - 1)], -1)
        if (classes < 0).any():
            strange, counts = np.unique(ids[classes < 0], return_counts=True)
            some = ", ".join(f"{one} ({count} pixels)" for one, count in list(zip(strange, counts, strict=True))[:8])
            likely = int(strange[0])
            if len(strange) == 1 and likely in (0, 255):
                remedy = f"An unannounced void id is likely: add `void: {likely}` to {self.where}."
            else:
                remedy = f"Correct `classes`, or add `void`, `first` or `remap` to {self.where}" + (
                    "; 255 is likely void." if 255 in strange else "."
                )
            raise MultidenseError(f"{path}: class ids should be one of the {self.classes} announced, found {some}. {remedy}")
        return classes.astype(np.uint8)

    def meaning(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return stored, stored != VOID

    def task(self) -> Task:
        return TASKS[self.name](self.classes, names=self.names)

    def agree(self, task: Task) -> None:
        if task.channels != self.classes:
            raise MultidenseError(
                f"{self.where}: describes {self.classes} classes, found a task of {task.channels}. "
                f"Use {type(task).__name__}({self.classes}), or correct `classes`."
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class Metres(Encoding):
    """A measurement a pixel: a grey PNG or TIFF of 8 or 16 bits, a float TIFF, or an array `[h w]` (.npy).

    `unit` (m, cm, mm) or `scale`, one of them, turns what is stored into metres; with `inverse: true`, `scale` turns it into
    1/metres. `invalid`: the number or numbers that mean "unknown" (default 0). `max`: metres beyond which nothing is believed.
    """

    keys = (*Encoding.keys, "unit", "scale", "invalid", "inverse", "max")

    scale: float
    invalid: tuple[float, ...]
    inverse: bool
    most: float

    @classmethod
    def settings(cls, section: Section) -> dict[str, Any]:
        units = {"m": 1.0, "cm": 0.01, "mm": 0.001}
        inverse = section.flag("inverse")
        if ("unit" in section.data) == ("scale" in section.data) or (inverse and "unit" in section.data):
            expected = "`scale`" if inverse else "one of `unit` (m, cm, mm) and `scale` (metres a step)"
            section.refuse(f"expected {expected}, found {', '.join(map(str, section.data))}. The files alone do not say it.")
        if "unit" in section.data and section.data["unit"] not in units:
            section.wrong("unit", "m, cm or mm", "For anything else give `scale`.")
        scale = section.number("scale") if "scale" in section.data else units[section.data["unit"]]
        most = section.number("max", np.inf)
        if scale <= 0 or most <= 0:
            section.wrong("scale" if scale <= 0 else "max", "above 0")
        invalid = section.data.get("invalid", 0)
        invalid = tuple(invalid) if isinstance(invalid, list) else (invalid,)
        if not all(_is_number(one) for one in invalid):
            section.wrong("invalid", "a number or a list of numbers")
        return {"scale": scale, "invalid": invalid, "inverse": inverse, "most": most}

    def stored(self, path: Path, array: np.ndarray, mode: str) -> np.ndarray:
        return _plane(path, array, mode, "depth")

    def meaning(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        metres = stored.astype(np.float32) * np.float32(self.scale)
        valid = np.isfinite(metres) & (metres > 0)
        for number in self.invalid:
            valid &= stored != number
        if self.inverse:
            metres = 1 / np.where(valid, metres, 1)
        if self.most != np.inf:
            valid &= metres <= self.most
        return metres, valid


@dataclass(frozen=True, eq=False, kw_only=True)
class Directions(Encoding):
    """A vector a pixel: an RGB PNG, or an array `[h w 3]` or `[3 h w]` (.npy).

    `axes`: what the three stored channels grow toward, such as [right, up, viewer] (the house frame) or [left, down, into].
    `encoding`: unit8, stored / 127.5 − 1 (the default for pictures), or float (for .npy). `invalid`: stored triple that means
    "unknown" (default [0, 0, 0]).
    """

    keys = (*Encoding.keys, "axes", "encoding", "invalid")
    axes: ClassVar[dict[str, tuple[int, int]]] = {
        "right": (0, 1), "left": (0, -1), "up": (1, 1), "down": (1, -1), "viewer": (2, 1), "into": (2, -1),
    }  # fmt: skip
    """House axis and sign of every word."""

    order: tuple[int, int, int]
    signs: tuple[int, int, int]
    encoding: str | None
    invalid: tuple[float, float, float]

    @classmethod
    def settings(cls, section: Section) -> dict[str, Any]:
        words = section.data.get("axes")
        found = [cls.axes.get(word) for word in words] if isinstance(words, list) else []
        if None in found or sorted(axis for axis, _ in found) != [0, 1, 2]:
            expected = "three words, one each of right/left, up/down, viewer/into"
            section.wrong("axes", expected, "The house frame is [right, up, viewer].")
        places = [next(i for i, (axis, _) in enumerate(found) if axis == house) for house in range(3)]
        encoding = section.data.get("encoding")
        if encoding not in (None, "unit8", "float"):
            section.wrong("encoding", "unit8 or float")
        invalid = section.data.get("invalid", [0, 0, 0])
        if not isinstance(invalid, list) or len(invalid) != 3 or not all(_is_number(one) for one in invalid):
            section.wrong("invalid", "three numbers as stored, such as [0, 0, 0]")
        signs = tuple(found[place][1] for place in places)
        return {"order": tuple(places), "signs": signs, "encoding": encoding, "invalid": tuple(invalid)}

    def stored(self, path: Path, array: np.ndarray, mode: str) -> np.ndarray:
        if mode == "RGBA":
            array = array[..., :3]
        if mode == "npy" and array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
            array = array.transpose(1, 2, 0)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind not in "uif":
            raise MultidenseError(f"{path}: normals should have three channels, found mode '{mode}', {list(array.shape)}")
        expected = self.encoding or ("float" if mode == "npy" else "unit8")
        if (expected == "float") != (array.dtype.kind == "f") or (expected == "unit8" and array.dtype != np.uint8):
            raise MultidenseError(f"{path}: expected {expected}, found {array.dtype}. Correct `encoding` in {self.where}.")
        return array if array.dtype == np.uint8 else array.astype(np.float32)

    def meaning(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, y, z = (stored[..., place] for place in range(3))
        valid = (x != self.invalid[0]) | (y != self.invalid[1]) | (z != self.invalid[2])
        house = stored[..., self.order].astype(np.float32)
        signs = np.array(self.signs, np.float32)
        return (house * (signs / 127.5) - signs if stored.dtype == np.uint8 else house * signs), valid


@dataclass(frozen=True)
class Interval:
    """Numbers between `low` and `high`; the ends belong to it where closed."""

    low: float
    high: float
    closed_low: bool
    closed_high: bool

    @classmethod
    def read(cls, section: Section, key: str) -> Interval | None:
        """ ">= a", "> a", "(a, b)", "[a, b)", … or the list [a, b], which is closed."""
        value = section.data.get(key)
        if value is None:
            return None
        text = str(value)
        if bound := re.fullmatch(r"(>=|>)\s*([\d.eE+-]+)", text.strip()):
            ends = [bound[2], "inf"]
            closed = (bound[1] == ">=", True)
        elif both := re.fullmatch(r"([\[(])([^,]+),([^,]+)([\])])", text.strip()):
            ends, closed = [both[2], both[3]], (both[1] == "[", both[4] == "]")
        else:
            ends, closed = ["nothing"], (True, True)
        try:
            low, high = map(float, ends)
            if not low <= high:
                raise ValueError
        except ValueError:
            section.wrong(key, 'a bound such as ">= 0.3" or an interval such as "(0, 0.3)", of shares in 0 … 1', "Quote it.")
        return cls(low, high, *closed)

    def holds(self, values: np.ndarray) -> np.ndarray:
        """Which of the values lie inside."""
        above = values >= self.low if self.closed_low else values > self.low
        return above & (values <= self.high if self.closed_high else values < self.high)


@dataclass(frozen=True, eq=False, kw_only=True)
class Shares(Encoding):
    """A share in 0 … 1 a pixel: a 1-bit PNG (not zero is 1), a grey PNG of 8 or 16 bits (white is 1), or .npy `[h w]`.

    `positive`: the shares that mean yes, such as ">= 0.3"; all others mean no. Without it the share itself is the target.
    `ignore`: an interval such as "(0, 0.3)" that means neither; it wins over `positive`.
    """

    keys = (*Encoding.keys, "positive", "ignore")

    positive: Interval | None
    ignore: Interval | None

    @classmethod
    def settings(cls, section: Section) -> dict[str, Any]:
        return {key: Interval.read(section, key) for key in ("positive", "ignore")}

    def stored(self, path: Path, array: np.ndarray, mode: str) -> np.ndarray:
        if mode in ("RGB", "RGBA") and (array[..., :1] == array[..., 1:3]).all():
            array, mode = array[..., 0], "L"
        array = _plane(path, array, mode, "a map of shares")
        if array.dtype.kind == "f" and (array[np.isfinite(array)].size == 0 or np.nanmin(array) < 0 or np.nanmax(array) > 1):
            raise MultidenseError(f"{path}: shares should lie in 0 … 1, found {np.nanmin(array):g} … {np.nanmax(array):g}")
        if array.dtype.kind == "i":
            raise MultidenseError(f"{path}: expected 1, 8 or 16 bits or floats in 0 … 1, found {array.dtype}. Convert it.")
        return array

    def meaning(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        whole = np.iinfo(stored.dtype).max if stored.dtype.kind == "u" else 1
        shares = stored.astype(np.float32) / np.float32(whole)
        valid = np.isfinite(shares)
        if self.ignore is not None:
            valid &= ~self.ignore.holds(shares)
        return shares if self.positive is None else self.positive.holds(shares).astype(np.float32), valid


TASKS = {one.name: one for one in (SemanticSegmentation, HumanParts, Depth, Normals, Edges, Saliency)}
ENCODINGS: dict[str, type[Encoding]] = {
    "semseg": ClassMap,
    "parts": ClassMap,
    "depth": Metres,
    "normals": Directions,
    "edges": Shares,
    "saliency": Shares,
}


# Reading files --------------------------------------------------------------------------------------------------------


def _picture(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        raise MultidenseError(f"{path} cannot be read as a picture: {error}. Replace it or take out its id.") from error


def _array(path: Path) -> tuple[np.ndarray, str]:
    """What a label file holds, and Pillow's mode or "npy"."""
    if path.suffix.lower() != ".npy":
        picture = _picture(path)
        array = np.asarray(picture)
        return (array[..., 0], picture.mode[0]) if picture.mode in ("LA", "PA") else (array, picture.mode)
    try:
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of several arrays")
    except (OSError, ValueError, EOFError) as error:
        raise MultidenseError(f"{path} cannot be read as an array: {error}. Save it again with numpy.save.") from error
    return array, "npy"


def _plane(path: Path, array: np.ndarray, mode: str, what: str) -> np.ndarray:
    """One number a pixel, `[h w]`, as uint8 (0 and 255 for 1 bit), uint16, int32 or float32."""
    if array.ndim != 2 or mode == "P" or array.dtype.kind not in "buif":
        kind = "a palette" if mode == "P" else f"mode '{mode}', {array.dtype} {list(array.shape)}"
        raise MultidenseError(f"{path}: {what} should be one number a pixel, found {kind}. Save it as a grey PNG, or as .npy.")
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype in (np.uint8, np.uint16):
        return array
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int32)


def _nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`[h w …]` at another size: the pixel in which each new pixel's middle lies."""
    if array.shape[:2] == tuple(size):
        return array
    rows, columns = (((2 * np.arange(new) + 1) * old) // (2 * new) for new, old in zip(size, array.shape[:2], strict=True))
    return np.ascontiguousarray(array[rows[:, None], columns])


# Reading descriptions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """One mapping of a description; `where` says which file and keys, for messages."""

    data: Mapping[Any, Any]
    where: str

    def refuse(self, problem: str) -> NoReturn:
        raise MultidenseError(f"{self.where}: {problem}")

    def wrong(self, key: str, expected: str, remedy: str = "") -> NoReturn:
        found = f"found {self.data[key]!r}" if key in self.data else "found no such key"
        self.refuse(f"`{key}` should be {expected}, {found}.{' ' if remedy else ''}{remedy}")

    def section(self, key: str, allowed: Collection[str] | None = None) -> Section:
        """The mapping under `key`; keys beyond those allowed are refused, with the nearest one that is."""
        if not isinstance(self.data.get(key), Mapping):
            self.wrong(key, "a mapping (`key: value` lines below it)")
        inner = Section(self.data[key], f"{self.where}, {key}")
        return inner if allowed is None else inner.only(allowed)

    def only(self, allowed: Collection[str]) -> Section:
        for key in self.data:
            if key not in allowed:
                near = "".join(f" Is it `{other}`?" for other in get_close_matches(str(key), allowed, 1, 0.5))
                self.refuse(f"expected only {', '.join(allowed)}, found `{key}`.{near}")
        return self

    def text(self, key: str, default: str) -> str:
        if not isinstance(value := self.data.get(key, default), str):
            self.wrong(key, "text", "Quote it.")
        return value

    def flag(self, key: str) -> bool:
        if not isinstance(value := self.data.get(key, False), bool):
            self.wrong(key, "true or false")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        if not _is_number(value := self.data.get(key, default)):
            self.wrong(key, "a number")
        return float(value)

    def whole(self, key: str, default: int) -> int:
        if not _is_whole(value := self.data.get(key, default)) or value < 0:
            self.wrong(key, "a whole number from 0 on")
        return value

    def pattern(self, key: str, root: Path) -> str:
        """A file name relative to `root` with {id} in it, whose folder is there."""
        value = self.data.get(key)
        if not isinstance(value, str) or "{id}" not in value:
            self.wrong(key, "a file name with {id} in it, such as labels/{id}.png", "Quote it if it begins with {id}.")
        folder = root / value[: value.index("{id}")].rpartition("/")[0]
        if not folder.is_dir():
            self.wrong(key, f"in a folder that is there, but {folder} is not", "Correct it, or `root`.")
        return value


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key `{key}` stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read_description(description: str | Path | Mapping[str, Any]) -> tuple[Section, Path, str]:
    """The description's top, the folder its `root` is relative to, and a name if it has none."""
    keys = ("name", "source", "licence", "root", "images", "splits", "tasks")
    if isinstance(description, Mapping):
        return Section(description, "the description").only(keys), Path(), "folder"
    path = Path(description)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise MultidenseError(f"{path} cannot be read as a description: {error}") from error
    except yaml.YAMLError as error:
        hint = "Quote text that begins with one of > [ { or holds a colon and a space."
        raise MultidenseError(f"{path} cannot be read as YAML: {error}. {hint}") from error
    if not isinstance(data, dict):
        raise MultidenseError(f"{path}: expected a mapping with the keys {', '.join(keys)}, found {type(data).__name__}")
    return Section(data, str(path)).only(keys), path.parent, path.stem


def _ids(top: Section, split: str, root: Path, images: str) -> list[str]:
    """The ids of one split, each with an image."""
    splits = top.section("splits") if "splits" in top.data else Section({"train": "rest"}, f"{top.where}, splits")
    if split not in splits.data:
        splits.refuse(f"expected one of {', '.join(map(str, splits.data))}, found '{split}'")
    listed = {name: _listed(splits, name, root) for name, value in splits.data.items() if not _is_rule(value)}
    if split in listed:
        ids = listed[split]
        missing = [one for one in ids if not (root / images.replace("{id}", one)).is_file()]
        if missing:
            some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            splits.refuse(f"'{split}' lists ids without an image {root / images}: {some}. Take them out or add the images.")
    else:
        ids = _ruled(splits, split, _all_ids(root, images), {one for found in listed.values() for one in found})
    if not ids:
        splits.refuse(f"'{split}' has no image at all. Look at `images` ({root / images}) and at the split.")
    return ids


def _is_rule(value: object) -> bool:
    return value == "rest" or isinstance(value, Mapping)


def _listed(splits: Section, name: str, root: Path) -> list[str]:
    """The ids of a split that is a list, or a text file with one id a line (blank lines and # comments do not count)."""
    ids = splits.data[name]
    if isinstance(ids, str):
        try:
            lines = (root / ids).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            splits.wrong(name, f"a text file of ids, but {root / ids} cannot be read ({error})", "Correct it, or `root`.")
        ids = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        splits.wrong(name, "a text file, a list of ids, `rest` or {fraction: …, seed: …}", "Quote ids made of digits.")
    if len(set(ids)) < len(ids):
        splits.refuse(f"'{name}' lists '{next(one for one in ids if ids.count(one) > 1)}' twice. Leave one of them out.")
    return ids


def _ruled(splits: Section, split: str, every: list[str], taken: set[str]) -> list[str]:
    """The ids of a split given as a fraction, each drawn from what those before it left, or as the rest of all."""
    left = [one for one in every if one not in taken]
    for name, rule in splits.data.items():
        if isinstance(rule, Mapping):
            section = splits.section(name, ("fraction", "seed"))
            number = round(section.number("fraction") * len(every))
            if not 0 < number <= len(left):
                section.wrong("fraction", f"a share that takes 1 … {len(left)} of {len(every)} images", f"It takes {number}.")
            chosen = set(np.random.default_rng(section.whole("seed", 0)).permutation(left)[:number].tolist())
            if name == split:
                return [one for one in left if one in chosen]
            left = [one for one in left if one not in chosen]
    return left


def _all_ids(root: Path, images: str) -> list[str]:
    """The ids of all images whose file names fit the pattern, sorted."""
    start, *others = (re.escape(part) for part in images.split("{id}"))
    fits = re.compile(start + "(?P<id>.+?)" + "(?P=id)".join(others))
    folder = root / images[: images.index("{id}")].rpartition("/")[0]
    names = (path.relative_to(root).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(found["id"] for name in names if (found := fits.fullmatch(name)))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
