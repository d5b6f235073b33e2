"""What passes between the rooms of the house: targets, samples, batches, features, outputs, scores.

Axes in shapes: `b` images, `c` channels, `h w` pixels, `k` categories or bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """What supervises one task: a value, and where it may be believed.

    `value` `[c h w]` (or `[b c h w]`) is finite and legal everywhere, also where it is not valid: a class id in
    range, a positive depth, a unit vector. `valid` `[1 h w]` (or `[b 1 h w]`) is bool. Masking late is a trap (the
    logarithm of an invalid zero gives a finite loss and NaN gradients), so nothing illegal is ever stored.

    What was discovered may say more: `weight` `[1 h w]`, how much each pixel counts (None: one), and `soft` `[k h w]`,
    probabilities of a task's categories to be met in place of the one category of `value`.
    """

    value: Shaped[Tensor, "*b c h w"]
    valid: Bool[Tensor, "*b 1 h w"]
    weight: Float[Tensor, "*b 1 h w"] | None = None
    soft: Float[Tensor, "*b k h w"] | None = None

    def to(self, device: torch.device | str) -> Target:
        parts = (self.value, self.valid, self.weight, self.soft)
        return Target(*(None if part is None else part.to(device) for part in parts))


@dataclass(frozen=True)
class FeatureTarget:
    """Task features that a first-stage network saw, and its trust in them: the target of feature supervision.

    `value` `[b c h w]` may be coarser than the image: `stride` says how much, and `own` how much the network's features are
    before they are pooled for storing. `confidence` `[b 1 h w]` lies in 0 … 1.
    """

    value: Float[Tensor, "*b c h w"]
    confidence: Float[Tensor, "*b 1 h w"]
    stride: int = 1
    own: int = 1

    def to(self, device: torch.device | str) -> FeatureTarget:
        return replace(self, value=self.value.to(device), confidence=self.confidence.to(device))


@dataclass(frozen=True)
class Sample:
    """One image with the targets it has.

    `image` `[3 h w]` is float RGB in 0 … 1. `targets` holds only the tasks this image is annotated for: *annotated* is a
    fact about the whole image, and an annotated target may still be valid nowhere. `discovered` and `features` are what a
    first-stage network found for it. `clean` is the photometrically untouched view of the same geometry.
    """

    image: Float[Tensor, "3 h w"]
    targets: Mapping[str, Target]
    id: str
    discovered: Mapping[str, Target] = field(default_factory=dict)
    features: Mapping[str, FeatureTarget] = field(default_factory=dict)
    clean: Float[Tensor, "3 h w"] | None = None


@dataclass(frozen=True)
class Batch:
    """Several samples of one size, every task present: what is not there is a target valid nowhere.

    `annotated[task]` `[b]` says which images are labelled for a task (the method's α). `discovered` is of the same type
    as `targets`; `features` holds only the tasks for which features were saved.
    """

    image: Float[Tensor, "b 3 h w"]
    clean: Float[Tensor, "b 3 h w"]
    targets: Mapping[str, Target]
    annotated: Mapping[str, Bool[Tensor, " b"]]
    discovered: Mapping[str, Target]
    features: Mapping[str, FeatureTarget]
    ids: Sequence[str]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""

        def move(mapping: Mapping) -> dict:
            return {name: value.to(device) for name, value in mapping.items()}

        return replace(
            self,
            image=self.image.to(device),
            clean=self.clean.to(device),
            targets=move(self.targets),
            annotated=move(self.annotated),
            discovered=move(self.discovered),
            features=move(self.features),
        )


@dataclass(frozen=True)
class Features:
    """What a backbone returns: `maps` fine to coarse, the coarsest `bottleneck`, and `stages` where a decoder asked."""

    maps: Sequence[Float[Tensor, "b _ _ _"]]
    bottleneck: Float[Tensor, "b _ _ _"]
    stages: Sequence[Float[Tensor, "b _ _ _"]] = ()


@dataclass(frozen=True)
class Outputs:
    """What every decoder returns, for every task by name.

    `logits[task]` `[b channels h w]` at the image's size. `auxiliary[task]` are further logits to supervise.
    `features[task]` `[b c h w]` are the task features before the head, `confidence[task]` `[b 1 h w]` the trust in them
    (absent: one), `tokens[task]` `[b c]` the global and `fine_tokens[task]` `[b k c]` the fine-grained task tokens.
    `score_maps[task]` `[b k h w]` are the fine-grained tokens' responses; pictures use them. `bottleneck` `[b c h w]` is the
    backbone's coarsest map, which the model adds.
    """

    logits: Mapping[str, Float[Tensor, "b _ h w"]]
    auxiliary: Mapping[str, Sequence[Float[Tensor, "b _ h w"]]] = field(default_factory=dict)
    features: Mapping[str, Float[Tensor, "b _ _ _"]] = field(default_factory=dict)
    confidence: Mapping[str, Float[Tensor, "b 1 _ _"]] = field(default_factory=dict)
    tokens: Mapping[str, Float[Tensor, "b _"]] = field(default_factory=dict)
    fine_tokens: Mapping[str, Float[Tensor, "b _ _"]] = field(default_factory=dict)
    score_maps: Mapping[str, Float[Tensor, "b _ _ _"]] = field(default_factory=dict)
    bottleneck: Float[Tensor, "b _ _ _"] | None = None


PIXELS, IMAGES = "pixels of all images", "images"


@dataclass(frozen=True)
class Score:
    """A named number with a unit, a direction and a rule of pooling: nothing that reads it needs to know its task.

    `pooling` says what is counted or averaged over: "pixels of all images" (an image weighs by its valid pixels), or "images"
    (each weighs the same).
    """

    name: str
    unit: str
    higher_is_better: bool
    pooling: str = PIXELS


SCORES = {
    score.name: score
    for score in (
        Score("mIoU", "%", True),
        Score("pixAcc", "%", True),
        Score("absErr", "m", False),
        Score("absRel", "", False),
        Score("rmse", "", False),
        Score("logErr", "", False),
        Score("mErr", "°", False),
        Score("within_11.25", "%", True),
        Score("within_22.5", "%", True),
        Score("within_30", "%", True),
        Score("within_1.25^1", "%", True),
        Score("within_1.25^2", "%", True),
        Score("within_1.25^3", "%", True),
        Score("bestF", "%", True),
        Score("odsF", "%", True),
        Score("oisF", "%", True),
        Score("AP", "%", True),
        *(Score(f"{name}_{called}", "%", True) for called in ("nms", "plain") for name in ("odsF", "oisF", "AP")),
        Score("max_mIoU", "%", True, IMAGES),
        Score("maxF", "%", True, IMAGES),
        Score("maxF_pooled", "%", True),
        Score("MAE", "", False, IMAGES),
        Score("loss", "", False, IMAGES),
    )
}
"""Every score this package reports or reads, by name.

`rmse` is in the unit of the error it belongs to (m or °). `mIoU` of a saliency map is `max_mIoU`, by the name its published
tables have; its task says so (`task.scores`).
"""


class MultidenseError(Exception):
    """Something the user can mend: the message says what was expected, what was found, and what to do."""
