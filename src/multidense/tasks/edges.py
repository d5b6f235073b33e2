"""Semantic edges: is this pixel a boundary?

>>> task = Edges()                                # one logit; edges are rare, so yes weighs 0.95 and no 0.05
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from multidense.meters import BinaryMeter
from multidense.ops import masked_mean
from multidense.tasks.binary import BinaryTask
from multidense.types import SCORES, Score, Target


@dataclass(frozen=True, repr=False)
class Edges(BinaryTask):
    """Boundaries. Loss: binary cross-entropy with fixed weights, `positive` for edges and 1 − `positive` for the rest.

    Score: bestF, a per-pixel F-measure (see `meters.BinaryMeter`), not the boundary-matching odsF.
    """

    name: ClassVar[str] = "edges"

    positive: float = field(default=0.95, kw_only=True)

    @property
    def channels(self) -> int:
        return 1

    @property
    def scores(self) -> tuple[Score, ...]:
        return (SCORES["bestF"],)

    def decode(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def loss(self, logits: Tensor, target: Target) -> Tensor:
        weight = torch.where(target.value > 0.5, self.positive, 1 - self.positive)
        entropy = F.binary_cross_entropy_with_logits(logits, target.value, weight=weight, reduction="none")
        return masked_mean(entropy, target.valid, target.weight)

    def meter(self) -> BinaryMeter:
        return BinaryMeter(self.decode, self.loss)
