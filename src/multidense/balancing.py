"""Loss balancing: how the task losses of a batch become one step. Aware of missing tasks, resumable, equal in all processes.

    fixed         Σ L_k
    uncertainty   Σ ½ exp(−s_k) L_k + ½ s_k, s_k = log σ_k² learnt                          (Kendall et al., 2018)
    dwa           Σ λ_k L_k, λ = K · softmax(w / T), w_k = L̄_k(e − 1) / L̄_k(e − 2)          (MTAN: Liu et al., 2019)
    gradnorm      Σ w_k L_k, with Σ |G_k − Ḡ r_k^α| made smaller in w                       (Chen et al., 2018)
    log-sum       Σ ℓ_k, ℓ_k = log(1 + ε + L_k)
    lps           Σ w_k ℓ_k, w from how ℓ_k fell from one epoch to the next                 (MT-CP: Fontana et al., 2025)

and the gradient methods of `gradient_methods`. L_k is the labelled and the discovered loss of task k over the whole batch, by
the weights of objective and task; the sum is divided by the number of tasks; auxiliary, feature and regulariser terms are added
beside. A task that a batch says nothing about is left out: its state stays, and weights that have a fixed sum have it over the
tasks present. What is remembered of a task is its mean over the images that supervise it, not over batches: under partial
labels the latter changes with chance.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from multidense.objective import Losses
from multidense.processes import all_sum
from multidense.suggest import nearest
from multidense.types import MultidenseError

EPSILON = 1e-6
"""In ℓ = log(1 + ε + L)."""


class Trunk:
    """What tasks share, as one looks at it between forward and backward.

    `parameters` are all of the model that learn. After every forward `last` holds the weight of the layer of `backbone` that
    ran last, and `features` what the backbone gave to the decoder.
    """

    def __init__(self, model: nn.Module, backbone: nn.Module):
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.last: list[nn.Parameter] = []
        self.features: list[Tensor] = []
        self._hooks = [backbone.register_forward_hook(self._see)]
        for layer in backbone.modules():
            weight = getattr(layer, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.ndim >= 2 and weight.requires_grad:
                self._hooks.append(layer.register_forward_hook(self._ran))

    def _ran(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        self.last = [layer.weight]

    def _see(self, backbone: nn.Module, inputs: Any, output: Any) -> Any:
        """Give the decoder views of the maps, so that a gradient to one of them does not run through another."""
        maps, stages = [each.view_as(each) for each in output.maps], [each.view_as(each) for each in output.stages]
        bottleneck = output.bottleneck.view_as(output.bottleneck)
        self.features = [*maps, *stages, bottleneck]
        return replace(output, maps=tuple(maps), stages=tuple(stages), bottleneck=bottleneck)

    def release(self) -> None:
        """Look no more."""
        for hook in self._hooks:
            hook.remove()
        self.last, self.features = [], []


class Balancer(nn.Module):
    """The contract: `total` adds up the task losses, or `backward` is replaced altogether.

    What a balancer remembers lies in `memory`, plain numbers by task, and comes and goes with its `state_dict`. Parameters of
    its own see the losses of the whole batch, so their gradients are equal in all processes and are not summed.

    `differentiates_features` says that it asks for gradients of the backbone's maps, even where the backbone is frozen.
    """

    differentiates_features = False

    def __init__(self, tasks: Sequence[str]):
        super().__init__()
        self.tasks = tuple(tasks)
        self.memory: dict[str, dict[str, float]] = {}

    def total(self, losses: Losses, trunk: Trunk) -> Float[Tensor, ""]:
        """The balanced sum of the present tasks' losses; weights of fixed sum add up to the number of tasks present."""
        raise NotImplementedError

    def backward(self, losses: Losses, trunk: Trunk, run: Callable[[Tensor], None]) -> Float[Tensor, ""]:
        """Add this process's part to every gradient, by `run` or by hand; returns what was minimised, over the whole batch."""
        loss = losses.total(self.total(losses, trunk))
        run(loss)
        return loss.detach()

    def epoch_end(self, means: Mapping[str, float]) -> None:
        """An epoch is over; `means` are those of the levels of the tasks that were present in it."""

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the training's optimiser; they follow its learning rate, times "lr_scale" if that is given."""
        return []

    def told(self) -> Mapping[str, float]:
        """A number for each task that says how much it weighs, for the curves; nothing where it never changes."""
        return {}

    def get_extra_state(self) -> dict[str, dict[str, float]]:
        return {key: dict(values) for key, values in self.memory.items()}

    def set_extra_state(self, state: dict[str, dict[str, float]]) -> None:
        self.memory = {key: dict(values) for key, values in state.items()}


class Fixed(Balancer):
    """The plain sum: tasks weigh what they say (`Task.weight`)."""

    def total(self, losses: Losses, trunk: Trunk) -> Tensor:
        return _sum(losses.tasks)


class Uncertainty(Balancer):
    """Homoscedastic uncertainty: Σ ½ exp(−s_k) L_k + ½ s_k. The regression form for every task, as toolkits have it.

    s is learnt by the training's optimiser at its rate, without weight decay; an absent task's has no gradient, so that not
    even the optimiser's momentum moves it.

    Args:
        init: of every s; 0 gives all tasks the weight ½.
    """

    def __init__(self, tasks: Sequence[str], init: float = 0.0):
        super().__init__(tasks)
        self.s = nn.ParameterDict({name: nn.Parameter(torch.tensor(float(init))) for name in tasks})

    def total(self, losses: Losses, trunk: Trunk) -> Tensor:
        return _sum({name: 0.5 * (torch.exp(-self.s[name]) * loss + self.s[name]) for name, loss in losses.tasks.items()})

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.s.values()), "weight_decay": 0.0}]

    def told(self) -> Mapping[str, float]:
        return {name: 0.5 * math.exp(-s.item()) for name, s in self.s.items()}


class DWA(Balancer):
    """Dynamic weight average: a task whose loss fell less in the last epoch weighs more. Equal weights in the first two epochs.

    Args:
        temperature: T; a large one evens the weights out.
    """

    def __init__(self, tasks: Sequence[str], temperature: float = 2.0):
        super().__init__(tasks)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, found {temperature}")
        self.temperature = temperature
        self.memory = {"before": {}, "last": {}}

    def weights(self, present: Sequence[str]) -> dict[str, float]:
        """λ of the tasks present; their sum is how many they are."""
        before, last = self.memory["before"], self.memory["last"]
        ratios = {name: last[name] / max(before[name], 1e-12) if name in before else 1.0 for name in present}
        highest = max(ratios.values(), default=0.0)
        pull = {name: math.exp((ratio - highest) / self.temperature) for name, ratio in ratios.items()}
        return {name: len(pull) * each / sum(pull.values()) for name, each in pull.items()}

    def total(self, losses: Losses, trunk: Trunk) -> Tensor:
        return _sum(losses.tasks, self.weights(list(losses.tasks)))

    def epoch_end(self, means: Mapping[str, float]) -> None:
        before, last = self.memory["before"], self.memory["last"]
        before |= {name: last[name] for name in means if name in last}
        last |= means

    def told(self) -> Mapping[str, float]:
        return self.weights(self.tasks)


class GradNorm(Balancer):
    """Weights for which all tasks train at a like rate: gradient norms on the last shared layer are drawn to Ḡ · r_k^α.

    G_k = ‖∇ w_k L_k‖ on the weight of the backbone's last layer, r_k = (L_k / L_k(0)) over its mean, where L_k(0) is the first
    loss seen of task k. One step of Adam on w follows every step; only present tasks take part, and the sum of their weights
    stays.

    Args:
        alpha: how strongly slower tasks are pulled; 0 makes all norms equal.
        lr: learning rate of w, constant.
        min_weight: no weight falls below it.
    """

    def __init__(self, tasks: Sequence[str], alpha: float = 1.5, lr: float = 0.025, min_weight: float = 0.001):
        super().__init__(tasks)
        if not (lr > 0 and 0 < min_weight < 1):
            raise ValueError(f"lr must be positive and min_weight between 0 and 1, found {lr} and {min_weight}")
        self.alpha, self.lr, self.min_weight = alpha, lr, min_weight
        self.memory = {"weight": dict.fromkeys(tasks, 1.0), "first": {}, "steps": {}, "mean": {}, "square": {}}

    def total(self, losses: Losses, trunk: Trunk) -> Tensor:
        if not trunk.last:
            raise MultidenseError(
                "gradnorm needs a shared layer that learns; found none in the backbone: use another balancing, or let it learn"
            )
        weight, first = self.memory["weight"], self.memory["first"]
        total = _sum(losses.tasks, weight)
        first |= {name: level for name, level in losses.levels.items() if name not in first}
        if len(losses.tasks) > 1:
            norms = self._norms(losses, trunk)
            if all(map(math.isfinite, norms.values())):
                self._step(norms, {name: level / max(first[name], 1e-12) for name, level in losses.levels.items()})
        return total

    @staticmethod
    def _norms(losses: Losses, trunk: Trunk) -> dict[str, float]:
        """‖∇ L_k‖ over the whole batch."""
        found = []
        for loss in losses.tasks.values():
            gradients = torch.autograd.grad(loss, trunk.last, retain_graph=True, allow_unused=True, materialize_grads=True)
            found.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        return dict(zip(losses.tasks, all_sum(torch.stack(found)).norm(dim=1).tolist(), strict=True))

    def _step(self, norms: Mapping[str, float], losses_left: Mapping[str, float]) -> None:
        weight = self.memory["weight"]
        weighted = {name: weight[name] * norm for name, norm in norms.items()}
        average = sum(weighted.values()) / len(weighted)
        mean_left = sum(losses_left.values()) / len(losses_left)
        kept = sum(weight[name] for name in norms)
        for name, norm in norms.items():
            gap = weighted[name] - average * (losses_left[name] / max(mean_left, 1e-12)) ** self.alpha
            weight[name] = max(weight[name] - self._adam(name, math.copysign(norm, gap) if gap else 0.0), self.min_weight)
        scale = kept / sum(weight[name] for name in norms)
        weight |= {name: weight[name] * scale for name in norms}

    def _adam(self, name: str, gradient: float) -> float:
        """Adam's step for one weight, whose moments and count are its own: an absent task keeps all three."""
        steps, mean, square = (self.memory[key] for key in ("steps", "mean", "square"))
        steps[name] = steps.get(name, 0) + 1
        mean[name] = 0.9 * mean.get(name, 0.0) + 0.1 * gradient
        square[name] = 0.999 * square.get(name, 0.0) + 0.001 * gradient**2
        corrected = math.sqrt(square[name] / (1 - 0.999 ** steps[name]))
        return self.lr * mean[name] / (1 - 0.9 ** steps[name]) / (corrected + 1e-8)

    def told(self) -> Mapping[str, float]:
        return self.memory["weight"]


class LogSum(Balancer):
    """Σ log(1 + ε + L_k): large losses count less; what LPS is without its weights."""

    def total(self, losses: Losses, trunk: Trunk) -> Tensor:
        return _sum(_log_projected(losses.tasks))


class LPS(Balancer):
    """MT-CP's loss prioritisation: Σ w_k ℓ_k with ℓ_k = log(1 + ε + L_k).

    In the first epoch w = 1, in the second w_k = ℓ_tot(0) / ℓ_k(0), then from the last two epochs

        r_k = [ℓ_k(e) / ℓ_k(e − 1)] / [ℓ_tot(e) / ℓ_tot(e − 1)],   w_k = μ + κ (r_k − μ),   μ the mean of r:

    what fell less than the rest comes first. This is the scheme as intended: the code released with the paper replaces the
    weighted sum by the plain one before the backward, so that its weights reach no gradient, keeps means in each process by
    itself, and has no lower limit, where κ = 7.5 soon gives negative weights.

    Args:
        kappa: κ, how far weights are spread: 7.5 on NYUv2, 1.6 on PASCAL-Context.
        min_weight: no weight falls below it.
        max_weight: nor rises above it (no limit is described). In the second epoch a task whose loss is small by nature, such
            as edges, may get 40 and more, and Adam's second moment remembers such gradients for a thousand steps.
    """

    def __init__(self, tasks: Sequence[str], kappa: float = 7.5, min_weight: float = 0.05, max_weight: float = math.inf):
        super().__init__(tasks)
        if kappa < 0 or min_weight < 0:
            raise ValueError(f"kappa and min_weight must not be negative, found {kappa} and {min_weight}")
        if max_weight < max(1, min_weight):
            raise ValueError(f"max_weight must be at least 1, with which all begin, and min_weight, found {max_weight}")
        self.kappa, self.least, self.most = kappa, min_weight, max_weight
        self.memory = {"weight": dict.fromkeys(tasks, 1.0), "last": {}}

    def total(self, losses: Losses, trunk: Trunk) -> Tensor:
        return _sum(_log_projected(losses.tasks), self.memory["weight"])

    def epoch_end(self, means: Mapping[str, float]) -> None:
        now = {name: math.log(1 + EPSILON + mean) for name, mean in means.items()}
        last, weight = self.memory["last"], self.memory["weight"]
        again, fresh = [name for name in now if name in last], [name for name in now if name not in last]
        if again:
            fell = sum(now[name] for name in again) / sum(last[name] for name in again)
            ratio = {name: now[name] / last[name] / max(fell, EPSILON) for name in again}
            middle = sum(ratio.values()) / len(ratio)
            for name in again:
                weight[name] = self._limited(middle + self.kappa * (ratio[name] - middle))
        for name in fresh:
            weight[name] = self._limited(sum(now.values()) / max(now[name], EPSILON))
        last |= now

    def _limited(self, weight: float) -> float:
        return min(max(weight, self.least), self.most)

    def told(self) -> Mapping[str, float]:
        return self.memory["weight"]


BALANCERS: dict[str, type[Balancer]] = {
    "fixed": Fixed,
    "uncertainty": Uncertainty,
    "dwa": DWA,
    "gradnorm": GradNorm,
    "log-sum": LogSum,
    "lps": LPS,
}


@dataclass(frozen=True)
class Balancing:
    """Which method balances the tasks.

    Args:
        method: "fixed", "uncertainty", "dwa", "gradnorm", "log-sum" or "lps"; or a gradient method, by the optional package
            torchjd: "mgda", "pcgrad", "cagrad", "upgrad", "aligned-mtl", "nash-mtl", "imtl-g", "dualproj", "config",
            "graddrop", "mean".
        options: settings of the method, such as {alpha: 1.5} of gradnorm.
    """

    method: str = "fixed"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        make_balancer(self, ())


def make_balancer(balancing: Balancing, tasks: Sequence[str]) -> Balancer:
    """The balancer of these tasks; a method, option or value that makes no sense is a ValueError."""
    from multidense.gradient_methods import METHODS, GradientMethod

    method, options = balancing.method, dict(balancing.options or {})
    if method in METHODS:
        return GradientMethod(tasks, method, options)
    if method not in BALANCERS:
        every = [*BALANCERS, *METHODS]
        raise ValueError(f"balancing.method: there is no {method!r}{nearest(method, every)}; there are {', '.join(every)}")
    check_options(method, options, [name for name in inspect.signature(BALANCERS[method]).parameters if name != "tasks"])
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"balancing.options.{name} of {method} should be a number, found {value!r}")
    try:
        return BALANCERS[method](tasks, **options)
    except ValueError as error:
        raise ValueError(f"balancing.options of {method}: {error}") from error


def check_options(method: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse options that a method does not have."""
    for name in options:
        if name not in known:
            has = f"there are {', '.join(known)}" if known else "it has none"
            raise ValueError(f"balancing.options: {method} has no option {name!r}{nearest(name, known)}; {has}")


def _sum(losses: Mapping[str, Tensor], weights: Mapping[str, float] | None = None) -> Tensor:
    if not losses:
        return torch.zeros(())
    return sum(loss if weights is None else weights[name] * loss for name, loss in losses.items())


def _log_projected(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.log(1 + EPSILON + loss) for name, loss in losses.items()}
