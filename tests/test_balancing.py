"""Loss balancing: every method by hand, and what all of them must do: stay finite, keep absent tasks as they were, resume."""

import copy
import importlib.util
import math
import sys
from typing import ClassVar

import pytest
import torch
from torch import nn

import multidense as md
from multidense import regularizers
from multidense.balancing import BALANCERS, EPSILON, Balancer, Balancing, Trunk, make_balancer
from multidense.checkpoint import State
from multidense.config import load_recipe
from multidense.data import Rooms, partial
from multidense.gradient_methods import METHODS
from multidense.models.multitask import weights_hash
from multidense.objective import Losses
from multidense.regularizers import Regularizer
from multidense.train import Training, fit
from multidense.types import Features, MultidenseError

NAMES = ("one", "two", "three")
with_torchjd = pytest.mark.skipif(importlib.util.find_spec("torchjd") is None, reason="torchjd is not installed")
SOLVERS = {"cagrad": "cvxpy", "nash-mtl": "cvxpy", "upgrad": "quadprog", "dualproj": "quadprog"}


def method(name: str):
    missing = name in METHODS and not all(map(importlib.util.find_spec, ["torchjd", SOLVERS.get(name, "torch")]))
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason="needs an optional package"))


every_method = pytest.mark.parametrize("name", [method(name) for name in [*BALANCERS, *METHODS]])


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, image):
        feature = self.last(self.first(image).tanh())
        return Features((feature,), feature)


class Net(nn.Module):
    """A backbone of two layers and a head of one for each task."""

    def __init__(self, names=NAMES):
        super().__init__()
        self.backbone = Backbone()
        self.heads = nn.ModuleDict({name: nn.Conv2d(4, 2, 1) for name in names})

    def forward(self, image):
        feature = self.backbone(image).maps[0]
        return {name: head(feature) for name, head in self.heads.items()}


ASIDE = Net()
TRUNK = Trunk(ASIDE, ASIDE.backbone)
"""For methods that do not look at it."""


class Bench:
    """A network, its trunk, and losses of some tasks on one batch: task k is k times as hard as the first."""

    def __init__(self, names=NAMES):
        torch.manual_seed(1)
        self.names, self.net, self.image = names, Net(names), torch.rand(2, 3, 4, 5)
        self.targets = {name: torch.randn(2, 2, 4, 5) * k for k, name in enumerate(names, 1)}
        self.trunk = Trunk(self.net, self.net.backbone)

    def losses(self, present=None) -> Losses:
        found = self.net(self.image)
        every = {name: (found[name] - self.targets[name]).square().mean() for name in self.names}
        tasks = {name: every[name] for name in present or self.names}
        rest = sum((0 * every[name] for name in self.names if name not in tasks), torch.zeros(()))
        levels = {name: loss.item() for name, loss in tasks.items()}
        return Losses(tasks, rest, len(self.names), levels, dict.fromkeys(tasks, 2.0), {})

    def gradients(self, balancer: Balancer, present=None) -> dict[str, torch.Tensor]:
        self.net.zero_grad()
        balancer.zero_grad()
        balancer.backward(self.losses(present), self.trunk, torch.Tensor.backward)
        return {name: parameter.grad.clone() for name, parameter in self.net.named_parameters()}


def balancer(name: str, names=NAMES, **options) -> Balancer:
    return make_balancer(Balancing(name, options), names)


def of(losses: dict[str, float]) -> Losses:
    """Losses of which only the numbers matter."""
    tasks = {name: torch.tensor(value, requires_grad=True) for name, value in losses.items()}
    return Losses(tasks, torch.zeros(()), len(NAMES), losses, dict.fromkeys(losses, 1.0), {})


def slopes(method: Balancer, losses: Losses) -> list[float]:
    """How much each task's loss weighs in the total."""
    found = torch.autograd.grad(method.total(losses, TRUNK), list(losses.tasks.values()))
    return [each.item() for each in found]


# By hand


def test_uncertainty_is_half_the_precision_times_the_loss_plus_half_the_log_variance():
    method = balancer("uncertainty", init=0.4)
    losses = of({"one": 2.0, "three": 5.0})
    total = method.total(losses, TRUNK)
    assert total.item() == pytest.approx(0.5 * math.exp(-0.4) * (2 + 5) + 0.5 * 0.4 * 2)
    total.backward()
    assert losses.tasks["one"].grad.item() == pytest.approx(0.5 * math.exp(-0.4))
    assert method.s["three"].grad.item() == pytest.approx(-0.5 * math.exp(-0.4) * 5 + 0.5)
    assert method.s["two"].grad is None
    (group,) = method.groups()
    assert group["weight_decay"] == 0
    assert len(group["params"]) == 3


def test_dwa_weighs_by_how_little_the_last_epoch_brought():
    method = balancer("dwa")
    same = of({"one": 1.0, "two": 1.0, "three": 1.0})
    for epoch in ({"one": 4.0, "two": 2.0, "three": 1.0}, {"one": 2.0, "two": 1.8, "three": 1.0}):
        assert slopes(method, same) == [1, 1, 1], "the first two epochs are even"
        method.epoch_end(epoch)
    pull = [math.exp(ratio / 2.0) for ratio in (2 / 4, 1.8 / 2, 1.0)]
    assert slopes(method, same) == pytest.approx([3 * each / sum(pull) for each in pull])
    two = slopes(method, of({"one": 1.0, "three": 1.0}))
    assert two == pytest.approx([2 * pull[0] / (pull[0] + pull[2]), 2 * pull[2] / (pull[0] + pull[2])])


def test_dwa_remembers_a_task_over_epochs_without_it():
    method = balancer("dwa")
    for means in ({"one": 4.0, "two": 2.0}, {"two": 1.0}, {"one": 1.0, "two": 1.0}):
        method.epoch_end(means)
    assert method.memory == {"before": {"one": 4.0, "two": 1.0}, "last": {"one": 1.0, "two": 1.0}}


def test_gradnorm_makes_the_steps_of_adam_on_its_own_loss():
    """Against torch's Adam on Σ |w_k n_k − Ḡ r_k^α|, renormalised after every step."""
    bench, method = Bench(), balancer("gradnorm", alpha=0.7)
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    adam, first = torch.optim.Adam([weight], lr=0.025), None
    for step in range(4):
        with torch.no_grad():
            for parameter in bench.net.backbone.parameters():
                parameter += 0.1 * step
        losses = bench.losses()
        last = bench.net.backbone.last.weight
        norms = torch.stack([torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in losses.tasks.values()]).double()
        values = torch.tensor(list(losses.levels.values()), dtype=torch.float64)
        first = values if first is None else first
        pace = values / first / (values / first).mean()
        weighed = weight * norms
        adam.zero_grad()
        (weighed - (weighed.mean() * pace**0.7).detach()).abs().sum().backward()
        before = weight.detach().clone()
        adam.step()
        with torch.no_grad():
            weight *= 3 / weight.sum()
        total = method.total(losses, bench.trunk)
        assert total.item() == pytest.approx((before * values).sum().item(), rel=1e-5), "the weights before the step"
        assert list(method.told().values()) == pytest.approx(weight.tolist(), rel=1e-5)
    assert len(set(method.told().values())) == 3


def test_gradnorm_looks_at_the_last_shared_layer():
    bench = Bench()
    bench.losses()
    assert [id(each) for each in bench.trunk.last] == [id(bench.net.backbone.last.weight)]


def test_gradnorm_names_a_backbone_without_a_layer_that_learns():
    bench = Bench()
    bench.net.backbone.requires_grad_(False)
    with pytest.raises(MultidenseError, match="gradnorm needs a shared layer that learns"):
        balancer("gradnorm").total(bench.losses(), Trunk(bench.net, bench.net.backbone))


def test_the_sum_of_logarithms_divides_every_gradient_by_its_loss():
    losses = of({"one": 2.0, "two": 0.0, "three": 9.0})
    assert slopes(balancer("log-sum"), losses) == pytest.approx([1 / 3, 1, 1 / 10], rel=1e-5)
    assert balancer("log-sum").total(losses, TRUNK).item() == pytest.approx(math.log(3) + math.log(10), rel=1e-5)


def test_lps_weighs_by_level_then_by_how_little_fell_and_its_weights_reach_the_gradient():
    method = balancer("lps", kappa=1.6)
    logs = [{"one": 1.0, "two": 2.0, "three": 0.5}, {"one": 0.9, "two": 1.0, "three": 0.5}]
    epochs = [{name: math.exp(log) - 1 - EPSILON for name, log in each.items()} for each in logs]
    losses = of({"one": 1.0, "two": 1.0, "three": 1.0})
    plain = slopes(method, losses)
    assert plain == pytest.approx([1 / (2 + EPSILON)] * 3)
    method.epoch_end(epochs[0])
    assert slopes(method, losses) == pytest.approx([p * 3.5 / log for p, log in zip(plain, (1.0, 2.0, 0.5), strict=True)])
    method.epoch_end(epochs[1])
    fell = 2.4 / 3.5
    ratio = [0.9 / fell, 0.5 / fell, 1.0 / fell]
    middle = sum(ratio) / 3
    wanted = [middle + 1.6 * (each - middle) for each in ratio]
    assert min(wanted) > 0.05
    assert slopes(method, losses) == pytest.approx([p * w for p, w in zip(plain, wanted, strict=True)])


def test_lps_trains_by_the_weighted_sum_of_the_gradients_of_the_log_losses():
    """Through the whole backward, on every parameter: not by their plain sum, whatever the weights are."""
    bench = Bench()
    bench.net.double()
    bench.image = bench.image.double()
    bench.targets = {name: target.double() for name, target in bench.targets.items()}
    method = balancer("lps")
    for means in ({"one": 2.0, "two": 3.0, "three": 5.0}, {"one": 1.9, "two": 2.0, "three": 4.9}):
        method.epoch_end(means)
    weight = dict(method.told())
    assert len(set(weight.values())) == 3
    found, plain = bench.gradients(method), bench.gradients(balancer("log-sum"))
    wanted = {key: torch.zeros_like(parameter) for key, parameter in bench.net.named_parameters()}
    for name, loss in bench.losses().tasks.items():
        log = torch.log(1 + EPSILON + loss)
        parts = torch.autograd.grad(log, list(bench.net.parameters()), retain_graph=True, materialize_grads=True)
        for key, part in zip(wanted, parts, strict=True):
            wanted[key] += weight[name] * part / len(NAMES)
    for key, gradient in found.items():
        assert torch.allclose(gradient, wanted[key], rtol=1e-9, atol=1e-9), key
        assert not torch.allclose(gradient, plain[key], rtol=1e-2, atol=0), key


def test_lps_has_a_lower_limit():
    method = balancer("lps", min_weight=0.25)
    method.epoch_end({"one": 1.0, "two": 1.0, "three": 1.0})
    method.epoch_end({"one": 0.1, "two": 1.0, "three": 1.0})
    assert method.told()["one"] == 0.25


def test_lps_has_an_upper_limit_where_one_is_given():
    free, limited = balancer("lps"), balancer("lps", max_weight=5.0)
    for method in (free, limited):
        method.epoch_end({"one": 0.02, "two": 1.0, "three": 1.0})
    assert free.told()["one"] > 40
    assert dict(limited.told()) == {**free.told(), "one": 5.0}


# Every method


@every_method
@pytest.mark.parametrize("present", [NAMES, NAMES[1:], NAMES[:1]], ids=len)
def test_gradients_are_finite_and_reach_every_present_task_and_no_other(name, present):
    bench = Bench()
    found = bench.gradients(balancer(name), present)
    for key, gradient in found.items():
        assert gradient.isfinite().all(), key
        head = key.split(".")[1] if key.startswith("heads") else None
        assert bool(gradient.any()) == (head is None or head in present), key


@every_method
def test_one_task_alone_is_trained_in_the_direction_of_its_gradient(name):
    bench = Bench(("one",))
    plain, found = bench.gradients(balancer("fixed", ("one",))), bench.gradients(balancer(name, ("one",)))
    for key in plain:
        cosine = nn.functional.cosine_similarity(plain[key].flatten(), found[key].flatten(), dim=0)
        assert cosine.item() == pytest.approx(1, abs=1e-5), key


@every_method
def test_an_absent_task_keeps_its_state(name):
    bench, method = Bench(), balancer(name)
    groups = method.groups()
    optimizer = torch.optim.Adam(groups, lr=0.1) if groups else None

    def step(present):
        bench.gradients(method, present)
        if optimizer:
            optimizer.step()
        method.epoch_end({task: 1.0 + len(task) * len(present) for task in present})

    def state_of(task):
        of_task = {key: values[task] for key, values in method.memory.items() if task in values}
        return of_task, {key: value.clone() for key, value in method.named_parameters() if key.endswith(task)}

    step(NAMES)
    step(NAMES)
    before = state_of("two")
    step(("one", "three"))
    step(("one",))
    assert state_of("two") == before


@every_method
def test_a_batch_without_any_label_trains_nothing(name):
    bench, method = Bench(), balancer(name)
    losses = bench.losses()
    empty = Losses({}, sum(0 * loss for loss in losses.tasks.values()), 3, {}, {}, {})
    assert method.backward(empty, bench.trunk, torch.Tensor.backward).item() == 0
    assert not any(parameter.grad.any() for parameter in bench.net.parameters())


@every_method
def test_what_is_added_beside_is_not_weighed(name):
    bench = Bench()
    alone = bench.gradients(balancer(name))
    extra = next(iter(bench.net.parameters()))

    class Beside(Bench):
        def losses(self, present=None):
            losses = super().losses(present)
            return Losses(losses.tasks, losses.rest + 2 * extra.sum(), 3, losses.levels, losses.images, {})

    bench.__class__ = Beside
    torch.manual_seed(1)
    beside = bench.gradients(balancer(name))
    if name not in ("pcgrad", "graddrop"):  # these draw at random
        key = next(key for key, _ in bench.net.named_parameters())
        assert torch.allclose(beside[key] - alone[key], torch.full_like(beside[key], 2.0), atol=1e-4)
    assert all(gradient.isfinite().all() for gradient in beside.values())


@every_method
def test_the_state_survives_a_checkpoint(name, tmp_path):
    bench, method = Bench(), balancer(name)
    for epoch in range(3):
        bench.gradients(method, NAMES[epoch % 2 :])
        method.epoch_end({task: 3.0 / (k + epoch + 1) for k, task in enumerate(NAMES)})
    torch.save(method.state_dict(), tmp_path / "state.pt")
    restored = balancer(name)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert restored.memory == method.memory
    torch.manual_seed(2)
    ours = bench.gradients(copy.deepcopy(method))
    torch.manual_seed(2)
    theirs = bench.gradients(restored)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


# Gradient methods


@with_torchjd
@pytest.mark.parametrize("present", [NAMES, NAMES[1:]], ids=len)
def test_the_mean_of_gradients_is_the_gradient_of_the_mean(present):
    bench = Bench()
    plain, mean = bench.gradients(balancer("fixed"), present), bench.gradients(balancer("mean"), present)
    assert all(torch.allclose(plain[key], mean[key], atol=1e-6) for key in plain)


def closest(a: torch.Tensor, b: torch.Tensor) -> float:
    """The weight of a for which w·a + (1 − w)·b is shortest."""
    return float(((b - a) @ b / (a - b).square().sum()).clamp(0, 1))


@with_torchjd
@pytest.mark.parametrize("on", ["parameters", "features"])
def test_mgda_of_two_tasks_is_the_shortest_gradient_between_them(on):
    bench = Bench(("one", "two"))
    found = bench.gradients(balancer("mgda", ("one", "two"), on=on, epsilon=1e-9, max_iters=500))
    losses = bench.losses()
    shared = list(bench.net.backbone.parameters())
    where = shared if on == "parameters" else [bench.trunk.features[0]]
    rows = [
        torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, where, retain_graph=True)])
        for loss in losses.tasks.values()
    ]
    weight = closest(*rows)
    mixed = weight * losses.tasks["one"] + (1 - weight) * losses.tasks["two"]
    for (key, _), wanted in zip(bench.net.backbone.named_parameters(), torch.autograd.grad(mixed, shared), strict=True):
        assert torch.allclose(found[f"backbone.{key}"], wanted, atol=1e-4), key
    assert 0 <= weight < 0.5 or 0.5 < weight <= 1


@with_torchjd
def test_heads_get_their_own_gradient():
    bench = Bench()
    found = bench.gradients(balancer("mgda"))
    plain = bench.gradients(balancer("fixed"))
    assert all(torch.allclose(found[key], plain[key]) for key in plain if key.startswith("heads"))


def test_a_gradient_method_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(MultidenseError, match=r"need the package torchjd.*pip install 'multidense\[torchjd\]'"):
        balancer("mgda")
    assert Balancing("mgda").method == "mgda", "a recipe can be read without it"


@with_torchjd
def test_weights_of_features_need_a_method_that_has_weights():
    with pytest.raises(MultidenseError, match="graddrop needs whole gradients"):
        balancer("graddrop", on="features")
    with pytest.raises(MultidenseError, match=r"no option 'epsilom' .did you mean 'epsilon'"):
        balancer("mgda", epsilom=1.0)


# Settings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "dwaa"}, "there is no 'dwaa' .did you mean 'dwa'"),
        ({"method": "gradnorm", "options": {"alhpa": 1.0}}, "gradnorm has no option 'alhpa' .did you mean 'alpha'"),
        ({"method": "gradnorm", "options": {"alpha": "much"}}, "alpha of gradnorm should be a number, found 'much'"),
        ({"method": "dwa", "options": {"temperature": 0.0}}, "temperature must be positive"),
        ({"method": "lps", "options": {"kappa": -1.0}}, "must not be negative"),
        ({"method": "lps", "options": {"max_weight": 0.5}}, "max_weight must be at least 1"),
        ({"method": "mgda", "options": {"on": "tokens"}}, "'parameters' or 'features', found 'tokens'"),
        ({"method": "fixed", "options": {"alpha": 1.0}}, "it has none"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Balancing(**given)


RECIPE = """
name: table
tasks: {semseg: {classes: 13}, depth: {}, normals: {}}
networks:
  plain: {decoder: shared}
  uncertainty: {decoder: shared, balancing: {method: uncertainty}}
  dwa: {decoder: shared, balancing: {method: dwa, options: {temperature: 1.0}}}
training: {balancing: {method: gradnorm}}
"""


def test_every_network_of_a_recipe_may_be_balanced_its_own_way(tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text(RECIPE)
    recipe = load_recipe(path)
    methods = {name: recipe.training_of(network).balancing.method for name, network in recipe.networks.items()}
    assert methods == {"plain": "gradnorm", "uncertainty": "uncertainty", "dwa": "dwa"}
    recipe.save(tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml").to_yaml() == recipe.to_yaml()
    path.write_text(RECIPE.replace("method: dwa", "method: dwaa"))
    with pytest.raises(MultidenseError, match=r"table\.yaml.*there is no 'dwaa'"):
        load_recipe(path)
    path.write_text(RECIPE.replace("options: {temp", "option: {temp"))
    with pytest.raises(MultidenseError, match=r"networks\.dwa\.balancing\.option'"):
        load_recipe(path)


# In the loop

SIZE = (32, 48)


def tasks() -> list:
    return [md.SemanticSegmentation(13), md.Depth(), md.Normals()]


def network(seed: int = 0):
    return md.build_model("segnet", "shared", tasks(), width=0.0625, seed=seed)


@pytest.fixture(scope="module")
def rooms():
    return partial.one_label(Rooms(tasks(), "train", size=SIZE, length=6), seed=0)


@pytest.mark.parametrize("name", [method(name) for name in ("uncertainty", "gradnorm", "lps", "pcgrad")])
def test_an_interrupted_training_ends_in_the_same_weights(name, rooms, tmp_path, monkeypatch):
    settings = Training(epochs=3, batch_size=2, checkpoint_every=2, clip=1.0, balancing=Balancing(name))
    whole = fit(network(), rooms, settings=settings, out=tmp_path / "whole")
    add = State.add

    def stop_in_the_last_epoch(state, *arguments):
        add(state, *arguments)
        if state.step == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(State, "add", stop_in_the_last_epoch)
    with pytest.raises(KeyboardInterrupt):
        fit(network(), rooms, settings=settings, out=tmp_path / "cut")
    monkeypatch.undo()
    resumed = fit(network(seed=7), rooms, settings=settings, out=tmp_path / "cut", resume=True)
    assert weights_hash(resumed) == weights_hash(whole)
    history = [(tmp_path / name / "history.csv").read_text() for name in ("cut", "whole")]
    assert history[0] == history[1]


class Agreement(Regularizer):
    """A toy: a learnt number against the mean logit of the first task, in two views."""

    views = 2
    seen: ClassVar[list] = []

    def __init__(self, tasks, *, weight: float = 1.0):
        super().__init__(tasks, weight=weight)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, model, batches, outputs):
        Agreement.seen.append((type(model).__name__, batches, [value.logits for value in outputs]))
        means = [each.logits[self.task_names[0]].mean((1, 2, 3)) for each in outputs]
        return {"views": (means[0] - means[1] + self.bias - 1).square()}


def test_a_regulariser_learns_beside_the_model_and_is_kept_in_the_checkpoint_alone(rooms, tmp_path, monkeypatch):
    monkeypatch.setitem(regularizers.REGULARIZERS, "agreement", Agreement)
    Agreement.seen.clear()
    saved, save = [], State.save

    def look(state, folder, *arguments):
        save(state, folder, *arguments)
        saved.append(torch.load(folder / State.file, weights_only=True)["beside"])

    monkeypatch.setattr(State, "save", look)
    chosen = {"agreement": {"weight": 0.5}}
    model = fit(network(), rooms, epochs=1, batch_size=2, regularizers=chosen, out=tmp_path)
    kind, (first, second), logits = Agreement.seen[0]
    assert kind == "MultiTask"
    assert first.ids == second.ids
    assert not torch.equal(first.image, second.image)
    assert not torch.equal(logits[0]["semseg"], logits[1]["semseg"])
    assert saved[-1]["regularizers.agreement.bias"].item() == pytest.approx(2.5e-3, rel=0.01), (
        "Adam, at the rates of the schedule: 1, 1, ½ of 0.001"
    )
    assert not any("agreement" in name for name in model.state_dict())
    assert "agreement.views" in (tmp_path / "history.csv").read_text().splitlines()[0]
    plain = fit(network(), rooms, epochs=1, batch_size=2)
    assert weights_hash(plain) != weights_hash(model)


def test_a_regulariser_or_a_setting_that_is_not_there_is_named(rooms, monkeypatch):
    monkeypatch.setitem(regularizers.REGULARIZERS, "agreement", Agreement)
    with pytest.raises(MultidenseError, match=r"there is no 'agrement' .did you mean 'agreement'"):
        fit(network(), rooms, regularizers={"agrement": {}})
    with pytest.raises(MultidenseError, match=r"regularizers\.agreement: there is no setting 'wieght' .did you mean 'weight'"):
        fit(network(), rooms, regularizers={"agreement": {"wieght": 1.0}})
    with pytest.raises(MultidenseError, match=r"regularizers\.agreement: weight must not be negative"):
        fit(network(), rooms, regularizers={"agreement": {"weight": -1.0}})
