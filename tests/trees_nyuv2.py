"""Small trees in the very formats of NYUv2: empty boxes of rooms seen by its camera, with labels in closed form."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import scipy.io
from PIL import Image

from multidense.data._nyuv2_classes import IMAGES, TRAIN
from multidense.data._nyuv2_normals import AXES, Camera
from multidense.data.nyuv2 import BORDER, KINECT

SIZE = (480, 640)
FACES = ("left", "right", "floor", "ceiling", "back")
LABELS = np.array([21, 59, 11, 4, 3])
"""Of the 894 labels: wall, window, floor, ceiling, cabinet."""
CLASSES = np.array([11, 12, 4, 2, 5])
"""What these are among the 13 classes."""
STORED = ("right", "viewer", "up")
"""The axes of stored normals in these trees."""


@dataclass(frozen=True)
class Room:
    """What there is to know of one image, at its own size."""

    image: np.ndarray
    """`[h w 3]` float in 0 … 1, no two corners alike."""
    face: np.ndarray
    """`[h w]`, which of FACES is seen."""
    depth: np.ndarray
    """`[h w]` metres along the optical axis."""
    normal: np.ndarray
    """`[h w 3]` in the house's frame."""


def camera_of(size: tuple[int, int]) -> Camera:
    """A camera that sees at any size what NYUv2's does inside the border."""
    (rows, columns), (height, width) = BORDER, size
    down, right = height / (rows.stop - rows.start), width / (columns.stop - columns.start)
    return Camera(
        KINECT.fx * right,
        KINECT.fy * down,
        (KINECT.cx + 0.5 - columns.start) * right - 0.5,
        (KINECT.cy + 0.5 - rows.start) * down - 0.5,
    )


def room(number: int, size: tuple[int, int] = SIZE, camera: Camera = KINECT) -> Room:
    """The room of one number: its measures and colours depend on it."""
    rng = np.random.default_rng(number)
    left, right = rng.uniform(0.8, 1.6, 2)
    floor, ceiling, back = rng.uniform(1.0, 1.5), rng.uniform(0.7, 1.2), rng.uniform(3.5, 5.0)
    row, column = np.indices(size, float)
    x, y = (column - camera.cx) / camera.fx, (camera.cy - row) / camera.fy
    with np.errstate(divide="ignore"):
        distances = [np.where(x < 0, -left / x, np.inf), np.where(x > 0, right / x, np.inf)]
        distances += [np.where(y < 0, -floor / y, np.inf), np.where(y > 0, ceiling / y, np.inf), np.full(size, back)]
    face = np.argmin(distances, axis=0)
    normals = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]], np.float64)
    colour = rng.uniform(0.2, 0.6, 3)
    image = np.stack([row / size[0], column / size[1], np.full(size, colour[2])], -1) * 0.5 + colour * 0.5
    return Room(image, face, np.min(distances, axis=0), normals[face])


def stored_normals(normal: np.ndarray, axes: tuple[str, str, str] = STORED) -> np.ndarray:
    """Normals of the house's frame with other axes."""
    return np.stack([AXES[word][1] * normal[..., AXES[word][0]] for word in axes], -1)


def write_preprocessed(
    root: Path,
    train: int = 4,
    val: int = 2,
    size: tuple[int, int] = (32, 48),
    dtype: type = np.float32,
    label_dtype: type = np.int64,
    void: int = -1,
    axes: tuple[str, str, str] = STORED,
) -> None:
    """Write `{train,val}/{image,label,depth,normal}/{i}.npy`.

    Image i of "train" is room i, of "val" room 1000 + i, seen by `camera_of(size)`. Rows 0 and 1 are not labelled, rows 2 and 3
    without depth, rows 4 and 5 without normals. `dtype` is that of images, depth and normals, `label_dtype` that of classes.
    """
    for split, count, first in (("train", train, 0), ("val", val, 1000)):
        for i in range(count):
            made = room(first + i, size, camera_of(size))
            label, depth = CLASSES[made.face].astype(np.int64), made.depth[..., None].copy()
            normal = stored_normals(made.normal, axes)
            label[:2], depth[2:4], normal[4:6] = void, 0, 0
            arrays = {"image": made.image, "depth": depth, "normal": normal}
            arrays = {name: array.astype(dtype) for name, array in arrays.items()} | {"label": label.astype(label_dtype)}
            for name, array in arrays.items():
                path = root / split / name / f"{i}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, array)


def write_official(
    root: Path,
    train: int = 3,
    val: int = 2,
    splits: str | None = "v5",
    normals: bool = False,
    axes: tuple[str, str, str] = STORED,
) -> int:
    """Write nyu_depth_v2_labeled.mat (MATLAB 7.3, axes reversed), and splits.mat and normals_gt if wanted; how many images.

    With `splits` ("v5" or "v7.3") images 1 … val are the test images and the next `train` the training images. With None there
    is no splits.mat: the split is the real one, of as many of the first images as it takes to have at least `train` and `val`.
    Image n is room n. Rows 100 … 109 are not labelled, rows 200 … 209 have no raw depth (the in-painted one is whole), rows
    300 … 309 no normals.
    """
    root.mkdir(parents=True, exist_ok=True)
    count = train + val
    while splits is None and (sum(n <= count for n in TRAIN) < train or count - sum(n <= count for n in TRAIN) < val):
        count += 1
    assert count <= IMAGES
    path = root / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        kinds = {"images": (np.uint8, (3,)), "labels": (np.uint16, ()), "depths": ("f4", ()), "rawDepths": ("f4", ())}
        for name, (dtype, channels) in kinds.items():
            shape = (*channels, *SIZE[::-1])
            file.create_dataset(name, (count, *shape), dtype, chunks=(1, *shape), compression="gzip", compression_opts=1)
        file.create_group("#refs#")
        for number in range(1, count + 1):
            made, n = room(number), number - 1
            file["images"][n] = (made.image * 255).round().astype(np.uint8).T
            label, raw = LABELS[made.face], made.depth.copy()
            label[100:110], raw[200:210] = 0, 0
            file["labels"][n], file["depths"][n], file["rawDepths"][n] = label.T, made.depth.T, raw.T
            if normals:
                _write_archive(root / "normals_gt", n, stored_normals(made.normal, axes))
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    if splits:
        ids = {"testNdxs": np.arange(1, val + 1)[:, None], "trainNdxs": np.arange(val + 1, count + 1)[:, None]}
        write_splits(root / "splits.mat", ids, splits)
    return count


def write_splits(path: Path, ids: dict[str, np.ndarray], version: str = "v5") -> None:
    """Write columns of numbers, as uint16, in either version."""
    if version == "v5":
        scipy.io.savemat(path, {name: column.astype(np.uint16) for name, column in ids.items()})
        return
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, column in ids.items():
            file[name] = column.T.astype(np.float64)


def _write_archive(root: Path, number: int, normal: np.ndarray) -> None:
    valid = np.zeros(SIZE, bool)
    valid[BORDER] = True
    valid[300:310] = False
    levels = np.where(valid[..., None], ((normal + 1) * 127.5).round(), 128).astype(np.uint8)
    for kind, array in (("normals", levels), ("masks", valid.astype(np.uint8) * 255)):
        (root / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / kind / f"{number:04d}.png", compress_level=1)
