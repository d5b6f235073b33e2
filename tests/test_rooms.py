"""Rooms: splits that share nothing, exact labels, and a cache that heals."""

import pickle

import numpy as np
import pytest
import torch

from multidense.data import Rooms, scenes
from multidense.tasks import Depth, Edges, HumanParts, Normals, Saliency, SemanticSegmentation
from multidense.types import MultidenseError

ALL = (SemanticSegmentation(13), HumanParts(7), Depth(), Normals(), Edges(), Saliency())
SIZE = (12, 16)


def rooms(split="train", tasks=ALL, **settings):
    return Rooms(tasks, split, **({"size": SIZE, "length": 3} | settings))


def same(a, b):
    assert torch.equal(a.image, b.image)
    assert a.targets.keys() == b.targets.keys()
    for name, target in a.targets.items():
        assert torch.equal(target.value, b.targets[name].value)
        assert torch.equal(target.valid, b.targets[name].valid)


def test_targets_are_the_scene():
    sample, scene = rooms(seed=3)[1], scenes.render(3, 1, SIZE)
    assert torch.equal((sample.image * 255).round().byte(), torch.from_numpy(scene.image).permute(2, 0, 1))
    for name, array in {
        "semseg": scene.classes,
        "parts": scene.parts,
        "edges": scene.edges,
        "saliency": scene.saliency,
    }.items():
        assert np.array_equal(sample.targets[name].value[0].numpy(), array)
    assert np.array_equal(sample.targets["depth"].value[0].numpy(), scene.depth)
    torch.testing.assert_close(
        sample.targets["normals"].value.permute(1, 2, 0), torch.from_numpy(scene.normals), atol=1e-3, rtol=0
    )
    assert all(target.valid.all() for target in sample.targets.values())


def test_splits_and_seeds_share_no_scene():
    images = [one.image for split in ("train", "val", "test") for one in rooms(split)] + [rooms(seed=1)[0].image]
    assert len({image.numpy().tobytes() for image in images}) == len(images)
    ids = [one for split in ("train", "val", "test") for one in rooms(split).ids]
    assert len(set(ids)) == len(ids)


def test_a_longer_split_begins_like_a_shorter_one():
    same(rooms()[2], rooms(length=5)[2])


def test_only_the_tasks_asked_for_are_made():
    reader = rooms(tasks=[Depth(), SemanticSegmentation(13)])
    assert set(reader[0].targets) == reader.annotated(0) == {"depth", "semseg"}
    assert set(reader.load(0, ["depth", "normals"]).targets) == {"depth"}
    assert reader.class_names == {"semseg": scenes.CLASSES}


def test_scenes_are_rendered_once(monkeypatch):
    reader, calls = rooms(), []
    render = scenes.render
    monkeypatch.setattr(scenes, "render", lambda *arguments: calls.append(arguments) or render(*arguments))
    first = reader[0]
    first.image.zero_()
    for target in first.targets.values():
        target.value.zero_()
    same(reader[0], rooms()[0])
    assert [number for _, number, _ in calls] == [0, 0]


def test_iteration_ends_and_negative_places_count_from_the_end():
    reader = rooms()
    assert [sample.id for sample in reader] == list(reader.ids)
    assert reader[-1].id == reader.ids[2]


def test_the_cache_holds_the_same_scenes_and_heals(tmp_path, monkeypatch):
    plain = list(rooms())
    for sample, expected in zip(rooms(cache=tmp_path), plain, strict=True):
        same(sample, expected)
    paths = sorted(tmp_path.rglob("*.npz"))
    assert len(paths) == 3
    paths[0].write_bytes(b"broken")
    paths[1].write_bytes(paths[1].read_bytes()[:100])
    render, calls = scenes.render, []
    monkeypatch.setattr(scenes, "render", lambda *arguments: calls.append(arguments) or render(*arguments))
    for sample, expected in zip(rooms(cache=tmp_path), plain, strict=True):
        same(sample, expected)
    assert len(calls) == 2
    same(rooms(cache=tmp_path, tasks=[Depth()])[0], rooms(tasks=[Depth()])[0])
    assert not [path for path in tmp_path.rglob("*") if "tmp" in path.name]


def test_the_cache_tells_sizes_and_seeds_apart(tmp_path):
    for settings in ({}, {"size": (8, 8)}, {"seed": 1}):
        same(rooms(cache=tmp_path, **settings)[0], rooms(**settings)[0])


def test_a_reader_travels_to_a_worker():
    reader = rooms()
    same(pickle.loads(pickle.dumps(reader))[0], reader[0])


def test_provenance_says_how_to_make_it_again():
    said = rooms("val", seed=4).provenance()
    assert said | {"split": "val", "length": 3, "size": [12, 16], "seed": 4, "version": scenes.VERSION} == said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": [SemanticSegmentation(12)]}, r"13 classes, found a task of 12. Use SemanticSegmentation\(13\)"),
        ({"tasks": [HumanParts(6)]}, r"Use HumanParts\(7\)"),
        ({"split": "training"}, "train, val, test, found 'training'"),
        ({"length": 0}, "length"),
        ({"size": (0, 8)}, "size"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(MultidenseError, match=message):
        rooms(**settings)
