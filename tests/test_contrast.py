"""Cross-task contrast: triplets by hand, who is moved, and which labels may speak."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import multidense as md
from multidense import regularizers
from multidense.contrast import CCR, pixels, triplets
from multidense.data import Rooms, collate, partial
from multidense.models.multitask import weights_hash
from multidense.tasks import Edges, Saliency
from multidense.train import fit
from multidense.types import Batch, MultidenseError, Outputs, Target

SIZE = (32, 48)
SEMSEG, DEPTH, NORMALS = md.SemanticSegmentation(13), md.Depth(), md.Normals()
TASKS = [SEMSEG, DEPTH, NORMALS]
NAMES = [task.name for task in TASKS]


class Model(nn.Module):
    """Only its tasks are asked for."""

    def __init__(self, tasks=TASKS):
        super().__init__()
        self.tasks = tuple(tasks)


@pytest.fixture
def full() -> Batch:
    rooms = Rooms(TASKS, "train", size=SIZE, length=3)
    return collate([rooms[i] for i in range(3)], TASKS)


def labelled(batch: Batch, *those: set[str], poison: bool = False) -> Batch:
    """Each image labelled for its set of tasks alone; hidden values may be NaN or nonsense."""

    def hide(name: str, target: Target) -> Target:
        hidden = torch.tensor([name not in names for names in those])[:, None, None, None]
        wrong = torch.full_like(target.value, math.nan if target.value.is_floating_point() else 999)
        return Target(torch.where(hidden & poison, wrong, target.value), target.valid & ~hidden)

    return replace(
        batch,
        targets={name: hide(name, target) for name, target in batch.targets.items()},
        annotated={name: torch.tensor([name in names for names in those]) for name in batch.annotated},
    )


def outputs(channels: int = 8, images: int = 3, size=SIZE) -> Outputs:
    torch.manual_seed(1)
    return Outputs(logits={}, features={name: torch.randn(images, channels, *size, requires_grad=True) for name in NAMES})


def ccr(**settings) -> CCR:
    torch.manual_seed(2)
    return CCR(TASKS, **{"channels": 8, "width": 16, "anchors": 32} | settings)


# Triplets


def unit(*degrees: float) -> torch.Tensor:
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)[None].requires_grad_()


def by_group(*groups: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    label = torch.tensor(groups)[None]
    alike = label[:, :, None] == label[:, None]
    return alike, ~alike, torch.rand(alike.shape)


def test_what_is_alike_in_one_place_and_all_else_a_margin_apart_costs_nothing():
    vectors = unit(0, 0, 60, 60)
    loss = triplets(vectors, *by_group(0, 0, 1, 1), margin=0.99)
    assert loss.tolist() == [0]
    (gradient,) = torch.autograd.grad(loss.sum(), vectors)
    assert torch.equal(gradient, torch.zeros_like(vectors))
    assert triplets(vectors, *by_group(0, 0, 1, 1), margin=1.25).tolist() == pytest.approx([0.25])


def test_the_loss_of_a_triplet_by_hand():
    """Squared distances 2 − 2 cos: 1 at 60 degrees, 2 at 90. Anchors 0 and 1 have a positive, anchor 2 has none."""
    loss = triplets(unit(0, 60, 150), *by_group(0, 0, 1), margin=1.3)
    assert loss.tolist() == pytest.approx([(0 + (1 - 2 + 1.3)) / 2]), "the first is 3.7 away from its negative"
    first, second = (2 - 2 * math.cos(math.radians(angle)) for angle in (70, 10))
    near = triplets(unit(0, 60, 70), *by_group(0, 0, 1), margin=0.5)
    assert near.tolist() == pytest.approx([((1 - first + 0.5) + (1 - second + 0.5)) / 2]), "nothing is semi-hard to the second"


def test_the_negative_is_the_nearest_that_lies_further_away_than_the_positive():
    vectors = unit(0, 40, 20, 50, 120)
    alike, different, chance = by_group(0, 0, 1, 1, 1)
    alike[:, 1:], different[:, 1:] = False, False  # one anchor, the first
    squared = [2 - 2 * math.cos(math.radians(angle)) for angle in (40, 50)]
    assert triplets(vectors, alike, different, chance, 0.5).tolist() == pytest.approx([squared[0] - squared[1] + 0.5])


@pytest.mark.parametrize("groups", [(0, 0, 0), (0, 1, 2)])
def test_an_image_of_one_group_or_without_positives_costs_nothing(groups):
    vectors = unit(0, 60, 150)
    loss = triplets(vectors, *by_group(*groups), margin=0.3)
    assert loss.tolist() == [0]
    (gradient,) = torch.autograd.grad(loss.sum(), vectors)
    assert torch.equal(gradient, torch.zeros_like(vectors))


# Which pixels


def test_every_group_is_drawn_as_often_and_nothing_that_is_not_valid():
    groups = torch.zeros(2, 4000, dtype=torch.long)
    groups[:, :200] = 1
    valid = torch.ones(2, 4000, dtype=torch.bool)
    valid[1, 10:] = False
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    places, there = pixels(groups, valid, 3, 100, generators)
    assert places.shape == there.shape == (2, 100)
    assert there.sum(1).tolist() == [100, 10]
    assert 35 < groups[0][places[0]].sum() < 65, "of two groups, one twenty times as large"
    assert sorted(places[1][there[1]].tolist()) == list(range(10)), "without repetition"


def test_labels_are_alike_by_what_each_task_calls_so():
    depths = torch.tensor([1.0, 1.04, 1.2, 1.3])[None, None, None]
    apart = DEPTH.label_distance(depths, torch.ones(1, 1, 1, 4))
    assert torch.equal(apart, DEPTH.label_distance(torch.ones(1, 1, 1, 4), depths)), "the same both ways"
    assert (apart <= DEPTH.contrast[0]).flatten().tolist() == [True, True, False, False]
    assert (apart >= DEPTH.contrast[1]).flatten().tolist() == [False, False, False, True]
    turned = torch.tensor([0.0, 9.0, 20.0, 31.0]).deg2rad()
    vectors = torch.stack([turned.sin(), torch.zeros(4), turned.cos()])[None, :, None]
    apart = NORMALS.label_distance(vectors, vectors[..., :1].expand_as(vectors))
    assert (apart <= NORMALS.contrast[0]).flatten().tolist() == [True, True, False, False]
    assert (apart >= NORMALS.contrast[1]).flatten().tolist() == [False, False, False, True]
    for task in (Edges(), Saliency()):
        apart = task.label_distance(torch.tensor([0.1, 0.4, 0.9])[None, None, None], torch.zeros(1, 1, 1, 3))
        assert apart.flatten().tolist() == [0, 0, 1], "yes or no"
    assert SEMSEG.label_distance(torch.tensor([[[[3, 4]]]]), torch.tensor([[[[3, 3]]]])).flatten().tolist() == [0, 1]


# The regulariser


class Itself(nn.Module):
    """A projector that changes nothing, with a parameter that every pair reaches."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, vectors):
        return self.one * vectors


def plain(regularizer: CCR) -> CCR:
    for name in regularizer.projectors:
        regularizer.projectors[name] = Itself()
    return regularizer


def test_features_that_follow_the_labels_cost_nothing_and_others_do(full):
    batch = labelled(full, {"semseg"}, {"semseg"}, {"semseg"})
    classes = nn.functional.one_hot(full.targets["semseg"].value[:, 0], 13).movedim(-1, 1).float()
    follow = Outputs(logits={}, features=dict.fromkeys(NAMES, classes))
    found = plain(ccr(channels=13))(Model(), [batch], [follow])["contrast"]
    assert found.tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    against = Outputs(logits={}, features=dict.fromkeys(NAMES, classes.roll(1, -1) * 0 + torch.randn(3, 13, *SIZE)))
    assert plain(ccr(channels=13))(Model(), [batch], [against])["contrast"].min() > 0.05


def test_the_mean_is_over_all_targets(full):
    """One label: two of three targets have a source. Everything is in one place, so each loss is the margin."""
    batch = labelled(full, {"semseg"}, {"depth", "normals"}, set())
    same = Outputs(logits={}, features={name: torch.ones(3, 8, *SIZE) for name in NAMES})
    found = plain(ccr())(Model(), [batch], [same])["contrast"]
    assert found.tolist() == pytest.approx([2 * 0.3 / 3, 3 * 0.3 / 3, 0], abs=1e-6)


def test_it_moves_targets_only_and_every_projector_that_was_drawn(full):
    out, regularizer = outputs(), ccr()
    regularizer(Model(), [labelled(full, {"depth"}, {"depth"}, {"depth"})], [out])["contrast"].sum().backward()
    assert out.features["depth"].grad is None, "no target: its only source would be itself"
    assert all((out.features[name].grad.flatten(1).norm(dim=1) > 0).all() for name in ("semseg", "normals"))
    for name, projector in regularizer.projectors.items():
        moved = all(parameter.grad.abs().sum() > 0 for parameter in projector[0].parameters())
        assert moved == (name in ("semseg by depth", "normals by depth")), name
        assert all(parameter.grad is not None for parameter in projector.parameters()), "the others have a zero"


def test_all_parameters_get_a_gradient_over_a_few_steps(full):
    regularizer, out = ccr(), outputs()
    sum(regularizer(Model(), [labelled(full, *[set(NAMES)] * 3)], [out])["contrast"].sum() for _ in range(4)).backward()
    assert all(p.grad.abs().sum() > 0 for p in regularizer.parameters() if p.ndim > 1)


def test_hidden_labels_change_nothing(full):
    found = []
    for poison in (False, True):
        regularizer, out = ccr(), outputs()
        batch = labelled(full, {"semseg"}, {"depth"}, {"normals"}, poison=poison)
        loss = regularizer(Model(), [batch], [out])["contrast"]
        found.append([loss, *torch.autograd.grad(loss.sum(), [*regularizer.parameters(), *out.features.values()])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert found[0][0].min() > 0


def test_discovered_labels_serve_if_they_may(full):
    hidden = labelled(full, {"semseg"}, set(), set())
    given = replace(hidden, discovered=labelled(full, set(), {"depth"}, set()).targets)
    assert (ccr()(Model(), [given], [outputs()])["contrast"] > 0).tolist() == [True, False, False]
    assert (ccr(discovered=True)(Model(), [given], [outputs()])["contrast"] > 0).tolist() == [True, True, False]


def test_a_batch_of_one_and_coarse_features(full):
    one = replace(
        full,
        image=full.image[:1],
        clean=full.clean[:1],
        targets={name: Target(t.value[:1], t.valid[:1]) for name, t in full.targets.items()},
        annotated={name: a[:1] for name, a in full.annotated.items()},
        ids=full.ids[:1],
    )
    whole = ccr()(Model(), [full], [outputs()])["contrast"]
    first = Outputs(logits={}, features={name: maps[:1] for name, maps in outputs().features.items()})
    alone = ccr()(Model(), [one], [first])["contrast"]
    assert alone.item() == pytest.approx(whole[0].item(), rel=1e-5), "an image does not depend on its batch mates"
    coarse = ccr()(Model(), [one], [outputs(images=1, size=(4, 6))])["contrast"]
    assert coarse.isfinite().all()
    assert coarse.item() > 0


def test_nothing_to_say_is_zero_and_reaches_the_projectors(full):
    regularizer = ccr()
    found = regularizer(Model(), [labelled(full, set(), set(), set())], [outputs()])["contrast"]
    assert found.tolist() == [0, 0, 0]
    found.sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in regularizer.parameters())
    alone = CCR([DEPTH], channels=8)
    only = replace(full, targets={"depth": full.targets["depth"]})
    assert alone(Model([DEPTH]), [only], [outputs()])["contrast"].tolist() == [0, 0, 0]


def test_chance_is_a_function_of_seed_step_and_image(full):
    out = outputs()

    def found(regularizer) -> list[float]:
        return regularizer(Model(), [full], [out])["contrast"].tolist()

    first = ccr()
    zero, one = found(first), found(first)
    assert zero != one
    assert found(ccr(seed=5)) != zero
    again = ccr()
    torch.rand(3)
    assert found(again) == zero
    resumed = ccr()
    resumed.load_state_dict(again.state_dict())
    assert found(resumed) == one


def test_sources_are_drawn_evenly_among_what_is_labelled(full):
    regularizer, seen = ccr(), {}
    labels = {task.name: full.targets[task.name] for task in TASKS}
    for _ in range(60):
        generators, _ = regularizer.begin(full.ids, torch.device("cpu"))
        for pair, images in regularizer._pairs(labels, generators).items():
            seen[pair] = seen.get(pair, 0) + len(images)
    assert set(seen) == {(target, source) for target in NAMES for source in NAMES if source != target}
    assert all(60 < count < 120 for count in seen.values()), "about 90 each"


def test_it_fits_the_features_of_a_model_and_says_so_where_it_does_not(full):
    model = md.build_model("segnet", "shared", TASKS, width=0.125, seed=0).train()
    made = CCR.for_model(model, margin=0.2)
    assert (made.channels, made.margin) == (dict.fromkeys(NAMES, 8), 0.2)
    assert model.training
    with pytest.raises(MultidenseError, match="task features of 64 channels, found 8 for 'semseg': set its channels to 8"):
        CCR(TASKS)(Model(), [full], [outputs()])
    with pytest.raises(MultidenseError, match="this decoder returns none for 'semseg'"):
        CCR(TASKS)(Model(), [full], [Outputs(logits={})])
    with pytest.raises(ValueError, match="channels should name the tasks semseg, depth, normals, found depth"):
        CCR(TASKS, channels={"depth": 8})
    with pytest.raises(ValueError, match="anchors of at least 3 and margin above 0, found 128, 2"):
        CCR(TASKS, anchors=2)


def test_it_trains_and_leaves_nothing_in_the_model(monkeypatch):
    monkeypatch.setitem(regularizers.REGULARIZERS, "ccr", CCR)
    data = partial.one_label(Rooms(TASKS, "train", size=SIZE, length=4), seed=0)

    def train(**settings):
        model = md.build_model("segnet", "shared", TASKS, width=0.125, seed=0)
        return fit(model, data, epochs=1, batch_size=2, precise_bn=False, regularizers=settings)

    contrasted, plain = train(ccr={"channels": 8, "weight": 1.0}), train()
    assert contrasted.state_dict().keys() == plain.state_dict().keys()
    assert weights_hash(contrasted) == weights_hash(train(ccr={"channels": 8, "weight": 1.0})) != weights_hash(plain)
    assert exported(contrasted) == exported(plain)


def exported(model: nn.Module) -> str:
    """What a network is when it is exported: every operation from an image to the logits of all tasks."""

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, image):
            return tuple(self.model(image).logits.values())

    program = torch.export.export(Logits().eval(), (torch.rand(1, 3, *SIZE),))
    return program.graph_module.code
