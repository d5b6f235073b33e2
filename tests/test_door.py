"""The door: the README's ten lines, smaller, as they stand; and that what they return is what they say."""

import math

import pytest
import torch

import multidense as md
from multidense.data import Rooms, partial


@pytest.fixture(scope="module")
def door():
    """Everything that the ten lines name."""
    torch.manual_seed(0)
    tasks = [md.SemanticSegmentation(classes=13), md.Depth(bins=30), md.Normals(centers=20)]
    train = Rooms(tasks, "train", size=(32, 48), length=8)
    val = Rooms(tasks, "val", size=(32, 48), length=4)
    train = partial.one_label(train, seed=0)

    def network():
        return md.build_model("segnet", "hitts", tasks, width=0.125)

    teacher = md.fit(network(), train, epochs=1)
    found = md.discover(teacher, train)
    student = md.fit(network(), train, discovered=found, epochs=1)
    results = md.evaluate(student, val)
    print(results, md.delta_mtl(results, md.evaluate(teacher, val)))
    return locals()


def test_each_image_keeps_one_label(door):
    assert [len(door["train"].annotated(index)) for index in range(8)] == [1] * 8


def test_networks_come_back_trained_and_ready_to_predict(door):
    for model in (door["teacher"], door["student"]):
        assert not model.training
        assert model.has_codebooks
        prediction = model.predict(door["val"][0].image)
        assert {name: tuple(value.shape) for name, (value, _) in prediction.items()} == {
            "semseg": (1, 32, 48),
            "depth": (1, 32, 48),
            "normals": (3, 32, 48),
        }


def test_the_student_inherits_the_codebooks(door):
    for name, centres in door["teacher"].codebooks.items():
        assert torch.equal(centres, door["student"].codebooks[name])


def test_labels_are_found_where_they_lack_and_nowhere_else(door):
    found, train = door["found"], door["train"]
    assert isinstance(found, md.Discovered)
    for index, one in enumerate(train.ids):
        for task in found.tasks:
            assert (found.label(task.name, one) is None) == (task.name in train.annotated(index))


def test_the_temporary_store_lives_as_long_as_it_is_held(door):
    assert (door["found"].folder / "manifest.json").is_file()


def test_results_hold_the_published_columns_and_where_they_come_from(door):
    results = door["results"]
    assert isinstance(results, md.Results)
    assert list(results.scores) == [
        *("semseg.mIoU", "semseg.pixAcc", "depth.absErr", "depth.rmse", "normals.mErr", "normals.rmse"),
        *("normals.within_11.25", "normals.within_22.5", "normals.within_30"),
    ]
    assert all(math.isfinite(value) for value in results.scores.values())
    assert {"data", "images", "model", "weights", "commit", "versions", "machine", "date"} <= set(results.provenance)
    assert "semseg.mIoU" in str(results)


def test_delta_mtl_takes_plain_mappings_and_signs_by_direction():
    baseline = {"semseg.mIoU": 40.0, "depth.absErr": 0.5}
    assert md.delta_mtl({"semseg.mIoU": 44.0, "depth.absErr": 0.4}, baseline) == pytest.approx(15)
    assert md.delta_mtl({"semseg.mIoU": 36.0, "depth.absErr": 0.6}, baseline) == pytest.approx(-15)
    assert md.delta_mtl(baseline, baseline) == 0


def test_delta_mtl_refuses_what_cannot_be_compared():
    with pytest.raises(md.MultidenseError, match=r"only one side has depth\.absErr"):
        md.delta_mtl({"semseg.mIoU": 40.0, "depth.absErr": 0.5}, {"semseg.mIoU": 40.0})
    with pytest.raises(md.MultidenseError, match="unknown score"):
        md.delta_mtl({"semseg.luck": 1.0}, {"semseg.luck": 1.0})


def test_every_public_name_is_there():
    assert all(getattr(md, name) is not None for name in md.__all__)
    with pytest.raises(AttributeError, match="nothing_such"):
        md.nothing_such  # noqa: B018
