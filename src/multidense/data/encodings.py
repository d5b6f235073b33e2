"""Encodings: how label files become arrays, and what the numbers in them mean."""

from __future__ import annotations

import struct
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from multidense.data.description import Interval, Section, is_number, is_whole
from multidense.task import Task
from multidense.tasks import Depth, Edges, HumanParts, Normals, Saliency, SemanticSegmentation
from multidense.types import MultidenseError

VOID = 255
"""What a pixel that is not valid is kept as in a class map in memory."""


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
        if not all(isinstance(name, str) for name in names) or not is_whole(number) or not 2 <= number < VOID:
            section.wrong("classes", f"a list of 2 … {VOID - 1} names, or their number", "Quote names such as yes or 1.")
        first = section.whole("first", 0)
        table = np.full(65536, -1, np.int16)
        table[first : first + number] = np.arange(number)
        void = section.data.get("void", [])
        for one in void if isinstance(void, list) else [void]:
            if not is_whole(one) or not 0 <= one < len(table):
                section.wrong("void", "an id in 0 … 65535, or a list of them")
            table[one] = VOID
        remap = section.data.get("remap", {})
        if not isinstance(remap, dict):
            section.wrong("remap", "a mapping {id in the files: class number or void}")
        for old, new in remap.items():
            if not is_whole(old) or not 0 <= old < len(table) or not (new == "void" or (is_whole(new) and 0 <= new < number)):
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
    invalid: tuple[float | int, ...]
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
        if not all(is_number(one) for one in invalid):
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
    invalid: tuple[float | int, ...]

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
        if not isinstance(invalid, list) or len(invalid) != 3 or not all(is_number(one) for one in invalid):
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


def read_picture(path: Path) -> Image.Image:
    """A picture, read to its end."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        raise MultidenseError(f"{path} cannot be read as a picture: {error}. Replace it or take out its id.") from error


def read_array(path: Path) -> tuple[np.ndarray, str]:
    """What a label file holds, and Pillow's mode or "npy"."""
    if path.suffix.lower() != ".npy":
        picture = read_picture(path)
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


def nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`[h w …]` at another size: the pixel in which each new pixel's middle lies."""
    if array.shape[:2] == tuple(size):
        return array
    rows, columns = (((2 * np.arange(new) + 1) * old) // (2 * new) for new, old in zip(size, array.shape[:2], strict=True))
    return np.ascontiguousarray(array[rows[:, None], columns])
