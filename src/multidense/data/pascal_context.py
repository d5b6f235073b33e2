"""PASCAL-Context with five tasks, as multi-task papers use it: semantic classes, human parts, normals, saliency, edges.

One layout is known, `PASCAL_MT` (Maninis et al., "Attentive Single-Tasking of Multiple Tasks", CVPR 2019). Normals and saliency
in it are **distilled**: predictions of networks trained on other data, not measurements.

    PASCAL_MT/ImageSets/Context/{train,val}.txt       ids such as 2008_000008
              ImageSets/Parts/{train,val}.txt         which objects each image has; may be missing, see `write_parts_index`
              JPEGImages/{id}.jpg
              pascal-context/trainval/{id}.mat        LabelMap, 459 classes: edges, and where normals are valid
              semseg/VOC12/{id}.png                   classes; where this is missing, semseg/pascal-context/{id}.png
              human_parts/{id}.mat                    anno, as PASCAL-Part has it
              normals_distill/{id}.png  sal_distill/{id}.png

    >>> reader = PascalContext("/data/PASCAL_MT", "train", size=(512, 512))
    >>> reader.annotated(0)                           # no "parts": nobody is in this image
    frozenset({'semseg', 'normals', 'saliency', 'edges'})
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import scipy.ndimage
import torch
from jaxtyping import Bool
from PIL import Image

from multidense.data._pascal_classes import CLASSES, NORMALS_VALID, PART_OF, PARTS, PERSON, read_labels, read_objects
from multidense.data.benchmark import Benchmark, Layout, Part
from multidense.data.description import Interval, Section
from multidense.data.encodings import VOID, Directions, Shares, nearest, read_array, read_picture
from multidense.data.packed import Packed
from multidense.files import read_json, write_text
from multidense.task import Task
from multidense.tasks import Edges, HumanParts, Normals, Saliency, SemanticSegmentation
from multidense.types import MultidenseError

FOLDERS = {
    "semseg": ("semseg/VOC12", ".png"),
    "parts": ("human_parts", ".mat"),
    "normals": ("normals_distill", ".png"),
    "saliency": ("sal_distill", ".png"),
    "edges": ("pascal-context/trainval", ".mat"),
}
"""Where each task's labels lie, and how their names end."""

CONTEXT = "semseg/pascal-context"
"""Where class maps lie that VOC12 does not have."""

NORMALS_FRAME = ("left", "up", "viewer")
"""What red, green and blue of the distilled normals grow toward.

Nothing that comes with the data says it, so it is inferred. (1) Public code that turns these images adds the angle, counted
counter-clockwise, to atan2(x, y); that is right for (left, up) and for (right, down) only, not for (right, up). (2) They are
believed on classes of NYUv2 only, so the network behind them was likely trained there, and users of networks trained on its
usual normals (Ladický et al. 2014) found (left, up, viewer). To check a copy: the ground should be green, and the right-hand
side of a room reddish.
"""

SALIENT = Shares(name="saliency", where="sal_distill", files="", positive=Interval(0.5, np.inf, False, True), ignore=None)

HOST = "the archive PASCAL_MT.tgz of the ETH Zürich computer vision lab, whose host is gone"
COPIES = "Copies go round as PASCALContext.tar.gz, linked from the readme of InvPT and other multi-task code."


class PascalMT(Layout):
    """The layout of the archive PASCAL_MT. `root`: the folder itself, or the one that holds it as PASCAL_MT or PASCALContext.

    `normals_frame`: what the three channels of the normals grow toward, see `NORMALS_FRAME`.

    An image is **annotated** for parts if a person is in it (as in the published code and label assignments), even where that
    person has no parts: such a label is valid nowhere. Who is in it is taken from ImageSets/Parts where that lists the image;
    otherwise the image's human_parts file is opened once, when it is first asked for, and the answer is kept in memory. Nothing
    is written unless `write_parts_index` is called.
    """

    name: ClassVar[str] = "PASCAL_MT"
    lengths = {"train": 4998, "val": 5105}  # noqa: RUF012

    def __init__(self, root: Path, split: str, tasks: Sequence[Task], normals_frame: Sequence[str] = NORMALS_FRAME):
        self.root, self.split = home(root), split
        self.directions = _directions(normals_frame)
        listed = self.root / "ImageSets" / "Context" / f"{split}.txt"
        self.ids = _read_ids(listed)
        images = _stems(self.root / "JPEGImages", ".jpg")
        lost = [one for one in self.ids if one not in images]
        if lost:
            raise MultidenseError(
                f"{listed} names {len(self.ids)} images, but {len(lost)} of them are not in {self.root / 'JPEGImages'}: "
                f"{', '.join(lost[:5])}{' …' if len(lost) > 5 else ''}. Complete the copy, or take these ids out of the list."
            )
        self._tasks = [task.name for task in tasks]
        self._files = {name: _stems(self.root / FOLDERS[name][0], FOLDERS[name][1]) for name in FOLDERS}
        self._voc12 = self._files["semseg"]
        self._files["semseg"] = self._voc12 | _stems(self.root / CONTEXT, ".png")
        self._files["normals"] &= self._files["edges"]  # the LabelMap says where they are valid
        self._objects: dict[str, list[int]] = {}
        if "parts" in self._tasks and self.parts_index.is_file():
            self._objects = _read_objects(self.parts_index)
        self.notes = {
            "semseg": "21 VOC classes; the file of VOC12 where there is one, else that of pascal-context",
            "parts": "6 parts and background, on images with a person; valid nowhere where no person has parts",
            "normals": "distilled, not measured; valid where LabelMap is one of 170 classes shared with NYUv2; "
            f"red, green, blue taken as {', '.join(normals_frame)}",
            "saliency": "distilled, not annotated; above 0.5",
            "edges": "where the Laplacian of LabelMap is not zero, thinned to one pixel",
        }

    @classmethod
    def present(cls, root: Path) -> int:
        return super().present(home(root))

    @classmethod
    def parts(cls) -> tuple[Part, ...]:
        every = sum(cls.lengths.values())
        context = "the 459 classes of PASCAL-Context (Mottaghi et al. 2014; cs.stanford.edu/~roozbeh/pascal-context)"
        return (
            *(
                Part(f"ImageSets/Context/{split}.txt", 1, f"The ids of the {split} images, from {HOST}. {COPIES}")
                for split in cls.lengths
            ),
            Part("JPEGImages/*.jpg", every, f"The images of PASCAL VOC 2010, from {HOST}; also in VOC's own archive. {COPIES}"),
            Part("pascal-context/trainval/*.mat", every, f"LabelMap, {context}, from {HOST}. {COPIES}", ("normals", "edges")),
            Part(
                "semseg/*/*.png",
                every,
                f"The 21 classes, in VOC12 and pascal-context together at least one file an image, from {HOST}. {COPIES}",
                ("semseg",),
            ),
            Part(
                "human_parts/*.mat",
                every,
                f"PASCAL-Part (Chen et al. 2014; roozbehm.info/pascal-parts), from {HOST}. {COPIES}",
                ("parts",),
            ),
            Part(
                "normals_distill/*.png",
                every,
                f"Normals predicted by a network, only in {HOST}. {COPIES}",
                ("normals",),
            ),
            Part("sal_distill/*.png", every, f"Saliency predicted by a network, only in {HOST}. {COPIES}", ("saliency",)),
            Part(
                "ImageSets/Parts/*.txt",
                len(cls.lengths),
                "Which objects each image has; without it every human_parts file is opened once. "
                "reader.layout.write_parts_index() makes it.",
                ("parts",),
                optional=True,
            ),
        )

    @property
    def parts_index(self) -> Path:
        """The file that lists which objects each image of this split has."""
        return self.root / "ImageSets" / "Parts" / f"{self.split}.txt"

    def write_parts_index(self) -> Path:
        """Write `parts_index` in the form that public code makes and reads, so that human_parts need not be searched again.

        It opens every human_parts file that has not been opened yet: minutes for a whole split. None may be missing.
        """
        for one in self.ids:
            if one not in self._objects and one not in self._files["parts"]:
                raise MultidenseError(f"{self.root / 'human_parts' / f'{one}.mat'} is not there; complete the copy first")
        rows = (f"\t{json.dumps(one)}: {json.dumps(self.objects(index))}" for index, one in enumerate(self.ids))
        write_text(self.parts_index, "{\n" + ",\n".join(rows) + "\n}\n")
        return self.parts_index

    def objects(self, index: int) -> list[int]:
        """The VOC ids of the objects in an image, −1 for one whose mask is empty."""
        one = self.ids[index]
        if one not in self._objects:
            found = read_objects(self.file(index, "parts"))
            self._objects[one] = [thing.category if thing.mask.any() else -1 for thing in found]
        return self._objects[one]

    def annotated(self, index: int) -> frozenset[str]:
        one = self.ids[index]
        return frozenset(
            name for name in self._tasks if one in self._files[name] and (name != "parts" or PERSON in self.objects(index))
        )

    def file(self, index: int, task: str | None = None) -> Path:
        one = self.ids[index]
        folder, suffix = ("JPEGImages", ".jpg") if task is None else FOLDERS[task]
        if task == "semseg" and one not in self._voc12:
            folder = CONTEXT
        return self.root / folder / f"{one}{suffix}"

    def image(self, index: int) -> np.ndarray:
        return np.array(read_picture(self.file(index)).convert("RGB"))

    def label(self, index: int, task: str) -> tuple[np.ndarray, np.ndarray]:
        path, size = self.file(index, task), self._size(index)
        if not path.is_file():
            raise MultidenseError(f"{path} is not there, so '{self.ids[index]}' has no label for {task}. Complete the copy.")
        if task == "normals":
            return self._normals(path, self.file(index, "edges"), size)
        value, valid = {"semseg": _classes, "parts": _parts, "saliency": _saliency, "edges": _edges}[task](path)
        if valid is None:
            return np.zeros(size, np.uint8), np.zeros(size, bool)
        return nearest(value, size), nearest(valid, size)

    def _size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, from its header."""
        try:
            with Image.open(self.file(index)) as picture:
                return picture.size[::-1]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return read_picture(self.file(index)).size[::-1]  # says what is wrong with it

    def _normals(self, path: Path, labels: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors, resized cubically where they have another size, and where their class makes them credible."""
        vectors, known = self.directions.meaning(self.directions.stored(path, *read_array(path)))
        if vectors.shape[:2] != size:
            flat = torch.from_numpy(vectors.transpose(2, 0, 1)[None].copy())
            flat = torch.nn.functional.interpolate(flat, size, mode="bicubic", align_corners=False)
            vectors = flat[0].permute(1, 2, 0).numpy()
        length = np.linalg.norm(vectors, axis=-1, keepdims=True)
        valid = nearest(known, size) & NORMALS_VALID[nearest(read_labels(labels), size)] & (length[..., 0] > 0.1)
        return np.where(valid[..., None], vectors / np.maximum(length, 0.1), np.float32(0)).astype(np.float32), valid


class PackedPascal(Packed):
    """A packed copy of PASCAL-Context."""

    benchmark, lengths = "pascal-context", PascalMT.lengths


class PascalContext(Benchmark):
    """One split of PASCAL-Context with five tasks; images keep their own sizes (about 375×500) unless `size` is given.

    `root`: the folder PASCAL_MT, or the one that holds it. The option `normals_frame` says what red, green and blue of the
    normals grow toward, by default `NORMALS_FRAME`. `PascalMT` says which images are annotated for parts.
    """

    name: ClassVar[str] = "pascal-context"
    layouts: ClassVar[tuple[type[Layout], ...]] = (PascalMT, PackedPascal)
    layout: PascalMT

    @classmethod
    def default_tasks(cls) -> tuple[Task, ...]:
        classes, parts = SemanticSegmentation(len(CLASSES), names=CLASSES), HumanParts(len(PARTS), names=PARTS)
        return classes, parts, Normals(measure="l1"), Saliency(), Edges()

    @classmethod
    def names_of(cls, task: Task) -> tuple[str, ...]:
        names = {"semseg": CLASSES, "parts": PARTS}.get(task.name, ())
        if names and task.channels != len(names):
            raise MultidenseError(
                f"{cls.name}: '{task.name}' has {len(names)} classes, found a task of {task.channels}. "
                f"Use {type(task).__name__}({len(names)})."
            )
        return names


# Files ----------------------------------------------------------------------------------------------------------------


def home(root: Path) -> Path:
    """The folder with the data: `root` itself, or PASCAL_MT or PASCALContext in it."""
    inside = (root, root / "PASCAL_MT", root / "PASCALContext")
    return next((one for one in inside if (one / "ImageSets").is_dir() or (one / "JPEGImages").is_dir()), root)


def _read_ids(path: Path) -> list[str]:
    try:
        ids = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise MultidenseError(f"{path} should list an id a line, but cannot be read: {error}. Complete the copy.") from error
    twice = sorted({one for one in ids if ids.count(one) > 1}) if len(set(ids)) < len(ids) else []
    if twice or not ids:
        raise MultidenseError(f"{path} should list every id once, found {', '.join(twice[:5]) or 'none'}. Correct it.")
    return ids


def _read_objects(path: Path) -> dict[str, list[int]]:
    """ImageSets/Parts: the objects of every image it lists."""
    listed = read_json(path)
    for one, objects in listed.items():
        if not isinstance(objects, list) or not all(isinstance(category, int) for category in objects):
            raise MultidenseError(
                f"{path}: '{one}' should have a list of VOC ids, found {objects!r}. Correct or remove the file."
            )
    return listed


def _stems(folder: Path, suffix: str) -> set[str]:
    """The names of the files in a folder that end so, without that end; none where there is no such folder."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name.removesuffix(suffix) for entry in entries if entry.name.endswith(suffix)}


def _directions(frame: Sequence[str]) -> Directions:
    section = Section({"axes": list(frame), "encoding": "unit8"}, "pascal-context, normals_frame")
    return Directions(name="normals", where=section.where, files="", **Directions.settings(section))


# Labels, each from its file: values and where they are valid ------------------------------------------------------------


def _classes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    ids, mode = read_array(path)
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise MultidenseError(
            f"{path}: class ids should be an 8-bit grey or palette PNG, found mode '{mode}', {list(ids.shape)}. Replace it."
        )
    wrong = np.unique(ids[(ids != VOID) & (ids >= len(CLASSES))])
    if wrong.size:
        raise MultidenseError(
            f"{path}: class ids should lie in 0 … {len(CLASSES) - 1}, or be {VOID} (void), found "
            f"{', '.join(map(str, wrong[:8]))}. Replace it."
        )
    return ids, ids != VOID


def _parts(path: Path) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """The parts of all persons, later ones over earlier ones; (None, None) where no person has any."""
    value = None
    for thing in read_objects(path):
        if thing.category == PERSON:
            for name, mask in thing.parts:
                if name not in PART_OF:
                    raise MultidenseError(f"{path}: expected parts of a person ({', '.join(PART_OF)}), found '{name}'")
                value = np.zeros(mask.shape, np.uint8) if value is None else value
                value[mask] = PART_OF[name]
    return (None, None) if value is None or not value.any() else (value, np.ones(value.shape, bool))


def _saliency(path: Path) -> tuple[np.ndarray, np.ndarray]:
    return SALIENT.meaning(SALIENT.stored(path, *read_array(path)))


def _edges(path: Path) -> tuple[np.ndarray, np.ndarray]:
    labels = read_labels(path)
    value = thin(scipy.ndimage.laplace(labels, mode="mirror") != 0)
    return value.astype(np.float32), np.ones(value.shape, bool)


# Thinning -------------------------------------------------------------------------------------------------------------

_AROUND = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
"""Rows and columns to the eight neighbours x₁ … x₈: east first, then counter-clockwise."""


def _removable() -> Bool[np.ndarray, "2 256"]:
    """By half-step and neighbourhood (bit i − 1 is xᵢ): whether the pixel in its middle may go.

    It may if it connects nothing (one crossing), is no end of a line and no inner point (2 or 3 pairs), and lies on the sides
    that are this half-step's turn.
    """
    x = ((np.arange(256) >> np.arange(8)[:, None]) & 1).astype(bool)
    corner, after = x[1::2], np.roll(x[0::2], -1, axis=0)  # of the four sides east, north, west, south
    crossings = (~x[0::2] & (corner | after)).sum(0)
    pairs = np.minimum((x[0::2] | corner).sum(0), (corner | after).sum(0))
    may = (crossings == 1) & (pairs >= 2) & (pairs <= 3)
    east, northeast, north, northwest, west, southwest, south, southeast = x
    first = ~((northeast | north | ~southeast) & east)
    second = ~((southwest | south | ~northwest) & west)
    return np.stack([may & first, may & second])


_REMOVABLE = _removable()


def thin(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Lines of one pixel for thick ones: pixels are taken away until none may go. Pieces and holes stay as many as they are.

    The two half-steps of Guo and Hall (1989) in the form that MATLAB's bwmorph(…, "thin", Inf) has.
    """
    padded = np.pad(mask, 1).ravel()
    width = mask.shape[1] + 2
    steps = [row * width + column for row, column in _AROUND]
    pixels = np.flatnonzero(padded)
    while True:
        before = len(pixels)
        for removable in _REMOVABLE:
            around = sum(padded[pixels + step].astype(np.uint8) << bit for bit, step in enumerate(steps))
            gone = removable[around]
            padded[pixels[gone]] = False
            pixels = pixels[~gone]
        if len(pixels) == before:
            return padded.reshape(-1, width)[1:-1, 1:-1].copy()
