"""Gradient methods: the tasks' gradients are combined, not their losses. By TorchJD, an optional package.

On what the losses of two or more present tasks reach, the gradients of the tasks are the rows of a matrix, over all processes,
and a method makes one gradient of them. What one task alone reaches, its head, gets that task's own. Everything else
(auxiliary, feature and regulariser terms) is added as usual. `mean` gives the gradients of fixed balancing: a combination of P
tasks is scaled by P / T, as the mean over all T tasks is.

Methods that remember earlier gradients are not offered, for their state depends on which tasks were there; Nash-MTL's search
begins anew every step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from multidense.balancing import Balancer, Trunk, check_options
from multidense.objective import Losses
from multidense.processes import all_sum, first_one, world
from multidense.types import MultidenseError

METHODS: dict[str, str] = {
    "mgda": "MGDA",
    "pcgrad": "PCGrad",
    "cagrad": "CAGrad",
    "upgrad": "UPGrad",
    "aligned-mtl": "AlignedMTL",
    "nash-mtl": "NashMTL",
    "imtl-g": "IMTLG",
    "dualproj": "DualProj",
    "config": "ConFIG",
    "graddrop": "GradDrop",
    "mean": "Mean",
}
"""Names of torchjd's aggregators."""
DEFAULTS: dict[str, dict[str, Any]] = {"cagrad": {"c": 0.4}}
"""Options that torchjd wants and the papers give (CAGrad: Liu et al., 2021, on NYUv2)."""
OUT_OF_REACH = ("n_tasks", "pref_vector", "projector", "f", "leak")
"""Options that say something about a fixed set of tasks, or are no plain values."""


class GradientMethod(Balancer):
    """One of `METHODS`.

    Options are those of torchjd's aggregator, and `on`: "parameters" (default), or "features", for methods that weigh tasks by
    the products of their gradients: weights come from the gradients on what the backbone gives to the decoder (MGDA-UB: Sener
    and Koltun, 2018), which needs one backward through the backbone instead of one for each task; the heads then get weighted
    gradients.
    """

    def __init__(self, tasks: Sequence[str], method: str, options: Mapping[str, Any]):
        super().__init__(tasks)
        self.method, self.options = method, DEFAULTS.get(method, {}) | dict(options)
        self.on = self.options.pop("on", "parameters")
        if self.on not in ("parameters", "features"):
            raise ValueError(f"balancing.options.on of {method} should be 'parameters' or 'features', found {self.on!r}")
        self.differentiates_features = self.on == "features"
        self.weight: dict[str, float] = {}
        if tasks:  # else only the settings are looked at, and a recipe may be read without the package
            self._check()

    def told(self) -> Mapping[str, float]:
        return dict(self.weight)

    def backward(self, losses: Losses, trunk: Trunk, run: Callable[[Tensor], None]) -> Float[Tensor, ""]:
        step = self._on_features if self.on == "features" else self._on_parameters
        if losses.tasks:
            step(losses, trunk, run)
        elif losses.rest.requires_grad:
            run(losses.rest)
        return losses.total(sum(losses.tasks.values())).detach()

    def _on_parameters(self, losses: Losses, trunk: Trunk, run: Callable[[Tensor], None]) -> None:
        parameters, scale = trunk.parameters, len(losses.tasks) / losses.count
        found = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses.tasks.values()]
        if losses.rest.requires_grad:
            run(losses.rest)
        reached = [sum(row[i] is not None for row in found) for i in range(len(parameters))]
        shared = [i for i, tasks in enumerate(reached) if tasks > 1]
        for i, parameter in enumerate(parameters):
            if reached[i] == 1:
                _add(parameter, next(row[i] for row in found if row[i] is not None) / losses.count)
        if not shared:
            return
        rows = [
            torch.cat([(torch.zeros_like(parameters[i]) if row[i] is None else row[i]).reshape(-1) for i in shared])
            for row in found
        ]
        combined = scale / world() * first_one(self._aggregator(len(rows))(all_sum(torch.stack(rows))))
        for i, part in zip(shared, combined.split([parameters[i].numel() for i in shared]), strict=True):
            _add(parameters[i], part.view_as(parameters[i]))

    def _on_features(self, losses: Losses, trunk: Trunk, run: Callable[[Tensor], None]) -> None:
        rows = []
        for loss in losses.tasks.values():
            row = torch.autograd.grad(loss, trunk.features, retain_graph=True, allow_unused=True, materialize_grads=True)
            rows.append(torch.cat([gradient.reshape(-1) for gradient in row]))
        matrix = torch.stack(rows)
        weights = first_one(self._aggregator(len(rows)).gramian_weighting(all_sum(matrix @ matrix.T)))
        self.weight |= dict(zip(losses.tasks, weights.tolist(), strict=True))
        weighted = sum(weight * loss for weight, loss in zip(weights, losses.tasks.values(), strict=True))
        run(losses.total(len(rows) * weighted))

    def _aggregator(self, tasks: int) -> Any:
        """torchjd's aggregator of so many rows, without a past."""
        kind = getattr(_torchjd(), METHODS[self.method])
        counted = {"n_tasks": tasks} if "n_tasks" in inspect.signature(kind).parameters else {}
        return kind(**counted, **self.options)

    def _check(self) -> None:
        kind = getattr(_torchjd(), METHODS[self.method])
        known = [name for name in inspect.signature(kind).parameters if name not in OUT_OF_REACH]
        try:
            check_options(self.method, self.options, [*known, "on"])
            made = self._aggregator(2)
        except ImportError as error:
            raise MultidenseError(f"balancing by {self.method}: {' '.join(str(error).split())}") from error
        except (TypeError, ValueError) as error:
            raise MultidenseError(f"balancing by {self.method}: {error}") from error
        if self.on == "features" and not hasattr(made, "gramian_weighting"):
            raise MultidenseError(f"balancing by {self.method} needs whole gradients: set its option 'on' to 'parameters'")


def _add(parameter: torch.nn.Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient


def _torchjd():
    try:
        import torchjd.aggregation
    except ImportError as error:
        raise MultidenseError(
            "gradient methods (mgda, pcgrad, …) need the package torchjd, which is not installed: "
            "pip install 'multidense[torchjd]', or choose another balancing"
        ) from error
    return torchjd.aggregation
