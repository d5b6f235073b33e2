"""The contract of a task: everything that is peculiar to one kind of per-pixel output, and nothing else's business.

A task is a frozen dataclass. It knows what its values mean, how they are stored in files, how they move when the image moves,
how logits become values, what the loss is, what the scores are, what it looks like. All geometry is one method, `warp`, with
the named moves (`resize`, `crop`, `flip`, `rotate`, `zoom`) as its special cases; a task only says how its *values* answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from multidense.files import written_aside
from multidense.meters import Meter
from multidense.ops import Geometry, warp
from multidense.types import Score, Target


@dataclass(frozen=True, repr=False)
class Task(ABC):
    """One dense prediction task. Subclasses fill the abstract methods and, where values move, the `moved_*` hooks.

    Class attributes: `name`, the task's key everywhere; `value_channels`, channels of a value; `interpolation`, how values are
    resampled; `tolerance`, how far (in `distance`'s unit) a prediction may lie from the truth and still count as right.
    """

    name: ClassVar[str]
    value_channels: ClassVar[int] = 1
    interpolation: ClassVar[str] = "nearest"
    file_suffix: ClassVar[str] = ".png"

    weight: float = field(default=1.0, kw_only=True)
    """Weight of the task's loss in the objective."""
    codebook: Float[Tensor, "k c"] | None = field(default=None, kw_only=True, repr=False, compare=False)
    """Centres `[k c]` of the categories of a continuous task that is classified; fitted by `fit()`, held by the model."""

    # What it is -------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def channels(self) -> int:
        """Number of logits per pixel."""

    @property
    @abstractmethod
    def scores(self) -> tuple[Score, ...]:
        """The scores its meter computes, the primary one first."""

    @property
    @abstractmethod
    def tolerance(self) -> float:
        """Largest `distance` at which a prediction still counts as right."""

    @property
    def has_confidence(self) -> bool:
        """Whether `confidence` says anything: true for everything that is classified."""
        return True

    @property
    def codebook_size(self) -> int:
        """Number of centres this task classifies into; 0 for tasks without a codebook."""
        return 0

    def fit_codebook(self, targets: Iterable[Target], seed: int) -> Float[Tensor, "k c"]:
        """Centres fitted on the valid pixels of labelled training targets only. For tasks with `codebook_size` > 0."""
        raise TypeError(f"the task '{self.name}' has no codebook to fit")

    def with_codebook(self, codebook: Float[Tensor, "k c"] | None) -> Task:
        """The same task, decoding with these centres."""
        return replace(self, codebook=codebook)

    # Values and files -------------------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, array: np.ndarray, valid: np.ndarray | None = None) -> Target:
        """A target from an array `[h w]` (or `[h w c]`) in the task's own units, believed where `valid` `[h w]` (default: all).

        Values that are not legal where they are believed raise ValueError (class ids) or are not valid (measurements).
        """

    @abstractmethod
    def to_file(self, path: Path, value: Shaped[Tensor, "c h w"], valid: Bool[Tensor, "1 h w"]) -> None:
        """Write one value to `path` in the task's own file format; pixels that are not valid are marked as such."""

    @abstractmethod
    def read(self, path: Path) -> Target:
        """Read back what `write` wrote."""

    def write(self, path: Path, value: Shaped[Tensor, "c h w"], valid: Bool[Tensor, "1 h w"] | None = None) -> None:
        """Write one value (all valid, if not said otherwise) beside `path`, then rename: a reader never sees half a file."""
        everywhere = torch.ones(1, *value.shape[-2:], dtype=torch.bool)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as beside:
            self.to_file(beside, value.detach().cpu(), everywhere if valid is None else valid.cpu())

    def unlabelled(self, size: tuple[int, int]) -> Target:
        """The target of an image that is not labelled for this task: legal, and valid nowhere."""
        return Target(self.fill(size), torch.zeros(1, *size, dtype=torch.bool))

    @abstractmethod
    def fill(self, size: tuple[int, int]) -> Shaped[Tensor, "c h w"]:
        """Legal values `[c h w]` for pixels about which nothing is known."""

    # Geometry ---------------------------------------------------------------------------------------------------------

    def warp(self, target: Target, geometry: Geometry) -> Target:
        """The target as seen through `geometry`: resampled, its values moved, legal everywhere, not valid outside."""
        if geometry.is_identity:
            return target
        weight = target.valid.float() if target.weight is None else target.weight
        moved = warp(
            torch.cat([target.value.float(), target.valid.float(), weight]), geometry, "nearest"
        )  # class ids stay exact
        value, valid, weight = moved[:-2].to(target.value.dtype), moved[-2:-1].bool(), moved[-1:]
        if self.interpolation != "nearest":
            value = warp(target.value, geometry, self.interpolation)
        if geometry.degrees:
            value = self.moved_by_rotation(value, geometry.degrees)
        if geometry.flip:
            value = self.moved_by_flip(value)
        if geometry.zoom != 1:
            value = self.moved_by_zoom(value, geometry.zoom)
        value = torch.where(valid, value, self.fill(geometry.size).to(value.dtype))
        return Target(value, valid, None if target.weight is None else weight)

    def moved_by_flip(self, value: Shaped[Tensor, "c h w"]) -> Shaped[Tensor, "c h w"]:
        """Values after mirroring left–right; the pixels have moved already."""
        return value

    def moved_by_rotation(self, value: Shaped[Tensor, "c h w"], degrees: float) -> Shaped[Tensor, "c h w"]:
        """Values after turning the image counter-clockwise; the pixels have moved already."""
        return value

    def moved_by_zoom(self, value: Shaped[Tensor, "c h w"], factor: float) -> Shaped[Tensor, "c h w"]:
        """Values after enlarging the image by `factor`; the pixels have moved already.

        The view is that of a camera with a focal length `factor` times as long and the whole scene scaled by 1/`factor`: depth
        is divided by it, normals stay, and a plane's depth and its normal still agree.
        """
        return value

    def resize(self, target: Target, size: tuple[int, int]) -> Target:
        """The whole target at another size."""
        return self.warp(target, Geometry(_size(target), tuple(size)))

    def crop(self, target: Target, top: int, left: int, size: tuple[int, int]) -> Target:
        """A window of the target, pixel for pixel."""
        rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
        weight = None if target.weight is None else target.weight[..., rows, columns]
        return Target(target.value[..., rows, columns], target.valid[..., rows, columns], weight)

    def flip(self, target: Target) -> Target:
        """The target mirrored left–right."""
        return self.warp(target, Geometry(_size(target), _size(target), flip=True))

    def rotate(self, target: Target, degrees: float) -> Target:
        """The target turned counter-clockwise about its middle; the corners that were outside are not valid."""
        return self.warp(target, Geometry(_size(target), _size(target), degrees=degrees))

    def zoom(self, target: Target, factor: float) -> Target:
        """The middle of the target enlarged by `factor` to the same size."""
        return self.warp(target, Geometry(_size(target), _size(target), zoom=factor))

    # Learning ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, logits: Float[Tensor, "b c h w"], target: Target) -> Float[Tensor, " b"]:
        """The task loss, one number an image: zero, with a zero gradient, where nothing is valid."""

    @abstractmethod
    def decode(self, logits: Float[Tensor, "b c h w"]) -> Shaped[Tensor, "b v h w"]:
        """Logits to values `[b value_channels h w]`."""

    @abstractmethod
    def confidence(self, logits: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        """Trust in the decoded value, 0 … 1."""

    def harden(self, value: Shaped[Tensor, "b v h w"]) -> Shaped[Tensor, "b v h w"]:
        """A decoded value as a label would state it: probabilities become yes or no, all else stays."""
        return value

    def probabilities(self, logits: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"] | None:
        """Probabilities of the categories, for a target's `soft`; None where the decoded value is a probability itself."""
        return None

    # Between tasks ----------------------------------------------------------------------------------------------------

    @property
    def embedding_channels(self) -> int:
        """Channels of what `embed` and `embed_logits` return."""
        return self.value_channels

    def embed(self, value: Shaped[Tensor, "b v h w"], valid: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b e h w"]:
        """A value as the input of a network, about 0 … 1; whatever is stored where it is not valid counts as zero."""
        return at_least_single(value.masked_fill(~valid, 0))

    def embed_logits(
        self, logits: Float[Tensor, "b c h w"], generators: Sequence[torch.Generator] | None = None
    ) -> Float[Tensor, "b e h w"]:
        """What the logits say in the same form, differentiable.

        With `generators`, one an image on the logits' device, a category is drawn instead of giving its probabilities.
        """
        return self.decode(at_least_single(logits))

    # Measuring --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def distance(self, a: Shaped[Tensor, "b v h w"], b: Shaped[Tensor, "b v h w"]) -> Float[Tensor, "b 1 h w"]:
        """How far two values lie apart, pixel by pixel, in the unit that `tolerance` uses."""

    contrast: ClassVar[tuple[float, float]] = (0.5, 0.5)
    """Up to which `label_distance` two labels are alike, and from which on they differ; of those between nothing is said."""

    def label_distance(self, a: Shaped[Tensor, "b v h w"], b: Shaped[Tensor, "b v h w"]) -> Float[Tensor, "b 1 h w"]:
        """How unlike two labels are, the same both ways, in the unit of `contrast`."""
        return self.distance(self.harden(a), self.harden(b))

    @abstractmethod
    def meter(self) -> Meter:
        """A fresh meter that computes `scores`; `update(logits, target)`."""

    def quick_meter(self) -> Meter:
        """A fresh meter for learning curves: the same, or a cheap one whose first score stands for the primary one."""
        return self.meter()

    def groups(self, value: Shaped[Tensor, "b v h w"]) -> Int[Tensor, "b h w"]:
        """Which category each pixel belongs to, for statistics per class; one group where a task has no categories."""
        return torch.zeros_like(value[:, 0], dtype=torch.long)

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the categories that `groups` counts by."""
        return ("all",)

    def category(self, value: Shaped[Tensor, "b v h w"]) -> Int[Tensor, "b h w"]:
        """Which of `categories` a value falls into, for thresholds per category: its group, or its centre in a codebook."""
        return self.groups(value)

    @property
    def categories(self) -> int:
        """How many categories `category` tells apart."""
        return len(self.group_names)

    # Looks ------------------------------------------------------------------------------------------------------------

    @abstractmethod
    def picture(self, value: Shaped[Tensor, "v h w"], valid: Bool[Tensor, "1 h w"] | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """The value as people expect to see it; pixels that are not valid are hatched out in grey."""

    # Identity ---------------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        """The expression that builds the task."""
        told = (f for f in fields(self) if f.repr and getattr(self, f.name) != f.default)
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in told)})"

    def spec(self) -> dict:
        """Name and settings as plain data, from which `multidense.tasks.from_spec` builds the task again (no codebook)."""
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "codebook"}
        return {"task": self.name} | {
            name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()
        }


def at_least_single(values: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The values in single precision, or in double if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _size(target: Target) -> tuple[int, int]:
    return tuple(target.value.shape[-2:])
