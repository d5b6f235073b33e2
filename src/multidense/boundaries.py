"""Exact boundary scores without MATLAB: odsF, oisF and AP.

>>> protocol = Protocol.plain()                                       # 99 thresholds, no suppression, 0.0075 of the diagonal
>>> counts = count(probability, [region_boundaries(labels)], protocol)  # one image; further truths: further annotators
>>> sum(more, counts).scores()["odsF"]

A prediction is cut at every threshold and thinned; its pixels and a truth's are matched one to one within `max_dist` of the
image's diagonal (see `correspondence`); pixels and matched pixels are summed over images, and only the sums are divided.

Two protocols circulate, points apart, and are never mixed: counts know theirs, and those of different protocols do not add.

`plain`     no suppression; an edge where the value ≥ k/100, k = 1 … 99 (the evaluation published with AST and the multi-task
            code that PASCAL-Context papers share)
`with_nms`  oriented non-maximum suppression first; an edge where the value > t, t = 0.001, 0.01 … 0.99, 0.999 (the SEISM code
            as used by ATRC, InvPT and after)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from multidense.correspondence import correspond
from multidense.meters import Meter
from multidense.thinning import stack, suppress, thin_stack, totals
from multidense.types import MultidenseError, Target


@dataclass(frozen=True)
class Protocol:
    """How a prediction becomes boundaries, and how far a boundary pixel may lie from the true one.

    `thresholds` ascend; a pixel is an edge where its value reaches one (`strict`: exceeds it), after oriented non-maximum
    suppression if `nms`; the map is thinned if `thin`. `max_dist` is relative to the diagonal: 0.0075 for PASCAL-Context and
    BSDS, 0.011 for NYUD. `eight_bit`: values are first cut down to n/255, as by the PNG files that published numbers went
    through; by default they count as they are. `nearest`: with several truths, of all largest matchings one of the least total
    distance, as the official code chooses; by default one found from the nearest pairs. It changes no recall, and nothing at
    all where there is one truth.
    """

    name: str
    thresholds: tuple[float, ...]
    strict: bool = False
    nms: bool = False
    max_dist: float = 0.0075
    thin: bool = True
    eight_bit: bool = False
    nearest: bool = False

    def __post_init__(self):
        if not self.thresholds or any(b <= a for a, b in zip(self.thresholds, self.thresholds[1:], strict=False)):
            raise MultidenseError(f"protocol {self.name}: thresholds should be one or more, ascending; found {self.thresholds}")
        if not 0 <= self.max_dist <= 1:
            raise MultidenseError(
                f"protocol {self.name}: max_dist should be a fraction of the image's diagonal, such as 0.0075; "
                f"found {self.max_dist}"
            )

    @classmethod
    def plain(cls, n: int = 99, max_dist: float = 0.0075, **more: bool) -> Protocol:
        """Without suppression: n thresholds k/(n + 1), inclusive."""
        return cls(f"plain-{n}", tuple(k / (n + 1) for k in range(1, n + 1)), max_dist=max_dist, **more)

    @classmethod
    def with_nms(cls, max_dist: float = 0.0075, **more: bool) -> Protocol:
        """After oriented non-maximum suppression: 101 thresholds, exclusive."""
        thresholds = (0.001, *(k / 100 for k in range(1, 100)), 0.999)
        return cls("nms-101", thresholds, strict=True, nms=True, max_dist=max_dist, **more)


@dataclass(frozen=True, eq=False)
class Counts:
    """Boundary pixels at every threshold, summed over images; adding is exact, so neither order nor batches matter.

    `table` `[4 thresholds]`: true pixels matched, true pixels, predicted pixels matched, predicted pixels; those of the truth
    are summed over annotators, a predicted pixel is matched if any annotator's is. `best` `[4]`: the same, each image at its
    own best threshold (the lowest of equals). `images` is how many there are.
    """

    protocol: Protocol
    table: Int64[np.ndarray, "4 k"]
    best: Int64[np.ndarray, " 4"]
    images: int

    @classmethod
    def none(cls, protocol: Protocol) -> Counts:
        """The counts of no image."""
        return cls(protocol, np.zeros((4, len(protocol.thresholds)), np.int64), np.zeros(4, np.int64), 0)

    @property
    def matched_truth(self) -> Int64[np.ndarray, " k"]:
        """True pixels that are matched, summed over annotators."""
        return self.table[0]

    @property
    def truth(self) -> Int64[np.ndarray, " k"]:
        """True pixels, summed over annotators; the same at every threshold."""
        return self.table[1]

    @property
    def matched_prediction(self) -> Int64[np.ndarray, " k"]:
        """Predicted pixels that some annotator's pixel is matched with."""
        return self.table[2]

    @property
    def prediction(self) -> Int64[np.ndarray, " k"]:
        """Predicted pixels."""
        return self.table[3]

    def __add__(self, other: Counts) -> Counts:
        if self.protocol != other.protocol:
            raise MultidenseError(
                f"counts of different boundary protocols cannot be added: {self.protocol} and {other.protocol}. "
                "Count all images under one of them"
            )
        return replace(self, table=self.table + other.table, best=self.best + other.best, images=self.images + other.images)

    def scores(self) -> dict[str, float]:
        """odsF with its threshold, precision and recall; oisF; AP. In per cent but for the threshold; NaN without images.

        odsF: F of the sums at the one threshold where it is highest (the lowest of equals), none tried in between. oisF: F of
        the sums over images of each image's counts at its own best threshold. AP: at R = 0, 0.01 … 1 the precision
        interpolated linearly between the measured recalls, 0 below the lowest and above the highest, summed and times 0.01:
        the official rule, by which a perfect curve has 101 %; of thresholds with the same recall the lowest counts.
        """
        if not self.images:
            return dict.fromkeys(("odsF", "odsThreshold", "odsPrecision", "odsRecall", "oisF", "AP"), float("nan"))
        precision, recall, f = precision_recall_f(self.table)
        at = int(f.argmax())
        measured, first = np.unique(recall, return_index=True)
        curve = np.interp(np.arange(101) / 100, measured, precision[first], left=0.0, right=0.0)
        return {
            "odsF": 100 * float(f[at]),
            "odsThreshold": self.protocol.thresholds[at],
            "odsPrecision": 100 * float(precision[at]),
            "odsRecall": 100 * float(recall[at]),
            "oisF": 100 * float(precision_recall_f(self.best)[2]),
            "AP": float(curve.sum()),
        }


def precision_recall_f(table: Int64[np.ndarray, "4 ..."]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F of counts. Nothing predicted: P = 1, R = 0; nothing true: P = 0, R = 1; F is 0 in both cases."""
    matched_truth, truth, matched_prediction, prediction = table.astype(np.float64)
    precision = np.where(prediction > 0, matched_prediction / np.maximum(prediction, 1), 1.0)
    precision = np.where(truth > 0, precision, 0.0)
    recall = np.where(truth > 0, matched_truth / np.maximum(truth, 1), 1.0)
    total = precision + recall
    return precision, recall, np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1.0), 0.0)


def count(prediction: np.ndarray, truths: Sequence[np.ndarray], protocol: Protocol) -> Counts:
    """The boundary counts of one image.

    `prediction` `[h w]` holds values in 0 … 1, each of `truths` `[h w]` the boundaries one annotator drew, bool and used as
    they are: `thinning.region_boundaries` draws and thins those of a label map.
    """
    _check(prediction, truths)
    values = prediction.astype(np.float64)
    if protocol.eight_bit:
        values = np.floor(255 * values) / 255
    if protocol.nms:
        values = suppress(values)
    maps = stack(values, np.asarray(protocol.thresholds), protocol.strict)
    if protocol.thin:
        maps = thin_stack(maps)
    size, radius = len(protocol.thresholds), protocol.max_dist * float(np.hypot(*prediction.shape))
    matched_truth, matched = np.zeros(size, np.int64), np.zeros_like(maps)
    for truth in truths:
        found, pixels = correspond(maps, size, truth, radius, protocol.nearest and len(truths) > 1)
        matched_truth += found
        matched |= pixels
    true = np.full(size, sum(int(truth.sum()) for truth in truths))
    table = np.stack([matched_truth, true, totals(matched, size), totals(maps, size)])
    return Counts(protocol, table, table[:, precision_recall_f(table)[2].argmax()], 1)


def count_all(
    pairs: Iterable[tuple[np.ndarray, Sequence[np.ndarray]]], protocol: Protocol, processes: int | None = None
) -> Counts:
    """The sum of `count` over (prediction, truths) of many images, spread over processes (default: one a core).

    `pairs` is drawn from as images are finished, so a generator that reads files keeps few of them in memory. New processes
    import the calling script: its own work belongs under `if __name__ == "__main__":`.
    """
    processes = _cores() if processes is None else processes
    if processes < 1:
        raise MultidenseError(f"processes should be at least 1, found {processes}")
    total = Counts.none(protocol)
    if processes == 1:
        return sum((count(prediction, truths, protocol) for prediction, truths in pairs), total)
    pool, running = ProcessPoolExecutor(processes, get_context("spawn")), set()
    try:
        for prediction, truths in pairs:
            running.add(pool.submit(count, prediction, truths, protocol))
            if len(running) > 2 * processes:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                total = sum((each.result() for each in done), total)
        return sum((each.result() for each in running), total)
    except BrokenProcessPool as error:
        raise MultidenseError(
            "a process that counted boundaries ended early: the calling script's work should stand under "
            '`if __name__ == "__main__":`, and memory should suffice for every process; processes=1 does without'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(prediction: np.ndarray, truths: Sequence[np.ndarray]) -> None:
    if prediction.ndim != 2 or not np.issubdtype(prediction.dtype, np.floating):
        raise MultidenseError(
            "a boundary prediction should be a map [h w] of numbers in 0 … 1 (an 8-bit image: divide by 255); "
            f"found {prediction.dtype} {list(prediction.shape)}"
        )
    if prediction.size and not (prediction.min() >= 0 and prediction.max() <= 1):
        raise MultidenseError(
            f"a boundary prediction should lie in 0 … 1, found {prediction.min():g} … {prediction.max():g}; "
            "give probabilities (a sigmoid of logits; an 8-bit image divided by 255)"
        )
    if not len(truths):
        raise MultidenseError("an image needs at least one true boundary map, found none; leave the image out")
    for number, truth in enumerate(truths):
        if truth.shape != prediction.shape or truth.dtype != bool:
            raise MultidenseError(
                f"true boundaries should be bool {list(prediction.shape)} as the prediction, found {truth.dtype} "
                f"{list(truth.shape)} (annotator {number}); resize the prediction to the truth's size, or compare with 0"
            )


class BoundaryMeter(Meter):
    """odsF, oisF and AP of a task's probability maps, one truth an image.

    The truth is the target's value above 0.5, as it is. Pixels that are not valid hold neither prediction nor truth; an image
    that is valid nowhere is left out.
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], protocol: Protocol):
        self.decode, self.protocol = decode, protocol
        super().__init__(table=(4, len(protocol.thresholds)), best=(4,), images=())

    def update(self, logits: Float[Tensor, "b 1 h w"], target: Target) -> None:
        valid, true = target.valid[:, 0].cpu(), target.value[:, 0].cpu() > 0.5
        probability = torch.where(valid, self.decode(logits)[:, 0].detach().cpu().double(), 0.0)
        for p, t, v in zip(probability.numpy(), (true & valid).numpy(), valid, strict=True):
            if v.any():
                self.add(count(p, [t], self.protocol))

    def add(self, counts: Counts) -> None:
        """Add what `count` or `count_all` counted, of the same protocol."""
        counts = Counts.none(self.protocol) + counts
        self.table += torch.from_numpy(counts.table)
        self.best += torch.from_numpy(counts.best)
        self.images += counts.images

    def compute(self) -> dict[str, float]:
        table, best = (each.long().numpy() for each in (self.table, self.best))
        return Counts(self.protocol, table, best, int(self.images)).scores()
