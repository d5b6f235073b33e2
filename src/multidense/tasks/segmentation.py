"""Classes per pixel: semantic segmentation and human parts.

A label file is an 8-bit palette PNG whose indices are the class ids and whose 255 is "not valid", as PASCAL VOC has it:

    >>> task = SemanticSegmentation(13)
    >>> target = task.encode(np.array([[0, 12], [3, 3]]))        # value int64 [1 2 2], valid everywhere
    >>> task.loss(torch.zeros(1, 13, 2, 2), batch_of(target))    # tensor([2.5649]) = log 13
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from multidense import pictures
from multidense.meters import ConfusionMeter, PartsMeter
from multidense.ops import masked_mean
from multidense.task import Task, at_least_single
from multidense.types import SCORES, Score, Target

VOID = 255


@dataclass(frozen=True, repr=False)
class SemanticSegmentation(Task):
    """One of `classes` classes per pixel. Value: class ids, int64 `[1 h w]`. Loss: cross-entropy, mean over valid pixels.

    `names` of the classes are used in tables. Scores: mIoU and pixAcc, pooled over all valid pixels.
    """

    name: ClassVar[str] = "semseg"

    classes: int
    names: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self):
        if not 2 <= self.classes < VOID:
            raise ValueError(f"{type(self).__name__}: classes must lie in 2 … {VOID - 1}, found {self.classes}")
        if self.names and len(self.names) != self.classes:
            raise ValueError(f"{type(self).__name__}: expected {self.classes} class names, found {len(self.names)}")

    @property
    def channels(self) -> int:
        return self.classes

    @property
    def scores(self) -> tuple[Score, ...]:
        return SCORES["mIoU"], SCORES["pixAcc"]

    @property
    def tolerance(self) -> float:
        return 0.5

    @property
    def group_names(self) -> tuple[str, ...]:
        return tuple(self.names) or tuple(str(i) for i in range(self.classes))

    def encode(self, array: np.ndarray, valid: np.ndarray | None = None) -> Target:
        valid = np.ones(array.shape, bool) if valid is None else np.array(valid)
        wrong = np.unique(array[valid & ~((array >= 0) & (array < self.classes) & (np.floor(array) == array))])
        if wrong.size:
            raise ValueError(
                f"{self.name}: class ids must lie in 0 … {self.classes - 1}, found {', '.join(map(str, wrong[:8]))}"
            )
        value = np.where(valid, array, 0).astype(np.int64)
        return Target(torch.from_numpy(value)[None], torch.from_numpy(valid)[None])

    def to_file(self, path: Path, value: Tensor, valid: Tensor) -> None:
        ids = torch.where(valid, value, VOID)[0].to(torch.uint8).numpy()
        image = Image.fromarray(ids).convert("P")
        colours = np.zeros((256, 3), np.uint8)
        colours[: self.classes], colours[VOID] = pictures.palette(self.classes), 224
        image.putpalette(colours.tobytes())
        image.save(path, optimize=True)

    def read(self, path: Path) -> Target:
        ids = np.asarray(Image.open(path))
        return self.encode(ids.astype(np.int64), ids != VOID)

    def fill(self, size: tuple[int, int]) -> Tensor:
        return torch.zeros(1, *size, dtype=torch.long)

    def loss(self, logits: Tensor, target: Target) -> Tensor:
        wanted = target.value[:, 0] if target.soft is None else target.soft
        return masked_mean(F.cross_entropy(logits, wanted, reduction="none")[:, None], target.valid, target.weight)

    def decode(self, logits: Tensor) -> Tensor:
        return logits.argmax(1, keepdim=True)

    def confidence(self, logits: Tensor) -> Tensor:
        return logits.softmax(1).amax(1, keepdim=True)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)

    @property
    def embedding_channels(self) -> int:
        return self.classes

    def embed(self, value: Tensor, valid: Tensor) -> Tensor:
        """One-hot, all zero where not valid."""
        empty = torch.zeros(len(value), self.classes, *value.shape[-2:], device=value.device)
        return empty.scatter_(1, value.masked_fill(~valid, 0), valid.float())

    def embed_logits(self, logits: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Probabilities, or one-hot draws by Gumbel noise, whose gradient is that of the noisy probabilities."""
        logits = at_least_single(logits)
        if generators is None:
            return logits.softmax(1)
        waits = [torch.empty_like(one).exponential_(generator=each) for one, each in zip(logits, generators, strict=True)]
        soft = (logits - torch.stack(waits).clamp(min=1e-30).log()).softmax(1)
        hard = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
        return hard + (soft - soft.detach())

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """0 where the classes agree, 1 where they differ."""
        return (a != b).float()

    def groups(self, value: Tensor) -> Tensor:
        return value[:, 0]

    def meter(self) -> ConfusionMeter:
        return ConfusionMeter(self.classes)

    def picture(self, value: Tensor, valid: Tensor | None = None) -> np.ndarray:
        colours = pictures.colour_classes(value[0].cpu().numpy(), self.classes)
        return pictures.hatch(colours, None if valid is None else valid[0].cpu().numpy())


@dataclass(frozen=True, repr=False)
class HumanParts(SemanticSegmentation):
    """Parts of people (PASCAL-Context: background and six parts) or of anything else that has parts.

    Images in whose truth no part is seen, nothing but class 0, are left out of the scores, as the public evaluations do.
    """

    name: ClassVar[str] = "parts"

    classes: int = 7

    def meter(self) -> PartsMeter:
        return PartsMeter(self.classes)
