"""Batches: every task present; what is not there is valid nowhere."""

import pytest
import torch

from multidense.data import collate
from multidense.tasks import Depth, Edges, HumanParts, Normals, Saliency, SemanticSegmentation
from multidense.types import FeatureTarget, MultidenseError, Sample, Target

TASKS = (SemanticSegmentation(3), HumanParts(7), Depth(), Normals(), Edges(), Saliency())
SIZE = (4, 6)


def labelled(task):
    return Target(task.fill(SIZE).clone(), torch.ones(1, *SIZE, dtype=torch.bool))


def sample(name, targets=(), discovered=(), features=None, size=SIZE, **more):
    return Sample(
        image=torch.rand(3, *size),
        targets={task.name: labelled(task) for task in targets},
        discovered={task.name: labelled(task) for task in discovered},
        features=features or {},
        id=name,
        **more,
    )


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_missing_label_is_valid_nowhere(task):
    batch = collate([sample("a", [task]), sample("b", discovered=[task]), sample("c")], TASKS)
    assert batch.annotated[task.name].tolist() == [True, False, False]
    assert batch.targets[task.name].valid.flatten(1).all(1).tolist() == [True, False, False]
    assert batch.targets[task.name].valid.flatten(1).any(1).tolist() == [True, False, False]
    assert batch.discovered[task.name].valid.flatten(1).any(1).tolist() == [False, True, False]
    assert batch.targets[task.name].value.dtype == labelled(task).value.dtype
    assert batch.targets[task.name].value.shape == (3, task.value_channels, *SIZE)


def test_every_task_is_present_even_if_nobody_has_it():
    batch = collate([sample("a")], TASKS)
    assert set(batch.targets) == set(batch.discovered) == set(batch.annotated) == {task.name for task in TASKS}
    assert batch.features == {}
    assert len(batch) == 1
    assert batch.ids == ["a"]


def test_annotated_is_not_the_same_as_valid_somewhere():
    blank = Sample(torch.rand(3, *SIZE), {"depth": Depth().unlabelled(SIZE)}, "a")
    batch = collate([blank], [Depth()])
    assert batch.annotated["depth"].all()
    assert not batch.targets["depth"].valid.any()


def test_targets_of_other_tasks_are_left_out():
    assert set(collate([sample("a", TASKS)], [Depth()]).targets) == {"depth"}


def test_the_clean_view_is_the_image_where_there_is_no_other():
    one, two = sample("a"), sample("b", clean=torch.zeros(3, *SIZE))
    batch = collate([one, two], [Depth()])
    assert torch.equal(batch.clean, torch.stack([one.image, torch.zeros(3, *SIZE)]))


def test_features_that_a_sample_has_not_have_no_confidence():
    feature = FeatureTarget(torch.ones(5, 2, 3), torch.ones(1, 2, 3), stride=2)
    batch = collate([sample("a"), sample("b", features={"depth": feature})], TASKS)
    assert set(batch.features) == {"depth"}
    assert batch.features["depth"].stride == 2
    assert batch.features["depth"].value.flatten(1).sum(1).tolist() == [0, 30]
    assert batch.features["depth"].confidence.flatten(1).sum(1).tolist() == [0, 6]


def test_features_of_two_strides_are_refused():
    features = [{"depth": FeatureTarget(torch.ones(5, 2, 3), torch.ones(1, 2, 3), stride)} for stride in (2, 4)]
    with pytest.raises(MultidenseError, match=r"stride 2.*stride 4"):
        collate([sample("a", features=features[0]), sample("b", features=features[1])], TASKS)


def test_images_of_two_sizes_are_refused():
    with pytest.raises(MultidenseError, match=r"4x6 \('a'\) and 8x6 \('b'\). Set `size`"):
        collate([sample("a"), sample("b", size=(8, 6))], TASKS)


def test_weights_are_one_where_a_sample_has_none():
    task = TASKS[0]
    plain = labelled(task)
    both = (plain, Target(plain.value, plain.valid, torch.full((1, *SIZE), 0.25)))
    samples = [Sample(torch.zeros(3, *SIZE), {}, str(i), discovered={task.name: one}) for i, one in enumerate(both)]
    weight = collate(samples, TASKS).discovered[task.name].weight
    assert weight.shape == (2, 1, *SIZE)
    assert weight.mean((1, 2, 3)).tolist() == [1.0, 0.25]
    assert collate(samples[:1], TASKS).discovered[task.name].weight is None
