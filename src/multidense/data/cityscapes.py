"""Cityscapes (Cordts et al., CVPR 2016): streets of 50 cities, semantic classes and inverse depth, in two layouts.

`preprocessed`, the copy on which the numbers of MTAN, MTPSL and HiTTs rest (arrays of 128×256, i counted from 0):

    {train,val}/image/{i}.npy       [128 256 3] RGB in 0 … 1
    {train,val}/label_7/{i}.npy     [128 256] 0 … 6, −1 (or 255) where not valid;  label_19/{i}.npy: 0 … 18
    {train,val}/depth/{i}.npy       [128 256 1] inverse depth, 0 where not valid, at most 0.4922

`official`, as the archives of cityscapes-dataset.com unpack into one folder (pictures of 1024×2048):

    leftImg8bit/{train,val}/{city}/{id}_leftImg8bit.png
    gtFine/{train,val}/{city}/{id}_gtFine_labelIds.png
    disparity/{train,val}/{city}/{id}_disparity.png         16 bits, 0 where not valid

Its depth is what the stereo camera measured, a **disparity**: large is near. The unit is that of the 16-bit files over 65535
(a step p is (p − 1) / 256 pixels of disparity), which gives the range of the preprocessed copy: 32257 / 65535 = 0.4922.

    >>> reader = Cityscapes("/data/cityscapes", "train", [SemanticSegmentation(19), Depth(file_scale=65535)])
    >>> reader[0].targets["depth"].value.max()
    tensor(0.4922)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from multidense.data.benchmark import Benchmark, Layout, Part
from multidense.data.encodings import VOID, nearest, read_array, read_picture
from multidense.data.packed import Packed
from multidense.task import Task
from multidense.tasks import Depth, SemanticSegmentation
from multidense.types import MultidenseError

STEPS = 65535
"""Steps of a 16-bit disparity file in one unit of depth; the `file_scale` with which `Depth` writes the very same files."""

CATEGORIES = {
    "flat": range(7, 11), "construction": range(11, 17), "object": range(17, 21), "nature": range(21, 23),
    "sky": range(23, 24), "human": range(24, 26), "vehicle": range(26, 34),
}  # fmt: skip
"""The seven categories and their label ids, those that are not evaluated included; ids 0 … 6 are void."""

CLASSES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19, "traffic sign": 20,
    "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31,
    "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
"""The nineteen classes that are evaluated, in the order of their train ids, and their label ids."""

UNKNOWN = 254


def class_names(classes: int) -> tuple[str, ...]:
    """The names of the 7 categories or 19 classes; MultidenseError for any other number."""
    names = {7: tuple(CATEGORIES), 19: tuple(CLASSES)}
    if classes not in names:
        raise MultidenseError(
            f"cityscapes has 7 categories or 19 classes, found a task of {classes}; use SemanticSegmentation(7) or (19)"
        )
    return names[classes]


def class_table(classes: int, fold: bool = False) -> np.ndarray:
    """Class of every label id 0 … 255, uint8: VOID for void, `UNKNOWN` for an id that Cityscapes does not have.

    The 7 categories hold the ids that are evaluated; with `fold` also the others of the same category (parking, rail track,
    guard rail, bridge, tunnel, pole group, caravan, trailer). 255 is −1 (licence plate) in 8 bits, and void.
    """
    if fold and classes != 7:
        raise MultidenseError(f"cityscapes: fold concerns the 7 categories only, found a task of {classes} classes; drop it")
    table = np.full(256, UNKNOWN, np.uint8)
    table[:34] = table[255] = VOID
    if classes == 7:
        for number, ids in enumerate(CATEGORIES.values()):
            table[[one for one in ids if fold or one in CLASSES.values()]] = number
    else:
        table[list(CLASSES.values())] = np.arange(classes)
    return table


class CityscapesLayout(Layout):
    """What both layouts share: one file an image and kind, found by its name.

    `files` and `sources` tell, for the images (None) and each task, where they lie (`{split}`, `{id}` and `{classes}` vary) and
    what they are called. `any_id` is the pattern that ids match.
    """

    lengths: ClassVar[Mapping[str, int]] = {"train": 2975, "val": 500}
    files: ClassVar[Mapping[str | None, str]]
    sources: ClassVar[Mapping[str | None, str]]
    any_id: ClassVar[str]

    def __init__(self, root: Path, split: str, tasks: Sequence[Task]):
        self.root, self.split = root, split
        self.classes = next((task.channels for task in tasks if task.name == SemanticSegmentation.name), 7)
        class_names(self.classes)
        self.ids = self.found(None)
        labelled = {task.name: set(self.found(task.name)) for task in tasks}
        self._annotated = [frozenset(name for name, ids in labelled.items() if one in ids) for one in self.ids]

    @classmethod
    def parts(cls) -> tuple[Part, ...]:
        return tuple(
            Part(
                files=pattern.format(split=split, id=cls.any_id, classes=classes),
                count=count,
                source=cls.sources[task].format(classes=classes),
                tasks=() if task is None else (task,),
                optional=classes == 19,
            )
            for task, pattern in cls.files.items()
            for classes in ((7, 19) if "{classes}" in pattern else (7,))
            for split, count in cls.lengths.items()
        )

    def found(self, task: str | None) -> list[str]:
        """The ids for which there is an image, or a label of a task, in order; MultidenseError if there is none."""
        before, after = self.files[task].format(split=self.split, id="*", classes=self.classes).split("*")
        ids = self.in_order(
            path.relative_to(self.root / before).as_posix().removesuffix(after)
            for path in self.root.glob(before + self.any_id + after)
        )
        if not ids:
            found = "none there" if (self.root / before).is_dir() else "no such folder"
            remedy = "" if task is None else f", or leave {task} out of the tasks"
            raise MultidenseError(
                f"cityscapes, layout {self.name}: expected {self.root}/{before}{self.any_id}{after}, found {found}. "
                f"Put it there ({self.sources[task].format(classes=self.classes)}){remedy}."
            )
        return ids

    def in_order(self, ids: Iterable[str]) -> list[str]:
        """The ids that are those of images, sorted."""
        return sorted(one for one in ids if not Path(one).name.startswith("."))

    def annotated(self, index: int) -> frozenset[str]:
        return self._annotated[index]

    def file(self, index: int, task: str | None = None) -> Path:
        return self.root / self.files[task].format(split=self.split, id=self.ids[index], classes=self.classes)

    def stored(self, index: int, task: str) -> tuple[Path, np.ndarray, str]:
        """A label's file, its numbers `[h w]` as they are there, and Pillow's mode or "npy"; as large as the image."""
        path = self.file(index, task)
        array, mode = read_array(path)
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[..., 0]
        if array.ndim != 2 or array.dtype.kind not in "uif":
            raise MultidenseError(
                f"{path}: expected one number a pixel, found {array.dtype} {list(array.shape)}. "
                "Put the file of the data set in its place."
            )
        (h, w), (height, width) = array.shape, self.image_size(index)
        if (h, w) != (height, width):
            raise MultidenseError(
                f"{path}: the label should be as large as its image, {height}x{width} (height x width), found {h}x{w}. "
                "Put both from the same copy of the data set."
            )
        return path, array, mode

    @abstractmethod
    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of an image as it is stored."""


class CityscapesPreprocessed(CityscapesLayout):
    """The arrays of 128×256 made by the authors of MTAN, of any real dtype; ids are the numbers of the files."""

    name = "preprocessed"
    indexed = True
    any_id = "*"
    files: ClassVar[Mapping[str | None, str]] = {
        None: "{split}/image/{id}.npy",
        "semseg": "{split}/label_{classes}/{id}.npy",
        "depth": "{split}/depth/{id}.npy",
    }
    _copy = "of the preprocessed Cityscapes by the authors of MTAN; the readme of github.com/lorenmt/mtan leads to it"
    sources: ClassVar[Mapping[str | None, str]] = {
        None: f"images {_copy}",
        "semseg": f"label maps of {{classes}} classes {_copy}",
        "depth": f"inverse depth {_copy}",
    }

    def __init__(self, root: Path, split: str, tasks: Sequence[Task], **options):
        if options:
            raise MultidenseError(
                f"cityscapes: the layout {self.name} leaves nothing to choose, found {', '.join(options)}; "
                f"leave it out, or read the layout {CityscapesOfficial.name}"
            )
        super().__init__(root, split, tasks)
        self.notes = {
            "semseg": f"label_{self.classes} as its authors made it",
            "depth": f"inverse depth (disparity / {STEPS}) as its authors made it",
        }

    def in_order(self, ids: Iterable[str]) -> list[str]:
        return [str(number) for number in sorted(int(one) for one in ids if one.isdecimal() and one == str(int(one)))]

    def image_size(self, index: int) -> tuple[int, int]:
        return self.image(index).shape[:2]

    def image(self, index: int) -> np.ndarray:
        path = self.file(index)
        array, _ = read_array(path)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind not in "uif" or not array.size:
            raise MultidenseError(
                f"{path}: an image should be real numbers [h w 3], found {array.dtype} {list(array.shape)}. "
                "Put the file of the data set in its place."
            )
        whole, slack = (255, 0) if array.dtype.kind in "ui" else (1, 1e-3)
        low, high = array.min(), array.max()
        if not (low >= -slack and high <= whole + slack):
            raise MultidenseError(
                f"{path}: colours should lie in 0 … 1 (or 0 … 255 as whole numbers), found {array.dtype} from {low:g} to "
                f"{high:g}. Save them as they are in the data set, without mean and deviation."
            )
        return array.astype(np.uint8) if whole == 255 else array.astype(np.float32).clip(0, 1)

    def label(self, index: int, task: str) -> tuple[np.ndarray, np.ndarray]:
        path, array, _ = self.stored(index, task)
        if task == SemanticSegmentation.name:
            void = (array == -1) | (array == VOID)
            valid = (array >= 0) & (array < self.classes) & (np.floor(array) == array)
            if not (void | valid).all():
                strange = ", ".join(f"{one:g}" for one in np.unique(array[~(void | valid)])[:8])
                raise MultidenseError(
                    f"{path}: class ids should be 0 … {self.classes - 1}, or −1 or 255 where not valid, found {strange}. "
                    "Put the file of the data set in its place, or use a task of the right number of classes."
                )
            return np.where(valid, array, 0).astype(np.uint8), valid
        depth = array.astype(np.float32)
        valid = np.isfinite(depth) & (depth > 0)
        if valid.any() and depth[valid].max() > 1:
            raise MultidenseError(
                f"{path}: inverse depth should lie in 0 … 1, found up to {depth[valid].max():g}. "
                f"If these are the 16-bit disparities of Cityscapes, divide them by {STEPS}."
            )
        return np.where(valid, depth, np.float32(0)), valid


class CityscapesOfficial(CityscapesLayout):
    """The unpacked archives of cityscapes-dataset.com; ids are "city/name".

    `resolution` (height, width) is what everything is made at, once and from the full pictures: images bilinearly with
    antialiasing, labels and disparities to the nearest pixel; None keeps the pictures' own. `fold` counts the ids that are not
    evaluated to the category they belong to (for 7 classes); whether the preprocessed copy does is not known. An image
    without a label or disparity is not annotated for it.
    """

    name = "official"
    any_id = "*/*"
    files: ClassVar[Mapping[str | None, str]] = {
        None: "leftImg8bit/{split}/{id}_leftImg8bit.png",
        "semseg": "gtFine/{split}/{id}_gtFine_labelIds.png",
        "depth": "disparity/{split}/{id}_disparity.png",
    }
    _site = "of www.cityscapes-dataset.com, where one registers first"
    sources: ClassVar[Mapping[str | None, str]] = {
        None: f"left images: leftImg8bit_trainvaltest.zip {_site}",
        "semseg": f"fine annotations: gtFine_trainvaltest.zip {_site}",
        "depth": f"16-bit disparities: disparity_trainvaltest.zip {_site}",
    }

    def __init__(
        self,
        root: Path,
        split: str,
        tasks: Sequence[Task],
        resolution: Sequence[int] | None = (128, 256),
        fold: bool = False,
    ):
        pair = isinstance(resolution, tuple | list) and len(resolution) == 2
        if resolution is not None and not (pair and all(isinstance(one, int) and one > 0 for one in resolution)):
            raise MultidenseError(f"cityscapes: resolution should be (height, width) in pixels, or None, found {resolution}")
        super().__init__(root, split, tasks)
        self.resolution = None if resolution is None else (int(resolution[0]), int(resolution[1]))
        self.table = class_table(self.classes, fold)
        made = "at its own size" if self.resolution is None else "nearest pixel at {}x{}".format(*self.resolution)
        others = "counted to their category (fold)" if fold else "not valid"
        self.notes = {
            "semseg": f"{self.classes} classes of gtFine labelIds, ids that are not evaluated {others}, {made}",
            "depth": f"inverse depth: 16-bit disparity / {STEPS}, {made}",
        }

    def image_size(self, index: int) -> tuple[int, int]:
        path = self.file(index)
        try:
            with Image.open(path) as picture:
                return picture.size[::-1]
        except (OSError, SyntaxError, ValueError):
            return read_picture(path).size[::-1]  # an error that says what is wrong with it

    def image(self, index: int) -> np.ndarray:
        path = self.file(index)
        picture = read_picture(path)
        if picture.mode.startswith(("I", "F")):
            raise MultidenseError(f"{path}: an image should have 8 bits a channel, found mode '{picture.mode}'. Convert it.")
        picture = picture.convert("RGB")
        if self.resolution not in (None, picture.size[::-1]):
            picture = picture.resize(self.resolution[::-1], Image.Resampling.BILINEAR)
        return np.asarray(picture)

    def label(self, index: int, task: str) -> tuple[np.ndarray, np.ndarray]:
        path, array, mode = self.stored(index, task)
        size = self.resolution or array.shape
        if task == SemanticSegmentation.name:
            if array.dtype != np.uint8:
                raise MultidenseError(f"{path}: label ids should have 8 bits, found mode '{mode}'. Use the archive's file.")
            classes = self.table[array]
            if (classes == UNKNOWN).any():
                strange = ", ".join(map(str, np.unique(array[classes == UNKNOWN])[:8]))
                raise MultidenseError(
                    f"{path}: label ids should be 0 … 33, or 255 for −1, found {strange}. Use the file of the archive."
                )
            classes = nearest(classes, size)
            return np.where(classes == VOID, np.uint8(0), classes), classes != VOID
        if array.dtype != np.uint16:
            raise MultidenseError(
                f"{path}: a disparity should have 16 bits, found mode '{mode}'. Use the file of the archive; one that was "
                "turned into 8 bits has lost its values."
            )
        disparity = nearest(array, size)
        return disparity / np.float32(STEPS), disparity > 0


class PackedCityscapes(Packed):
    """A packed copy of Cityscapes."""

    benchmark, lengths = "cityscapes", CityscapesLayout.lengths


class Cityscapes(Benchmark):
    """One split ("train", 2975 images; "val", 500) of Cityscapes: 7 or 19 semantic classes, and inverse depth.

    Depth is a disparity in 0 … 0.4922 (see above), to be written with `Depth(file_scale=65535)`; papers zoom it as if it were a
    distance, `Depth(under_zoom=…)`. The 7 or 19 classes are chosen by the task's own number.

    Options of the official layout: `resolution`, by default `size` or else (128, 256), and `fold`; see `CityscapesOfficial`.
    """

    name = "cityscapes"
    layouts = (CityscapesPreprocessed, CityscapesOfficial, PackedCityscapes)

    @classmethod
    def default_tasks(cls) -> tuple[Task, ...]:
        return SemanticSegmentation(7, names=class_names(7)), Depth(file_scale=float(STEPS))

    @classmethod
    def names_of(cls, task: Task) -> tuple[str, ...]:
        return class_names(task.channels) if task.name == SemanticSegmentation.name else ()
