"""Pooled sums: what every score is made of. A score never depends on how the images were batched or ordered."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
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


class ValueMeter(Meter):
    """A meter that only asks what was predicted: logits are decoded first, values (from files, say) are added as they are."""

    def __init__(self, decode: Callable[[Tensor], Tensor], **shapes: tuple[int, ...]):
        self.decode = decode
        super().__init__(**shapes)

    def update(self, logits: Float[Tensor, "b c h w"], target: Target) -> None:
        self.add(self.decode(logits.double()), target)

    @abstractmethod
    def add(self, value: Shaped[Tensor, "b v h w"], target: Target) -> None:
        """Add the valid pixels of a batch of predicted values, in the task's own units."""


class ConfusionMeter(ValueMeter):
    """Counts of (true class, predicted class) over valid pixels: mIoU, pixAcc and each class's IoU, in per cent.

    `matrix[t, p]` counts the pixels of class t that were predicted to be p. A class that neither occurs nor is predicted has no
    IoU and is left out of the mean (it gives NaN in public code).
    """

    def __init__(self, classes: int, **shapes: tuple[int, ...]):
        self.classes = classes
        super().__init__(lambda logits: logits.argmax(1, keepdim=True), matrix=(classes, classes), **shapes)

    def update(self, logits: Float[Tensor, "b c h w"], target: Target) -> None:
        self.add(self.decode(logits), target)  # the largest logit needs no double precision

    def add(self, value: Shaped[Tensor, "b 1 h w"], target: Target) -> None:
        true, predicted = target.value[target.valid].long(), value[target.valid].long()
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


class PartsMeter(ConfusionMeter):
    """A confusion meter that skips images without any part: those whose valid pixels are all of class 0, the background.

    So do the public evaluations of human parts, where such images have no annotation at all. `skipped` counts them; an image
    that is valid nowhere is not among them.
    """

    def __init__(self, classes: int):
        super().__init__(classes, skipped=())

    def add(self, value: Shaped[Tensor, "b 1 h w"], target: Target) -> None:
        some = ((target.value > 0) & target.valid).flatten(1).any(1)
        self.skipped += (target.valid.flatten(1).any(1) & ~some).sum().cpu()
        super().add(value[some], Target(target.value[some], target.valid[some]))


class ErrorMeter(ValueMeter):
    """Errors of a positive quantity over valid pixels: absErr, rmse in its unit; absRel; logErr, the mean of |ln p − ln y|;
    shares within 1.25ⁿ in per cent. What is predicted below 10⁻⁹ counts as 10⁻⁹.
    """

    def __init__(self, decode: Callable[[Tensor], Tensor]):
        super().__init__(decode, pixels=(), absolute=(), relative=(), squared=(), logarithmic=(), within=(3,))

    def add(self, value: Shaped[Tensor, "b 1 h w"], target: Target) -> None:
        true = target.value[target.valid].double()
        predicted = value[target.valid].double().clamp(min=1e-9)
        error, ratio = (predicted - true).abs(), torch.maximum(predicted / true, true / predicted)
        self.pixels += true.numel()
        self.absolute += error.sum().cpu()
        self.relative += (error / true).sum().cpu()
        self.squared += error.square().sum().cpu()
        self.logarithmic += ratio.log().sum().cpu()
        self.within += torch.stack([(ratio < 1.25**power).sum() for power in (1, 2, 3)]).cpu()

    def compute(self) -> dict[str, float]:
        return {
            "absErr": (self.absolute / self.pixels).item(),
            "rmse": (self.squared / self.pixels).sqrt().item(),
            "absRel": (self.relative / self.pixels).item(),
            "logErr": (self.logarithmic / self.pixels).item(),
        } | {f"within_1.25^{power}": (100 * self.within[power - 1] / self.pixels).item() for power in (1, 2, 3)}


class AngleMeter(ValueMeter):
    """Angles between directions over valid pixels, in degrees: mErr (mean), rmse, shares below three limits in per cent.

    A prediction without a direction, the zero vector, counts as 90°.
    """

    limits = (11.25, 22.5, 30.0)

    def __init__(self, decode: Callable[[Tensor], Tensor]):
        super().__init__(decode, pixels=(), total=(), squared=(), within=(3,))

    def add(self, value: Float[Tensor, "b 3 h w"], target: Target) -> None:
        degrees = angle(value.double(), target.value.double())[target.valid]
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
    """Hits and misses of a probability map at many thresholds over valid pixels: best F (β² = 1), and the loss.

    `bestF` is a per-pixel F-measure in per cent, pooled over all images before the maximum; the boundary-matching odsF of the
    literature tolerates small shifts and is another, higher number. `loss` is the task's own loss averaged over images.
    """

    thresholds = torch.arange(1, 100) / 100

    def __init__(self, decode: Callable[[Tensor], Tensor], loss: Callable[[Tensor, Target], Tensor]):
        self.decode, self.loss = decode, loss
        super().__init__(true_positive=(99,), predicted=(99,), positive=(), total_loss=(), images=())

    def update(self, logits: Float[Tensor, "b 1 h w"], target: Target) -> None:
        probability, true = self.decode(logits)[target.valid], target.value[target.valid] > 0.5
        self.predicted += reaching(rising(probability), self.thresholds)
        self.true_positive += reaching(rising(probability[true]), self.thresholds)
        self.positive += true.sum().cpu()
        scored = target.valid.flatten(1).any(1)
        self.total_loss += self.loss(logits, target)[scored].double().sum().cpu()
        self.images += scored.sum().cpu()

    def compute(self) -> dict[str, float]:
        f_measure = 2 * self.true_positive / (self.predicted + self.positive)
        return {"bestF": (100 * f_measure.max()).item(), "loss": (self.total_loss / self.images).item()}


class SaliencyMeter(ValueMeter):
    """Saliency maps over valid pixels: mIoU, maxF and maxF_pooled in per cent, and MAE.

    `mIoU` is the multi-task literature's max mIoU (protocol of PASCAL-Context, HiTTs Table 4): at each of 15 thresholds from
    0.2 to 0.9 the IoU of what lies above it in each image (1 if both are empty), averaged over images, then the best
    threshold's. `maxF` (β² = 0.3) is the saliency literature's: each image's map is stretched from its least to its greatest
    value (a constant one stays), F is taken where it reaches k/255, k = 1 … 255, averaged over images, then the best
    threshold's; an image where nothing is salient has F = 0. `maxF_pooled` (β² = 0.3) is the other one: the map as it is,
    pixels counted over all images where it reaches 0.05, 0.1, … 0.95, then the best threshold's. `MAE` is each image's mean
    |p − y|, averaged over images.
    """

    beta_squared = 0.3
    overlap_thresholds = torch.arange(4, 19, dtype=torch.float64) / 20
    pooled_thresholds = torch.arange(1, 20, dtype=torch.float64) / 20
    levels = torch.arange(1, 256, dtype=torch.float64) / 255 - 1e-9  # less a rounding error: 255 · (p − least) may be whole

    def __init__(self, decode: Callable[[Tensor], Tensor]):
        sums = {"overlap": (15,), "f_measure": (255,), "error": (), "images": ()}
        super().__init__(decode, **sums, true_positive=(19,), predicted=(19,), positive=())

    def add(self, value: Shaped[Tensor, "b 1 h w"], target: Target) -> None:
        probability, true, valid = value.double().cpu(), (target.value > 0.5).cpu(), target.valid.cpu()
        for one, salient, known in zip(probability, true, valid, strict=True):
            if known.any():
                self._add_image(one[known], salient[known])

    def _add_image(self, probability: Float[Tensor, " n"], salient: Bool[Tensor, " n"]) -> None:
        self.error += (probability - salient.double()).abs().mean()
        self.images += 1
        inside, probability, positive = rising(probability[salient]), rising(probability), salient.sum().double()
        both = reaching(inside, self.overlap_thresholds, strictly=True)
        either = reaching(probability, self.overlap_thresholds, strictly=True) + positive - both
        self.overlap += torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both))

        least, reach = probability[0], probability[-1] - probability[0]
        first, every = (each if reach == 0 else (each - least) / reach for each in (inside, probability))
        self.f_measure += self._f(reaching(first, self.levels), reaching(every, self.levels), positive)

        self.true_positive += reaching(inside, self.pooled_thresholds)
        self.predicted += reaching(probability, self.pooled_thresholds)
        self.positive += positive

    def _f(self, true_positive: Tensor, predicted: Tensor, positive: Tensor) -> Tensor:
        """F at each threshold; 0 where nothing is salient and nothing was found."""
        return (1 + self.beta_squared) * true_positive / (predicted + self.beta_squared * positive).clamp(min=1e-12)

    def compute(self) -> dict[str, float]:
        pooled = self._f(self.true_positive, self.predicted, self.positive).max() if self.images else torch.tensor(math.nan)
        return {
            "mIoU": (100 * (self.overlap / self.images).max()).item(),
            "maxF": (100 * (self.f_measure / self.images).max()).item(),
            "maxF_pooled": (100 * pooled).item(),
            "MAE": (self.error / self.images).item(),
        }


def rising(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The values sorted, on the CPU (by numpy, which takes a tenth of torch's time there)."""
    return torch.from_numpy(np.sort(values.detach().cpu().numpy()))


def reaching(values: Float[Tensor, " n"], thresholds: Float[Tensor, " t"], strictly: bool = False) -> Float[Tensor, " t"]:
    """How many of the rising values are at least (or, `strictly`, above) each threshold."""
    return (len(values) - torch.searchsorted(values, thresholds, right=strictly)).double()
