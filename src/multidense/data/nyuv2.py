"""NYU Depth v2 (Silberman et al., ECCV 2012): indoor scenes seen by a Kinect; classes, depth and normals, in two layouts.

`preprocessed`, the copy on which the numbers of MTAN, MTPSL and HiTTs rest (arrays of 288×384, i counted from 0):

    {train,val}/image/{i}.npy       [288 384 3] RGB in 0 … 1
    {train,val}/label/{i}.npy       [288 384] 0 … 12, −1 (or 255) where not valid
    {train,val}/depth/{i}.npy       [288 384 1] metres, 0 where not valid
    {train,val}/normal/{i}.npy      [288 384 3] unit vectors, (0, 0, 0) where not valid

`official`, the files of its authors (480×640), of which the invalid border is cut off before they are resized to 288×384:

    nyu_depth_v2_labeled.mat        MATLAB 7.3: images, depths (in-painted), rawDepths, labels (0: none, 1 … 894)
    splits.mat                      trainNdxs, testNdxs, counted from 1; not needed, for the split is known here
    normals_gt/normals/{i}.png      the unpacked normals_gt.tgz of Eigen and Fergus (ICCV 2015), i = 0000 … 1448
    normals_gt/masks/{i}.png        where these are valid: not 0

Without `normals_gt` the official layout's normals are fitted to its depth. They are not those of the published numbers.

**Axes of stored normals.** Published code only ever says that the first channel is horizontal (it is negated under a flip), and
one conversion of Eigen's pictures suggests (right, viewer, up), which nobody states of the preprocessed copy. So the axes are
measured: what is seen faces the viewer, and of the 48 possible readings one makes it so. Up to 16 files of the "val" split
decide (of "train" where there is no other); of 412 real images of NYUv2 any two that were tried tell the right reading.
`normals_axes=("right", "viewer", "up")` says it instead. To see for yourself: floors are green in pictures of normals.

    >>> NYUv2("/data/nyuv2", "train").layout.axes
    ('right', 'viewer', 'up')
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from multidense.data._arrays import array_size, class_ids, colours, metres, real_numbers, unit_vectors
from multidense.data._nyuv2_classes import IMAGES, LABELS, TRAIN, class_names, class_table
from multidense.data._nyuv2_normals import Camera, checked_axes, from_depth, measured_axes, to_house
from multidense.data.benchmark import Benchmark, Layout, Part
from multidense.data.encodings import VOID, nearest, read_array
from multidense.data.matlab import Stack, read_variables
from multidense.data.packed import Packed
from multidense.task import Task
from multidense.tasks import Depth, Normals, SemanticSegmentation
from multidense.types import MultidenseError

KINECT = Camera(fx=518.8579, fy=519.4696, cx=324.5824, cy=252.7362)
"""The camera of the 480×640 images, from the data set's toolbox, whose pixels are counted from 1 (325.58, 253.74 there)."""

BORDER = slice(44, 471), slice(40, 601)
"""Rows and columns of a 480×640 image that are left when its white frame is cut off; 427×561 pixels."""

EXAMPLES = 16
"""How many files of normals are looked at to measure their axes."""


class NYUv2Layout(Layout):
    """What both layouts share: the split's lengths, the number of classes and the axes of stored normals."""

    lengths: ClassVar[Mapping[str, int]] = {"train": 795, "val": IMAGES - 795}

    def __init__(self, root: Path, split: str, tasks: Sequence[Task], normals_axes: Sequence[str] | None):
        self.root, self.split = root, split
        self.tasks = tuple(task.name for task in tasks)
        self.classes = next((task.channels for task in tasks if task.name == SemanticSegmentation.name), 13)
        class_names(self.classes)
        self._axes = None if normals_axes is None else checked_axes(normals_axes)
        self._measured = normals_axes is None

    @property
    def axes(self) -> tuple[str, str, str]:
        """What the channels of stored normals grow toward; measured when first asked for, unless it was said."""
        if self._axes is None:
            self._axes = measured_axes(self.examples())
        if self._axes is None:
            raise MultidenseError(
                f"nyuv2: the axes of the normals below {self.root} cannot be told from the files. Look at some, and say "
                'what the three channels grow toward, such as normals_axes=["right", "up", "viewer"].'
            )
        return self._axes

    @abstractmethod
    def examples(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Some stored normals and where they are valid, by which the axes are told."""

    def axes_note(self) -> str:
        return f"axes {', '.join(self.axes)} ({'measured' if self._measured else 'as said'})"


class NYUv2Preprocessed(NYUv2Layout):
    """The arrays of 288×384 made by the authors of MTAN, of any real dtype; ids are the numbers of the files.

    `normals_axes`: see the module. Colours are in 0 … 1, or whole numbers in 0 … 255.
    """

    name = "preprocessed"
    indexed = True
    folders: ClassVar[Mapping[str | None, str]] = {None: "image", "semseg": "label", "depth": "depth", "normals": "normal"}
    _copy = "of the preprocessed NYUv2 by the authors of MTAN; the readme of github.com/lorenmt/mtan leads to it"
    sources: ClassVar[Mapping[str | None, str]] = {
        None: f"images {_copy}",
        "semseg": f"label maps of 13 classes {_copy}",
        "depth": f"depth in metres {_copy}",
        "normals": f"surface normals {_copy}",
    }

    def __init__(self, root: Path, split: str, tasks: Sequence[Task], normals_axes: Sequence[str] | None = None):
        super().__init__(root, split, tasks, normals_axes)
        if self.classes != 13:
            raise MultidenseError(
                f"nyuv2: the layout {self.name} has 13 classes, found a task of {self.classes}; use SemanticSegmentation(13), "
                f"or the layout {NYUv2Official.name}"
            )
        self.ids = self.found(None, split)
        labelled = {name: set(self.found(name, split)) for name in self.tasks}
        self._annotated = [frozenset(name for name, ids in labelled.items() if one in ids) for one in self.ids]

    @classmethod
    def parts(cls) -> tuple[Part, ...]:
        return tuple(
            Part(f"{split}/{folder}/*.npy", count, cls.sources[task], () if task is None else (task,))
            for task, folder in cls.folders.items()
            for split, count in cls.lengths.items()
        )

    @property
    def notes(self) -> Mapping[str, str]:
        notes = {"semseg": "13 classes as its authors made them", "depth": "metres as its authors made them"}
        return notes | ({"normals": f"as its authors made them, {self.axes_note()}"} if Normals.name in self.tasks else {})

    def found(self, task: str | None, split: str) -> list[str]:
        """The numbers for which there is an image, or a label of a task, in order; MultidenseError if there is none."""
        folder = self.root / split / self.folders[task]
        names = (path.stem for path in folder.glob("*.npy"))
        ids = [str(number) for number in sorted(int(one) for one in names if one.isdecimal() and one == str(int(one)))]
        if not ids:
            remedy = "" if task is None else f", or leave {task} out of the tasks"
            raise MultidenseError(
                f"nyuv2, layout {self.name}: expected {folder}/0.npy and so on, found "
                f"{'none there' if folder.is_dir() else 'no such folder'}. Put them there ({self.sources[task]}){remedy}."
            )
        return ids

    def annotated(self, index: int) -> frozenset[str]:
        return self._annotated[index]

    def file(self, index: int, task: str | None = None) -> Path:
        return self.root / self.split / self.folders[task] / f"{self.ids[index]}.npy"

    def image(self, index: int) -> np.ndarray:
        return colours(self.file(index))

    def label(self, index: int, task: str) -> tuple[np.ndarray, np.ndarray]:
        path = self.file(index, task)
        array = real_numbers(path, 3 if task == Normals.name else 1, f"{task} labels")
        expected = array_size(self.file(index))
        if array.shape[:2] != expected:
            raise MultidenseError(
                f"{path}: the label should be as large as its image, {expected[0]}x{expected[1]} (height x width), found "
                f"{array.shape[0]}x{array.shape[1]}. Put both from the same copy of the data set."
            )
        if task == Normals.name:
            vectors, valid = unit_vectors(path, array)
            return to_house(vectors, self.axes), valid
        return class_ids(path, array, self.classes) if task == SemanticSegmentation.name else metres(path, array)

    def examples(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        folders = [self.root / split / self.folders[Normals.name] for split in ("val", self.split)]
        split = "val" if any(folders[0].glob("*.npy")) else self.split
        for one in _spread(self.found(Normals.name, split)):
            path = self.root / split / self.folders[Normals.name] / f"{one}.npy"
            yield unit_vectors(path, real_numbers(path, 3, "normals labels"))


class NYUv2Official(NYUv2Layout):
    """The files of the data set's authors; ids are the numbers of the images, "0001" … "1449".

    `resolution` (height, width) is what everything is made at: images bilinearly with antialiasing, labels to the nearest
    pixel; None keeps the 427×561 pixels inside the border. `raw_depth` takes what the Kinect measured in place of the
    in-painted depth. `normals_axes`: see the module; it concerns `normals_gt`. A copy of fewer images has shorter splits.
    """

    name = "official"
    mat: ClassVar[str] = "nyu_depth_v2_labeled.mat"
    archive: ClassVar[str] = "normals_gt"
    _site = "to which the page of NYU Depth Dataset V2 by its authors at cs.nyu.edu leads"

    def __init__(
        self,
        root: Path,
        split: str,
        tasks: Sequence[Task],
        resolution: Sequence[int] | None = (288, 384),
        raw_depth: bool = False,
        normals_axes: Sequence[str] | None = None,
    ):
        if resolution is not None and (len(resolution) != 2 or min(resolution) < 1):
            raise MultidenseError(f"nyuv2: resolution should be (height, width) in pixels, or None, found {resolution}")
        super().__init__(root, split, tasks, normals_axes)
        self.table = class_table(self.classes)
        self.depths = "rawDepths" if raw_depth else "depths"
        self.stack = Stack(root / self.mat)
        rows, columns = (np.arange(part.start, part.stop) for part in BORDER)
        self.resolution = (len(rows), len(columns)) if resolution is None else (int(resolution[0]), int(resolution[1]))
        self.rows = nearest(rows[:, None], (self.resolution[0], 1))[:, 0]
        self.columns = nearest(columns[None], (1, self.resolution[1]))[0]
        count = self._count()
        self.numbers = {name: sorted(number for number in ids if number <= count) for name, ids in self._splits().items()}
        if not self.numbers[split]:
            raise MultidenseError(f"{root / self.mat}: expected the {IMAGES} images, found {count}, none of them of '{split}'")
        self.ids = [f"{number:04d}" for number in self.numbers[split]]
        self._pictured: frozenset[int] | None = None
        if Normals.name in self.tasks and (root / self.archive).is_dir():
            stems = (path.stem for path in (root / self.archive / "normals").glob("*.png"))
            self._pictured = frozenset(int(one) + 1 for one in stems if one.isdecimal())
            if not self._pictured.intersection(self.numbers[split]):
                raise MultidenseError(
                    f"{root / self.archive}/normals: expected 0000.png … 1448.png, found none of '{split}'. Unpack "
                    f"normals_gt.tgz there, or take the folder {self.archive} away to have normals derived from depth."
                )

    @classmethod
    def parts(cls) -> tuple[Part, ...]:
        normals = "normals_gt.tgz, the ground-truth normals of Eigen and Fergus"
        link = "which cs.nyu.edu/~deigen/dnl no longer offers since 2022; without it normals are derived from depth"
        return (
            Part(cls.mat, 1, f"the labelled data set, {cls.mat} (2.8 GB), {cls._site}"),
            Part(
                "splits.mat",
                1,
                "the split of the labelled images, from the files of the same authors; not needed",
                optional=True,
            ),
            Part(f"{cls.archive}/normals/*.png", IMAGES, f"{normals}, {link}", (Normals.name,), optional=True),
            Part(f"{cls.archive}/masks/*.png", IMAGES, f"validity masks in {normals}", (Normals.name,), optional=True),
        )

    @property
    def notes(self) -> Mapping[str, str]:
        sampled = "nearest pixel at {}x{}".format(*self.resolution)
        kind = "in-painted" if self.depths == "depths" else "raw"
        notes = {
            "semseg": f"{self.classes} classes of the {LABELS} labels, {sampled}",
            "depth": f"{kind} depth (`{self.depths}`), {sampled}",
        }
        if Normals.name not in self.tasks:
            return notes
        derived = f"derived from depth: a plane fitted to {kind} depth around every pixel"
        return notes | {"normals": derived if self._pictured is None else f"{self.archive}, {self.axes_note()}, {sampled}"}

    def annotated(self, index: int) -> frozenset[str]:
        pictured = self._pictured is None or self.numbers[self.split][index] in self._pictured
        return frozenset(self.tasks) if pictured else frozenset(self.tasks) - {Normals.name}

    def file(self, index: int, task: str | None = None) -> Path:
        if task == Normals.name and self._pictured is not None:
            return self._pictures(self.numbers[self.split][index])[0]
        return self.root / self.mat

    def image(self, index: int) -> np.ndarray:
        image = self._read("images", index, "u")
        if image.dtype != np.uint8:
            raise MultidenseError(f"{self.root / self.mat}: expected 8-bit `images`, found {image.dtype}. Get it anew.")
        picture = Image.fromarray(np.ascontiguousarray(image[BORDER]))
        return np.asarray(picture.resize(self.resolution[::-1], Image.Resampling.BILINEAR))

    def label(self, index: int, task: str) -> tuple[np.ndarray, np.ndarray]:
        grid = np.ix_(self.rows, self.columns)
        if task == SemanticSegmentation.name:
            ids = self._read("labels", index, "u")[grid]
            if ids.max() > LABELS:
                raise MultidenseError(
                    f"{self.root / self.mat}: `labels` of image {self.ids[index]} should be 0 … {LABELS}, found {ids.max()}. "
                    "Get the file anew."
                )
            classes = self.table[ids]
            return np.where(classes == VOID, np.uint8(0), classes), classes != VOID
        if task == Normals.name and self._pictured is not None:
            vectors, valid = self._archived(self.numbers[self.split][index])
            return to_house(vectors, self.axes), valid
        depth, valid = metres(self.root / self.mat, self._read(self.depths, index, "f"))
        if task == Depth.name:
            return depth[grid], valid[grid]
        inside = np.zeros_like(depth)
        inside[BORDER] = depth[BORDER]
        return from_depth(inside, KINECT, self.rows, self.columns)

    def examples(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for split in ("val", self.split):
            if pictured := [number for number in self.numbers[split] if number in self._pictured]:
                return map(self._archived, _spread(pictured))
        return iter(())

    def _count(self) -> int:
        """How many images the file holds; all its variables must agree."""
        wanted = {"images": (480, 640, 3)} | dict.fromkeys(["labels", self.depths], (480, 640))
        count = self.stack.shape("images")[-1]
        for name, size in wanted.items():
            if (found := self.stack.shape(name)) != (*size, count):
                raise MultidenseError(
                    f"{self.root / self.mat}: `{name}` should be {list(size)} for each of {count} images, found {list(found)}. "
                    "Use the file of the data set."
                )
        return count

    def _splits(self) -> dict[str, frozenset[int]]:
        """Numbers of the images of each split: those of splits.mat, which must be disjoint, or else those known here."""
        path = self.root / "splits.mat"
        if not path.is_file():
            return {"train": TRAIN, "val": frozenset(range(1, IMAGES + 1)) - TRAIN}
        keys = {"train": "trainNdxs", "val": "testNdxs"}
        found = read_variables(path, *keys.values())
        splits = {split: frozenset(found[key].astype(np.int64).ravel().tolist()) for split, key in keys.items()}
        both, everything = splits["train"] & splits["val"], splits["train"] | splits["val"]
        if both or not everything or min(everything) < 1 or max(everything) > IMAGES:
            raise MultidenseError(
                f"{path}: `trainNdxs` and `testNdxs` should share the numbers 1 … {IMAGES} between them, found "
                f"{f'{len(both)} in both' if both else f'{min(everything, default=0)} … {max(everything, default=0)}'}. "
                "Use the file of the data set, or take it away: the split is known without it."
            )
        return splits

    def _read(self, name: str, index: int, kind: str) -> np.ndarray:
        array = self.stack.read(name, self.numbers[self.split][index] - 1)
        if array.dtype.kind != kind:
            what = {"u": "unsigned whole numbers", "f": "floats"}[kind]
            raise MultidenseError(f"{self.root / self.mat}: `{name}` should hold {what}, found {array.dtype}. Get it anew.")
        return array

    def _pictures(self, number: int) -> tuple[Path, Path]:
        """The archive's picture of normals and its mask, whose names count from 0."""
        normals, masks = (self.root / self.archive / kind / f"{number - 1:04d}.png" for kind in ("normals", "masks"))
        return normals, masks

    def _archived(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The archive's normals, with its own axes, and where they are valid, at the resolution."""
        grid = np.ix_(self.rows, self.columns)
        normals, mask = self._pictures(number)
        for path, wanted in ((normals, (480, 640, 3)), (mask, (480, 640))):
            array, mode = read_array(path)
            if array.shape != wanted or array.dtype not in (np.uint8, bool):
                raise MultidenseError(
                    f"{path}: expected 8 bits {list(wanted)}, found mode '{mode}' {list(array.shape)}. Use the archive's file."
                )
            levels, valid = (array[grid], None) if path == normals else (levels, array[grid] > 0)
        return levels.astype(np.float32) / 127.5 - 1, valid


class PackedNYUv2(Packed):
    """A packed copy of NYUv2."""

    benchmark, lengths = "nyuv2", NYUv2Layout.lengths


class NYUv2(Benchmark):
    """One split ("train", 795 images; "val", the 654 test images) of NYU Depth v2: semantic classes, depth, normals.

    13 classes, or 40 in the official layout, by the task's own number. Depth is in metres; normals are in the house's frame.

    Options: `normals_axes` (both layouts; see the module); of the official layout `raw_depth` and `resolution`, by default
    `size` or else (288, 384); see `NYUv2Official`.
    """

    name = "nyuv2"
    layouts = (NYUv2Preprocessed, NYUv2Official, PackedNYUv2)

    @classmethod
    def default_tasks(cls) -> tuple[Task, ...]:
        return SemanticSegmentation(13, names=class_names(13)), Depth(), Normals()

    @classmethod
    def names_of(cls, task: Task) -> tuple[str, ...]:
        return class_names(task.channels) if task.name == SemanticSegmentation.name else ()


def _spread(ids: Sequence) -> list:
    """Up to `EXAMPLES` of them, evenly spread."""
    return [ids[int(place)] for place in np.linspace(0, len(ids) - 1, min(EXAMPLES, len(ids)))]
