"""Scorers: how the files of each kind of output, made by anyone, are read and what they are scored by.

    >>> scorer = ClassScorer(SemanticSegmentation(13))
    >>> meter = scorer.meter()
    >>> scorer.add(meter, Path("mine/0001.png"), Path("truth/0001.png"))
    >>> scorer.scores(meter)["mIoU"]

What counts as valid is said by the truth alone: no prediction can excuse itself from a pixel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped

from multidense.data.encodings import nearest, read_array
from multidense.meters import ConfusionMeter, Meter, ValueMeter
from multidense.ops import resize
from multidense.tasks import Depth, Normals, SemanticSegmentation
from multidense.types import SCORES, MultidenseError, Target

PICTURES = (".png", ".tif", ".tiff", ".bmp")


class Scorer(ABC):
    """One kind of output: which files it comes in, how they are read, which meter adds them up, what is told of it."""

    predicted_in: ClassVar[tuple[str, ...]] = (*PICTURES, ".npy")
    truth_in: ClassVar[tuple[str, ...]] = (*PICTURES, ".npy")
    images_a_process: ClassVar[int] = 100
    """How many images make it worth beginning another process."""
    resize: bool

    @abstractmethod
    def meter(self) -> Meter:
        """A fresh meter."""

    @abstractmethod
    def prediction(self, path: Path) -> Shaped[np.ndarray, "h w *c"]:
        """What a file predicts, in the task's own units."""

    @abstractmethod
    def truth(self, path: Path) -> Target:
        """What a file of truth says, and where: `[c h w]`."""

    def add(self, meter: ValueMeter, prediction: Path, truth: Path) -> None:
        """Add one pair of files to the meter; MultidenseError naming a file that is not as it should be."""
        true = self.truth(truth)
        predicted = self.fitted(self.prediction(prediction), tuple(true.value.shape[-2:]), prediction, truth)
        self.check(predicted, true, prediction)
        value = torch.from_numpy(np.ascontiguousarray(predicted if predicted.ndim == 2 else predicted.transpose(2, 0, 1)))
        meter.add(value.reshape(1, -1, *predicted.shape[:2]), Target(true.value[None], true.valid[None]))

    def fitted(self, predicted: np.ndarray, size: tuple[int, int], path: Path, truth: Path) -> Shaped[np.ndarray, "h w *c"]:
        """The prediction at the truth's size: an error where it has another one and `resize` does not allow it."""
        if predicted.shape[:2] == size:
            return predicted
        if not self.resize:
            raise MultidenseError(
                f"{path}: expected {by(size)} pixels as {truth} has, found {by(predicted.shape)}. "
                "Save predictions at the size of the truth, or pass --resize."
            )
        return self.resized(predicted, size)

    def resized(self, predicted: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Bilinearly, pixel middles kept in place."""
        planes = torch.from_numpy(np.atleast_3d(predicted).astype(np.float64)).permute(2, 0, 1)[None]
        return resize(planes, size)[0].permute(1, 2, 0).numpy().reshape(*size, *predicted.shape[2:])

    def check(self, predicted: Shaped[np.ndarray, "h w *c"], true: Target, path: Path) -> None:
        """Refuse a prediction that says nothing where it is asked: every number has to be finite."""
        wrong = ~np.isfinite(predicted.reshape(*predicted.shape[:2], -1)).all(-1) & true.valid[0].numpy()
        if wrong.any():
            raise MultidenseError(
                f"{path}: expected finite numbers wherever the truth is valid, found {wrong.sum()} pixels that are not. "
                "Predict something there, or mark them as not valid in the truth."
            )

    def scores(self, meter: Meter) -> dict[str, float]:
        """The scores by name, as they are told."""
        return meter.compute()

    def unit(self, name: str) -> str:
        """The unit in which `scores` tells a score."""
        return SCORES[name].unit

    def pooling(self, name: str) -> str:
        """What a score is counted or averaged over."""
        return SCORES[name].pooling

    def further(self, meter: Meter) -> dict[str, Any]:
        """What else is worth telling, as plain data."""
        return {}

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """The settings that change the numbers, as plain data."""


@dataclass(frozen=True)
class ClassScorer(Scorer):
    """Class ids: a grey or palette picture (its indices count) or whole numbers in .npy `[h w]`; `void` ids are not valid.

    For `HumanParts` images without any part in the truth are skipped and counted (`images_without_parts`).
    """

    task: SemanticSegmentation
    void: tuple[int, ...] = (255, -1)
    resize: bool = False

    def meter(self) -> ConfusionMeter:
        return self.task.meter()

    def ids(self, path: Path) -> Int[np.ndarray, "h w"]:
        array, mode = read_array(path)
        if mode == "npy" and array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
            array = array[0] if array.shape[0] == 1 else array[..., 0]
        if array.ndim != 2:
            raise MultidenseError(
                f"{path}: class ids should stand in one channel, found {list(array.shape)} (mode '{mode}'). "
                "Save the ids themselves as a grey or palette PNG, or as .npy [h w]."
            )
        if array.dtype.kind not in "buif" or (array.dtype.kind == "f" and (array != np.round(array)).any()):
            raise MultidenseError(
                f"{path}: class ids should be whole numbers, found {array.dtype} that are not. Save integers."
            )
        return array.astype(np.int64)

    def prediction(self, path: Path) -> Int[np.ndarray, "h w"]:
        return self.ids(path)

    def truth(self, path: Path) -> Target:
        ids = self.ids(path)
        valid = ~np.isin(ids, self.void)
        self._known(ids[valid], path, "Correct --classes, or name what is void with --void.")
        return self.task.encode(ids, valid)

    def resized(self, predicted: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return nearest(predicted, size)

    def check(self, predicted: np.ndarray, true: Target, path: Path) -> None:
        self._known(predicted[true.valid[0].numpy()], path, "A class has to be predicted wherever the truth is valid.")

    def _known(self, ids: np.ndarray, path: Path, remedy: str) -> None:
        strange = np.unique(ids[(ids < 0) | (ids >= self.task.classes)])
        if strange.size:
            found = ", ".join(map(str, strange[:8]))
            raise MultidenseError(f"{path}: class ids should lie in 0 … {self.task.classes - 1}, found {found}. {remedy}")

    def further(self, meter: ConfusionMeter) -> dict[str, Any]:
        """IoU of each class in per cent, and the pixels of each true class (rows) by predicted class."""
        told = {"per_class": dict(zip(self.task.group_names, meter.per_class(), strict=True))}
        skipped = {"images_without_parts": int(meter.skipped)} if hasattr(meter, "skipped") else {}
        return told | {"confusion": meter.matrix.long().tolist()} | skipped

    def protocol(self) -> dict[str, Any]:
        return {"classes": self.task.classes, "void": list(self.void), "resize": self.resize}


@dataclass(frozen=True)
class DepthScorer(Scorer):
    """Metres in .npy `[h w]` or a float picture; steps of which `scale` make a metre in pictures of whole numbers.

    Where the truth is 0, negative or not finite it is not valid. A prediction of 0 or less counts as 10⁻⁹ m.
    """

    scale: float | None = None
    resize: bool = False
    task: Depth = field(default_factory=Depth)

    def meter(self) -> ValueMeter:
        return self.task.meter()

    def prediction(self, path: Path) -> Float[np.ndarray, "h w"]:
        array, mode = plane(path, "depths")
        if mode == "npy" or array.dtype.kind == "f":
            return array.astype(np.float64)
        if self.scale is None:
            raise MultidenseError(
                f"{path}: a picture does not say what its numbers mean. Pass --unit m, cm or mm, or --scale with the "
                "number that is stored for one metre."
            )
        return array / self.scale

    def truth(self, path: Path) -> Target:
        return self.task.encode(self.prediction(path))

    def protocol(self) -> dict[str, Any]:
        return {"scale": self.scale, "resize": self.resize}


@dataclass(frozen=True)
class NormalScorer(Scorer):
    """Directions: an RGB picture, (n + 1) · 127.5, or vectors in .npy `[h w 3]` or `[3 h w]` of any length; zero is not valid.

    Truth and prediction have to use the same axes; which ones does not matter. A prediction of (0, 0, 0) counts as 90°.
    """

    resize: bool = False
    task: Normals = field(default_factory=Normals)

    def meter(self) -> ValueMeter:
        return self.task.meter()

    def prediction(self, path: Path) -> Float[np.ndarray, "h w 3"]:
        array, mode = read_array(path)
        if mode == "RGBA":
            array = array[..., :3]
        if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
            array = array.transpose(1, 2, 0)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind not in "uif":
            raise MultidenseError(
                f"{path}: normals should have three channels, found {array.dtype} {list(array.shape)} (mode '{mode}'). "
                "Save an RGB PNG, (n + 1) · 127.5, or .npy [h w 3]."
            )
        if array.dtype == np.uint8:
            return np.where(array.any(-1, keepdims=True), array / 127.5 - 1, 0.0)
        return array.astype(np.float64)

    def truth(self, path: Path) -> Target:
        return self.task.encode(self.prediction(path))

    def protocol(self) -> dict[str, Any]:
        return {"resize": self.resize}


def plane(path: Path, what: str) -> tuple[Shaped[np.ndarray, "h w"], str]:
    """One number a pixel, as stored (1-bit pictures and booleans as 0 and 255), and Pillow's mode or "npy"."""
    array, mode = read_array(path)
    if mode in ("RGB", "RGBA") and (array[..., :1] == array[..., 1:3]).all():
        array = array[..., 0]
    if mode == "npy" and array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2 or mode == "P" or array.dtype.kind not in "buif":
        kind = "a palette picture" if mode == "P" else f"{array.dtype} {list(array.shape)} (mode '{mode}')"
        raise MultidenseError(f"{path}: expected {what}, one number a pixel, found {kind}. Save a grey PNG, or .npy [h w].")
    return (array.astype(np.uint8) * 255 if array.dtype == bool else array), mode


def by(shape: tuple[int, ...]) -> str:
    """Height × width."""
    return f"{shape[0]} × {shape[1]}"
