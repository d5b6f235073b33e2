"""Surface normals: one unit vector per pixel, x right, y up, z toward the viewer.

A label file is an 8-bit RGB PNG, (n + 1) · 127.5, with (0, 0, 0) where not valid (no unit vector is stored as that):

    >>> task = Normals(centers=20)                             # 20 logits; Normals() regresses three channels
    >>> target = task.encode(np.array([[[0, 1, 0], [0, 0, 0]]]))   # a floor pixel and one that is not valid
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multidense import pictures
from multidense.codebook import nearest_direction, sphere, spherical_kmeans
from multidense.meters import AngleMeter
from multidense.ops import angle, masked_mean, unit
from multidense.tasks.continuous import ContinuousTask
from multidense.types import SCORES, Score, Target


@dataclass(frozen=True, repr=False)
class Normals(ContinuousTask):
    """Surface normals. Loss: 1 − cos ("cosine", NYUv2) or the L1 distance of unit vectors ("l1", PASCAL-Context).

    With `centers`, unit-vector centres: "fitted" by spherical K-means on labelled training pixels, or spread evenly over the
    "hemisphere" that faces the viewer or the whole "sphere". Scores: mErr and rmse of the angle in degrees, shares of pixels
    within 11.25°, 22.5°, 30°, pooled over all valid pixels.
    """

    name: ClassVar[str] = "normals"
    value_channels: ClassVar[int] = 3
    contrast: ClassVar[tuple[float, float]] = (10.0, 30.0)

    centers: int | None = None
    spread: Literal["fitted", "hemisphere", "sphere"] = field(default="fitted", kw_only=True)
    measure: Literal["cosine", "l1"] = field(default="cosine", kw_only=True)
    close: float = field(default=15.0, kw_only=True)
    """Angle in degrees up to which a discovered normal counts as right."""

    def __post_init__(self):
        if self.centers is not None and self.centers < 2:
            raise ValueError(f"Normals: centers must be at least 2, or None to regress, found {self.centers}")

    @property
    def codebook_size(self) -> int:
        return self.centers or 0

    @property
    def scores(self) -> tuple[Score, ...]:
        return tuple(SCORES[name] for name in ("mErr", "rmse", "within_11.25", "within_22.5", "within_30"))

    @property
    def tolerance(self) -> float:
        return self.close

    def fit_codebook(self, targets: Iterable[Target], seed: int) -> Tensor:
        if self.spread != "fitted":
            return sphere(self.centers, hemisphere=self.spread == "hemisphere")
        return spherical_kmeans(self.labelled_pixels(targets, seed), self.centers, seed)

    def encode(self, array: np.ndarray, valid: np.ndarray | None = None) -> Target:
        array = np.asarray(array, np.float64)  # the squares of large float32 numbers would overflow
        length = np.linalg.norm(np.nan_to_num(array, posinf=0, neginf=0), axis=-1)
        legal = np.isfinite(array).all(-1) & (length > 1e-3)
        valid = legal if valid is None else valid & legal
        value = np.where(valid[..., None], array / np.where(legal, length, 1)[..., None], [0.0, 0.0, 1.0])
        return Target(torch.from_numpy(value.astype(np.float32).transpose(2, 0, 1).copy()), torch.from_numpy(valid)[None])

    def to_file(self, path: Path, value: Tensor, valid: Tensor) -> None:
        levels = ((value + 1) * 127.5).round().clamp(0, 255)
        Image.fromarray(torch.where(valid, levels, 0).permute(1, 2, 0).numpy().astype(np.uint8)).save(path)

    def read(self, path: Path) -> Target:
        levels = np.asarray(Image.open(path))
        return self.encode(levels.astype(np.float32) / 127.5 - 1, levels.any(-1))

    def fill(self, size: tuple[int, int]) -> Tensor:
        return torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(3, *size)

    def moved_by_flip(self, value: Tensor) -> Tensor:
        return value * value.new_tensor([-1, 1, 1])[:, None, None]

    def moved_by_rotation(self, value: Tensor, degrees: float) -> Tensor:
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        x, y, z = value
        return torch.stack([cosine * x - sine * y, sine * x + cosine * y, z])

    def legal(self, raw: Tensor) -> Tensor:
        """Unit vectors; the zero vector becomes the one toward the viewer."""
        length = raw.norm(dim=1, keepdim=True)
        return torch.where(length > 1e-6, raw / length.clamp(min=1e-6), self.fill(raw.shape[-2:]).to(raw))

    def regression_loss(self, value: Tensor, target: Target) -> Tensor:
        directions = unit(value)
        if self.measure == "l1":
            return masked_mean((directions - target.value).abs(), target.valid, target.weight)
        return masked_mean(1 - (directions * target.value).sum(1, keepdim=True), target.valid, target.weight)

    def rescaled(self, value: Tensor) -> Tensor:
        """(n + 1) / 2 of the unit vectors; without a direction all three are one half."""
        return (unit(value) + 1) / 2

    def assign(self, value: Tensor) -> Tensor:
        return nearest_direction(value, self.centres())

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Angle in degrees."""
        return angle(a, b)

    def meter(self) -> AngleMeter:
        return AngleMeter(self.decode)

    def picture(self, value: Tensor, valid: Tensor | None = None) -> np.ndarray:
        colours = pictures.colour_directions(value.cpu().numpy())
        return pictures.hatch(colours, None if valid is None else valid[0].cpu().numpy())
