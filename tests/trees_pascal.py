"""Small trees in the formats of PASCAL_MT: JPEG images, MATLAB version 5 files, PNG label files, id lists."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

import multidense.data
from multidense.data.partial import Assignment

ASSIGNMENTS = Path(multidense.data.__file__).parent / "assignments"


@functools.cache
def published(setting: str) -> Assignment:
    """The published label assignment, which lists the 4998 training images."""
    return Assignment.from_csv(ASSIGNMENTS / f"pascal-context_{setting}.csv")


WALL, SKY, PERSON, SOFA, AEROPLANE = 440, 360, 284, 368, 2
"""Labels in LabelMap; distilled normals are valid on walls, persons and sofas only."""

VOC = {PERSON: 15, SOFA: 18, AEROPLANE: 1}
"""The classes of those that are among the 21."""


def structs(rows: Sequence[Mapping], *fields: str) -> np.ndarray:
    """A MATLAB struct array [1 n]; without rows, MATLAB's []."""
    if not rows:
        return np.zeros((0, 0))
    array = np.empty((1, len(rows)), [(field, object) for field in fields])
    for place, row in enumerate(rows):
        for field in fields:
            array[0, place][field] = row[field]
    return array


def thing(category: int, mask: np.ndarray, parts: Mapping[str, np.ndarray] | None = None) -> dict:
    """An object of PASCAL-Part."""
    rows = [{"part_name": name, "mask": one.astype(np.uint8)} for name, one in (parts or {}).items()]
    return {
        "class": "person" if category == 15 else "other",
        "class_ind": float(category),
        "mask": mask.astype(np.uint8),
        "parts": structs(rows, "part_name", "mask"),
    }


def write_anno(path: Path, things: Sequence[Mapping]) -> None:
    objects = structs(things, "class", "class_ind", "mask", "parts")
    anno = structs([{"imname": path.stem, "objects": objects}], "imname", "objects")
    save(path, {"anno": anno})


def save(path: Path, content: np.ndarray | Mapping | str) -> None:
    """Write a file of the kind that its name says, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mat":
        scipy.io.savemat(path, content, do_compression=True)
    elif path.suffix == ".txt":
        path.write_text(content)
    else:
        Image.fromarray(content).save(path, quality=95)


def scene(number: int, size: tuple[int, int], person: bool, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """LabelMap, the mask of the person and what else one image needs."""
    h, w = size
    labels = np.full(size, WALL, np.uint16)
    labels[: h // 4] = SKY
    labels[h - h // 4 :, w // 2 :] = SOFA if number % 2 else AEROPLANE
    body = np.zeros(size, bool)
    if person:
        body[h // 8 : h - h // 8, w // 8 : w // 3] = True
        labels[body] = PERSON
    normals = rng.normal(size=(*size, 3)) * [0.4, 0.4, 0] + [0, 0, 1]
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return {
        "image": (40 * (labels[..., None] % np.array([5, 6, 7])) + rng.integers(0, 9, (*size, 1))).astype(np.uint8),
        "labels": labels,
        "body": body,
        "normals": np.round((normals + 1) * 127.5).astype(np.uint8),
        "saliency": np.where(body | (labels == SOFA), 230, 20).astype(np.uint8),
    }


def body_parts(body: np.ndarray) -> dict[str, np.ndarray]:
    """Six bands of a body, top to bottom, as parts of PASCAL-Part; the last pixel row of the body belongs to none."""
    rows = np.flatnonzero(body.any(1))
    bands = np.array_split(rows[:-1], 6)
    names = ("hair", "torso", "luarm", "rhand", "ruleg", "lfoot")
    return {name: body & np.isin(np.arange(len(body)), band)[:, None] for name, band in zip(names, bands, strict=True)}


def write_tree(
    root: Path,
    train: int = 4,
    val: int = 2,
    size: tuple[int, int] = (24, 32),
    without: Collection[str] = (),
    index: bool = False,
    seed: int = 0,
) -> Path:
    """Write the first `train` images of the real training list and `val` others below `root`, which is returned.

    Every third image has nobody in it, unless a published assignment gives it a parts label. Of even images the class map lies
    in VOC12 (with void in its corner), of odd ones in pascal-context. `without`: top folders to leave out. `index`: write
    ImageSets/Parts too.
    """
    rng = np.random.default_rng(seed)
    people: set[str] = set()
    for given in (published("one-label"), published("random-labels")):
        people.update(np.array(given.ids)[given.table[:, given.tasks.index("parts")]].tolist())
    splits = {"train": list(published("one-label").ids[:train]), "val": [f"2011_{number:06d}" for number in range(val)]}
    for split, ids in splits.items():
        objects = {}
        for number, name in enumerate(ids):
            person = number % 3 != 1 or name in people
            made = scene(number, size, person, rng)
            semseg = sum(np.where(made["labels"] == label, voc, 0) for label, voc in VOC.items()).astype(np.uint8)
            if number % 2 == 0:
                semseg[:2, :2] = 255
            things = [thing(15, made["body"], body_parts(made["body"]))] if person else []
            if number % 2 == 0:
                things.append(thing(1, made["labels"] == AEROPLANE, {"tail": made["labels"] == AEROPLANE}))
            objects[name] = [int(one["class_ind"]) for one in things]
            save(root / f"JPEGImages/{name}.jpg", made["image"])
            save(root / f"pascal-context/trainval/{name}.mat", {"LabelMap": made["labels"]})
            save(root / f"semseg/{'pascal-context' if number % 2 else 'VOC12'}/{name}.png", semseg)
            write_anno(root / f"human_parts/{name}.mat", things)
            save(root / f"normals_distill/{name}.png", made["normals"])
            save(root / f"sal_distill/{name}.png", made["saliency"])
        save(root / f"ImageSets/Context/{split}.txt", "".join(f"{name}\n" for name in ids))
        if index:
            save(root / f"ImageSets/Parts/{split}.txt", json.dumps(objects))
    for folder in without:
        for path in sorted((root / folder).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (root / folder).rmdir()
    return root
