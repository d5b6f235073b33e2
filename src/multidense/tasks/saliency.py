"""Saliency: is this pixel part of what stands out?

>>> task = Saliency()                             # one logit and a sigmoid; Saliency(2) has two logits and a softmax
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from multidense.meters import SaliencyMeter
from multidense.ops import masked_mean
from multidense.tasks.binary import BinaryTask
from multidense.types import SCORES, Score, Target


@dataclass(frozen=True, repr=False)
class Saliency(BinaryTask):
    """Salient objects. Loss: cross-entropy in which each image's yes and no pixels weigh the same in sum.

    Public code balances over the batch; here it is per image, so that an image's loss does not depend on its batch mates, and
    no share counts as less than 5 %, so that images without a salient object still teach.
    Score: mIoU, the best of 15 thresholds, averaged over images; further maxF, maxF_pooled, MAE (see `meters.SaliencyMeter`).
    """

    name: ClassVar[str] = "saliency"

    channels: int = 1

    def __post_init__(self):
        if self.channels not in (1, 2):
            raise ValueError(f"Saliency: channels must be 1 (sigmoid) or 2 (softmax), found {self.channels}")

    @property
    def scores(self) -> tuple[Score, ...]:
        return (replace(SCORES["max_mIoU"], name="mIoU"),)

    def decode(self, logits: Tensor) -> Tensor:
        return self.log_odds(logits).sigmoid()

    def log_odds(self, logits: Tensor) -> Tensor:
        """The logit of "yes" against "no"."""
        return logits if self.channels == 1 else logits[:, 1:] - logits[:, :1]

    def loss(self, logits: Tensor, target: Target) -> Tensor:
        positive = (target.value > 0.5) & target.valid
        share = masked_mean(positive.float(), target.valid)[:, None, None, None].clamp(0.05, 0.95)
        weight = torch.where(positive, 1 - share, share)
        entropy = F.binary_cross_entropy_with_logits(self.log_odds(logits), target.value, weight=weight, reduction="none")
        return masked_mean(entropy, target.valid, target.weight)

    def meter(self) -> SaliencyMeter:
        return SaliencyMeter(self.decode)
