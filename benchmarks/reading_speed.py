"""How many images a second one core reads and augments, from each layout of Cityscapes: packed, preprocessed, official.

    python benchmarks/reading_speed.py [--images 200] [--pictures 10] [--rounds 5] [--out benchmarks/results/reading-speed.json]

The files are made up, of the sizes and types of the real ones: arrays of 128×256, pictures of 1024×2048. Two tasks, semantic
segmentation of 7 classes and inverse depth; zoom by 1, 1.2 or 1.5 and mirroring. Nothing is kept in memory but by the system's
page cache. The layouts take turns, so that what else the machine does falls on all of them; one thread, and process time,
which counts this program's work only. The median of the rounds is told.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported

import argparse
import platform
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from multidense.data import Augment, Augmented, Reader
from multidense.data.cityscapes import Cityscapes
from multidense.data.convert import convert
from multidense.data.packed import Packed
from multidense.files import write_json

SIZE, PICTURE = (128, 256), (1024, 2048)
AUGMENT = Augment(scales=(1.0, 1.2, 1.5), flip=0.5)
EVALUATED = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33, 0], np.uint8)


class PackedCityscapes(Packed):
    benchmark, lengths = Cityscapes.name, Cityscapes.layouts[0].lengths


class Street(Cityscapes):
    layouts = (*Cityscapes.layouts, PackedCityscapes)


def scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image uint8, label ids uint8, disparity uint16: noisy patches, which PNG compresses like photographs."""
    patches = rng.integers(0, 256, (16, 32, 3), np.uint8)
    image = np.asarray(Image.fromarray(patches).resize(size[::-1], Image.Resampling.BICUBIC), np.int16)
    image = (image + rng.integers(-6, 7, image.shape)).clip(0, 255).astype(np.uint8)
    ids = np.asarray(Image.fromarray(EVALUATED[rng.integers(0, len(EVALUATED), (16, 32))]).resize(size[::-1], 0))
    disparity = np.linspace(400, 32000, size[0])[:, None] + rng.uniform(0, 200, size)
    disparity[ids == 0] = 0
    return image, ids, disparity.astype(np.uint16)


def write_preprocessed(root: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        image, ids, disparity = scene(rng, SIZE)
        arrays = {"image": image / 255, "label_7": np.where(ids == 0, -1, ids % 7), "depth": disparity[..., None] / 65535}
        for kind, array in arrays.items():
            (root / "train" / kind).mkdir(parents=True, exist_ok=True)
            np.save(root / "train" / kind / f"{i}.npy", array.astype(np.float32))


def write_official(root: Path, count: int) -> None:
    rng = np.random.default_rng(1)
    ends = {"leftImg8bit": "leftImg8bit", "gtFine": "gtFine_labelIds", "disparity": "disparity"}
    for i in range(count):
        for (kind, end), array in zip(ends.items(), scene(rng, PICTURE), strict=True):
            (root / kind / "train" / "ulm").mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / kind / "train" / "ulm" / f"ulm_{i:06d}_000019_{end}.png")


def rate(reader: Reader) -> float:
    """Images a second of process time, all images once."""
    began = time.process_time()
    for index in range(len(reader)):
        reader[index]
    return len(reader) / (time.process_time() - began)


def measure(folder: Path, images: int, pictures: int, rounds: int) -> dict:
    write_preprocessed(folder / "preprocessed", images)
    write_official(folder / "official", pictures)
    for name in ("preprocessed", "official"):
        convert(Street, folder / name, folder / f"packed from {name}", ["train"], processes=1)
    readers = {path.name: Street(path, "train", cache=False) for path in sorted(folder.iterdir(), reverse=True)}
    cases = {
        f"{name}{', augmented' if augmented else ''}": (reader, augmented)
        for augmented in (False, True)
        for name, reader in readers.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(rounds + 1):
        for name, (reader, augmented) in cases.items():
            seen = Augmented(reader, AUGMENT) if augmented else reader
            if augmented:
                seen.set_epoch(round_)
            found = rate(seen)
            if round_:  # the first warms up
                rates[name].append(found)
    medians = {name: median(each) for name, each in rates.items()}
    return {
        "settings": {"images": images, "pictures": pictures, "rounds": rounds, "size": SIZE, "picture": PICTURE},
        "machine": {"processor": platform.machine(), "python": platform.python_version(), "torch": torch.__version__},
        "images a second": {name: round(value, 1) for name, value in medians.items()},
        "all rounds": {name: [round(value, 1) for value in each] for name, each in rates.items()},
        "packed over its source": {
            f"{name}{end}": round(medians[f"packed from {name}{end}"] / medians[f"{name}{end}"], 2)
            for name in ("preprocessed", "official")
            for end in ("", ", augmented")
        },
        "bytes an image": {
            name: sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file()) // len(reader)
            for name, reader in readers.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.images, options.pictures, options.rounds)
    for name, value in found["images a second"].items():
        print(f"{name:40}{value:10.1f} images/s")
    for name, value in found["packed over its source"].items():
        print(f"packed over {name:28}{value:10.2f} ×")
    if options.out:
        write_json(options.out, found)


if __name__ == "__main__":
    main()
