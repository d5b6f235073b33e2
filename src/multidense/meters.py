"""Pooled sums: what every score is made of. A score never depends on how the images were batched or ordered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from multidense.ops import angle
from multidense.types import Target


class Meter(ABC):
    """Sums over pixels, divided once at the end.

    A subclass lists its sums in `__init__` (all start at zero, float64 on the CPU), adds to them in `update`, divides in
    `compute`.
    """

    def __init__(self, **shapes: tuple[int, ...]):
        self._shapes = shapes
        self.reset()

    def reset(self) -> None:
        """Forget everything that was added."""
        for name, shape in self._shapes.items():
            setattr(self, name, torch.zeros(shape, dtype=torch.float64))

    @property
    def sums(self) -> dict[str, Tensor]:
        """The sums by name; adding those of two meters gives the meter of both sets."""
        return {name: getattr(self, name) for name in self._shapes}

    def merge(self, sums: dict[str, Tensor]) -> None:
        """Add another meter's sums (another process's)."""
        for name, value in sums.items():
            setattr(self, name, getattr(self, name) + value.cpu())

    @abstractmethod
    def update(self, logits: Float[Tensor, "b c h w"], target: Target) -> None:
        """Add the valid pixels of a batch."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The scores by name, in their units; NaN where nothing was added."""


class ConfusionMeter(Meter):
    """Counts of (true class, predicted class) over valid pixels: mIoU, pixAcc and each class's IoU, in per cent.

    A class that neither occurs nor is predicted has no IoU and is left out of the mean (it gives NaN in public code).
    """

    def __init__(self, classes: int):
        self.classes = classes
        super().__init__(matrix=(classes, classes))

    def update(self, logits: Float[Tensor, "b c h w"], target: Target) -> None:
        valid = target.valid[:, 0]
        true, predicted = target.value[:, 0][valid].long(), logits.argmax(1)[valid]
        pairs = torch.bincount(true * self.classes + predicted, minlength=self.classes**2)
        self.matrix += pairs.reshape(self.classes, self.classes).cpu().double()

    def per_class(self) -> list[float]:
        """IoU of each class in per cent; NaN for a class that neither occurs nor is predicted."""
        hits = self.matrix.diagonal()
        return (100 * hits / (self.matrix.sum(0) + self.matrix.sum(1) - hits)).tolist()

    def compute(self) -> dict[str, float]:
        return {
            "mIoU": torch.tensor(self.per_class(), dtype=torch.float64).nanmean().item(),
            "pixAcc": (100 * self.matrix.trace() / self.matrix.sum()).item(),
        }


class ErrorMeter(Meter):
    """Errors of a positive quantity over valid pixels: absErr, rmse in its unit; absRel; shares within 1.25ⁿ in per cent."""

    def __init__(self, decode: Callable[[Tensor], Tensor]):
        self.decode = decode
        super().__init__(pixels=(), absolute=(), relative=(), squared=(), within=(3,))

    def update(self, logits: Float[Tensor, "b c h w"], target: Target) -> None:
        true = target.value[target.valid].double()
        predicted = self.decode(logits.double())[target.valid].clamp(min=1e-9)
        error, ratio = (predicted - true).abs(), torch.maximum(predicted / true, true / predicted)
        self.pixels += true.numel()
        self.absolute += error.sum().cpu()
        self.relative += (error / true).sum().cpu()
        self.squared += error.square().sum().cpu()
        self.within += torch.stack([(ratio < 1.25**power).sum() for power in (1, 2, 3)]).cpu()

    def compute(self) -> dict[str, float]:
        return {
            "absErr": (self.absolute / self.pixels).item(),
            "rmse": (self.squared / self.pixels).sqrt().item(),
            "absRel": (self.relative / self.pixels).item(),
        } | {f"within_1.25^{power}": (100 * self.within[power - 1] / self.pixels).item() for power in (1, 2, 3)}


class AngleMeter(Meter):
    """Angles between unit vectors over valid pixels, in degrees: mErr (mean), rmse, shares below three limits in per cent."""

    limits = (11.25, 22.5, 30.0)

    def __init__(self, decode: Callable[[Tensor], Tensor]):
        self.decode = decode
        super().__init__(pixels=(), total=(), squared=(), within=(3,))

    def update(self, logits: Float[Tensor, "b c h w"], target: Target) -> None:
        degrees = angle(self.decode(logits.double()), target.value.double())[target.valid]
        self.pixels += degrees.numel()
        self.total += degrees.sum().cpu()
        self.squared += degrees.square().sum().cpu()
        self.within += torch.stack([(degrees < limit).sum() for limit in self.limits]).cpu()

    def compute(self) -> dict[str, float]:
        return {
            "mErr": (self.total / self.pixels).item(),
            "rmse": (self.squared / self.pixels).sqrt().item(),
        } | {f"within_{limit:g}": (100 * self.within[i] / self.pixels).item() for i, limit in enumerate(self.limits)}


class BinaryMeter(Meter):
    """Hits and misses of a probability map at many thresholds over valid pixels: best F (β² = 1) and its threshold.

    `bestF` is a per-pixel F-measure in per cent, pooled over all images before the maximum; the boundary-matching odsF of the
    literature tolerates small shifts and is another, higher number. `loss` is the task's own loss averaged over images.
    """

    thresholds = torch.arange(1, 100) / 100

    def __init__(self, decode: Callable[[Tensor], Tensor], loss: Callable[[Tensor, Target], Tensor]):
        self.decode, self.loss = decode, loss
        super().__init__(true_positive=(99,), predicted=(99,), positive=(), total_loss=(), images=())

    def update(self, logits: Float[Tensor, "b 1 h w"], target: Target) -> None:
        probability, true = self.decode(logits)[target.valid], target.value[target.valid] > 0.5
        bins = torch.bucketize(probability.cpu(), self.thresholds, right=True)
        above = _counts_at_or_above(bins), _counts_at_or_above(bins[true.cpu()])
        self.predicted += above[0]
        self.true_positive += above[1]
        self.positive += true.sum().cpu()
        scored = target.valid.flatten(1).any(1)
        self.total_loss += self.loss(logits, target)[scored].double().sum().cpu()
        self.images += scored.sum().cpu()

    def compute(self) -> dict[str, float]:
        f_measure = 2 * self.true_positive / (self.predicted + self.positive)
        return {"bestF": (100 * f_measure.max()).item(), "loss": (self.total_loss / self.images).item()}


class SaliencyMeter(Meter):
    """Saliency maps over valid pixels: max mIoU in per cent and MAE.

    `mIoU` is the multi-task literature's (protocol of PASCAL-Context, HiTTs Table 4): at each of 15 thresholds from 0.2 to 0.9
    the foreground's IoU of each image (1 if both are empty), averaged over images, then the best threshold's. `MAE` is pooled
    over pixels.
    """

    thresholds = torch.linspace(0.2, 0.9, 15)

    def __init__(self, decode: Callable[[Tensor], Tensor]):
        self.decode = decode
        super().__init__(overlap=(15,), images=(), absolute=(), pixels=())

    def update(self, logits: Float[Tensor, "b c h w"], target: Target) -> None:
        probability, true = self.decode(logits).cpu(), target.value.cpu() > 0.5
        valid = target.valid.cpu()
        for p, t, v in zip(probability, true, valid, strict=True):
            if not v.any():
                continue
            found = p[v][None] > self.thresholds[:, None]
            both, either = (found & t[v]).sum(1).double(), (found | t[v]).sum(1).double()
            self.overlap += torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both))
            self.images += 1
        self.absolute += (probability - true.float())[valid].double().abs().sum()
        self.pixels += valid.sum()

    def compute(self) -> dict[str, float]:
        return {
            "mIoU": (100 * (self.overlap / self.images).max()).item(),
            "MAE": (self.absolute / self.pixels).item(),
        }


def _counts_at_or_above(bins: Tensor) -> Tensor:
    """How many entries reach each of the 99 thresholds, from their bin numbers 0 … 99."""
    return torch.bincount(bins, minlength=100).flip(0).cumsum(0).flip(0)[1:].double()
