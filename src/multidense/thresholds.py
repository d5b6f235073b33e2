"""Which discovered pixels to trust: one threshold per task, from one of three rules.

"fixed 0.9"       confidence above 0.9, as the paper has it (its values do not transfer between data sets)
"share 0.6"       the most confident 60 % of the pixels of the images that lack this label
"balanced 0.6"    the most confident 60 % of the pixels of each predicted category (class, or centre of the codebook), so that
                  rare ones are not crowded out by easy ones
"precision 0.8"   the lowest threshold at which discovered labels are right 80 % of the time, on labels that stage 1 was not
shown

A threshold is one number, or under "balanced" one for each category; `keep` applies it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from multidense.suggest import nearest
from multidense.task import Task
from multidense.types import MultidenseError

BINS = 1_000_000
"""Levels of confidence that are told apart; barely trained networks need many, for theirs lie close together."""
NOTHING = 1.0
"""A threshold that no confidence exceeds."""


@dataclass(frozen=True)
class Threshold:
    """One rule and its number."""

    rule: Literal["fixed", "share", "balanced", "precision"]
    number: float

    @classmethod
    def parse(cls, text: str | float | Threshold) -> Threshold:
        """From "rule number"; a bare number is a fixed threshold."""
        if isinstance(text, Threshold):
            return text
        rule, found, number = str(text).strip().partition(" ")
        if not found:
            rule, number = "fixed", rule
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if rule not in get_args(get_type_hints(cls)["rule"]) or not 0 <= value <= 1:
            raise MultidenseError(
                "threshold: expected 'fixed T', 'share S', 'balanced S' or 'precision P' with a number in 0 … 1, "
                f"found {text!r}"
            )
        return cls(rule, value)

    def __str__(self) -> str:
        return f"{self.rule} {self.number:g}"


def rules_for(
    tasks: list[str], given: str | float | Mapping[str, str | float], others: Sequence[str] = ()
) -> dict[str, Threshold]:
    """One rule per task, from one for all or a mapping with an optional "default"; it may also speak of `others`."""
    if not isinstance(given, Mapping):
        return {task: Threshold.parse(given) for task in tasks}
    unknown = sorted(set(given) - {*tasks, *others, "default"})
    if unknown:
        raise MultidenseError(
            f"threshold: unknown task {unknown[0]!r}{nearest(unknown[0], tasks)}; expected {', '.join([*tasks, 'default'])}"
        )
    missing = [task for task in tasks if task not in given]
    if missing and "default" not in given:
        raise MultidenseError(f"threshold: no rule for {', '.join(missing)}; name one, or give a 'default'")
    return {task: Threshold.parse(given.get(task, given.get("default"))) for task in tasks}


def keep(
    task: Task,
    value: Shaped[Tensor, "*b v h w"],
    confidence: Float[Tensor, "*b 1 h w"],
    threshold: float | Sequence[float],
) -> Bool[Tensor, "*b 1 h w"]:
    """Which pixels exceed the threshold, be it one number or one for each category of the task."""
    if not isinstance(threshold, Sequence):
        return confidence > threshold
    category = task.category(value.reshape(-1, *value.shape[-3:])).reshape(confidence.shape)
    return confidence > torch.tensor(threshold).to(confidence)[category]


class Confidences:
    """How confidences are spread, and how often each level was right: counts in fine bins over 0 … 1."""

    def __init__(self):
        self.counts = torch.zeros(BINS, dtype=torch.int32)
        self.right: Tensor | None = None

    def add(self, confidence: Float[Tensor, "*b 1 h w"], of: Bool[Tensor, "*b 1 h w"], right: Tensor | None = None) -> None:
        """Count the pixels `of`, and those of them that were `right`."""
        level = (confidence[of].cpu().double() * BINS).long().clamp(0, BINS - 1)
        self.counts += torch.bincount(level, minlength=BINS)
        if right is not None:
            hits = torch.bincount(level[right[of].cpu()], minlength=BINS).int()
            self.right = hits if self.right is None else self.right + hits

    def threshold(self, rule: Threshold) -> float:
        """The confidence above which a pixel is kept; `NOTHING` where the rule cannot be met."""
        if rule.rule == "fixed":
            return rule.number
        above = _from_here_up(self.counts)
        if rule.rule in ("share", "balanced"):
            wanted = rule.number * above[0]
            return _lower_edge(int((above >= wanted).sum()) - 1) if wanted > 0 else NOTHING
        if self.right is None:
            return NOTHING
        precision = _from_here_up(self.right) / above.clamp(min=1)
        good = ((precision >= rule.number) & (above > 0)).nonzero()
        return _lower_edge(int(good[0])) if len(good) else NOTHING


def _from_here_up(counts: Tensor) -> Tensor:
    return counts.flip(0).cumsum(0, dtype=torch.float64).flip(0)


def _lower_edge(level: int) -> float:
    """The last number below the bin in the single precision of confidences, for keeping is "above", not "from"."""
    edge = torch.tensor(level / BINS)
    if level and edge.item() >= level / BINS:
        edge = torch.nextafter(edge, torch.tensor(0.0))
    return edge.item() if level else -1e-9
