"""Classes and parts of PASCAL-Context: tables, and the MATLAB files in which they stand (LabelMap, and PASCAL-Part's anno)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
from jaxtyping import Int

from multidense.types import MultidenseError

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The 21 classes of PASCAL VOC, in the order of their ids."""

PERSON = CLASSES.index("person")

PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")

_MERGED = {
    "head": "hair head lear rear lebrow rebrow leye reye mouth nose",
    "torso": "neck torso",
    "upper arm": "luarm ruarm",
    "lower arm": "llarm rlarm lhand rhand",
    "upper leg": "luleg ruleg",
    "lower leg": "llleg rlleg lfoot rfoot",
}
PART_OF = {name: PARTS.index(part) for part, names in _MERGED.items() for name in names.split()}
"""Which of `PARTS` each of the 24 part names of PASCAL-Part belongs to."""

LABELS = 65536
"""Labels of a LabelMap lie below this; it has 459 classes and is stored in 16 bits."""

NORMALS_VALID = np.zeros(LABELS, bool)
"""By label: whether its distilled normals are believed, which holds for the 170 classes that NYUv2 has too."""
NORMALS_VALID[
    [
        3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56, 59, 61,
        62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124, 135, 141, 142,
        143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215, 216, 219, 220,
        223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272, 273, 275, 281, 283,
        284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319, 323, 329, 330, 331, 336, 342, 345,
        349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383, 384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414,
        417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442, 443, 444, 446, 454, 457,
    ]
] = True  # fmt: skip


def read_mat(path: Path, key: str) -> np.ndarray:
    """What a MATLAB file (version 5) holds under a key, as scipy gives it: cells and structs are two-dimensional arrays."""
    try:
        held = scipy.io.loadmat(path)
    except Exception as error:  # on a damaged file scipy raises nearly anything: zlib.error, IndexError, TypeError, …
        raise MultidenseError(f"{path} cannot be read as a MATLAB file: {error}. Replace it or take out its id.") from error
    if key not in held:
        names = ", ".join(name for name in held if not name.startswith("__")) or "nothing"
        raise MultidenseError(f"{path}: expected '{key}', found {names}. Replace it or take out its id.")
    return held[key]


def read_labels(path: Path) -> Int[np.ndarray, "h w"]:
    """The LabelMap of PASCAL-Context, int32."""
    labels = read_mat(path, "LabelMap")
    if labels.ndim != 2 or labels.dtype.kind not in "uif" or not labels.size:
        raise MultidenseError(
            f"{path}: 'LabelMap' should be whole numbers [h w], found {labels.dtype} {list(labels.shape)}. Replace the file."
        )
    wrong = ~((labels >= 0) & (labels < LABELS) & (np.floor(labels) == labels))
    if wrong.any():
        raise MultidenseError(
            f"{path}: 'LabelMap' should hold whole numbers in 0 … {LABELS - 1}, found {labels[wrong][0]}. Replace the file."
        )
    return labels.astype(np.int32)


@dataclass(frozen=True, eq=False)
class Thing:
    """An object of PASCAL-Part: its VOC id, its mask (bool `[h w]`), and its parts as (name, mask)."""

    category: int
    mask: np.ndarray
    parts: list[tuple[str, np.ndarray]]


def read_objects(path: Path) -> list[Thing]:
    """The objects of one image, from the nested structs under `anno`."""
    anno = read_mat(path, "anno")
    try:
        things = [
            Thing(
                int(one["class_ind"].item()),
                one["mask"].astype(bool),
                [(str(part["part_name"].item()), part["mask"].astype(bool)) for part in _structs(one["parts"])],
            )
            for whole in _structs(anno)
            for one in _structs(whole["objects"])
        ]
        if not anno.dtype.names:
            raise ValueError(f"it is {anno.dtype} {list(anno.shape)}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        expected = "a struct with `objects` (`class_ind`, `mask`, `parts`), whose parts have `part_name` and `mask`"
        raise MultidenseError(f"{path}: 'anno' should be {expected}, but {error}. Replace it or take out its id.") from error
    shapes = {mask.shape for thing in things for mask in (thing.mask, *(mask for _, mask in thing.parts))}
    if len(shapes) > 1 or any(len(shape) != 2 or not min(shape) for shape in shapes):
        found = ", ".join(map(str, sorted(shapes)))
        raise MultidenseError(f"{path}: the masks in 'anno' should be of one size [h w], found {found}. Replace the file.")
    return things


def _structs(array: np.ndarray) -> Iterator[np.void]:
    """The elements of a struct array, also one inside cells; none of what is empty (MATLAB's [])."""
    if array.dtype.names:
        yield from array.ravel()
    elif array.dtype == object:
        for inner in array.ravel():
            yield from _structs(inner) if isinstance(inner, np.ndarray) else ()
