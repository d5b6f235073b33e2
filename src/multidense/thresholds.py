"""Which discovered pixels to trust: one threshold per task, from one of three rules.

"fixed 0.9"       confidence above 0.9, as the paper has it (its values do not transfer between data sets)
"share 0.6"       the most confident 60 % of the pixels of the images that lack this label
"precision 0.8"   the lowest threshold at which discovered labels are right 80 % of the time, on labels that stage 1 was not
shown
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multidense.suggest import nearest
from multidense.types import MultidenseError

BINS = 1_000_000
"""Levels of confidence that are told apart; barely trained networks need many, for theirs lie close together."""
NOTHING = 1.0
"""A threshold that no confidence exceeds."""


@dataclass(frozen=True)
class Threshold:
    """One rule and its number."""

    rule: Literal["fixed", "share", "precision"]
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
        if rule not in ("fixed", "share", "precision") or not 0 <= value <= 1:
            raise MultidenseError(
                f"threshold: expected 'fixed T', 'share S' or 'precision P' with a number in 0 … 1, found {text!r}"
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


class Confidences:
    """How confidences are spread, and how often each level was right: counts in fine bins over 0 … 1."""

    def __init__(self):
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.right = torch.zeros(BINS, dtype=torch.float64)

    def add(self, confidence: Float[Tensor, "*b 1 h w"], of: Bool[Tensor, "*b 1 h w"], right: Tensor | None = None) -> None:
        """Count the pixels `of`, and those of them that were `right`."""
        level = (confidence[of].cpu().double() * BINS).long().clamp(0, BINS - 1)
        self.counts += torch.bincount(level, minlength=BINS)
        if right is not None:
            self.right += torch.bincount(level[right[of].cpu()], minlength=BINS)

    def threshold(self, rule: Threshold) -> float:
        """The confidence above which a pixel is kept; `NOTHING` where the rule cannot be met."""
        if rule.rule == "fixed":
            return rule.number
        above = self.counts.flip(0).cumsum(0).flip(0)
        if rule.rule == "share":
            wanted = rule.number * above[0]
            return _lower_edge(int((above >= wanted).sum()) - 1) if wanted > 0 else NOTHING
        precision = self.right.flip(0).cumsum(0).flip(0) / above.clamp(min=1)
        good = ((precision >= rule.number) & (above > 0)).nonzero()
        return _lower_edge(int(good[0])) if len(good) else NOTHING


def _lower_edge(level: int) -> float:
    """The last number below the bin in the single precision of confidences, for keeping is "above", not "from"."""
    edge = torch.tensor(level / BINS)
    if level and edge.item() >= level / BINS:
        edge = torch.nextafter(edge, torch.tensor(0.0))
    return edge.item() if level else -1e-9
