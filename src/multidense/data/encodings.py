"""Encodings: how label files become arrays, and what the numbers in them mean."""

from __future__ import annotations

import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Int, Num, Shaped
from PIL import Image

from multidense.data.description import Interval, Section, is_number, is_whole
from multidense.task import Task
from multidense.tasks import Depth, Edges, HumanParts, Normals, Saliency, SemanticSegmentation
from multidense.types import MultidenseError

VOID = 255
"""What a pixel that is not valid is kept as in a class map in memory."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Encoding(ABC):
    """How one task's labels are stored and what their numbers mean. `where` names its place in the description.

    What a check tells of labels is said here too: `kinds`, what valid pixels are counted by; `measured`, the numbers whose
    range is worth knowing, in `measure`; `suspicions`, what is legal but hardly meant.
    """

    keys: ClassVar[tuple[str, ...]] = ("files", "resize")
    measure: ClassVar[str] = ""
    every_kind: ClassVar[bool] = False
    """Whether a kind that never occurs is worth a warning."""

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

    @property
    @abstractmethod
    def kinds(self) -> tuple[str, ...]:
        """What valid pixels are counted by, in order."""

    @abstractmethod
    def count(self, values: Num[np.ndarray, "h w *c"], valid: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, " k"]:
        """How many valid pixels are of each kind."""

    @abstractmethod
    def measured(self, values: Num[np.ndarray, "h w *c"], valid: Bool[np.ndarray, "h w"]) -> Num[np.ndarray, " n"]:
        """The numbers of valid pixels whose range is worth knowing; none where kinds say it all."""

    def suspicions(self, stored: Shaped[np.ndarray, "h w *c"]) -> Iterator[tuple[str, str]]:
        """What is legal in a label but hardly meant: (what was found, what to do)."""
        yield from ()

    def colours(self, path: Path) -> dict[int, str]:
        """The colours (#rrggbb) of the ids that a palette picture uses; empty for all other files."""
        return {}

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
    every_kind = True
    between: ClassVar[float] = 0.12
    """Share of changes of class beyond which a map was made by mixing ids; true maps stay below 0.07, mixed ones above 0.2."""

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
            raise MultidenseError(
                f"{path}: class ids should be whole numbers [h w], found {array.dtype} {list(array.shape)}. Save integers."
            )
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
                if mode == "P":
                    remedy += " It is a palette picture, whose indices count, not its colours: save the ids themselves."
                elif len(strange) > 8:
                    remedy += " So many ids look mixed: resize to the nearest pixel only, and never save ids with loss."
            raise MultidenseError(f"{path}: class ids should be one of the {self.classes} announced, found {some}. {remedy}")
        return classes.astype(np.uint8)

    def meaning(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return stored, stored != VOID

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.names or tuple(f"class {number}" for number in range(self.classes))

    def count(self, values: Num[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, " k"]:
        return np.bincount(values[valid], minlength=self.classes)

    def measured(self, values: Num[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"]) -> Num[np.ndarray, " n"]:
        return np.empty(0)

    def suspicions(self, stored: Shaped[np.ndarray, "h w"]) -> Iterator[tuple[str, str]]:
        """Ids that were mixed: a pixel whose id lies between those of its two neighbours, too often."""
        share = max(_mixed(stored), _mixed(stored[::2, ::2]))  # the second one for maps that were doubled afterwards
        if share > self.between:
            found = f"class ids look mixed at {share:.0%} of the borders, as by smooth resizing or JPEG"
            yield found, "Make the file again from the original ids, resized to the nearest pixel only and saved without loss."

    def colours(self, path: Path) -> dict[int, str]:
        if path.suffix.lower() == ".npy":
            return {}
        with Image.open(path) as picture:
            if picture.mode != "P":
                return {}
            palette, used = bytes(picture.getpalette("RGB") or []), np.unique(np.asarray(picture)).tolist()
        return {one: f"#{palette[3 * one : 3 * one + 3].hex()}" for one in used if 3 * one + 3 <= len(palette)}

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
    measure = "m"
    steps: ClassVar[tuple[float, ...]] = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
    """Bounds of the kinds, in metres."""
    likely: ClassVar[tuple[float, float]] = (0.03, 300.0)
    """Between these metres lies the median of what is measured: beyond, the unit is taken for wrong by a factor of 1000."""

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
        metres, valid = self._measurements(stored)
        if self.most != np.inf:
            valid &= metres <= self.most
        return metres, valid

    def _measurements(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        metres = stored.astype(np.float32) * np.float32(self.scale)
        valid = np.isfinite(metres) & (metres > 0)
        for number in self.invalid:
            valid &= stored != number
        if self.inverse:
            metres = 1 / np.where(valid, metres, 1)
        return metres, valid

    @property
    def kinds(self) -> tuple[str, ...]:
        between = (f"{low:g}–{high:g} m" for low, high in pairwise(self.steps))
        return f"below {self.steps[0]:g} m", *between, f"{self.steps[-1]:g} m and more"

    def count(self, values: Num[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, " k"]:
        return np.bincount(np.searchsorted(self.steps, values[valid], side="right"), minlength=len(self.steps) + 1)

    def measured(self, values: Num[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"]) -> Num[np.ndarray, " n"]:
        return values[valid]

    def suspicions(self, stored: Num[np.ndarray, "h w"]) -> Iterator[tuple[str, str]]:
        """Numbers that are not finite or negative and not announced as `invalid`; medians that only another unit explains."""
        announced = np.isin(stored, self.invalid)
        strange, negative = ~np.isfinite(stored), (stored < 0) & np.isfinite(stored) & ~announced
        if strange.any() and np.isfinite(self.invalid).all():
            remedy = f"If they mean unknown, add .nan to `invalid` in {self.where}; otherwise make the file again."
            yield f"depth should be finite, found {strange.sum()} pixels that are not", remedy
        if negative.any():
            least = stored[negative].min()
            remedy = f"If they mean unknown, add {least:g} to `invalid` in {self.where}; otherwise make the file again."
            yield f"depth should be positive, found {negative.sum()} negative pixels, the least {least:g}", remedy
        metres, valid = self._measurements(stored)
        if self.inverse or not valid.any():
            return
        median = float(np.median(metres[valid]))
        if not self.likely[0] <= median <= self.likely[1]:
            unit, factor = ("mm", 0.001) if median > self.likely[1] else ("m", 1)
            called = {1.0: "metres", 0.01: "centimetres", 0.001: "millimetres"}.get(self.scale, f"steps of {self.scale:g} m")
            found = f"depth called {called} looks like another unit, found a median of {median:,.4g} m"
            remedy = (
                f"Correct `unit` in {self.where} (in {unit} it would be {median / self.scale * factor:.3g} m), or the file."
            )
            yield found, remedy


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
    measure = "length"

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
            raise MultidenseError(
                f"{path}: normals should have three channels, found mode '{mode}', {list(array.shape)}. "
                "Save an RGB PNG, or .npy [h w 3]."
            )
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

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.axes)

    def count(self, values: Num[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, " k"]:
        """By the axis that a vector is nearest to."""
        vectors = values[valid]
        along = np.abs(vectors).argmax(-1)
        backward = np.take_along_axis(vectors, along[:, None], 1)[:, 0] < 0
        return np.bincount(2 * along + backward, minlength=len(self.axes))

    def measured(self, values: Num[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"]) -> Num[np.ndarray, " n"]:
        return np.linalg.norm(values[valid], axis=-1)

    def suspicions(self, stored: Num[np.ndarray, "h w 3"]) -> Iterator[tuple[str, str]]:
        """Vectors that are not finite, not of unit length (a twentieth off by more than 0.1), or mostly turned away."""
        vectors, valid = self.meaning(stored)
        finite = np.isfinite(vectors).all(-1)
        if (valid & ~finite).any():
            remedy = f"Write what is unknown as `invalid` in {self.where}, {list(self.invalid)}."
            yield f"normals should be finite, found {(valid & ~finite).sum()} pixels that are not", remedy
        valid &= finite
        if not valid.any():
            return
        off = valid & (np.abs(np.linalg.norm(vectors, axis=-1) - 1) > 0.1)
        if (share := off.sum() / valid.sum()) > 0.05:
            triples, counts = np.unique(stored[off], axis=0, return_counts=True)
            remedy = f"Correct `encoding` in {self.where}, or normalise the vectors."
            if counts.max() > off.sum() / 2:
                remedy += f" If {triples[counts.argmax()].tolist()} means unknown, say so: `invalid`."
            yield f"normals should have unit length, found {share:.0%} of the valid pixels off by more than 0.1", remedy
        elif (away := (vectors[..., 2][valid] < 0).mean()) > 0.5:
            remedy = f"Look at `axes` in {self.where}: is `viewer` meant where `into` stands, or the reverse?"
            yield f"normals of what is seen should face the viewer, found {away:.0%} turned away", remedy


@dataclass(frozen=True, eq=False, kw_only=True)
class Shares(Encoding):
    """A share in 0 … 1 a pixel: a 1-bit PNG (not zero is 1), a grey PNG of 8 or 16 bits (white is 1), or .npy `[h w]`.

    `positive`: the shares that mean yes, such as ">= 0.3"; all others mean no. Without it the share itself is the target.
    `ignore`: an interval such as "(0, 0.3)" that means neither; it wins over `positive`.
    """

    keys = (*Encoding.keys, "positive", "ignore")
    measure = "share"

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
            raise MultidenseError(
                f"{path}: shares should lie in 0 … 1, found {np.nanmin(array):g} … {np.nanmax(array):g}. "
                "Divide by what means 1."
            )
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

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("0–0.2", "0.2–0.4", "0.4–0.6", "0.6–0.8", "0.8–1") if self.positive is None else ("no", "yes")

    def count(self, values: Num[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, " k"]:
        kinds = len(self.kinds)
        return np.bincount((values[valid] * kinds).astype(int).clip(0, kinds - 1), minlength=kinds)

    def measured(self, values: Num[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"]) -> Num[np.ndarray, " n"]:
        return values[valid]

    def suspicions(self, stored: Num[np.ndarray, "h w"]) -> Iterator[tuple[str, str]]:
        """Pictures whose largest number is what fewer bits would call white."""
        white = np.iinfo(stored.dtype).max if stored.dtype.kind == "u" else 1
        most = stored.max()
        if white > 1 and most and most in (1, 255) and most < white:
            found = f"white should be {white}, found nothing above {most}"
            yield found, f"Multiply by {white // most}, or save yes and no as a 1-bit PNG."


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


def _mixed(ids: np.ndarray) -> float:
    """Of the changes from one id to another along rows and columns of `[h w]`, the share that goes by an id between the two."""
    mixed = changes = 0
    for lines in (ids, ids.T):
        before, here, after = lines[:, :-2], lines[:, 1:-1], lines[:, 2:]
        known = (before != VOID) & (here != VOID) & (after != VOID)
        mixed += ((np.minimum(before, after) < here) & (here < np.maximum(before, after)) & known).sum()
        changes += ((here != after) & known).sum()
    return mixed / changes if changes >= 100 else 0.0  # fewer say nothing


def nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`[h w …]` at another size: the pixel in which each new pixel's middle lies."""
    if array.shape[:2] == tuple(size):
        return array
    rows, columns = (((2 * np.arange(new) + 1) * old) // (2 * new) for new, old in zip(size, array.shape[:2], strict=True))
    return np.ascontiguousarray(array[rows[:, None], columns])
