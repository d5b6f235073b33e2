"""A small made-up benchmark with tasks of every form, in two layouts, for tests of what is generic over benchmarks."""

from pathlib import Path

import numpy as np
from PIL import Image

from multidense.data.benchmark import Benchmark, Layout, Part
from multidense.data.encodings import nearest, read_array, read_picture
from multidense.data.packed import Packed
from multidense.tasks import Depth, Edges, Normals, SemanticSegmentation
from multidense.types import MultidenseError

LENGTHS = {"train": 5, "val": 3}
KINDS = {None: "image", "semseg": "label", "depth": "depth", "normals": "normal", "edges": "edge"}


class Arrays(Layout):
    """`{split}/{image,label,depth,normal,edge}/{i}.npy`; images are float32, as in the copies of the literature."""

    name, lengths, indexed, suffix = "arrays", LENGTHS, True, ".npy"

    def __init__(self, root, split, tasks, upside_down=False):
        self.root, self.split, self.notes, self.upside_down = root, split, {"depth": "in made-up metres"}, upside_down
        self.tasks = [task.name for task in tasks]
        for task in (None, *self.tasks):
            if not any((root / split / KINDS[task]).glob(f"*{self.suffix}")):
                raise MultidenseError(f"toy: expected {root}/{split}/{KINDS[task]}/*{self.suffix}, found none. Put them there.")
        numbers = sorted(int(path.stem) for path in (root / split / "image").glob(f"*{self.suffix}"))
        self.ids = [str(number) for number in numbers]

    @classmethod
    def parts(cls):
        return tuple(
            Part(f"{split}/{kind}/*{cls.suffix}", count, f"the {kind}s of the toy", () if task is None else (task,))
            for task, kind in KINDS.items()
            for split, count in cls.lengths.items()
        )

    def annotated(self, index):
        return frozenset(name for name in self.tasks if self.file(index, name).exists())

    def file(self, index, task=None):
        return self.root / self.split / KINDS[task] / f"{self.ids[index]}{self.suffix}"

    def image(self, index):
        pixels = read_array(self.file(index))[0]
        return pixels[::-1] if self.upside_down else pixels

    def label(self, index, task):
        array = read_array(self.file(index, task))[0]
        if task == "semseg":
            return np.where(array < 0, 0, array), array >= 0
        if task == "normals":
            return array, (array != 0).any(-1)
        return array, ~np.isnan(array) if task == "edges" else array > 0


class Pictures(Arrays):
    """Images are PNGs of several sizes; everything else as in `Arrays`, in other folders."""

    name, indexed = "pictures", False

    @classmethod
    def parts(cls):
        return tuple(
            Part(one.files.replace("/image/*.npy", "/photo/*.png"), one.count, one.source, one.tasks) for one in super().parts()
        )

    def __init__(self, root, split, tasks):
        self.root, self.split, self.notes = root, split, {}
        self.tasks = [task.name for task in tasks]
        self.ids = sorted(path.stem for path in (root / split / "photo").glob("*.png"))

    def file(self, index, task=None):
        return super().file(index, task) if task else self.root / self.split / "photo" / f"{self.ids[index]}.png"

    def image(self, index):
        return np.asarray(read_picture(self.file(index)).convert("RGB"))


class PackedToy(Packed):
    benchmark, lengths = "toy", LENGTHS


class Toy(Benchmark):
    name = "toy"
    layouts = (Arrays, Pictures, PackedToy)

    @classmethod
    def default_tasks(cls):
        return SemanticSegmentation(5), Depth(), Normals(), Edges()

    @classmethod
    def names_of(cls, task):
        return tuple("abcde") if task.name == "semseg" else ()


def labels(rng: np.random.Generator, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """One label of every kind by its folder, with pixels that are not valid."""
    depth = rng.uniform(0.5, 10, size).astype(np.float32)
    normal = rng.normal(size=(*size, 3))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    edge = (rng.random(size) < 0.2).astype(np.float32)
    depth[rng.random(size) < 0.2], normal[rng.random(size) < 0.2], edge[rng.random(size) < 0.2] = 0, 0, np.nan
    return {"label": rng.integers(-1, 5, size), "depth": depth, "normal": normal.astype(np.float32), "edge": edge}


def write_arrays(root: Path, train: int = 5, val: int = 3, size: tuple[int, int] = (12, 16)) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            for kind, array in ({"image": rng.random((*size, 3), np.float32)} | labels(rng, size)).items():
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                np.save(root / split / kind / f"{i}.npy", array)


def write_pictures(root: Path, train: int = 5, val: int = 3) -> None:
    """Images of several sizes; every third has no depth."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            size = (10 + i, 15 + 3 * i)
            image = nearest(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8), size)
            for kind in ("photo", *list(KINDS.values())[1:]):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / split / "photo" / f"a{i}.png")
            for kind, array in labels(rng, size).items():
                if kind != "depth" or i % 3:
                    np.save(root / split / kind / f"a{i}.npy", array)
