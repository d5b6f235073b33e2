"""Augmentation: one draw, to which the image, the targets and everything discovered answer alike."""

import json
import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from multidense.data import Augment, Augmented, Reader
from multidense.data.transforms import Draw, apply, draw, recoloured
from multidense.ops import Geometry, pool
from multidense.tasks import Depth, Edges, HumanParts, Normals, Saliency, SemanticSegmentation
from multidense.types import FeatureTarget, MultidenseError, Sample, Target

SIZE = (24, 32)
TASKS = (SemanticSegmentation(5), HumanParts(7), Depth(), Normals(), Edges(), Saliency())
EVERYTHING = Augment(
    scale_range=(0.6, 1.8), rotation=30.0, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1, size=(20, 28)
)
GEOMETRIES = {
    "identity": Geometry(SIZE, SIZE),
    "zoom": Geometry(SIZE, SIZE, zoom=1.5, centre=(0.4, 0.6)),
    "far": Geometry(SIZE, SIZE, zoom=0.7),
    "flip": Geometry(SIZE, SIZE, flip=True),
    "rotation": Geometry(SIZE, SIZE, degrees=25.0),
    "all": Geometry(SIZE, (30, 40), zoom=1.3, centre=(0.45, 0.55), degrees=-15.0, flip=True),
}
geometries = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)


def random_target(task, rng, size=SIZE):
    valid = rng.random(size) < 0.8
    if task.name in ("semseg", "parts"):
        return task.encode(rng.integers(0, task.channels, size), valid)
    if task.name == "normals":
        return task.encode(rng.normal(size=(*size, 3)), valid)
    return task.encode(rng.uniform(0.1, 1, size), valid)


class Made(Reader):
    """Random images, with random labels of every task."""

    def __init__(self, length=6):
        self.name, self.split, self.tasks, self.class_names = "made", "train", TASKS, {}
        self.ids = [str(number) for number in range(length)]

    def annotated(self, index):
        return frozenset(task.name for task in TASKS)

    def load(self, index, tasks):
        rng = np.random.default_rng(index)
        targets = {task.name: random_target(task, rng) for task in TASKS if task.name in set(tasks)}
        return Sample(torch.from_numpy(rng.random((3, *SIZE), np.float32)), targets, self.ids[index])

    def provenance(self):
        return {"name": self.name}


def plain(geometry):
    return Draw(geometry)


def equal(a, b):
    return (
        torch.equal(a.image, b.image)
        and torch.equal(a.clean, b.clean)
        and a.targets.keys() == b.targets.keys()
        and all(torch.equal(a.targets[name].value, b.targets[name].value) for name in a.targets)
        and all(torch.equal(a.targets[name].valid, b.targets[name].valid) for name in a.targets)
    )


# Every task and every geometry ----------------------------------------------------------------------------------------


@geometries
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_discovered_labels_move_exactly_like_targets(task, geometry):
    target = random_target(task, np.random.default_rng(0))
    moved = apply(Sample(torch.rand(3, *SIZE), {task.name: target}, "a", {task.name: target}), plain(geometry), TASKS)
    assert moved.targets[task.name].value.shape == (task.value_channels, *geometry.size)
    assert torch.equal(moved.targets[task.name].value, moved.discovered[task.name].value)
    assert torch.equal(moved.targets[task.name].valid, moved.discovered[task.name].valid)


@geometries
def test_image_pixels_and_label_pixels_move_together(geometry):
    rows, columns = (grid.astype(np.float32) for grid in np.indices(SIZE))
    image = torch.from_numpy(np.stack([columns / 64, rows / 64, rows * 0]))
    targets = {"depth": Depth().encode(1 + columns), "edges": Edges().encode(rows / 64)}
    moved = apply(Sample(image, targets, "a"), plain(geometry), TASKS)
    column = moved.targets["depth"].value * geometry.zoom - 1
    row = moved.targets["edges"].value * 64
    valid = moved.targets["depth"].valid
    assert torch.equal(valid, moved.targets["edges"].valid)
    assert valid.any()
    assert (moved.image[0:1] * 64 - column)[valid].abs().max() <= 0.501
    assert (moved.image[1:2] * 64 - row)[valid].abs().max() <= 0.501
    assert (moved.image[0:1] * 64 - column)[valid].mean().abs() < 0.1


@geometries
def test_a_plane_remains_that_plane(geometry):
    """A plane n·P = −d seen with focal length f: afterwards n turned and mirrored, d / zoom, seen with zoom · f."""
    normal, distance, focal = np.array([0.36, 0.48, 0.8]), 3.0, 40.0
    (height, width), (h, w) = geometry.source, geometry.size

    def inverse_depth(x, y, normal, distance, focal):
        """Of the ray (x, y, −focal), x right and y up in pixels from the principal point."""
        return (normal[2] - (normal[0] * x + normal[1] * y) / focal) / distance

    y, x = np.indices((height, width), float)
    depth = 1 / inverse_depth(x + 0.5 - width / 2, height / 2 - y - 0.5, normal, distance, focal)
    targets = {"depth": Depth().encode(depth), "normals": Normals().encode(np.broadcast_to(normal, (height, width, 3)))}
    moved = apply(Sample(torch.rand(3, height, width), targets, "a"), plain(geometry), TASKS).targets

    angle = math.radians(geometry.degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    mirror = np.array([-1 if geometry.flip else 1, 1])
    new_normal = np.array([*(mirror * (turn @ normal[:2])), normal[2]])
    principal = np.array([(0.5 - geometry.centre[1]) * width, (geometry.centre[0] - 0.5) * height])
    principal = mirror * (turn @ principal) * geometry.zoom
    y, x = np.indices((h, w), float)
    x, y = (x + 0.5 - w / 2) * width / w - principal[0], (h / 2 - y - 0.5) * height / h - principal[1]
    expected = 1 / inverse_depth(x, y, new_normal, distance / geometry.zoom, focal * geometry.zoom)

    valid = moved["depth"].valid[0].numpy()
    error = (moved["depth"].value[0].numpy() / expected - 1)[valid]
    assert np.abs(error).max() < 0.03  # the nearest pixel is up to 0.7 pixels away
    assert abs(error.mean()) < 0.003
    normals = moved["normals"].value.permute(1, 2, 0).numpy()[valid]
    assert np.abs(normals - new_normal).max() < 1e-6


@geometries
def test_features_move_with_the_image_at_their_stride(geometry):
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    feature = FeatureTarget(torch.stack([columns * 4 + 1.5, rows * 4 + 1.5]), torch.ones(1, 6, 8), stride=4)
    pixels = torch.stack(torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")[::-1])
    image = torch.cat([pixels / 64, torch.zeros(1, *SIZE)])
    moved = apply(Sample(image, {}, "a", features={"depth": feature}), plain(geometry), TASKS)
    found = moved.features["depth"]
    assert found.stride == 4
    assert found.value.shape[-2:] == tuple(-(-side // 4) for side in geometry.size)
    seen = pool(moved.image[None, :2] * 64, 4)[0]
    sure = (found.confidence > 0.99)[0]
    sure[geometry.size[0] // 4 :], sure[:, geometry.size[1] // 4 :] = False, False  # cells that reach beyond the image
    assert sure.any()
    assert (found.value - seen)[:, sure].abs().max() < 1.0


# Geometry -------------------------------------------------------------------------------------------------------------


def test_no_augmentation_changes_nothing():
    reader = Made()
    sample, original = Augmented(reader, Augment.none())[0], reader[0]
    assert torch.equal(sample.image, original.image)
    assert torch.equal(sample.clean, original.image)
    for name, target in original.targets.items():
        assert torch.equal(sample.targets[name].value, target.value)


def test_zooming_out_uncovers_area_that_is_not_valid():
    target = Target(torch.full((1, *SIZE), 2.0), torch.ones(1, *SIZE, dtype=torch.bool))
    sample = Sample(torch.ones(3, *SIZE), {"depth": target}, "a", {"depth": target})
    moved = apply(sample, plain(Geometry(SIZE, SIZE, zoom=0.5, centre=(0.6, 0.3))), TASKS)
    assert moved.targets["depth"].valid.float().mean() == 0.25
    assert (moved.image == 1).all()
    assert (moved.targets["depth"].value[moved.targets["depth"].valid] == 4).all()


def test_drawn_windows_lie_inside_the_image():
    augment = Augment()
    for number in range(200):
        geometry = draw(augment, np.random.default_rng(number), SIZE).geometry
        assert geometry.zoom in augment.scales
        assert all(0.5 / geometry.zoom <= one + 1e-9 and one - 1e-9 <= 1 - 0.5 / geometry.zoom for one in geometry.centre)


def test_draws_cover_what_the_settings_allow():
    augment = Augment(scale_range=(0.5, 2.0), rotation=20.0, brightness=0.4, hue=0.1, flip=0.3)
    draws = [draw(augment, np.random.default_rng(number), SIZE) for number in range(2000)]
    assert abs(np.mean([one.geometry.flip for one in draws]) - 0.3) < 0.04
    for low, high, values in (
        (0.5, 2.0, [one.geometry.zoom for one in draws]),
        (-20, 20, [one.geometry.degrees for one in draws]),
        (0.6, 1.4, [one.brightness for one in draws]),
        (-0.1, 0.1, [one.hue for one in draws]),
    ):
        assert low <= min(values) < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < max(values) <= high
    assert {one.contrast for one in draws} == {one.saturation for one in draws} == {1}


def test_switching_colours_on_leaves_the_geometry_alone():
    for number in range(5):
        with_colours = draw(Augment(contrast=0.5), np.random.default_rng(number), SIZE)
        assert with_colours.geometry == draw(Augment(), np.random.default_rng(number), SIZE).geometry


def test_size_is_the_size_of_everything():
    sample = Augmented(Made(), EVERYTHING)[0]
    assert sample.image.shape == sample.clean.shape == (3, 20, 28)
    assert all(target.value.shape[-2:] == target.valid.shape[-2:] == (20, 28) for target in sample.targets.values())


# Colours --------------------------------------------------------------------------------------------------------------


def test_only_the_image_changes_its_colours():
    reader = Made()
    colourful, colourless = Augment(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5), Augment()
    for index in range(3):
        one, other = Augmented(reader, colourful)[index], Augmented(reader, colourless)[index]
        assert torch.equal(one.clean, other.clean)
        assert not torch.equal(one.image, one.clean)
        assert torch.equal(other.image, other.clean)
        assert 0 <= one.image.min() <= one.image.max() <= 1


def test_what_each_colour_factor_does():
    image, here = torch.rand(3, 5, 7) * 0.3 + 0.2, Geometry((5, 7), (5, 7))
    luma = (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    torch.testing.assert_close(recoloured(image, Draw(here, brightness=1.5)), image * 1.5)
    torch.testing.assert_close(recoloured(image, Draw(here, contrast=0.5)), image * 0.5 + luma.mean() * 0.5)
    torch.testing.assert_close(recoloured(image, Draw(here, saturation=0.0)), luma.expand(3, -1, -1))
    grey = torch.full((3, 5, 7), 0.4)
    torch.testing.assert_close(recoloured(grey, Draw(here, hue=0.3, saturation=1.4)), grey)
    turned = recoloured(image, Draw(here, hue=0.25))
    weights = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(torch.einsum("c,chw->hw", weights, turned), luma[0])
    torch.testing.assert_close(recoloured(turned, Draw(here, hue=-0.25)), image)


# Reproducibility ------------------------------------------------------------------------------------------------------


def test_seed_epoch_and_place_decide():
    def at(seed, epoch):
        reader = Augmented(Made(), EVERYTHING, seed)
        reader.set_epoch(epoch)
        return reader

    assert equal(at(1, 2)[3], at(1, 2)[3])
    assert not equal(at(1, 2)[3], at(1, 3)[3])
    assert not equal(at(1, 2)[3], at(2, 2)[3])
    fresh = at(1, 2)
    fresh[0]
    assert equal(fresh[3], at(1, 2)[3])


def test_workers_that_outlive_an_epoch_change_nothing():
    here, there = Augmented(Made(), EVERYTHING), Augmented(Made(), EVERYTHING)
    loader = DataLoader(there, batch_size=None, num_workers=1, persistent_workers=True, multiprocessing_context="fork")
    for epoch in (0, 1):
        here.set_epoch(epoch)
        there.set_epoch(epoch)
        assert all(equal(a, b) for a, b in zip([here[index] for index in range(len(here))], loader, strict=True))


def test_hidden_labels_stay_hidden():
    assert set(Augmented(Made(), EVERYTHING).load(0, ["depth"]).targets) == {"depth"}


def test_provenance_is_plain_data():
    said = Augmented(Made(), EVERYTHING, 7).provenance()
    assert json.loads(json.dumps(said))["augment"]["rotation"] == 30
    assert said["augment_seed"] == 7


@pytest.mark.parametrize(
    "settings",
    [
        {"scales": ()},
        {"scales": (1.0, 0.0)},
        {"scale_range": (2.0, 1.0)},
        {"scale_range": (0.0, 1.0)},
        {"flip": 1.5},
        {"rotation": -1.0},
        {"brightness": 2.0},
        {"hue": 0.7},
        {"size": (0, 4)},
    ],
    ids=str,
)
def test_impossible_settings_are_named(settings):
    with pytest.raises(MultidenseError, match=f"Augment: {next(iter(settings))} should be"):
        Augment(**settings)
