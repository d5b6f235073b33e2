"""The six tasks as a family: what every one of them must do, and then what is peculiar to each."""

import json
import math
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from multidense import tasks
from multidense.codebook import sphere
from multidense.ops import Geometry
from multidense.tasks import TASKS, Depth, Edges, HumanParts, Normals, Saliency, SemanticSegmentation, from_spec
from multidense.types import MultidenseError, Target

SIZE = (6, 8)
BINNED = Depth(bins=8, low=0.5, high=8.0)
CENTRED = Normals(centers=12, spread="hemisphere")
FAMILY = {
    "semseg": SemanticSegmentation(5),
    "parts": HumanParts(),
    "depth": Depth(),
    "depth, bins": BINNED.with_codebook(BINNED.fit_codebook([], seed=0)),
    "normals": Normals(),
    "normals, l1": Normals(measure="l1"),
    "normals, centres": CENTRED.with_codebook(CENTRED.fit_codebook([], seed=0)),
    "edges": Edges(),
    "saliency": Saliency(),
    "saliency, softmax": Saliency(2),
}
MEASURED = {name: task for name, task in FAMILY.items() if not isinstance(task, SemanticSegmentation)}
each_task = pytest.mark.parametrize("task", FAMILY.values(), ids=FAMILY)
each_measured_task = pytest.mark.parametrize("task", MEASURED.values(), ids=MEASURED)
each_task_with_a_codebook = pytest.mark.parametrize("task", [FAMILY["depth, bins"], FAMILY["normals, centres"]], ids=repr)

GEOMETRIES = {
    "smaller": Geometry(SIZE, (3, 5)),
    "larger": Geometry(SIZE, (13, 11)),
    "near": Geometry(SIZE, SIZE, zoom=1.7, centre=(0.4, 0.7)),
    "far": Geometry(SIZE, SIZE, zoom=0.5),
    "mirrored": Geometry(SIZE, SIZE, flip=True),
    "turned": Geometry(SIZE, SIZE, degrees=33.0),
    "all at once": Geometry(SIZE, (9, 7), zoom=1.3, centre=(0.6, 0.4), degrees=-20.0, flip=True),
}


def draw(task, rng, size=SIZE, share=0.7) -> Target:
    """A random target, valid at a `share` of its pixels; values of a task with a codebook are centres."""
    valid = rng.random(size) < share
    if isinstance(task, SemanticSegmentation):
        return task.encode(rng.integers(0, task.classes, size), valid)
    if isinstance(task, Edges | Saliency):
        return task.encode(rng.integers(0, 2, size), valid)
    if task.codebook is not None:
        chosen = task.codebook.numpy()[rng.integers(0, task.codebook_size, size)]
        return task.encode(chosen[..., 0] if isinstance(task, Depth) else chosen, valid)
    return task.encode(rng.uniform(0.5, 8, size) if isinstance(task, Depth) else rng.normal(size=(*size, 3)), valid)


def stack(*targets: Target) -> Target:
    return Target(torch.stack([t.value for t in targets]), torch.stack([t.valid for t in targets]))


def perfect(task, target: Target) -> torch.Tensor:
    """Logits that say what a batched target says, and are sure of it."""
    if isinstance(task, SemanticSegmentation):
        return 60 * F.one_hot(target.value[:, 0], task.classes).movedim(-1, 1).float()
    if isinstance(task, Edges | Saliency):
        yes = 60 * target.value - 30
        return torch.cat([-yes, yes], 1) if task.channels == 2 else yes
    if task.codebook is not None:
        return 200 * F.one_hot(task.assign(target.value), task.codebook_size).movedim(-1, 1).float()
    return target.value


def noise(task, images=2, size=SIZE) -> torch.Tensor:
    return 2 * torch.randn(images, task.channels, *size)


def is_legal(task, value: torch.Tensor) -> bool:
    if isinstance(task, SemanticSegmentation):
        return value.dtype == torch.long and bool(((value >= 0) & (value < task.classes)).all())
    if not value.isfinite().all():
        return False
    if isinstance(task, Depth):
        return bool((value > 0).all())
    if isinstance(task, Normals):
        return bool(((value.norm(dim=-3) - 1).abs() < 1e-5).all())
    return bool(((value >= 0) & (value <= 1)).all())


def same(a: Target, b: Target, tolerance: float = 0.0) -> bool:
    difference = (a.value.double() - b.value.double()).abs()
    return torch.equal(a.valid, b.valid) and bool((difference <= tolerance).all())


# Values


@each_task
def test_what_nothing_is_known_about_is_legal_and_not_valid(task):
    target = task.unlabelled(SIZE)
    assert target.value.shape == (task.value_channels, *SIZE)
    assert is_legal(task, target.value)
    assert not target.valid.any()


@each_task
def test_a_target_is_legal_everywhere(task, rng):
    target = draw(task, rng)
    assert is_legal(task, target.value)
    assert target.valid.dtype == torch.bool
    assert 0 < target.valid.sum() < target.valid.numel()


@each_task
def test_a_target_does_not_change_with_the_arrays_it_came_from(task, rng):
    shape = (*SIZE, 3) if task.value_channels == 3 else SIZE
    array, valid = np.ones(shape, np.float32 if task in MEASURED.values() else np.int64), np.ones(SIZE, bool)
    target = task.encode(array, valid)
    before = target.value.clone()
    array[:], valid[:] = 0, False
    assert torch.equal(target.value, before)
    assert target.valid.all()


@each_measured_task
@settings(max_examples=25)
@given(data=st.data())
def test_garbage_is_not_valid_and_nothing_illegal_is_stored(task, data):
    shape = (3, 4, 3) if task.value_channels == 3 else (3, 4)
    array = data.draw(arrays.arrays(np.float32, shape, elements=st.floats(width=32)))
    target = task.encode(array)
    assert is_legal(task, target.value)
    finite = np.isfinite(array).all(-1) if array.ndim == 3 else np.isfinite(array)
    assert not (target.valid[0].numpy() & ~finite).any()


@each_measured_task
def test_values_that_are_not_numbers_are_not_valid(task):
    array = np.full((*SIZE, 3) if task.value_channels == 3 else SIZE, np.nan)
    assert not task.encode(array).valid.any()
    assert is_legal(task, task.encode(array).value)


@pytest.mark.parametrize("array", [[[0, 5]], [[-1, 4]], [[0.0, math.nan]], [[0.5, 1.0]]], ids=str)
def test_class_ids_that_do_not_exist_are_refused(array):
    with pytest.raises(ValueError, match=r"class ids must lie in 0 … 4, found"):
        SemanticSegmentation(5).encode(np.array(array))


def test_class_ids_do_not_matter_where_they_are_not_believed():
    array = np.array([[255, -1, 3]])
    target = SemanticSegmentation(5).encode(array, array == 3)
    assert target.value.tolist() == [[[0, 0, 3]]]
    assert target.valid.tolist() == [[[False, False, True]]]


def test_a_depth_of_zero_or_less_is_not_valid():
    assert Depth().encode(np.array([[2.5, 0.0, -1.0, np.inf]])).valid.tolist() == [[[True, False, False, False]]]


def test_normals_are_made_unit_and_the_zero_vector_is_not_valid():
    target = Normals().encode(np.array([[[0, 3, 4], [0, 0, 0]]]))
    assert target.valid.tolist() == [[[True, False]]]
    assert target.value[:, 0].T.tolist() == pytest.approx(np.array([[0, 0.6, 0.8], [0, 0, 1]]))


@pytest.mark.parametrize("huge", [1e30, 3e38])
def test_very_long_normals_are_made_unit_too(huge):
    target = Normals().encode(np.full((1, 1, 3), huge, np.float32))
    assert target.valid.all()
    assert target.value.flatten().tolist() == pytest.approx([3**-0.5] * 3)


# Files


@each_task
def test_a_file_gives_back_what_was_written(task, rng, tmp_path):
    target = draw(task, rng)
    path = tmp_path / "deep" / f"label{task.file_suffix}"
    task.write(path, target.value, target.valid)
    back = task.read(path)
    assert torch.equal(back.valid, target.valid)
    assert is_legal(task, back.value)
    step = {Depth: 0.5e-3 + 1e-6, Normals: 1 / 127.5}.get(type(task), 0.0)
    assert same(back, Target(torch.where(target.valid, target.value, back.value), target.valid), step)
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing else is left beside it"


@each_task
def test_writing_without_saying_where_believes_all(task, rng, tmp_path):
    task.write(tmp_path / "label.png", draw(task, rng).value)
    assert task.read(tmp_path / "label.png").valid.all()


@pytest.mark.parametrize("task", [Edges(), Saliency()], ids=repr)
def test_every_probability_survives_its_file_to_a_step_and_a_half(task, tmp_path):
    value = torch.linspace(0, 1, 1021)[None, None]
    task.write(tmp_path / "label.png", value)
    back = task.read(tmp_path / "label.png")
    assert back.valid.all()
    assert same(back, Target(value, back.valid), 1.5 / 255), "one step of the 255 means 'not valid', so its neighbour stands in"


def test_normals_survive_their_file_to_half_a_degree(tmp_path):
    task = Normals()
    target = Target(sphere(500, hemisphere=False).T[:, None], torch.ones(1, 1, 500, dtype=torch.bool))
    task.write(tmp_path / "label.png", target.value)
    back = task.read(tmp_path / "label.png")
    assert back.valid.all()
    assert task.distance(back.value[None], target.value[None]).max() < 0.5


def test_a_class_map_is_a_palette_file_that_others_can_read(tmp_path):
    task = SemanticSegmentation(5)
    target = task.encode(np.array([[0, 4], [2, 0]]), np.array([[True, True], [True, False]]))
    task.write(tmp_path / "label.png", target.value, target.valid)
    with Image.open(tmp_path / "label.png") as image:
        assert image.mode == "P"
        assert np.asarray(image).tolist() == [[0, 4], [2, 255]]


def test_a_depth_map_is_in_millimetres(tmp_path):
    Depth().write(tmp_path / "label.png", torch.tensor([[[2.5, 0.0005]]]), torch.tensor([[[True, True]]]))
    with Image.open(tmp_path / "label.png") as image:
        assert np.asarray(image).tolist() == [[2500, 1]], "what is valid is never written as the zero that is not"


# Geometry


@each_task
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_a_warped_target_is_legal_everywhere(task, geometry, rng):
    warped = task.warp(draw(task, rng), geometry)
    assert warped.value.shape == (task.value_channels, *geometry.size)
    assert warped.valid.shape == (1, *geometry.size)
    assert warped.valid.dtype == torch.bool
    assert is_legal(task, warped.value)


@each_task
def test_the_same_geometry_changes_nothing(task, rng):
    target = draw(task, rng)
    assert same(task.warp(target, Geometry(SIZE, SIZE)), target)


@each_task
def test_nothing_outside_the_image_is_valid(task, rng):
    valid = task.zoom(draw(task, rng, share=1.1), 0.5).valid[0]
    assert valid[2:4, 2:6].all()
    assert not valid[[0, -1]].any()
    assert not valid[:, [0, -1]].any()


@each_task
def test_flipping_twice_changes_nothing(task, rng):
    target = draw(task, rng)
    once = task.flip(target)
    assert torch.equal(once.valid, target.valid.flip(-1))
    assert same(task.flip(once), target)


@each_task
def test_four_quarter_turns_change_nothing(task, rng):
    target = draw(task, rng, size=(7, 7))
    turned = target
    for _ in range(4):
        turned = task.rotate(turned, 90.0)
    assert same(turned, target, 1e-5)


@each_task
def test_a_quarter_turn_is_counter_clockwise(task, rng):
    target = draw(task, rng, size=(6, 6))
    turned = task.rotate(target, 90.0)
    assert torch.equal(turned.valid, target.valid.rot90(1, (-2, -1)))
    if not isinstance(task, Normals):
        assert torch.equal(turned.value, target.value.rot90(1, (-2, -1)))


@each_task
def test_a_crop_is_a_window_pixel_for_pixel(task, rng):
    target = draw(task, rng)
    crop = task.crop(target, 1, 3, (4, 5))
    assert torch.equal(crop.value, target.value[:, 1:5, 3:8])
    assert torch.equal(crop.valid, target.valid[:, 1:5, 3:8])


@each_task
def test_a_doubled_target_halves_to_itself(task, rng):
    target = draw(task, rng)
    assert same(task.resize(task.resize(target, (3 * SIZE[0], 3 * SIZE[1])), SIZE), target)


def test_flipped_normals_point_the_other_way_along_x():
    target = Normals().encode(np.array([[[0.6, 0, 0.8], [0, 1, 0]]]))
    assert Normals().flip(target).value[:, 0].T.tolist() == pytest.approx(np.array([[0, 1, 0], [-0.6, 0, 0.8]]))


def test_normals_turn_with_the_image():
    right = Target(torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 5, 5), torch.ones(1, 5, 5, dtype=torch.bool))
    up = torch.tensor([0.0, 1, 0])[:, None, None].expand(3, 5, 5)
    assert torch.allclose(Normals().rotate(right, 90.0).value, up, atol=1e-6)


@pytest.mark.parametrize("factor", [2.0, 0.5, 1.2])
def test_zoomed_depth_is_nearer(factor):
    target = Depth().encode(np.full(SIZE, 6.0))
    zoomed = Depth().zoom(target, factor)
    assert zoomed.valid.any()
    assert torch.allclose(zoomed.value[zoomed.valid], torch.tensor(6.0 / factor))


def test_a_resized_depth_is_as_far_as_before():
    assert torch.equal(Depth().resize(Depth().encode(np.full(SIZE, 6.0)), (12, 16)).value, torch.full((1, 12, 16), 6.0))


# Learning


@each_task
def test_an_unlabelled_image_costs_nothing_and_teaches_nothing(task):
    logits = noise(task).requires_grad_()
    loss = task.loss(logits, stack(task.unlabelled(SIZE), task.unlabelled(SIZE)))
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.0]
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@each_task
def test_only_valid_pixels_teach(task, rng):
    target = stack(draw(task, rng, share=0.5))
    logits = noise(task, 1).requires_grad_()
    task.loss(logits, target).sum().backward()
    taught = logits.grad.abs().sum(1, keepdim=True) > 0
    assert logits.grad.isfinite().all()
    assert torch.equal(taught, target.valid)


@each_task
def test_values_that_are_not_valid_do_not_matter(task, rng):
    target, other = (stack(draw(task, rng, share=1.1)) for _ in range(2))
    valid = torch.rand(1, 1, *SIZE) < 0.5
    mixed = Target(torch.where(valid, target.value, other.value), valid)
    logits = noise(task, 1)
    assert torch.equal(task.loss(logits, mixed), task.loss(logits, Target(target.value, valid)))


@each_task
def test_a_weight_says_how_much_each_pixel_teaches(task, rng):
    target = stack(draw(task, rng, share=1.1))
    logits = noise(task, 1)
    whole = task.loss(logits, target)
    half = Target(target.value, target.valid, torch.full((1, 1, *SIZE), 0.5))
    assert torch.allclose(task.loss(logits, half), whole / 2)
    left = torch.arange(SIZE[1]).expand(1, 1, *SIZE) < 3
    logits.requires_grad_()
    task.loss(logits, Target(target.value, target.valid, left.float())).sum().backward()
    assert torch.equal(logits.grad.abs().sum(1, keepdim=True) > 0, left)


@each_task
def test_soft_targets_that_are_sure_teach_what_hard_ones_do(task, rng):
    target = stack(draw(task, rng, share=0.5))
    soft = task.probabilities(perfect(task, target))
    if soft is None:
        assert not task.codebook_size
        return
    logits = noise(task, 1)
    assert torch.allclose(soft.sum(1), torch.ones(1, *SIZE))
    assert torch.allclose(
        task.loss(logits, Target(target.value, target.valid, None, soft)), task.loss(logits, target), atol=1e-5
    )
    unsure = torch.full_like(soft, 1 / soft.shape[1])
    assert not torch.allclose(task.loss(logits, Target(target.value, target.valid, None, unsure)), task.loss(logits, target))


@each_task
def test_a_weight_moves_with_its_target(task, rng):
    target = draw(task, rng, share=1.1)
    weighted = Target(target.value, target.valid, torch.rand(1, *SIZE))
    assert torch.equal(task.flip(weighted).weight, weighted.weight.flip(-1))
    assert torch.equal(task.crop(weighted, 1, 2, (3, 4)).weight, weighted.weight[:, 1:4, 2:6])
    assert same(task.flip(weighted), task.flip(target))
    assert task.flip(target).weight is None


@each_task
def test_every_value_has_a_category(task, rng):
    category = task.category(stack(draw(task, rng), draw(task, rng)).value)
    assert category.shape == (2, *SIZE)
    assert 0 <= category.min() <= category.max() < task.categories


@each_task
def test_the_loss_of_an_image_does_not_depend_on_its_batch_mates(task, rng):
    targets = [draw(task, rng, share=share) for share in (0.2, 0.9, -1.0, 0.6)]
    logits = noise(task, len(targets))
    together = task.loss(logits, stack(*targets))
    alone = torch.cat([task.loss(logits[i : i + 1], stack(target)) for i, target in enumerate(targets)])
    assert together.shape == (4,)
    assert torch.allclose(together, alone, rtol=1e-6, atol=0)


@each_task
def test_the_truth_costs_less_than_noise(task, rng):
    target = stack(draw(task, rng), draw(task, rng))
    assert (task.loss(perfect(task, target), target) < task.loss(noise(task), target)).all()
    assert torch.allclose(task.loss(perfect(task, target), target), torch.zeros(2), atol=1e-5)


@each_task
@pytest.mark.parametrize("level", [0.0, 1e4, -1e4])
def test_extreme_logits_give_finite_losses_and_gradients_and_legal_values(task, level, rng):
    logits = torch.full((1, task.channels, *SIZE), level, requires_grad=True)
    loss = task.loss(logits, stack(draw(task, rng)))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()
    assert is_legal(task, task.decode(logits.detach()))


@each_task
def test_decoded_values_are_legal(task):
    value = task.decode(noise(task))
    assert value.shape == (2, task.value_channels, *SIZE)
    assert is_legal(task, value)


@each_task
def test_the_truth_decodes_to_itself(task, rng):
    target = stack(draw(task, rng))
    assert task.distance(task.decode(perfect(task, target)), target.value)[target.valid].max() < 0.05


@each_task
def test_confidence_lies_between_zero_and_one(task, rng):
    logits = noise(task)
    confidence = task.confidence(logits)
    assert confidence.shape == (2, 1, *SIZE)
    assert confidence.min() >= 0
    assert confidence.max() <= 1
    sure = task.confidence(perfect(task, stack(draw(task, rng))))
    assert sure.min() > 0.999
    assert sure.max() <= 1


@each_task
def test_only_what_is_classified_has_a_confidence(task):
    undecided = task.confidence(torch.zeros(1, task.channels, *SIZE))
    expected = 0.0 if isinstance(task, Edges | Saliency) else 1 / task.channels
    assert torch.allclose(undecided, torch.tensor(expected if task.has_confidence else 1.0))


@each_task
def test_hardening_twice_is_hardening_once(task):
    once = task.harden(task.decode(noise(task)))
    assert torch.equal(task.harden(once), once)
    assert is_legal(task, once)


# Measuring


@each_task
def test_a_value_has_no_distance_to_itself(task, rng):
    a, b = stack(draw(task, rng, share=1.1)), stack(draw(task, rng, share=1.1))
    assert task.distance(a.value, a.value).abs().max() < 0.05
    apart = task.distance(a.value, b.value)
    assert apart.shape == (1, 1, *SIZE)
    assert apart.min() >= 0
    assert apart.max() > task.tolerance


@each_task
def test_the_truth_scores_perfectly(task, rng):
    target = stack(draw(task, rng, size=(24, 24)), draw(task, rng, size=(24, 24)))
    if isinstance(task, Edges):  # noise is not thin
        target = stack(task.encode(np.eye(24)), task.encode(np.eye(24)[::-1]))
    meter = task.meter()
    meter.update(perfect(task, target), target)
    scores = meter.compute()
    for score in task.scores:
        assert scores[score.name] == pytest.approx(100.0 if score.unit == "%" else 0.0, abs=0.02), score.name


@each_task
def test_a_meter_computes_the_scores_that_the_task_names(task, rng):
    meter = task.meter()
    meter.update(noise(task), stack(draw(task, rng), draw(task, rng)))
    scores = meter.compute()
    assert [score.name for score in task.scores] == [name for name in scores if name in {s.name for s in task.scores}]
    assert all(math.isfinite(value) for value in scores.values())


@each_task
def test_every_pixel_belongs_to_a_named_group(task, rng):
    groups = task.groups(stack(draw(task, rng)).value)
    assert groups.shape == (1, *SIZE)
    assert groups.min() >= 0
    assert groups.max() < len(task.group_names)


# Looks


@each_task
def test_a_picture_is_three_channels_of_bytes_and_hatches_what_is_not_valid(task, rng):
    target = draw(task, rng)
    whole, hatched = task.picture(target.value), task.picture(target.value, target.valid)
    assert whole.shape == hatched.shape == (*SIZE, 3)
    assert whole.dtype == hatched.dtype == np.uint8
    assert np.isin(hatched[~target.valid[0].numpy()], (150, 205)).all()
    assert task.picture(*(lambda t: (t.value, t.valid))(task.unlabelled(SIZE))).shape == (*SIZE, 3)


# Identity


@each_task
def test_a_task_cannot_be_changed(task):
    with pytest.raises(FrozenInstanceError):
        task.weight = 2.0


@each_task
def test_a_task_is_built_again_from_its_spec(task):
    again = from_spec(json.loads(json.dumps(task.spec())))
    assert again == task
    assert hash(again) == hash(task)
    assert again.codebook is None


@each_task
def test_a_task_prints_as_the_expression_that_builds_it(task):
    assert eval(repr(task), vars(tasks)) == task


def test_every_setting_makes_another_task_and_survives_spec_and_repr():
    told = {"weight": 3.0, "bins": 7, "low": 0.1, "high": 3.0, "file_scale": 256.0, "close": 0.2, "regression": 1.0}
    told |= {"classification": 0.1, "centers": 9, "spread": "sphere", "measure": "l1", "positive": 0.9, "classes": 6}
    told |= {"channels": 2, "under_zoom": "multiply", "max_dist": 0.011, "nms": True, "thresholds": 30, "both": True}
    for kind in TASKS.values():
        plain = kind(4) if kind is SemanticSegmentation else kind()
        for setting in (f.name for f in fields(kind) if f.compare):
            changed = from_spec(plain.spec() | {setting: told[setting]})
            assert changed != plain, setting
            assert from_spec(changed.spec()) == changed
            assert eval(repr(changed), vars(tasks)) == changed


def test_class_names_survive_the_spec():
    task = SemanticSegmentation(2, names=("wall", "floor"))
    assert from_spec(json.loads(json.dumps(task.spec()))).names == ("wall", "floor")
    assert task.group_names == ("wall", "floor")


def test_tasks_are_listed_by_their_own_names():
    assert {name: kind.name for name, kind in TASKS.items()} == {name: name for name in TASKS}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"task": "semsag", "classes": 3}, r"unknown task 'semsag' \(did you mean 'semseg'\?\)"),
        ({"classes": 3}, "unknown task None"),
        ({"task": "depth", "bin": 30}, r"task depth: unknown setting 'bin' \(did you mean 'bins'\?\)"),
        ({"task": "depth", "codebook": [1.0]}, "task depth: unknown setting 'codebook'"),
        ({"task": "semseg"}, "task semseg: .*classes"),
        ({"task": "semseg", "classes": 1}, r"classes must lie in 2 … 254, found 1"),
        ({"task": "semseg", "classes": 255}, r"classes must lie in 2 … 254, found 255"),
        ({"task": "semseg", "classes": 3, "names": ["a"]}, "expected 3 class names, found 1"),
        ({"task": "depth", "bins": 1}, "bins must be at least 2, or None to regress, found 1"),
        ({"task": "normals", "centers": 0}, "centers must be at least 2, or None to regress, found 0"),
        ({"task": "saliency", "channels": 3}, r"channels must be 1 \(sigmoid\) or 2 \(softmax\), found 3"),
    ],
)
def test_a_mistaken_setting_is_refused_by_name(spec, message):
    with pytest.raises(MultidenseError, match=message):
        from_spec(spec)


# Losses and decoding of each


def test_undecided_classes_cost_the_logarithm_of_their_number():
    task = SemanticSegmentation(13)
    target = stack(task.encode(np.array([[0, 12], [3, 3]])))
    assert task.loss(torch.zeros(1, 13, 2, 2), target).item() == pytest.approx(math.log(13))


def test_depth_costs_its_mean_absolute_error_over_valid_pixels():
    target = stack(Depth().encode(np.array([[1.0, 2.0, 0.0]])))
    assert Depth().loss(torch.tensor([[[[1.5, 1.0, 9.0]]]]), target).item() == pytest.approx(0.75)


def test_normals_cost_one_minus_the_cosine_or_the_distance_of_unit_vectors():
    target = stack(Normals().encode(np.array([[[0, 0, 1], [1, 0, 0]]])))
    logits = torch.tensor([[0, 0, 5.0], [0, 3, 0]]).T[None, :, None]
    assert Normals().loss(logits, target).item() == pytest.approx(0.5)
    assert Normals(measure="l1").loss(logits, target).item() == pytest.approx(1.0)


def test_an_edge_weighs_nineteen_times_what_the_rest_does():
    target = stack(Edges().encode(np.array([[1, 0, 0, 0]])))
    assert Edges().loss(torch.zeros(1, 1, 1, 4), target).item() == pytest.approx(math.log(2) * (0.95 + 3 * 0.05) / 4)


@pytest.mark.parametrize("task", [Saliency(), Saliency(2)], ids=repr)
def test_what_is_salient_weighs_as_much_as_the_rest_of_its_image(task):
    target = stack(task.encode(np.array([[1, 0, 0, 0]])))
    logits = torch.zeros(1, task.channels, 1, 4, requires_grad=True)
    task.loss(logits, target).sum().backward()
    pull = logits.grad[0, -1, 0]
    assert pull[0].item() == pytest.approx(-pull[1:].sum().item())


def test_an_image_without_a_salient_object_still_teaches():
    logits = torch.zeros(1, 1, *SIZE, requires_grad=True)
    Saliency().loss(logits, stack(Saliency().encode(np.zeros(SIZE)))).sum().backward()
    assert (logits.grad > 0).all()


@each_task_with_a_codebook
def test_with_a_codebook_the_loss_is_a_tenth_of_the_regression_and_the_cross_entropy(task, rng):
    target, logits = stack(draw(task, rng, share=1.1)), noise(task, 1)
    entropy = F.cross_entropy(logits, task.assign(target.value))
    regression = task.regression_loss(task.estimate(logits), target)[0]
    assert task.loss(logits, target)[0].item() == pytest.approx((0.1 * regression + entropy).item(), rel=1e-5)


@each_task_with_a_codebook
def test_a_sure_centre_decodes_to_itself(task):
    sure = 200 * torch.eye(task.codebook_size)[None, :, None, :]
    assert torch.allclose(task.decode(sure)[0, :, 0].T, task.codebook, atol=1e-6)


@pytest.mark.parametrize("task", [Depth(bins=4), Normals(centers=4)], ids=repr)
def test_a_codebook_that_was_not_fitted_is_asked_for(task):
    with pytest.raises(RuntimeError, match=f"codebook of '{task.name}' has not been fitted"):
        task.decode(torch.zeros(1, 4, 2, 2))


def test_a_task_without_a_codebook_has_none_to_fit():
    with pytest.raises(TypeError, match="'semseg' has no codebook to fit"):
        SemanticSegmentation(3).fit_codebook([], seed=0)


@each_task_with_a_codebook
def test_binding_a_codebook_leaves_the_task_as_it_was(task):
    unbound = task.with_codebook(None)
    assert unbound.codebook is None
    assert task.codebook is not None
    assert unbound == task


@pytest.mark.parametrize("task", [Depth(bins=4), Normals(centers=4)], ids=repr)
def test_a_codebook_is_fitted_on_valid_pixels_only_and_repeats_itself(task, rng):
    targets = [draw(task, rng, share=0.5) for _ in range(3)]
    poisoned = [Target(torch.where(t.valid, t.value, math.nan), t.valid) for t in targets]
    fitted = task.fit_codebook(targets, seed=3)
    assert fitted.shape == (4, task.value_channels)
    assert torch.equal(fitted, task.fit_codebook(targets, seed=3))
    assert torch.equal(fitted, task.fit_codebook(poisoned, seed=3))


@pytest.mark.parametrize("task", [Depth(bins=4), Normals(centers=4)], ids=repr)
def test_a_codebook_needs_a_labelled_pixel(task):
    with pytest.raises(ValueError, match=f"no labelled pixel of '{task.name}'"):
        task.fit_codebook([task.unlabelled(SIZE)], seed=0)


def test_depth_bins_span_what_was_seen_unless_told():
    seen = [Depth().encode(np.linspace(1, 5, 1001)[None])]
    assert Depth(bins=3).fit_codebook(seen, seed=0)[[0, -1], 0].tolist() == pytest.approx([1.02, 4.98], abs=1e-3)
    assert Depth(bins=3, low=0.5).fit_codebook(seen, seed=0)[[0, -1], 0].tolist() == pytest.approx([0.5, 4.98], abs=1e-3)
    assert Depth(bins=3, low=1, high=4).fit_codebook([], seed=0)[:, 0].tolist() == pytest.approx([1, 2, 4])


def test_an_annotation_of_one_depth_still_gives_bins():
    codebook = Depth(bins=3).fit_codebook([Depth().encode(np.full((2, 2), 3.0))], seed=0)
    assert (codebook[1:] > codebook[:-1]).all()


def test_depth_beyond_what_the_file_can_say_is_not_valid(tmp_path):
    task = Depth()
    task.write(tmp_path / "far.png", torch.tensor([[[65.0, 80.0]]]))
    assert task.read(tmp_path / "far.png").valid.tolist() == [[[True, False]]]
    further = Depth(file_scale=256.0)
    further.write(tmp_path / "further.png", torch.tensor([[[65.0, 80.0]]]))
    assert torch.allclose(further.read(tmp_path / "further.png").value, torch.tensor([[[65.0, 80.0]]]))


def test_a_stored_yes_stays_a_yes(tmp_path):
    task = Saliency()
    task.write(tmp_path / "map.png", torch.tensor([[[0.5005, 0.502, 0.4995, 0.5]]]))
    back = task.read(tmp_path / "map.png")
    assert back.valid.all()
    assert (back.value > 0.5).tolist() == [[[True, True, False, False]]]
