"""A task of one's own: how bright a pixel is, measured in 0 … 1 and classified into levels so that it has a confidence.

Run it: `python examples/add_a_task.py`. It trains on a few small rooms whose brightness is hidden for every second image, and
discovers it there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import multidense as md
from multidense import pictures
from multidense.data import Reader, Rooms, Wrapped
from multidense.meters import Meter
from multidense.ops import masked_mean
from multidense.tasks import TASKS
from multidense.tasks.continuous import ContinuousTask
from multidense.types import SCORES, Sample, Score, Target


@dataclass(frozen=True, repr=False)
class Brightness(ContinuousTask):
    """Mean of the three colours, 0 … 1, over `levels` evenly spread centres. Loss: L1, mixed with cross-entropy. Score: MAE."""

    name: ClassVar[str] = "brightness"

    levels: int = 10

    # What it is
    @property
    def codebook_size(self) -> int:
        return self.levels

    @property
    def scores(self) -> tuple[Score, ...]:
        return (SCORES["MAE"],)

    @property
    def tolerance(self) -> float:
        return 0.1

    def fit_codebook(self, targets: Iterable[Target], seed: int) -> Tensor:
        return torch.linspace(0, 1, self.levels)[:, None]

    # Values and files: 8-bit grey, 0 not valid, 1 … 255 the value
    def encode(self, array: np.ndarray, valid: np.ndarray | None = None) -> Target:
        array = np.asarray(array, np.float32)
        legal = np.isfinite(array) & (array >= 0) & (array <= 1)
        valid = legal if valid is None else valid & legal
        return Target(torch.from_numpy(np.where(valid, array, 0).astype(np.float32))[None], torch.from_numpy(valid)[None])

    def to_file(self, path: Path, value: Tensor, valid: Tensor) -> None:
        levels = torch.where(valid, 1 + (254 * value).round(), 0)
        Image.fromarray(levels[0].numpy().astype(np.uint8)).save(path)

    def read(self, path: Path) -> Target:
        levels = np.asarray(Image.open(path)).astype(np.float32)
        return self.encode((levels - 1) / 254)

    def fill(self, size: tuple[int, int]) -> Tensor:
        return torch.zeros(1, *size)

    # Learning and measuring
    def legal(self, raw: Tensor) -> Tensor:
        return raw.clamp(0, 1)

    def regression_loss(self, value: Tensor, target: Target) -> Tensor:
        return masked_mean((value - target.value).abs(), target.valid)

    def assign(self, value: Tensor) -> Tensor:
        return (value[:, 0] * (self.levels - 1)).round().long()

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs()

    def meter(self) -> Meter:
        return BrightnessMeter(self)

    def picture(self, value: Tensor, valid: Tensor | None = None) -> np.ndarray:
        return pictures.hatch(pictures.grey(value[0].cpu().numpy()), None if valid is None else valid[0].cpu().numpy())


class BrightnessMeter(Meter):
    """Mean absolute error over all valid pixels."""

    def __init__(self, task: Brightness):
        self.task = task
        super().__init__(pixels=(), absolute=())

    def update(self, logits: Tensor, target: Target) -> None:
        error = (self.task.decode(logits) - target.value).abs()[target.valid]
        self.pixels += error.numel()
        self.absolute += error.double().sum().cpu()

    def compute(self) -> dict[str, float]:
        return {"MAE": (self.absolute / self.pixels).item()}


TASKS["brightness"] = Brightness  # in the package: add the class to the dict in tasks/__init__.py


class WithBrightness(Wrapped):
    """A reader whose images have their brightness as a label: all of them, or every second one."""

    def __init__(self, reader: Reader, task: Brightness, every: int):
        super().__init__(reader)
        self.tasks, self.task, self.every = (*reader.tasks, task), task, every

    def annotated(self, index: int) -> frozenset[str]:
        return super().annotated(index) | ({"brightness"} if index % self.every == 0 else set())

    def load(self, index: int, tasks: Iterable[str]) -> Sample:
        sample = super().load(index, tasks)
        if "brightness" not in self.annotated(index) & set(tasks):
            return sample
        target = self.task.encode(sample.image.mean(0).numpy())
        return replace(sample, targets={**sample.targets, "brightness": target})


def main() -> None:
    tasks = [md.SemanticSegmentation(classes=13), Brightness(levels=8)]
    train = WithBrightness(Rooms(tasks[:1], "train", size=(32, 48), length=8), tasks[1], every=2)
    val = WithBrightness(Rooms(tasks[:1], "val", size=(32, 48), length=4), tasks[1], every=1)
    teacher = md.fit(md.build_model("segnet", "hitts", tasks, width=0.125, seed=0), train, epochs=1)
    with tempfile.TemporaryDirectory() as folder:
        found = md.discover(teacher, train, Path(folder), features=False)
        print(f"discovered for {found.manifest['tasks']['brightness']['images']} images")
    print(md.evaluate(teacher, val))


if __name__ == "__main__":
    main()
