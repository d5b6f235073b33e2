"""The contract of regularisers: training-only terms across tasks, such as consistency or contrast.

A regulariser is a module that the training makes, learns with and forgets: its parameters lie in the checkpoint, never in a
saved model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from multidense.task import Task
from multidense.types import Batch, Outputs


class Regularizer(nn.Module, ABC):
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

    @abstractmethod
    def forward(
        self, model: nn.Module, batches: Sequence[Batch], outputs: Sequence[Outputs]
    ) -> Mapping[str, Float[Tensor, " b"]]:
        """Named terms, one number an image, from `views` batches of the same images and what the model says of them.

        The names are the same in every step and process; a term that has nothing to say is zero, with a zero gradient that
        reaches the regulariser's parameters. `model` is the `MultiTask` itself; whoever runs it again does so in every step and
        process.
        """

    @classmethod
    def for_model(cls, model: nn.Module, **settings: Any) -> Regularizer:
        """The regulariser of a model, with sizes that fit it where the settings leave them open."""
        return cls(model.tasks, **settings)

    @classmethod
    def prepared(
        cls,
        settings: Mapping[str, Any],
        tasks: Sequence[Task],
        batches: Callable[[int], Iterable[Batch]],
        folder: Path,
        **told: Any,
    ) -> dict[str, Any]:
        """The settings once everything is there that must be fitted before the training; here, nothing must.

        `batches` gives those of an epoch by its number, `folder` is where to keep what is fitted, and `told` has what
        `fit_paths` takes beside.
        """
        return dict(settings)

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the training's optimiser; they follow its learning rate, times "lr_scale" if that is given."""
        parameters = list(self.parameters())
        return [{"params": parameters}] if parameters else []
