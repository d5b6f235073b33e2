"""What tasks over a continuous quantity share: they regress, or, given a codebook, classify and decode by expectation.

With a codebook the loss is the mixture of HiTTs, equations (11)–(13): `regression` · L_reg + `classification` · L_cls, 0.1 and
1 by default; the authors' released code has 1 and 0.1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from multidense.codebook import expectation
from multidense.ops import masked_mean
from multidense.task import Task, at_least_single
from multidense.types import Target


@dataclass(frozen=True, repr=False)
class ContinuousTask(Task):
    """A task whose values are measured. Subclasses say how many centres, which is nearest, and what the regression loss is."""

    regression: float = field(default=0.1, kw_only=True)
    """Weight of the regression loss where a codebook classifies (without one it is 1)."""
    classification: float = field(default=1.0, kw_only=True)
    """Weight of the cross-entropy over the codebook's centres."""

    @property
    def channels(self) -> int:
        return self.codebook_size or self.value_channels

    @property
    def has_confidence(self) -> bool:
        return self.codebook_size > 0

    @abstractmethod
    def legal(self, raw: Float[Tensor, "b v h w"]) -> Float[Tensor, "b v h w"]:
        """The nearest legal value of a raw regression output."""

    @abstractmethod
    def regression_loss(self, value: Float[Tensor, "b v h w"], target: Target) -> Float[Tensor, " b"]:
        """One number an image, over its valid pixels."""

    @abstractmethod
    def assign(self, value: Float[Tensor, "b v h w"]) -> Int[Tensor, "b h w"]:
        """Index of the centre that each value belongs to."""

    def centres(self) -> Float[Tensor, "k v"]:
        """The codebook; an error where it has not been fitted yet."""
        if self.codebook is None:
            raise RuntimeError(
                f"the codebook of '{self.name}' has not been fitted: take the task from a trained model (model.tasks), "
                "or bind one with task.with_codebook(task.fit_codebook(targets, seed=0))"
            )
        return self.codebook

    def estimate(self, logits: Float[Tensor, "b c h w"]) -> Float[Tensor, "b v h w"]:
        """The value as the loss sees it: differentiable, not yet forced to be legal."""
        return expectation(logits, self.centres()) if self.codebook_size else logits

    def decode(self, logits: Tensor) -> Tensor:
        return self.legal(self.estimate(logits))

    def loss(self, logits: Tensor, target: Target) -> Tensor:
        regression = self.regression_loss(self.estimate(logits), target)
        if not self.codebook_size:
            return regression
        wanted = self.assign(target.value) if target.soft is None else target.soft
        entropy = F.cross_entropy(logits, wanted, reduction="none")[:, None]
        return self.regression * regression + self.classification * masked_mean(entropy, target.valid, target.weight)

    def confidence(self, logits: Tensor) -> Tensor:
        """Largest softmax probability over the centres; one everywhere without a codebook (see `has_confidence`)."""
        return logits.softmax(1).amax(1, keepdim=True) if self.codebook_size else torch.ones_like(logits[:, :1])

    def probabilities(self, logits: Tensor) -> Tensor | None:
        return logits.softmax(1) if self.codebook_size else None

    def rescaled(self, value: Float[Tensor, "b v h w"]) -> Float[Tensor, "b v h w"]:
        """A value, or an estimate of one, as the input of a network, about 0 … 1; zero is the value of nothing."""
        return value

    def embed(self, value: Tensor, valid: Tensor) -> Tensor:
        return self.rescaled(at_least_single(value.masked_fill(~valid, 0)))

    def embed_logits(self, logits: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        return self.rescaled(self.estimate(at_least_single(logits)))

    def category(self, value: Tensor) -> Tensor:
        return self.assign(value) if self.codebook_size else self.groups(value)

    @property
    def categories(self) -> int:
        return self.codebook_size or len(self.group_names)

    def labelled_pixels(self, targets: Iterable[Target], seed: int, most: int = 1_000_000) -> Float[Tensor, "n v"]:
        """Up to `most` valid pixels of the targets, at most 20 000 an image, drawn with the seed."""
        generator = torch.Generator().manual_seed(seed)
        found: list[Tensor] = []
        for target in targets:
            pixels = target.value.flatten(1).T[target.valid.flatten()]
            found.append(pixels[torch.randperm(len(pixels), generator=generator)[:20_000]])
        if not sum(map(len, found)):
            raise ValueError(f"no labelled pixel of '{self.name}' was found to fit its codebook on")
        pixels = torch.cat(found)
        return pixels[torch.randperm(len(pixels), generator=generator)[:most]]
