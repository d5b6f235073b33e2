"""How good discovered labels are, where the truth is known: precision against coverage, calibration, categories.

A benchmark hides labels that exist. The frozen first-stage network runs over the clean training images once more, and what it
says of them is compared with what was hidden. Nothing is read from a discovery but its thresholds, so this judges stored
(offline) and passing (online) labels alike. It is for reports: nothing that trains may use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from multidense.data.collate import collate
from multidense.data.partial import Assignment, Partial
from multidense.data.reader import Reader, batches
from multidense.data.subset import Tasks
from multidense.evaluation import measure
from multidense.models.multitask import MultiTask
from multidense.progress import Reporter, silent
from multidense.store import found_by, seen_by
from multidense.task import Task
from multidense.thresholds import BINS, Confidences, keep
from multidense.types import Target

POINTS = 50
"""Points of a curve of precision against coverage."""
RELIABILITY_BINS = 15
"""Bins of a reliability diagram (C. Guo et al., On Calibration of Modern Neural Networks, 2017)."""

KeepRule = Callable[[str, Tensor, Tensor], Tensor]
"""From a task's name, values `[b v h w]` and confidences `[b 1 h w]` to the pixels that are kept, bool `[b 1 h w]`."""


def judge(
    teacher: MultiTask,
    shown: Reader,
    truth: Reader,
    kept: Mapping[str, float | Sequence[float]] | KeepRule,
    *,
    batch_size: int = 8,
    reporter: Reporter = silent,
) -> dict[str, dict]:
    """Compare what a network discovers with the labels that `truth` has and `shown` hides; {} where it hides none.

    Args:
        teacher: the network that discovers. Its tasks without a confidence are left out.
        shown: the training images, clean, with the labels that stage 1 might see; these never count.
        truth: the same images with all their labels; only its valid pixels count.
        kept: thresholds by task, one number or one for each category (see `multidense.thresholds`), or a function that says
            which pixels are kept.

    Per task, plain data, shares in 0 … 1. A pixel is *right* where `task.distance` to the truth is at most `task.tolerance`:

        images, pixels        how much hidden truth there was
        coverage, precision   share of the pixels that is kept, share of those that is right (None where nothing is kept)
        accuracy, tolerance   share of all pixels that is right; up to which distance that is
        curve                 the most confident pixels, from few to all: their `coverage` and `precision`, and the `threshold`
                              that they reach
        reliability, ece      15 bins of equal width over the stated chance of being right, those that hold anything: mean
                              `confidence`, `accuracy`, `share` of the pixels. ece = Σ share · |accuracy − confidence|
        reliability_by_share, ece_by_share   the same with bins that hold about as many pixels each, for confidences that
                              bunch up
        classes               where the task has several categories, by name: `pixels` predicted to be of it; `kept`, the share
                              of these that is kept; `precision`, the share of the kept that is right; `true_pixels` that are
                              of it; `recall`, the share of these that is kept and right

    The stated chance of being right is the confidence, and for a value that is itself a probability p that of the answer given,
    max(p, 1 − p). Curves and bins are counted in a million levels of confidence.
    """
    tasks = {task.name: task for task in teacher.tasks if task.has_confidence}
    hidden = _labels(Tasks(truth, tasks), shown, used=False)
    if not len(hidden):
        return {}
    rule = kept if callable(kept) else lambda name, value, confidence: keep(tasks[name], value, confidence, kept[name])
    tallies = {name: _Tally(task) for name, task in tasks.items()}
    device = next(teacher.parameters()).device
    for _, samples in reporter.track(batches(hidden, batch_size), "judging", len(hidden), size=lambda item: len(item[0])):
        batch = collate(samples, list(tasks.values())).to(device)
        outputs = seen_by(teacher, batch.image)
        for name in (name for name in tasks if batch.annotated[name].any()):
            value, confidence = found_by(tasks[name], outputs)
            chance = stated_chance(tasks[name], outputs.logits[name])
            tallies[name].add(value, confidence, chance, rule(name, value, confidence), batch.targets[name])
    images = hidden.assignment.counts()
    names = {name: hidden.class_names.get(name) or task.group_names for name, task in tasks.items()}
    return {
        name: {"images": images[name], **tally.told(names[name])} for name, tally in tallies.items() if tally.of_predicted.any()
    }


def on_training_images(
    model: MultiTask, shown: Reader, truth: Reader, batch_size: int = 8, reporter: Reporter = silent
) -> dict[str, dict[str, float | None]]:
    """Scores over the clean training images that are `labelled` for a task and over those that are `unlabelled`, apart.

    HiTTs, Table 6. `shown` has the labels the network was trained with, `truth` all there are; an image that `shown` lacks is
    unlabelled. Scores are those of `evaluate`, pooled over each part, by `task.score`; None for one that is not a number. {}
    where nothing is unlabelled, for then there is nothing to compare with.
    """
    truth = Tasks(truth, [task.name for task in model.tasks])
    parts = {"labelled": _labels(truth, shown, used=True), "unlabelled": _labels(truth, shown, used=False)}
    if not len(parts["unlabelled"]):
        return {}
    scores = {
        part: measure(model, data, batch_size=batch_size, reporter=reporter).scores if len(data) else {}
        for part, data in parts.items()
    }
    return {
        part: {name: value if math.isfinite(value) else None for name, value in told.items()} for part, told in scores.items()
    }


def stated_chance(task: Task, logits: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """How probable a network thinks that its answer is right, 0 … 1.

    The confidence; but for values that are themselves the probability p of "yes", max(p, 1 − p): their confidence |2p − 1| is
    zero where the answer is as good as tossing a coin.
    """
    if task.probabilities(logits[..., :1, :1]) is not None:
        return task.confidence(logits)
    probability = task.decode(logits)
    return torch.maximum(probability, 1 - probability)


def curve_of(sure: Confidences, points: int = POINTS) -> list[dict[str, float]]:
    """Coverage, precision and threshold of the most confident pixels, for `points` steps of coverage from few to all.

    Pixels of one level of confidence stay together, so coverage grows strictly and there may be fewer points.
    """
    above, right = (_from_here_up(counts) for counts in _counts(sure))
    if not above[0]:
        return []
    wanted = np.arange(1, points + 1) / points * above[0]
    levels = np.unique(np.searchsorted(-above, -wanted, side="right") - 1)[::-1]
    shares = zip(levels.tolist(), (above[levels] / above[0]).tolist(), (right[levels] / above[levels]).tolist(), strict=True)
    return [{"coverage": coverage, "precision": precision, "threshold": level / BINS} for level, coverage, precision in shares]


def reliability_of(stated: Confidences, bins: int = RELIABILITY_BINS, by_share: bool = False) -> list[dict[str, float]]:
    """Mean confidence, accuracy and share of the pixels of each bin that holds any, from the least confident.

    Bins have equal width over 0 … 1, or `by_share` as nearly equal numbers of pixels as levels, which stay whole, allow.
    """
    counts, right = _counts(stated)
    total = counts.sum()
    if not total:
        return []
    if by_share:
        middle = counts.cumsum() - counts / 2
        place = np.minimum(middle * bins // total, bins - 1).astype(np.int64)
    else:
        place = np.arange(BINS, dtype=np.int64) * bins // BINS
    centres = (np.arange(BINS) + 0.5) / BINS
    sums = np.stack([np.bincount(place, weights, bins) for weights in (counts * centres, right, counts)], 1)
    return [
        {"confidence": trust / pixels, "accuracy": hits / pixels, "share": pixels / float(total)}
        for trust, hits, pixels in sums.tolist()
        if pixels
    ]


def calibration_error(reliability: Sequence[Mapping[str, float]]) -> float:
    """Expected calibration error: Σ share · |accuracy − confidence| over the bins."""
    return math.fsum(each["share"] * abs(each["accuracy"] - each["confidence"]) for each in reliability)


class _Tally:
    """What is counted of one task: levels of confidence, and categories as predicted `[k 3]` (found, kept, kept and right) and
    as they truly are `[k 2]` (all, kept and right).
    """

    def __init__(self, task: Task):
        self.task, many = task, len(task.group_names)
        self.sure, self.stated = Confidences(), Confidences()
        self.of_predicted = torch.zeros(many, 3, dtype=torch.int64)
        self.of_true = torch.zeros(many, 2, dtype=torch.int64)

    def add(
        self,
        value: Shaped[Tensor, "b v h w"],
        confidence: Float[Tensor, "b 1 h w"],
        chance: Float[Tensor, "b 1 h w"],
        kept: Bool[Tensor, "b 1 h w"],
        target: Target,
    ) -> None:
        """Count the valid pixels of a batch."""
        right = self.task.distance(value, target.value) <= self.task.tolerance
        self.sure.add(confidence, target.valid, right)
        self.stated.add(chance, target.valid, right)
        predicted, true = (self.task.groups(each)[:, None] for each in (value, target.value))
        good = [target.valid, target.valid & kept, target.valid & kept & right]
        self.of_predicted += torch.stack([self._by_group(predicted[which]) for which in good], 1)
        self.of_true += torch.stack([self._by_group(true[which]) for which in (good[0], good[2])], 1)

    def _by_group(self, groups: Tensor) -> Tensor:
        return torch.bincount(groups.cpu(), minlength=len(self.of_true))

    def told(self, names: Sequence[str]) -> dict:
        """Everything that was counted as plain data, categories by name."""
        pixels, kept, right = self.of_predicted.sum(0).tolist()
        even, by_share = reliability_of(self.stated), reliability_of(self.stated, by_share=True)
        told = {
            "pixels": pixels,
            "coverage": kept / pixels,
            "precision": _share(right, kept),
            "accuracy": int(self.sure.right.sum()) / pixels,
            "tolerance": self.task.tolerance,
            "ece": calibration_error(even),
            "ece_by_share": calibration_error(by_share),
            "curve": curve_of(self.sure),
            "reliability": even,
            "reliability_by_share": by_share,
        }
        if len(names) < 2:
            return told
        rows = zip(names, self.of_predicted.tolist(), self.of_true.tolist(), strict=True)
        return told | {
            "classes": {
                name: {
                    "pixels": found,
                    "kept": _share(kept, found),
                    "precision": _share(good, kept),
                    "true_pixels": there,
                    "recall": _share(met, there),
                }
                for name, (found, kept, good), (there, met) in rows
            }
        }


def _labels(truth: Reader, shown: Reader, used: bool) -> Partial:
    """The labels of `truth` that `shown` shows (`used`), or those that it does not; and the images that have any."""
    seen = {image_id: shown.annotated(index) for index, image_id in enumerate(shown.ids)}
    names = tuple(task.name for task in truth.tasks)
    table = np.zeros((len(truth), len(names)), bool)
    for row, image_id in enumerate(truth.ids):
        there, known = truth.annotated(row), seen.get(image_id, frozenset())
        table[row] = [name in there and (name in known) == used for name in names]
    some = table.any(1)
    ids = tuple(image_id for image_id, any_label in zip(truth.ids, some, strict=True) if any_label)
    return Partial(truth, Assignment(ids, names, table[some], "used" if used else "hidden"))


def _counts(confidences: Confidences) -> tuple[np.ndarray, np.ndarray]:
    """All pixels and the right ones of each level, in double precision."""
    counts = confidences.counts.numpy().astype(np.float64)
    return counts, np.zeros_like(counts) if confidences.right is None else confidences.right.numpy().astype(np.float64)


def _from_here_up(counts: np.ndarray) -> np.ndarray:
    return counts[::-1].cumsum()[::-1]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
