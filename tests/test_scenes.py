"""The procedural rooms: the same every time, and labelled exactly."""

from functools import cache

import numpy as np
import pytest

from multidense.data.scenes import CLASSES, PARTS, Scene, render

SIZE = (48, 64)
FREE_STANDING = [CLASSES.index(name) for name in ("table", "chair", "sofa", "lamp", "shelf", "box", "ball")]
PARTS_OF = {
    "table": {"leg", "top"},
    "chair": {"leg", "seat", "back"},
    "sofa": {"seat", "back", "arm"},
    "lamp": {"leg", "shade"},
    "shelf": {"leg", "top", "back"},
}
ARRAYS = ("image", "classes", "parts", "instances", "depth", "normals", "edges", "saliency")


@cache
def scenes() -> list[Scene]:
    return [render(3, index, SIZE) for index in range(60)]


def rays(scene: Scene) -> np.ndarray:
    """Direction [h w 3] of every pixel in the camera frame, one metre deep."""
    rows, columns = np.indices(scene.depth.shape)
    right, up = (columns - scene.cx) / scene.fx, (scene.cy - rows) / scene.fy
    return np.stack([right, up, np.full_like(right, -1)], axis=-1)


def differs_from_next(labels: np.ndarray) -> np.ndarray:
    """Where labels [h w] differ from the right or the lower neighbour."""
    padded = np.pad(labels, ((0, 1), (0, 1)), mode="edge")
    return (labels != padded[1:, :-1]) | (labels != padded[:-1, 1:])


def test_a_scene_is_bit_identical_on_every_run():
    first, second = render(5, 7, SIZE), render(5, 7, SIZE)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


@pytest.mark.parametrize(("seed", "index"), [(5, 8), (6, 7)])
def test_another_seed_or_index_is_another_scene(seed, index):
    scene, other = render(5, 7, SIZE), render(seed, index, SIZE)
    assert (scene.image != other.image).any(axis=-1).mean() > 0.9
    assert (scene.classes != other.classes).mean() > 0.1


@pytest.mark.parametrize("index", range(5))
def test_another_resolution_shows_the_same_scene(index):
    scene, fine = render(3, index, SIZE), render(3, index, (3 * SIZE[0], 3 * SIZE[1]))
    centres = np.s_[1::3, 1::3]  # a pixel of the coarse picture has its centre where the middle one of nine has its
    assert (fine.instances[centres] == scene.instances).mean() > 0.995
    same = fine.instances[centres] == scene.instances
    np.testing.assert_allclose(fine.depth[centres][same], scene.depth[same], rtol=0.02)
    assert np.abs(fine.image.mean(axis=(0, 1)) - scene.image.mean(axis=(0, 1))).max() < 4


@pytest.mark.parametrize("size", [(40, 40), (64, 40), (30, 90)])
def test_any_shape_shows_a_crop_of_the_nominal_view(size):
    scene = render(3, 0, size)
    across, down = size[1] / 2 / scene.fx, size[0] / 2 / scene.fy
    nominal = SIZE[1] / 2 / render(3, 0, SIZE).fx
    assert scene.image.shape == (*size, 3)
    assert across <= nominal + 1e-6
    assert down <= nominal * 3 / 4 + 1e-6


def test_arrays_have_the_stated_types_and_ranges():
    types = dict(zip(ARRAYS, ("u1", "u1", "u1", "u1", "f4", "f4", "?", "?"), strict=True))
    for scene in scenes():
        for name, kind in types.items():
            array = getattr(scene, name)
            assert array.dtype == np.dtype(kind), name
            assert array.shape == (SIZE if name not in ("image", "normals") else (*SIZE, 3)), name
        assert scene.classes.max() < len(CLASSES)
        assert scene.parts.max() < len(PARTS)
        assert np.isfinite(scene.depth).all()
        assert scene.depth.min() > 0.3
        assert scene.depth.max() < 9


def test_depths_are_those_of_a_room():
    depth = np.stack([scene.depth for scene in scenes()])
    assert ((depth > 0.8) & (depth < 8)).mean() > 0.99
    assert 2.5 < np.median(depth) < 5


def test_pictures_are_neither_black_nor_blown_out():
    for scene in scenes():
        assert 60 < scene.image.mean() < 200
        assert scene.image.std() > 20


def test_normals_are_unit_and_face_the_camera():
    for scene in scenes():
        np.testing.assert_allclose(np.linalg.norm(scene.normals, axis=-1), 1, atol=1e-4)
        assert ((scene.normals * -rays(scene)).sum(axis=-1) > -1e-4).all()


def test_floor_and_ceiling_are_planes_whose_normal_is_the_labelled_one():
    for scene in scenes():
        points = rays(scene) * scene.depth[..., None]
        for name in ("floor", "ceiling"):
            surface = scene.classes == CLASSES.index(name)
            if surface.sum() < 50:
                continue
            normal = np.median(scene.normals[surface], axis=0)
            offsets = points[surface] @ normal
            assert np.abs(offsets - np.median(offsets)).max() < 0.02, name  # a rug is 12 mm thick
            assert (normal[1] > 0.7) == (name == "floor")


def test_normals_agree_with_the_slope_of_the_depth():
    for scene in scenes()[:20]:
        points = rays(scene) * scene.depth[..., None]
        right, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
        slope = np.cross(down, right)
        slope /= np.linalg.norm(slope, axis=-1, keepdims=True)
        ids, normals = scene.instances, scene.normals
        flat = np.ones(slope.shape[:2], bool)
        for shift in (np.s_[1:-1, 2:], np.s_[1:-1, :-2], np.s_[2:, 1:-1], np.s_[:-2, 1:-1]):
            flat &= (ids[shift] == ids[1:-1, 1:-1]) & ((normals[shift] * normals[1:-1, 1:-1]).sum(axis=-1) > 0.999)
        agreement = (slope * normals[1:-1, 1:-1]).sum(axis=-1)[flat]
        assert (agreement > 0.99).mean() > 0.95  # the rest spans two parallel faces of one object


def test_only_furniture_has_parts_and_only_its_own():
    for scene in scenes():
        for number, name in enumerate(CLASSES):
            found = {PARTS[part] for part in np.unique(scene.parts[scene.classes == number])}
            assert found <= PARTS_OF.get(name, {"background"}), name


def test_edges_are_the_boundaries_of_instances_and_so_of_classes():
    for scene in scenes():
        np.testing.assert_array_equal(scene.edges, differs_from_next(scene.instances))
        assert scene.edges[differs_from_next(scene.classes)].all()


def test_an_instance_has_one_class():
    for scene in scenes():
        pairs = np.unique(np.stack([scene.instances.ravel(), scene.classes.ravel()]), axis=1)
        assert len(np.unique(pairs[0])) == pairs.shape[1]


def test_salient_are_the_objects_at_least_half_as_heavy_as_the_heaviest():
    height, width = SIZE
    rows, columns = np.indices(SIZE)
    radius = np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2) / (np.hypot(height, width) / 2)
    for scene in scenes():
        objects = np.unique(scene.instances[np.isin(scene.classes, FREE_STANDING)])
        weights = {number: np.exp(-2 * radius**2)[scene.instances == number].sum() for number in objects}
        salient = [number for number, weight in weights.items() if weight >= max(weights.values()) / 2]
        np.testing.assert_array_equal(scene.saliency, np.isin(scene.instances, salient))
    assert np.mean([scene.saliency.any() for scene in scenes()]) > 0.95


def test_every_class_is_large_and_frequent_enough_to_be_learnt():
    counts = [np.bincount(scene.classes.ravel(), minlength=len(CLASSES)) for scene in scenes()]
    shares = np.stack(counts) / np.prod(SIZE)
    for name, share in zip(CLASSES, shares.T, strict=True):
        assert share.mean() > 0.007, name
        assert (share > 0).mean() > 0.25, name
    parts = np.concatenate([scene.parts.ravel() for scene in scenes()])
    assert (np.bincount(parts, minlength=len(PARTS)) > 0.004 * parts.size).all()
