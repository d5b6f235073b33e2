"""Semantic edges: is this pixel a boundary?

>>> task = Edges()                                # one logit; edges are rare, so yes weighs 0.95 and no 0.05
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from multidense.boundaries import BoundaryMeter, Protocol
from multidense.meters import BinaryMeter, Meter
from multidense.ops import masked_mean
from multidense.tasks.binary import BinaryTask
from multidense.types import SCORES, Score, Target


@dataclass(frozen=True, repr=False)
class Edges(BinaryTask):
    """Boundaries. Loss: binary cross-entropy with fixed weights, `positive` for edges and 1 − `positive` for the rest.

    Score: odsF of matched boundaries; further oisF, AP (see `multidense.boundaries`) and bestF, a cheap F-measure pixel by
    pixel (see `meters.BinaryMeter`), which stands for odsF in learning curves. Numbers of different `max_dist` or `nms` never
    compare.
    """

    name: ClassVar[str] = "edges"

    positive: float = field(default=0.95, kw_only=True)
    max_dist: float = field(default=0.0075, kw_only=True)
    """How far a matched boundary pixel may lie, as a share of the image's diagonal; NYUD uses 0.011."""
    nms: bool = field(default=False, kw_only=True)
    """Whether predictions are first thinned by oriented non-maximum suppression, with 101 thresholds of its own."""
    thresholds: int = field(default=99, kw_only=True)
    """How many thresholds k / (`thresholds` + 1) are tried without `nms`."""

    both: bool = field(default=False, kw_only=True)
    """Whether the other protocol's odsF, oisF and AP are told too, as `odsF_nms` or `odsF_plain`; it takes twice as long."""

    def __post_init__(self):
        if not 0 < self.max_dist <= 1:
            raise ValueError(f"Edges: max_dist must lie above 0, at most at 1, found {self.max_dist}")
        if self.thresholds < 1:
            raise ValueError(f"Edges: thresholds must be at least 1, found {self.thresholds}")

    @property
    def channels(self) -> int:
        return 1

    @property
    def scores(self) -> tuple[Score, ...]:
        return (SCORES["odsF"],)

    @property
    def protocol(self) -> Protocol:
        """How boundaries are cut out of a prediction and matched."""
        return self._protocol(self.nms)

    def _protocol(self, nms: bool) -> Protocol:
        return Protocol.with_nms(self.max_dist) if nms else Protocol.plain(self.thresholds, self.max_dist)

    def decode(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def loss(self, logits: Tensor, target: Target) -> Tensor:
        weight = torch.where(target.value > 0.5, self.positive, 1 - self.positive)
        entropy = F.binary_cross_entropy_with_logits(logits, target.value, weight=weight, reduction="none")
        return masked_mean(entropy, target.valid, target.weight)

    def meter(self) -> EdgeMeter:
        other = BoundaryMeter(self.decode, self._protocol(not self.nms)) if self.both else None
        return EdgeMeter(self.boundary_meter(), self.quick_meter(), other)

    def quick_meter(self) -> BinaryMeter:
        return BinaryMeter(self.decode, self.loss)

    def boundary_meter(self) -> BoundaryMeter:
        """The part of `meter` that matches boundaries."""
        return BoundaryMeter(self.decode, self.protocol)


class EdgeMeter(Meter):
    """Several meters in one: odsF, oisF and AP of matched boundaries, then bestF and loss pixel by pixel; with an `other`
    protocol its odsF, oisF and AP too, called `_nms` or `_plain` after it.
    """

    def __init__(self, boundaries: BoundaryMeter, pixels: BinaryMeter, other: BoundaryMeter | None = None):
        self.parts: dict[str, Meter] = {"boundaries": boundaries, "pixels": pixels} | ({"other": other} if other else {})
        super().__init__()

    def reset(self) -> None:
        for part in self.parts.values():
            part.reset()

    @property
    def sums(self) -> dict[str, Tensor]:
        return {f"{name}.{key}": value for name, part in self.parts.items() for key, value in part.sums.items()}

    def merge(self, sums: dict[str, Tensor]) -> None:
        for name, part in self.parts.items():
            part.merge({key.removeprefix(f"{name}."): value for key, value in sums.items() if key.startswith(f"{name}.")})

    def update(self, logits: Tensor, target: Target) -> None:
        for part in self.parts.values():
            part.update(logits, target)

    def compute(self) -> dict[str, float]:
        names = ("odsF", "oisF", "AP")
        matched = self.parts["boundaries"].compute()
        told = {name: matched[name] for name in names} | self.parts["pixels"].compute()
        if "other" in self.parts:
            other, called = self.parts["other"].compute(), "nms" if self.parts["other"].protocol.nms else "plain"
            told |= {f"{name}_{called}": other[name] for name in names}
        return told
