"""Scorers of edges and saliency: a share of yes in 0 … 1 at every pixel, and what people store as yes and no."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import scipy.sparse
from jaxtyping import Bool, Float

from multidense.boundaries import BoundaryMeter, count
from multidense.meters import SaliencyMeter
from multidense.scorers import PICTURES, Scorer, by, plane
from multidense.tasks import Edges, Saliency
from multidense.types import SCORES, MultidenseError, Target

FRACTION = "0 … 1"
"""The unit of scores that are told as fractions, as the official programs of edges and saliency print them."""


class ShareScorer(Scorer):
    """What edges and saliency have in common: a share of yes in 0 … 1, and scores told as fractions.

    Predictions: a grey picture, value / 255 (or 65535), or .npy in 0 … 1. Truth: above one half, in a grey picture of 8 bits
    above 127, is yes; in one that holds nothing above 1, 1 is yes.
    """

    def prediction(self, path: Path) -> Float[np.ndarray, "h w"]:
        array, _ = plane(path, "shares")
        shares = array / np.iinfo(array.dtype).max if array.dtype.kind == "u" else array.astype(np.float64)
        if np.isfinite(shares).any() and (np.nanmin(shares) < 0 or np.nanmax(shares) > 1):
            raise MultidenseError(
                f"{path}: expected numbers in 0 … 1, or a grey picture of 8 or 16 bits, found {np.nanmin(shares):g} … "
                f"{np.nanmax(shares):g}. Divide by what means 1."
            )
        return shares

    def yes(self, path: Path) -> Bool[np.ndarray, "h w"]:
        """Where a file of truth says yes."""
        array, _ = plane(path, "yes and no")
        if array.dtype.kind in "ui" and array.size and array.max() <= 1:
            return array == 1
        return self.prediction(path) > 0.5

    def resized(self, predicted: np.ndarray, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
        return super().resized(predicted, size).clip(0, 1)  # rounding may lead beyond

    def unit(self, name: str) -> str:
        return FRACTION


@dataclass(frozen=True)
class SaliencyScorer(ShareScorer):
    """Maps of what stands out: MAE, maxF, maxF_pooled and max_mIoU, as fractions. All pixels are valid."""

    resize: bool = False
    task: Saliency = field(default_factory=Saliency)

    def meter(self) -> SaliencyMeter:
        return self.task.meter()

    def truth(self, path: Path) -> Target:
        return self.task.encode(self.yes(path))

    def scores(self, meter: SaliencyMeter) -> dict[str, float]:
        found = meter.compute()
        shares = {"maxF": found["maxF"], "maxF_pooled": found["maxF_pooled"], "max_mIoU": found["mIoU"]}
        return {"MAE": found["MAE"]} | {name: value / 100 for name, value in shares.items()}

    def protocol(self) -> dict[str, Any]:
        return {"beta_squared": 0.3, "resize": self.resize}


@dataclass(frozen=True)
class EdgeScorer(ShareScorer):
    """Boundaries, matched one to one within a distance: odsF, oisF, AP as fractions, and where odsF is reached.

    Truth: BSDS `.mat` with one or more annotators, or a picture of one. The task says by which protocol.
    """

    truth_in = (*PICTURES, ".npy", ".mat")
    images_a_process = 4

    task: Edges = field(default_factory=Edges)
    resize: bool = False

    def meter(self) -> BoundaryMeter:
        return self.task.boundary_meter()

    def truth(self, path: Path) -> Target:
        return self.task.encode(self.annotations(path).any(0))

    def annotations(self, path: Path) -> Bool[np.ndarray, "n h w"]:
        """The boundaries that each annotator drew."""
        return bsds_boundaries(path) if path.suffix.lower() == ".mat" else self.yes(path)[None]

    def add(self, meter: BoundaryMeter, prediction: Path, truth: Path) -> None:
        drawn = self.annotations(truth)
        predicted = self.fitted(self.prediction(prediction), drawn.shape[1:], prediction, truth)
        self.check(predicted, self.task.encode(np.ones(predicted.shape)), prediction)
        meter.add(count(predicted, list(drawn), self.task.protocol))

    def scores(self, meter: BoundaryMeter) -> dict[str, float]:
        return {name: value if name == "odsThreshold" else value / 100 for name, value in meter.compute().items()}

    def pooling(self, name: str) -> str:
        return SCORES[name if name in SCORES else "odsF"].pooling

    def protocol(self) -> dict[str, Any]:
        said = self.task.protocol
        thresholds = len(said.thresholds)
        return {"name": said.name, "max_dist": said.max_dist, "nms": said.nms, "thresholds": thresholds, "resize": self.resize}


def bsds_boundaries(path: Path) -> Bool[np.ndarray, "n h w"]:
    """The boundaries in a BSDS file: `groundTruth` is a cell of structs, one an annotator, each with `Boundaries` `[h w]`."""
    remedy = "Save a cell `groundTruth` of structs with a field `Boundaries`, as BSDS500 has it, or a PNG."
    try:
        cells = scipy.io.loadmat(path, variable_names=["groundTruth"]).get("groundTruth")
    except NotImplementedError as error:
        raise MultidenseError(f"{path} is of MATLAB 7.3, expected an older format: save it with -v7.") from error
    except (OSError, ValueError, TypeError, KeyError, EOFError, zlib.error) as error:
        raise MultidenseError(f"{path} cannot be read as a MATLAB file: {error}. Replace it.") from error
    if cells is None:
        raise MultidenseError(f"{path}: expected a variable `groundTruth`, found none. {remedy}")
    drawn = [_boundaries_of(cell) for cell in cells.ravel()]
    if not drawn or any(one is None for one in drawn):
        found = f"annotator {drawn.index(None) + 1} without" if drawn else "no annotator"
        raise MultidenseError(f"{path}: expected `Boundaries` of every annotator, found {found}. {remedy}")
    if len({one.shape for one in drawn}) > 1:
        raise MultidenseError(f"{path}: annotators disagree on the size: {', '.join(by(one.shape) for one in drawn)} pixels")
    return np.stack(drawn)


def _boundaries_of(cell: object) -> Bool[np.ndarray, "h w"] | None:
    """`Boundaries` of one annotator's struct, out of the arrays of one element that MATLAB wraps everything in."""
    while isinstance(cell, np.ndarray) and cell.dtype == object and cell.size == 1:
        cell = cell.item()
    if not isinstance(cell, np.ndarray) or "Boundaries" not in (cell.dtype.names or ()) or cell.size != 1:
        return None
    drawn = cell["Boundaries"].item()
    if scipy.sparse.issparse(drawn):
        drawn = drawn.toarray()
    return drawn != 0 if isinstance(drawn, np.ndarray) and drawn.ndim == 2 and drawn.dtype.kind in "buif" else None
