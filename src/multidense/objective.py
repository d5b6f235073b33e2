"""The objective: which terms supervise, and how images and tasks are averaged. All of that is here, and only here.

HiTTs, equations (5)–(8): L = L_s + L_p + L_f, each a mean over tasks and images,

    L_s  labelled          1/T Σ α_i L_i(Ŷ_i, Y_i)
    L_p  discovered        1/T Σ (1 − α_i) M^p_i ⊙ L_i(Ŷ_i, Ỹ_i)
    L_f  features          1/T Σ [α_i MSE(F'_i, F̃_i) + (1 − α_i) M^f_i ⊙ MSE(F'_i, F̃_i)]

An absent loss is zero with a zero gradient, so nothing branches on what an image is labelled for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from multidense.ops import pool
from multidense.task import Task
from multidense.types import Batch, FeatureTarget, MultidenseError, Outputs

Terms = Mapping[str, Mapping[str, Float[Tensor, " b"]]]
"""Losses by term ("labelled", "discovered", "features") and task: one number an image, weights not yet applied."""


@dataclass(frozen=True)
class Objective:
    """Weights of the three terms. 0 leaves a term out: `features=0` with discovered labels is the naive pseudo-label baseline.

    Args:
        labelled: weight of L_s, the loss on the labels there are.
        discovered: weight of L_p, the loss on discovered labels.
        features: weight of L_f, the squared distance to the first-stage network's task features.
    """

    labelled: float = 1.0
    discovered: float = 1.0
    features: float = 1.0

    def __post_init__(self):
        for name in ("labelled", "discovered", "features"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.{name} must not be negative, found {getattr(self, name)}")

    def terms(self, tasks: Sequence[Task], outputs: Outputs, batch: Batch) -> Terms:
        """Every term that has a weight and, for this batch, something to say."""
        terms: dict[str, dict[str, Tensor]] = {"labelled": {t.name: _loss(t, outputs, batch.targets) for t in tasks}}
        if self.discovered and any(target.valid.any() for target in batch.discovered.values()):
            terms["discovered"] = {t.name: _loss(t, outputs, batch.discovered) * ~batch.annotated[t.name] for t in tasks}
        if self.features and batch.features:
            terms["features"] = {
                name: feature_loss(_features(outputs, name), target, batch.annotated[name])
                for name, target in batch.features.items()
            }
        return terms

    def total(self, tasks: Sequence[Task], terms: Terms) -> Float[Tensor, ""]:
        """The number to minimise: terms by their weights, task losses by their task's weight, mean over images, over T
        tasks.
        """
        weight = {task.name: task.weight for task in tasks}
        total = sum(self.labelled * weight[name] * loss.mean() for name, loss in terms["labelled"].items())
        total = total + sum(self.discovered * weight[name] * loss.mean() for name, loss in terms.get("discovered", {}).items())
        total = total + sum(self.features * loss.mean() for loss in terms.get("features", {}).values())
        return total / len(tasks)


def feature_loss(features: Float[Tensor, "b c h w"], target: FeatureTarget, annotated: Tensor) -> Float[Tensor, " b"]:
    """Equation (6) for one task: squared distance to the saved features, averaged over channels and pixels.

    Weighted by the first-stage network's own confidence M^f where the image is not annotated, by one where it is. A confidence
    of zero everywhere says that no features were saved for an image. The confidence comes from the first stage: a network that
    may lower its own mask can cheat (the paper does not say whose it is).
    """
    ours = pool(features, target.stride)
    if ours.shape != target.value.shape:
        raise MultidenseError(
            f"feature supervision needs task features of the first stage's shape: expected {tuple(target.value.shape[1:])}, "
            f"found {tuple(ours.shape[1:])}; use the same decoder and width for both stages, or set the weight of features to 0"
        )
    distance = (ours - target.value.to(ours.dtype)).square().mean(1, keepdim=True)
    seen = annotated[:, None, None, None] & (target.confidence > 0)
    trust = torch.where(seen, 1.0, target.confidence.to(ours.dtype))
    return (trust * distance).flatten(1).mean(1)


def _loss(task: Task, outputs: Outputs, targets: Mapping) -> Tensor:
    target = targets[task.name]
    loss = task.loss(outputs.logits[task.name], target)
    for logits in outputs.auxiliary.get(task.name, ()):
        loss = loss + task.loss(logits, target)
    return loss


def _features(outputs: Outputs, name: str) -> Tensor:
    if name not in outputs.features:
        raise MultidenseError(
            f"feature supervision was asked for, but this decoder returns no task features for '{name}'; "
            "set the weight of features to 0"
        )
    return outputs.features[name]
