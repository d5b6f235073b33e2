"""What edges and saliency share: a probability per pixel, stored in 8 bits.

A label file is a grey PNG, probability · 255, with 128 where not valid (a probability that would round to 128 is stored as
127 or 129, on its own side of one half).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multidense import pictures
from multidense.task import Task
from multidense.types import Target

UNKNOWN = 128


@dataclass(frozen=True, repr=False)
class BinaryTask(Task):
    """A yes-or-no question per pixel. Value: probability, float `[1 h w]`; a label is 0 or 1, above one half is yes."""

    @property
    def tolerance(self) -> float:
        return 0.5

    @property
    def group_names(self) -> tuple[str, ...]:
        return f"not {self.name}", self.name

    @abstractmethod
    def decode(self, logits: Tensor) -> Tensor:
        """The probability."""

    def encode(self, array: np.ndarray, valid: np.ndarray | None = None) -> Target:
        array = np.asarray(array, np.float32)
        legal = np.isfinite(array) & (array >= 0) & (array <= 1)
        valid = legal if valid is None else valid & legal
        return Target(torch.from_numpy(np.where(valid, array, 0).astype(np.float32))[None], torch.from_numpy(valid)[None])

    def to_file(self, path: Path, value: Tensor, valid: Tensor) -> None:
        levels = (value * 255).round().clamp(0, 255)
        levels = torch.where(levels == UNKNOWN, torch.where(value > 0.5, UNKNOWN + 1, UNKNOWN - 1), levels)
        Image.fromarray(torch.where(valid, levels, UNKNOWN)[0].numpy().astype(np.uint8)).save(path)

    def read(self, path: Path) -> Target:
        levels = np.asarray(Image.open(path))
        return self.encode(levels.astype(np.float32) / 255, levels != UNKNOWN)

    def fill(self, size: tuple[int, int]) -> Tensor:
        return torch.zeros(1, *size)

    def confidence(self, logits: Tensor) -> Tensor:
        """2 · |p − ½|: zero where undecided, one where sure either way."""
        return (2 * self.decode(logits) - 1).abs()

    def harden(self, value: Tensor) -> Tensor:
        return (value > 0.5).to(value.dtype)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Absolute difference of probabilities."""
        return (a - b).abs()

    def groups(self, value: Tensor) -> Tensor:
        return (value[:, 0] > 0.5).long()

    def picture(self, value: Tensor, valid: Tensor | None = None) -> np.ndarray:
        shades = pictures.grey(value[0].cpu().numpy())
        return pictures.hatch(shades, None if valid is None else valid[0].cpu().numpy())
