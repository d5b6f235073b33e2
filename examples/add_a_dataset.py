"""A reader of one's own: a folder of .npz files, each with an image and whichever labels somebody had time for.

Run it: `python examples/add_a_dataset.py`. It writes such a folder, reads it, trains for one epoch, and finds what is missing.
(Folders of ordinary image and label files need no code: see docs/guide.md.)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

import multidense as md
from multidense.data import Reader
from multidense.task import Task
from multidense.types import MultidenseError, Sample


class Archives(Reader):
    """`root/split/*.npz`: `image` uint8 [h w 3] and, where labelled, `semseg` ids (255 void), `depth` metres (0 unknown)."""

    def __init__(self, root: str | Path, split: str, tasks: Sequence[Task]):
        self.root, self.name, self.split, self.tasks = Path(root), "archives", split, tuple(tasks)
        paths = sorted((self.root / split).glob("*.npz"))
        if not paths:
            raise MultidenseError(f"Archives: expected .npz files in {self.root / split}, found none")
        self.ids = [path.stem for path in paths]
        self.class_names = {"semseg": ("background", "disc")}
        known = {task.name for task in tasks}
        self._annotated = []
        for path in paths:
            with np.load(path) as stored:
                self._annotated.append(frozenset(known & set(stored.files)))

    def annotated(self, index: int) -> frozenset[str]:
        return self._annotated[index]

    def load(self, index: int, tasks: Iterable[str]) -> Sample:
        wanted = self._annotated[index] & set(tasks)
        with np.load(self.root / self.split / f"{self.ids[index]}.npz") as stored:
            image = torch.from_numpy(stored["image"]).permute(2, 0, 1).float() / 255
            targets = {task.name: self._target(task, stored[task.name]) for task in self.tasks if task.name in wanted}
        return Sample(image=image, targets=targets, id=self.ids[index])

    def provenance(self) -> dict:
        return {"reader": "Archives", "name": self.name, "split": self.split, "length": len(self)}

    def _target(self, task: Task, array: np.ndarray):
        """Sentinels become `valid` here, and nowhere else."""
        return task.encode(array, array != 255) if task.name == "semseg" else task.encode(array)


def write_discs(root: Path, split: str, count: int) -> None:
    """Images of a disc before a wall; every second one has classes, every other one depth (all of them in val)."""
    (root / split).mkdir(parents=True)
    rows, columns = np.indices((32, 48))
    for number in range(count):
        rng = np.random.default_rng((len(split), number))
        disc = (rows - rng.integers(8, 24)) ** 2 + (columns - rng.integers(8, 40)) ** 2 < rng.integers(5, 9) ** 2
        image = np.where(disc[..., None], rng.integers(120, 256, 3), rng.integers(0, 120, 3)).astype(np.uint8)
        labels = {"semseg": disc.astype(np.uint8), "depth": np.where(disc, 1.5, 3.0).astype(np.float32)}
        kept = labels if split == "val" else {name: labels[name] for name in [list(labels)[number % 2]]}
        np.savez_compressed(root / split / f"{number:04d}.npz", image=image, **kept)


def main() -> None:
    tasks = [md.SemanticSegmentation(classes=2), md.Depth(bins=8)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for split, count in (("train", 8), ("val", 4)):
            write_discs(root, split, count)
        train, val = Archives(root, "train", tasks), Archives(root, "val", tasks)
        teacher = md.fit(md.build_model("segnet", "hitts", tasks, width=0.125, seed=0), train, epochs=1)
        found = md.discover(teacher, train, root / "discovered")
        for name, entry in found.manifest["tasks"].items():
            print(f"{name}: discovered for {entry['images']} of {len(train)} images")
        print(md.evaluate(teacher, val))


if __name__ == "__main__":
    main()
