"""What supervises, and how it is averaged: HiTTs, equations (5) to (8), by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from multidense.balancing import LPS, Trunk
from multidense.objective import Objective, feature_loss
from multidense.ops import pool
from multidense.processes import Share
from multidense.tasks import Depth, Edges, SemanticSegmentation
from multidense.types import Batch, FeatureTarget, MultidenseError, Outputs, Target

SIZE = (4, 6)
SEMSEG, DEPTH = SemanticSegmentation(3), Depth()
TASKS = (SEMSEG, DEPTH)


def stack(*targets: Target) -> Target:
    return Target(torch.stack([t.value for t in targets]), torch.stack([t.valid for t in targets]))


def classes(value: int | None) -> Target:
    return SEMSEG.unlabelled(SIZE) if value is None else SEMSEG.encode(np.full(SIZE, value))


def metres(value: float | None) -> Target:
    return DEPTH.unlabelled(SIZE) if value is None else DEPTH.encode(np.full(SIZE, value))


@pytest.fixture
def batch() -> Batch:
    """Two images: the first labelled for classes, the second for depth; the other label of each was discovered."""
    image = torch.rand(2, 3, *SIZE)
    return Batch(
        image=image,
        clean=image,
        targets={"semseg": stack(classes(1), classes(None)), "depth": stack(metres(None), metres(2.0))},
        annotated={"semseg": torch.tensor([True, False]), "depth": torch.tensor([False, True])},
        discovered={"semseg": stack(classes(None), classes(2)), "depth": stack(metres(5.0), metres(None))},
        features={
            "depth": FeatureTarget(torch.zeros(2, 4, *SIZE), torch.tensor([0.25, 0.5])[:, None, None, None].expand(2, 1, *SIZE))
        },
        ids=("a", "b"),
    )


@pytest.fixture
def outputs() -> Outputs:
    """Undecided classes, a depth of one, and features that lie 2 from what was saved."""
    logits = {"semseg": torch.zeros(2, 3, *SIZE), "depth": torch.ones(2, 1, *SIZE)}
    return Outputs(
        logits={name: tensor.requires_grad_() for name, tensor in logits.items()},
        features={"depth": torch.full((2, 4, *SIZE), 2.0, requires_grad=True)},
    )


def plain_total(objective: Objective, outputs: Outputs, batch: Batch, tasks=TASKS) -> torch.Tensor:
    """What fixed balancing minimises."""
    terms, supervised = objective.terms(tasks, outputs, batch), objective.supervised(tasks, batch)
    losses = objective.gather(tasks, terms, supervised, Share(len(batch)))
    return losses.total(sum(losses.tasks.values()))


def gradients(objective: Objective, outputs: Outputs, batch: Batch, tasks=TASKS) -> list[torch.Tensor]:
    leaves = [*outputs.logits.values(), *outputs.features.values()]
    total = plain_total(objective, outputs, batch, tasks)
    return list(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))


def test_each_term_is_one_number_an_image(outputs, batch):
    terms = Objective().terms(TASKS, outputs, batch)
    log3 = math.log(3)
    assert terms["labelled"]["semseg"].tolist() == pytest.approx([log3, 0])
    assert terms["labelled"]["depth"].tolist() == [0, 1]
    assert terms["discovered"]["semseg"].tolist() == pytest.approx([0, log3])
    assert terms["discovered"]["depth"].tolist() == [4, 0]
    assert set(terms["features"]) == {"depth"}
    assert terms["features"]["depth"].tolist() == [4 * 0.25, 4 * 1.0], "by the confidence, and by one where annotated"


def test_the_total_is_the_mean_over_images_and_tasks(outputs, batch):
    objective = Objective(labelled=1.0, discovered=0.5, features=0.1)
    labelled, discovered, features = (math.log(3) + 1) / 2, (math.log(3) + 4) / 2, (1 + 4) / 2
    total = plain_total(objective, outputs, batch)
    assert total.item() == pytest.approx((labelled + 0.5 * discovered + 0.1 * features) / 2)


def test_a_task_weighs_what_it_says_on_labels_and_discovered_labels_alike(outputs, batch):
    heavy = (SEMSEG, replace(DEPTH, weight=3.0))
    objective = Objective(features=0.0)
    total = plain_total(objective, outputs, batch, heavy)
    assert total.item() == pytest.approx((math.log(3) + 3 * 1 / 2 + 3 * 4 / 2) / 2)


def test_auxiliary_logits_add_the_losses_of_labels_and_discovered_ones_by_their_weight(outputs, batch):
    early = replace(outputs, auxiliary={"semseg": [outputs.logits["semseg"]] * 2, "depth": []})
    without = plain_total(Objective(features=0), outputs, batch).item()
    for weight in (0.0, 0.5, 1.0):
        total = plain_total(Objective(features=0, auxiliary=weight), early, batch)
        assert total.item() == pytest.approx(without + weight * 2 * math.log(3) / 2)


@pytest.mark.parametrize("term", ["labelled", "discovered", "features"])
def test_a_weight_changes_the_gradient_and_zero_takes_the_term_out(term, outputs, batch):
    once, twice, never = (gradients(Objective(**{term: weight}), outputs, batch) for weight in (1.0, 2.0, 0.0))
    assert any(not torch.equal(a, b) for a, b in zip(once, twice, strict=True))
    for a, b, c in zip(once, twice, never, strict=True):
        assert torch.allclose(b - a, a - c, atol=1e-7)


def test_nothing_that_is_discovered_for_an_annotated_image_is_learnt(outputs, batch):
    everywhere = {"semseg": stack(classes(0), classes(2)), "depth": stack(metres(5.0), metres(99.0))}
    before = gradients(Objective(), outputs, batch)
    after = gradients(Objective(), outputs, replace(batch, discovered=everywhere))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_annotated_image_that_is_all_void_gets_no_discovered_label(outputs, batch):
    void = replace(
        batch,
        targets=batch.targets | {"semseg": stack(classes(None), classes(None))},
        discovered=batch.discovered | {"semseg": stack(classes(1), classes(None))},
    )
    terms = Objective().terms(TASKS, outputs, void)
    assert terms["labelled"]["semseg"].tolist() == terms["discovered"]["semseg"].tolist() == [0, 0]


def test_what_has_nothing_to_say_is_left_out(outputs, batch):
    nothing = {"semseg": stack(classes(None), classes(None)), "depth": stack(metres(None), metres(None))}
    assert set(Objective().terms(TASKS, outputs, replace(batch, discovered=nothing, features={}))) == {"labelled"}
    assert set(Objective(discovered=0, features=0).terms(TASKS, outputs, batch)) == {"labelled"}


def test_an_unlabelled_batch_costs_nothing_and_still_reaches_every_output(outputs, batch):
    nothing = {"semseg": stack(classes(None), classes(None)), "depth": stack(metres(None), metres(None))}
    empty = replace(batch, targets=nothing, discovered=nothing, features={})
    total = plain_total(Objective(), outputs, empty)
    found = torch.autograd.grad(total, list(outputs.logits.values()))
    assert total.item() == 0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in found)


def test_auxiliary_logits_are_supervised_like_the_last_ones_and_stand_beside(outputs, batch):
    further = replace(outputs, auxiliary={"depth": [torch.full((2, 1, *SIZE), 4.0), torch.full((2, 1, *SIZE), 5.0)]})
    objective = Objective(discovered=0.5, features=0)
    terms = objective.terms(TASKS, further, batch)
    assert terms["labelled"]["depth"].tolist() == [0, 1]
    assert terms["auxiliary"]["depth"].tolist() == [0, 2 + 3]
    assert terms["discovered_auxiliary"]["depth"].tolist() == [1 + 0, 0]
    losses = objective.gather(TASKS, terms, objective.supervised(TASKS, batch), Share(2))
    assert losses.tasks["depth"].item() == pytest.approx((1 + 0.5 * 4) / 2)
    assert losses.rest.item() == pytest.approx((5 + 0.5 * 1) / 2 / 2), "a mean over images and over tasks"


def test_loss_prioritisation_weighs_the_last_losses_and_leaves_auxiliary_ones_as_they_are(outputs, batch):
    further = replace(outputs, auxiliary={"depth": [torch.full((2, 1, *SIZE), 4.0, requires_grad=True)]})
    objective, lps = Objective(discovered=0, features=0), LPS(["semseg", "depth"], kappa=2.0)
    trunk = Trunk(torch.nn.Identity(), torch.nn.Identity())
    lps.epoch_end({"semseg": 1.0, "depth": 3.0})  # so that weights differ from one
    weight = dict(lps.told())
    assert min(weight.values()) > 1

    def backward(seen):
        losses = objective.gather(TASKS, objective.terms(TASKS, seen, batch), objective.supervised(TASKS, batch), Share(2))
        leaves = [*seen.logits.values(), *seen.auxiliary.get("depth", ())]
        total = losses.total(lps.total(losses, trunk))
        return losses, total, torch.autograd.grad(total, leaves)

    alone, without, plain = backward(outputs)
    beside, total, found = backward(further)
    assert without.item() == pytest.approx(sum(weight[n] * math.log(1 + 1e-6 + alone.tasks[n].item()) for n in weight) / 2)
    assert (total - without).item() == pytest.approx(2 / 2 / 2), (
        "|4 − 2| of one of two images, a mean over two tasks, unweighed"
    )
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=False))
    assert found[2].sum().item() == pytest.approx(1 / 2 / 2)
    assert beside.levels == alone.levels, "what is remembered of a task is its last loss"


def test_a_task_that_nothing_is_said_about_is_absent_and_still_reached(outputs, batch):
    nothing = stack(metres(None), metres(None))
    silent = replace(
        batch, targets=batch.targets | {"depth": nothing}, discovered=batch.discovered | {"depth": nothing}, features={}
    )
    objective = Objective()
    losses = objective.gather(
        TASKS, objective.terms(TASKS, outputs, silent), objective.supervised(TASKS, silent), Share(len(silent))
    )
    assert set(losses.tasks) == set(losses.levels) == {"semseg"}
    (found,) = torch.autograd.grad(losses.rest, [outputs.logits["depth"]])
    assert torch.equal(found, torch.zeros_like(found))


def test_levels_are_means_over_the_images_that_supervise(outputs, batch):
    labels_only = Objective(discovered=0.0, features=0.0)
    losses = labels_only.gather(
        TASKS, labels_only.terms(TASKS, outputs, batch), labels_only.supervised(TASKS, batch), Share(len(batch))
    )
    assert losses.tasks["depth"].item() == pytest.approx(1 / 2)
    assert losses.levels["depth"] == pytest.approx(1)
    assert losses.images == {"semseg": 1, "depth": 1}
    assert losses.means["labelled.depth"] == pytest.approx(1 / 2)


def test_terms_of_regularisers_are_added_as_they_are(outputs, batch):
    objective = Objective(features=0.0)
    terms, supervised = objective.terms(TASKS, outputs, batch), objective.supervised(TASKS, batch)
    alone = objective.gather(TASKS, terms, supervised, Share(2))
    beside = objective.gather(TASKS, terms | {"consistency": {"a": torch.tensor([3.0, 5.0])}}, supervised, Share(2))
    assert (beside.rest - alone.rest).item() == pytest.approx(4)
    assert beside.means["consistency.a"] == 4
    assert all(torch.equal(beside.tasks[name], alone.tasks[name]) for name in alone.tasks)


def test_a_batch_is_the_mean_of_its_images(outputs, batch):
    def alone(i):
        def cut(mapping):
            return {
                name: replace(x, **{k: v[i : i + 1] for k, v in vars(x).items() if isinstance(v, torch.Tensor)})
                for name, x in mapping.items()
            }

        one = Batch(
            batch.image[i : i + 1],
            batch.clean[i : i + 1],
            cut(batch.targets),
            {name: flags[i : i + 1] for name, flags in batch.annotated.items()},
            cut(batch.discovered),
            cut(batch.features),
            batch.ids[i : i + 1],
        )
        seen = Outputs(
            {name: x[i : i + 1] for name, x in outputs.logits.items()},
            features={name: x[i : i + 1] for name, x in outputs.features.items()},
        )
        return plain_total(Objective(), seen, one)

    together = plain_total(Objective(), outputs, batch)
    assert together.item() == pytest.approx((alone(0) + alone(1)).item() / 2)


# Features


def test_features_that_were_not_saved_weigh_nothing_even_where_annotated():
    features = torch.rand(2, 3, *SIZE, requires_grad=True)
    absent = FeatureTarget(torch.zeros(2, 3, *SIZE), torch.zeros(2, 1, *SIZE))
    loss = feature_loss(features, absent, torch.tensor([True, False]))
    loss.sum().backward()
    assert loss.tolist() == [0, 0]
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_features_are_averaged_over_channels_and_pixels_by_their_confidence():
    features, saved, trust = torch.rand(1, 3, *SIZE), torch.rand(1, 3, *SIZE), torch.rand(1, 1, *SIZE)
    squares = (features - saved).square()
    loss = [feature_loss(features, FeatureTarget(saved, trust), torch.tensor([known])).item() for known in (False, True)]
    assert loss == pytest.approx([(trust * squares).mean().item(), squares.mean().item()])


def test_coarse_features_are_compared_with_the_means_of_their_cells():
    features = torch.rand(1, 2, 4, 8)
    saved = FeatureTarget(torch.nn.functional.avg_pool2d(features, 4), torch.ones(1, 1, 1, 2), stride=4)
    assert feature_loss(features, saved, torch.tensor([False])).item() == pytest.approx(0, abs=1e-12)


def test_features_of_a_coarse_network_are_pooled_by_what_was_pooled_for_storing():
    features = torch.rand(1, 2, 5, 6)  # of an image of 20 × 24, at stride 4
    saved = FeatureTarget(pool(features, 2), torch.ones(1, 1, 3, 3), stride=8, own=4)
    assert feature_loss(features, saved, torch.tensor([False])).item() == pytest.approx(0, abs=1e-12)


def test_the_network_does_not_teach_the_one_before_it(outputs):
    saved = torch.rand(2, 4, *SIZE)
    loss = feature_loss(outputs.features["depth"], FeatureTarget(saved, torch.rand(2, 1, *SIZE)), torch.tensor([True, False]))
    loss.sum().backward()
    assert saved.grad is None
    assert (outputs.features["depth"].grad != 0).all()


def test_features_of_another_shape_are_refused_with_both_shapes():
    saved = FeatureTarget(torch.zeros(1, 8, *SIZE), torch.ones(1, 1, *SIZE))
    with pytest.raises(MultidenseError, match=r"expected \(8, 4, 6\), found \(3, 4, 6\); use the same decoder and width"):
        feature_loss(torch.zeros(1, 3, *SIZE), saved, torch.tensor([False]))


def test_a_decoder_without_task_features_is_named_with_the_remedy(outputs, batch):
    with pytest.raises(MultidenseError, match="no task features for 'depth'; set the weight of features to 0"):
        Objective().terms(TASKS, Outputs(outputs.logits), batch)


def test_a_task_that_is_only_heavier_moves_only_its_own_logits(batch, outputs):
    edges = Edges(weight=50.0)
    labelled = stack(edges.encode(np.eye(*SIZE)), edges.unlabelled(SIZE))
    three = replace(
        batch,
        targets=batch.targets | {"edges": labelled},
        discovered=batch.discovered | {"edges": stack(edges.unlabelled(SIZE), edges.unlabelled(SIZE))},
        annotated=batch.annotated | {"edges": torch.tensor([True, False])},
    )
    seen = replace(outputs, logits=outputs.logits | {"edges": torch.zeros(2, 1, *SIZE, requires_grad=True)})
    light, heavy = (gradients(Objective(), seen, three, (*TASKS, replace(edges, weight=w))) for w in (1.0, 50.0))
    assert torch.allclose(heavy[2], 50 * light[2])
    assert all(torch.equal(heavy[i], light[i]) for i in (0, 1, 3))
