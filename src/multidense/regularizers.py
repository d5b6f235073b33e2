"""The regularisers there are, by name, and all those of one training together."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from multidense.consistency import XTC, TwoViews
from multidense.contrast import CCR
from multidense.regularizer import Regularizer
from multidense.suggest import nearest
from multidense.task_paths import XTask
from multidense.types import Batch, Outputs

REGULARIZERS: dict[str, type[Regularizer]] = {"xtc": XTC, "ssl": TwoViews, "x-task": XTask, "ccr": CCR}
"""Every regulariser by the name that recipes use."""


class Regularizers(nn.ModuleDict):
    """All regularisers of a training, by name."""

    @property
    def views(self) -> int:
        """How many views of each image any of them wants."""
        return max((one.views for one in self.values()), default=1)

    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all of them."""
        return [group for one in self.values() for group in one.groups()]

    def terms(self, model: nn.Module, batches: Sequence[Batch], outputs: Sequence[Outputs]) -> dict[str, dict[str, Tensor]]:
        """The weighted terms of each, as terms beside those of the objective."""
        return {
            name: {term: one.weight * loss for term, loss in one(model, batches[: one.views], outputs[: one.views]).items()}
            for name, one in self.items()
        }


def make_regularizers(settings: Mapping[str, Mapping[str, Any]], model: nn.Module) -> Regularizers:
    """The regularisers of a model; a name or setting that makes no sense is a ValueError."""
    check_regularizers(settings)
    made = {}
    for name, given in settings.items():
        try:
            made[name] = REGULARIZERS[name].for_model(model, **(given or {}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"regularizers.{name}: {error}") from error
    return Regularizers(made)


def check_regularizers(settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse regularisers and settings that there are not."""
    for name, given in settings.items():
        if name not in REGULARIZERS:
            there = ", ".join(REGULARIZERS) or "none yet"
            raise ValueError(f"regularizers: there is no {name!r}{nearest(name, list(REGULARIZERS))}; there are {there}")
        arguments = inspect.signature(REGULARIZERS[name]).parameters.values()
        known = [argument.name for argument in arguments if argument.kind is argument.KEYWORD_ONLY]
        for key in given or {}:
            if key not in known:
                raise ValueError(
                    f"regularizers.{name}: there is no setting {key!r}{nearest(key, known)}; there are {', '.join(known)}"
                )
