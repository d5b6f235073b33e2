"""Cross-task paths: fitted on labels, frozen, and a loss that is zero where the prediction is the label."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import multidense as md
from multidense import regularizers
from multidense.data import Rooms, collate
from multidense.models.multitask import weights_hash
from multidense.task_paths import PathNetwork, TaskPaths, XTask, fit_paths, load_paths, path_losses
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


@pytest.fixture(scope="module")
def full() -> Batch:
    rooms = Rooms(TASKS, "train", size=SIZE, length=4)
    return collate([rooms[i] for i in range(4)], TASKS)


@pytest.fixture(scope="module")
def folder(full, tmp_path_factory):
    place = tmp_path_factory.mktemp("paths")
    fit_paths(TASKS, lambda epoch: [full], place, epochs=2, width=8)
    return place


def hidden(batch: Batch, name: str, image: int) -> Batch:
    """One label of one image is hidden, and its values are NaN or nonsense."""
    target = batch.targets[name]
    value, valid = target.value.clone(), target.valid.clone()
    value[image], valid[image] = math.nan if value.is_floating_point() else 999, False
    return replace(batch, targets=dict(batch.targets) | {name: Target(value, valid)})


def perfect(batch: Batch) -> Outputs:
    """Logits that are the labels."""
    sure = 200 * nn.functional.one_hot(batch.targets["semseg"].value[:, 0], 13).movedim(-1, 1).float()
    logits = {"semseg": sure, "depth": batch.targets["depth"].value, "normals": batch.targets["normals"].value}
    return Outputs(logits={name: each.clone().requires_grad_() for name, each in logits.items()})


def noisy(batch: Batch) -> Outputs:
    torch.manual_seed(4)
    logits = {name: (each / each.amax() + torch.randn_like(each)).detach() for name, each in perfect(batch).logits.items()}
    return Outputs(logits={name: each.requires_grad_() for name, each in logits.items()})


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (5, 4)])
def test_a_path_keeps_the_size(size):
    assert PathNetwork(3, 13, width=4)(torch.rand(1, 3, *size)).shape == (1, 13, *size)


def test_paths_learn_what_follows_from_a_label(full, tmp_path):
    torch.manual_seed(0)
    losses = []

    def batches(epoch):
        yield full
        losses.append(epoch)

    begun = TaskPaths(TASKS, width=8)
    before = {name: loss.item() for name, loss in path_losses(TASKS, begun, full).items()}
    fitted = fit_paths(TASKS, batches, tmp_path, epochs=15, width=8, lr=3e-3)
    after = {name: loss.item() for name, loss in path_losses(TASKS, fitted, full).items()}
    assert losses == list(range(15))
    assert set(after) == {f"{a} to {b}" for a in NAMES for b in NAMES if a != b}
    assert sum(after.values()) < 0.7 * sum(before.values())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["paths.json", "paths.safetensors"]


def test_fitting_is_deterministic_done_once_and_leaves_the_generator_alone(full, folder, tmp_path):
    state = torch.get_rng_state()
    again = fit_paths(TASKS, lambda epoch: [full], tmp_path, epochs=2, width=8)
    assert torch.equal(torch.get_rng_state(), state)
    kept = fit_paths(TASKS, lambda epoch: pytest.fail("it was fitted already"), folder, epochs=2, width=8)
    assert all(torch.equal(value, kept.state_dict()[name]) for name, value in again.state_dict().items())
    with pytest.raises(MultidenseError, match="holds paths fitted with another epochs: choose another folder"):
        fit_paths(TASKS, lambda epoch: [full], folder, epochs=3, width=8)


def test_only_pixels_with_both_labels_teach_a_path(full):
    torch.manual_seed(0)
    paths = TaskPaths(TASKS, width=4)
    losses = path_losses(TASKS, paths, hidden(full, "depth", 1))
    without = {name: Target(t.value[[0, 2, 3]], t.valid[[0, 2, 3]]) for name, t in full.targets.items()}
    wanted = path_losses(TASKS, paths, replace(full, targets=without))
    for name in losses:
        if "depth" in name:
            assert losses[name].item() == pytest.approx(wanted[name].item(), rel=1e-5)


def test_partial_labels_cannot_fit_paths(full, tmp_path):
    never = full
    for image in range(4):
        never = hidden(never, "depth", image)
    with pytest.raises(MultidenseError, match=r"no image is labelled for both tasks of the paths depth to normals.*use xtc"):
        fit_paths(TASKS, lambda epoch: [never], tmp_path, epochs=1, width=4)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_paths_or_with_others_is_named(folder, tmp_path):
    with pytest.raises(MultidenseError, match=r"no paths in .*: expected paths\.safetensors and paths\.json"):
        load_paths(tmp_path, TASKS)
    with pytest.raises(MultidenseError, match="does not hold the paths depth to semseg, normals to semseg, semseg to depth"):
        load_paths(folder, [md.SemanticSegmentation(7), DEPTH, NORMALS])
    for name in ("paths.json", "paths.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes()[:100] if name.endswith("s") else b'{"width": 8}')
    with pytest.raises(MultidenseError, match=r"paths\.safetensors cannot be read .*: fit the paths again"):
        load_paths(tmp_path, TASKS)
    with pytest.raises(ValueError, match="expected the folder of fitted paths, found none"):
        XTask(TASKS)
    with pytest.raises(MultidenseError, match="a width that is a multiple of 4"):
        fit_paths(TASKS, lambda epoch: [], tmp_path, width=6)
    assert set(load_paths(folder, [DEPTH, NORMALS])) == {"depth to normals", "normals to depth"}, "some of them will do"


def test_what_says_the_label_costs_nothing_and_what_does_not_does(full, folder):
    regularizer = XTask(TASKS, paths=folder)
    assert regularizer(Model(), [full], [perfect(full)])["paths"].abs().max() < 1e-5
    assert regularizer(Model(), [full], [noisy(full)])["paths"].min() > 0.01


class Sums(nn.Module):
    """A path that is the sum of the channels."""

    def forward(self, maps):
        return maps.sum(1, keepdim=True)


def test_the_loss_by_hand(full, folder):
    """Down for up: embedded (½, 0, ½) for (½, 1, ½), so the sums differ by 1, of one task in two."""
    pair = [DEPTH, NORMALS]
    regularizer = XTask(pair, paths=folder)
    for name in regularizer.paths:
        regularizer.paths[name] = Sums()
    up = torch.tensor([0.0, 1.0, 0.0])[None, :, None, None].expand(2, 3, *SIZE).clone()
    everywhere = torch.ones(2, 1, *SIZE, dtype=torch.bool)
    label = {"normals": Target(up, everywhere), "depth": Target(torch.ones(2, 1, *SIZE), ~everywhere)}
    annotated = {name: torch.tensor([True, True]) for name in label}
    batch = Batch(full.image[:2], full.clean[:2], label, annotated, {}, {}, full.ids[:2])
    said = {"normals": -up, "depth": torch.ones(2, 1, *SIZE)}
    assert regularizer(Model(pair), [batch], [Outputs(logits=said)])["paths"].tolist() == pytest.approx(
        [1 / 2, 1 / 2], abs=1e-5
    )


def test_it_moves_predictions_of_labelled_tasks_and_never_the_paths(full, folder):
    regularizer, out = XTask(TASKS, paths=folder), noisy(full)
    before = {name: value.clone() for name, value in regularizer.state_dict().items()}
    batch = hidden(full, "depth", 0)
    loss = regularizer(Model(), [batch], [out])["paths"]
    loss.sum().backward()
    moved = {name: (logits.grad.flatten(1).norm(dim=1) > 0).tolist() for name, logits in out.logits.items()}
    assert moved == {"semseg": [True] * 4, "depth": [False, True, True, True], "normals": [True] * 4}
    assert all(logits.grad.isfinite().all() for logits in out.logits.values())
    assert regularizer.groups() == []
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in regularizer.parameters())
    assert all(torch.equal(value, before[name]) for name, value in regularizer.state_dict().items())


def test_hidden_labels_change_nothing(full, folder):
    regularizer, out = XTask(TASKS, paths=folder), noisy(full)
    poisoned = hidden(full, "semseg", 2)
    target = full.targets["semseg"]
    clean = replace(full, targets=dict(full.targets) | {"semseg": Target(target.value, poisoned.targets["semseg"].valid)})
    assert torch.equal(*(regularizer(Model(), [batch], [out])["paths"] for batch in (clean, poisoned)))


def test_without_labels_and_with_one_task_it_is_zero(full, folder):
    nothing = {name: Target(target.value, torch.zeros_like(target.valid)) for name, target in full.targets.items()}
    empty = replace(full, targets=nothing)
    assert XTask(TASKS, paths=folder)(Model(), [empty], [noisy(full)])["paths"].tolist() == [0] * 4
    assert XTask([DEPTH], paths=folder)(Model([DEPTH]), [full], [noisy(full)])["paths"].tolist() == [0] * 4


def test_it_trains_and_leaves_nothing_in_the_model(folder, monkeypatch):
    monkeypatch.setitem(regularizers.REGULARIZERS, "x-task", XTask)
    rooms = Rooms(TASKS, "train", size=SIZE, length=4)

    def train(**settings):
        model = md.build_model("segnet", "shared", TASKS, width=0.125, seed=0)
        return fit(model, rooms, epochs=1, batch_size=2, precise_bn=False, regularizers=settings)

    crossed = train(**{"x-task": {"paths": str(folder)}})
    assert crossed.state_dict().keys() == train().state_dict().keys()
    assert weights_hash(crossed) != weights_hash(train())
