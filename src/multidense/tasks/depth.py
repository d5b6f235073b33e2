"""Depth: one positive number per pixel.

A label file is a 16-bit grey PNG, `file_scale` steps a unit (1000: millimetres), 0 where not valid:

    >>> task = Depth(bins=30)                                  # 30 logits; Depth() regresses one channel
    >>> target = task.encode(np.array([[2.5, 0.0]]))           # value float32 [1 1 2], the zero is not valid
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multidense import pictures
from multidense.codebook import log_bins, nearest_bin
from multidense.meters import ErrorMeter
from multidense.ops import masked_mean
from multidense.tasks.continuous import ContinuousTask
from multidense.types import SCORES, Score, Target

Zoomed = Literal["divide", "multiply", "keep"]


@dataclass(frozen=True, repr=False)
class Depth(ContinuousTask):
    """Distance along the optical axis, metres (or any positive quantity, such as inverse depth). Loss: L1.

    With `bins`, log-spaced centres from `low` to `high`; a bound left out is taken from the labelled training pixels (their 0.5
    % and 99.5 % quantiles). Scores: absErr and rmse, pooled over all valid pixels, no alignment of scale.
    """

    name: ClassVar[str] = "depth"
    least: ClassVar[float] = 1e-6
    contrast: ClassVar[tuple[float, float]] = (0.05, 0.25)

    bins: int | None = None
    low: float | None = field(default=None, kw_only=True)
    high: float | None = field(default=None, kw_only=True)
    file_scale: float = field(default=1000.0, kw_only=True)
    close: float = field(default=0.1, kw_only=True)
    """Relative error up to which a discovered depth counts as right."""
    under_zoom: Zoomed = field(default="divide", kw_only=True)
    """What enlarging the image by s does to a value. A distance is divided by s. An inverse depth or disparity would be
    multiplied, as the public code of Auto-Lambda has it, but the pipelines behind published tables (MTAN, MTPSL, also on
    Cityscapes) divide it too, and so does the default. "keep" is for what does not depend on the distance.
    """

    def __post_init__(self):
        if self.bins is not None and self.bins < 2:
            raise ValueError(f"Depth: bins must be at least 2, or None to regress, found {self.bins}")
        for name in ("low", "high", "file_scale", "close"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"Depth: {name} must be positive, found {getattr(self, name)}")
        if self.low and self.high and not self.low < self.high:
            raise ValueError(f"Depth: low must lie below high, found {self.low} and {self.high}")
        if self.under_zoom not in get_args(Zoomed):
            raise ValueError(f"Depth: under_zoom must be one of {', '.join(get_args(Zoomed))}, found {self.under_zoom!r}")

    @property
    def codebook_size(self) -> int:
        return self.bins or 0

    @property
    def scores(self) -> tuple[Score, ...]:
        return SCORES["absErr"], SCORES["rmse"]

    @property
    def tolerance(self) -> float:
        return self.close

    def fit_codebook(self, targets: Iterable[Target], seed: int) -> Tensor:
        low, high = self.low, self.high
        if low is None or high is None:
            pixels = self.labelled_pixels(targets, seed)[:, 0].double().sort().values
            low = pixels[int(0.005 * (len(pixels) - 1))].item() if low is None else low
            high = pixels[int(0.995 * (len(pixels) - 1))].item() if high is None else high
        return log_bins(low, max(high, 1.01 * low), self.bins)

    def encode(self, array: np.ndarray, valid: np.ndarray | None = None) -> Target:
        array = np.asarray(array, np.float32)
        legal = np.isfinite(array) & (array > 0)
        valid = legal if valid is None else valid & legal
        return Target(torch.from_numpy(np.where(valid, array, 1).astype(np.float32))[None], torch.from_numpy(valid)[None])

    def to_file(self, path: Path, value: Tensor, valid: Tensor) -> None:
        steps = (value.double() * self.file_scale).round().clamp(min=1)
        valid = valid & (steps <= 65535)  # what the format cannot say is not valid; a smaller file_scale reaches further
        Image.fromarray(torch.where(valid, steps, 0)[0].numpy().astype(np.uint16)).save(path)

    def read(self, path: Path) -> Target:
        return self.encode(np.asarray(Image.open(path)).astype(np.float32) / self.file_scale)

    def fill(self, size: tuple[int, int]) -> Tensor:
        return torch.ones(1, *size)

    def moved_by_zoom(self, value: Tensor, factor: float) -> Tensor:
        if self.under_zoom == "keep":
            return value
        return value / factor if self.under_zoom == "divide" else value * factor

    def legal(self, raw: Tensor) -> Tensor:
        return raw.clamp(min=self.least)

    def regression_loss(self, value: Tensor, target: Target) -> Tensor:
        return masked_mean((value - target.value).abs(), target.valid, target.weight)

    def rescaled(self, value: Tensor) -> Tensor:
        """Divided by the largest depth of the image (the largest absolute value, as estimates may be negative)."""
        return value / value.abs().amax((1, 2, 3), keepdim=True).clamp(min=self.least)

    def assign(self, value: Tensor) -> Tensor:
        return nearest_bin(value, self.centres())

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Relative error |a − b| / b."""
        return (a - b).abs() / b.clamp(min=self.least)

    def label_distance(self, a: Tensor, b: Tensor) -> Tensor:
        """|log a − log b|."""
        return (a.clamp(min=self.least).log() - b.clamp(min=self.least).log()).abs()

    def meter(self) -> ErrorMeter:
        return ErrorMeter(self.decode)

    def picture(self, value: Tensor, valid: Tensor | None = None) -> np.ndarray:
        array = value[0].cpu().numpy()
        seen = array if valid is None or not valid.any() else array[valid[0].cpu().numpy()]
        low, high = (self.low, self.high) if self.low and self.high else np.quantile(seen, [0.02, 0.98])
        if self.codebook is not None:
            low, high = self.codebook[0, 0].item(), self.codebook[-1, 0].item()
        return pictures.hatch(
            pictures.colour_positive(array, float(low), float(high)), None if valid is None else valid[0].cpu().numpy()
        )
