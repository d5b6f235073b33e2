"""Regularisers: training-only terms across tasks, such as consistency or contrast. The contract, and those there are.

A regulariser is a module that the training makes, learns with and forgets: its parameters lie in the checkpoint, never in a
saved model.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from multidense.suggest import nearest
from multidense.task import Task
from multidense.types import Batch, Outputs


class Regularizer(nn.Module):
    """The contract. Settings are keyword-only arguments, `weight` among them.

    `views` says how many differently augmented views of each image it wants, 1 or 2; the objective sees the first alone.

    Args:
        tasks: the model's tasks, with their codebooks.
        weight: of all its terms in the objective.
    """

    views = 1

    def __init__(self, tasks: Sequence[Task], *, weight: float = 1.0):
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight must not be negative, found {weight}")
        self.task_names, self.weight = tuple(task.name for task in tasks), weight

    def forward(
        self, model: nn.Module, batches: Sequence[Batch], outputs: Sequence[Outputs]
    ) -> Mapping[str, Float[Tensor, " b"]]:
        """Named terms, one number an image, from `views` batches of the same images and what the model says of them.

        The names are the same in every step and process; a term that has nothing to say is zero, with a zero gradient that
        reaches the regulariser's parameters. `model` is the `MultiTask` itself; whoever runs it again does so in every step and
        process.
        """
        raise NotImplementedError

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the training's optimiser; they follow its learning rate, times "lr_scale" if that is given."""
        parameters = list(self.parameters())
        return [{"params": parameters}] if parameters else []


REGULARIZERS: dict[str, type[Regularizer]] = {}
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


def make_regularizers(settings: Mapping[str, Mapping[str, Any]], tasks: Sequence[Task]) -> Regularizers:
    """The regularisers of these tasks; a name or setting that makes no sense is a ValueError."""
    check_regularizers(settings)
    made = {}
    for name, given in settings.items():
        try:
            made[name] = REGULARIZERS[name](tasks, **(given or {}))
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
