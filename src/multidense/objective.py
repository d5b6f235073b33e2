"""The objective: which terms supervise, and how images and tasks are averaged. All of that is here, and only here.

HiTTs, equations (5)–(8): L = L_s + L_p + L_f, each a mean over tasks and images,

    L_s  labelled          1/T Σ α_i L_i(Ŷ_i, Y_i)
    L_p  discovered        1/T Σ (1 − α_i) M^p_i ⊙ L_i(Ŷ_i, Ỹ_i)
    L_f  features          1/T Σ [α_i MSE(F'_i, F̃_i) + (1 − α_i) M^f_i ⊙ MSE(F'_i, F̃_i)]

An absent loss is zero with a zero gradient, so nothing branches on what an image is labelled for. `terms` are numbers an image;
`gather` makes means of them, over the images of all processes, and leaves how task losses are added up to a balancer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multidense.ops import pool
from multidense.processes import Share, all_sum, world
from multidense.task import Task
from multidense.types import Batch, FeatureTarget, MultidenseError, Outputs, Target

Terms = Mapping[str, Mapping[str, Float[Tensor, " b"]]]
"""Losses by term and task: one number an image, weights not yet applied. "labelled" and "discovered" are the task losses that
balancing weighs; "auxiliary", "discovered_auxiliary" (of auxiliary logits) and "features" are added beside."""


@dataclass(frozen=True)
class Objective:
    """Weights of the three terms, and of auxiliary logits. 0 leaves a term out: `features=0` with discovered labels is the
    naive pseudo-label baseline.

    Args:
        labelled: weight of L_s, the loss on the labels there are.
        discovered: weight of L_p, the loss on discovered labels.
        features: weight of L_f, the squared distance to the first-stage network's task features.
        auxiliary: weight of the losses of auxiliary logits, which are added up, over those of the final ones.
    """

    labelled: float = 1.0
    discovered: float = 1.0
    features: float = 1.0
    auxiliary: float = 1.0

    def __post_init__(self):
        for name in ("labelled", "discovered", "features", "auxiliary"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.{name} must not be negative, found {getattr(self, name)}")

    @property
    def coefficients(self) -> Mapping[str, float]:
        """The weight of each term of the task losses and beside them."""
        return {
            "labelled": self.labelled,
            "discovered": self.discovered,
            "auxiliary": self.labelled * self.auxiliary,
            "discovered_auxiliary": self.discovered * self.auxiliary,
            "features": self.features,
        }

    def terms(self, tasks: Sequence[Task], outputs: Outputs, batch: Batch) -> Terms:
        """Every term that has a weight and, for this batch, something to say."""
        final = {task.name: [outputs.logits[task.name]] for task in tasks}
        further = {task.name: outputs.auxiliary[task.name] for task in tasks if outputs.auxiliary.get(task.name)}
        terms: dict[str, dict[str, Tensor]] = {}
        for suffix, logits in (("", final), ("auxiliary", further)):
            heads = [task for task in tasks if task.name in logits]
            if not heads:
                continue
            terms[suffix or "labelled"] = {t.name: _loss(t, logits[t.name], batch.targets[t.name]) for t in heads}
            if self.discovered and any(target.valid.any() for target in batch.discovered.values()):
                terms["_".join(filter(None, ["discovered", suffix]))] = {
                    t.name: _loss(t, logits[t.name], batch.discovered[t.name]) * ~batch.annotated[t.name] for t in heads
                }
        if self.features and batch.features:
            terms["features"] = {
                name: feature_loss(_features(outputs, name), target, batch.annotated[name])
                for name, target in batch.features.items()
            }
        return terms

    def supervised(self, tasks: Sequence[Task], batch: Batch) -> Mapping[str, Bool[Tensor, " b"]]:
        """Which images say something about a task: by a label that is valid somewhere, or by a discovered one."""

        def anywhere(target) -> Tensor:
            return target.valid.flatten(1).any(1)

        return {
            task.name: (anywhere(batch.targets[task.name]) & (self.labelled > 0))
            | (anywhere(batch.discovered[task.name]) & ~batch.annotated[task.name] & (self.discovered > 0))
            for task in tasks
        }

    def gather(self, tasks: Sequence[Task], terms: Terms, supervised: Mapping[str, Tensor], share: Share) -> Losses:
        """Means over the images of the whole batch, and over the tasks where they are not left to a balancer.

        `terms` may hold further ones, of regularisers: the same names in every process; they are added as they are.
        """
        names, known = [task.name for task in tasks], self.coefficients
        keys = [(term, name) for term in known for name in names]
        keys += [(term, name) for term in terms if term not in known for name in terms[term]]
        parts = {(term, name): terms[term][name].sum() for term, name in keys if name in terms.get(term, ())}
        parts = {key: part / share.images * share.counts for key, part in parts.items()}
        some = next(iter(parts.values()))
        zero = torch.zeros_like(some)
        sums = torch.stack([parts.get(key, zero) for key in keys])
        said = sums.new_tensor([float(key in parts) for key in keys])
        images = torch.stack([supervised[name].sum() * share.counts for name in names]).to(sums.dtype)
        sums, said, images = all_sum(torch.cat([sums, said, images])).split([len(keys), len(keys), len(names)])
        whole = dict(zip(keys, sums, strict=True))

        def total(these: Iterable[tuple[str, str]], weights: Mapping[str, float] | None = None) -> Tensor:
            """The whole batch's number, with the gradient of this process's part."""
            these = [(key, known.get(key[0], 1.0) * (weights[key[1]] if weights else 1.0)) for key in these]
            part = sum(((weight * parts[key]) for key, weight in these if key in parts), zero)
            value = sum(((weight * whole[key]) for key, weight in these), zero.detach())
            return part if world() == 1 else part + (value - part).detach()

        weight = {task.name: task.weight for task in tasks}
        by_task = {name: total([("labelled", name), ("discovered", name)], weight) for name in names}
        count = dict(zip(names, images.tolist(), strict=True))
        mean_over_tasks = [by_task[name] for name in names if not count[name]]  # zero, with a zero gradient
        mean_over_tasks += [total([("auxiliary", name), ("discovered_auxiliary", name)], weight) for name in names]
        mean_over_tasks += [total([("features", name) for name in names])]
        rest = sum(mean_over_tasks) / len(names) + total([key for key in keys if key[0] not in known])
        present = {name: loss for name, loss in by_task.items() if count[name]}
        values = torch.stack([loss.detach() for loss in present.values()]).tolist() if present else []
        return Losses(
            tasks=present,
            rest=rest,
            count=len(names),
            levels={name: value * share.images / count[name] for name, value in zip(present, values, strict=True)},
            images={name: count[name] for name in present},
            means={
                f"{term}.{name}": value
                for (term, name), value, processes in zip(keys, sums.tolist(), said.tolist(), strict=True)
                if processes
            },
        )


@dataclass(frozen=True)
class Losses:
    """What a batch costs: values over all processes, gradients of this process's part, which add up over the processes.

    Args:
        tasks: the loss of each task that the batch says something about: labelled and discovered, weighted by the objective
            and the task, a mean over all images of the batch.
        rest: what is added beside: auxiliary, feature and regulariser terms. Absent tasks are in it, zero with a zero gradient,
            so that every parameter has one.
        count: the number T of all tasks.
        levels: the loss of each task as a mean over the images that supervise it, which does not depend on how many those are.
        images: how many images supervise each task.
        means: every term of every task, weights not yet applied, for the curves.
    """

    tasks: Mapping[str, Float[Tensor, ""]]
    rest: Float[Tensor, ""]
    count: int
    levels: Mapping[str, float]
    images: Mapping[str, float]
    means: Mapping[str, float]

    def total(self, balanced: Float[Tensor, ""] | float) -> Float[Tensor, ""]:
        """The number to minimise, from a balanced sum of the task losses: its mean over all tasks, and the rest."""
        return balanced / self.count + self.rest


def feature_loss(features: Float[Tensor, "b c h w"], target: FeatureTarget, annotated: Tensor) -> Float[Tensor, " b"]:
    """Equation (6) for one task: squared distance to the saved features, averaged over channels and pixels.

    Weighted by the first-stage network's own confidence M^f where the image is not annotated, by one where it is. A confidence
    of zero everywhere says that no features were saved for an image. The confidence comes from the first stage: a network that
    may lower its own mask can cheat (the paper does not say whose it is).
    """
    ours = pool(features, target.stride // target.own)
    if ours.shape != target.value.shape:
        raise MultidenseError(
            f"feature supervision needs task features of the first stage's shape: expected {tuple(target.value.shape[1:])}, "
            f"found {tuple(ours.shape[1:])}; use the same decoder and width for both stages, or set the weight of features to 0"
        )
    distance = (ours - target.value.to(ours.dtype)).square().mean(1, keepdim=True)
    seen = annotated[:, None, None, None] & (target.confidence > 0)
    trust = torch.where(seen, 1.0, target.confidence.to(ours.dtype))
    return (trust * distance).flatten(1).mean(1)


def _loss(task: Task, logits: Sequence[Tensor], target: Target) -> Tensor:
    return sum((task.loss(each, target) for each in logits[1:]), task.loss(logits[0], target))


def _features(outputs: Outputs, name: str) -> Tensor:
    if name not in outputs.features:
        raise MultidenseError(
            f"feature supervision was asked for, but this decoder returns no task features for '{name}'; "
            "set the weight of features to 0"
        )
    return outputs.features[name]
