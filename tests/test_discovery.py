"""Discovery: what is written, what is trusted, that it resumes, and that both modes supervise alike."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import multidense as md
from multidense.data import Augment, Augmented, Rooms, collate, partial
from multidense.data.subset import Tasks
from multidense.store import Discovered

SIZE = (32, 48)
ALL = [md.SemanticSegmentation(13), md.HumanParts(), md.Depth(bins=8), md.Normals(centers=6), md.Edges(), md.Saliency()]


@pytest.fixture(scope="module")
def full():
    return Rooms(ALL, "train", size=SIZE, length=12)


@pytest.fixture(scope="module")
def data(full):
    return partial.one_label(full, seed=0)


@pytest.fixture(scope="module")
def teacher(data):
    model = md.build_model("segnet", "hitts", ALL, width=0.125, seed=0)
    return md.fit(model, data, epochs=1)


@pytest.fixture(scope="module")
def found(teacher, data, tmp_path_factory):
    return md.discover(teacher, data, tmp_path_factory.mktemp("found"))


def test_every_missing_label_is_written_and_no_other(found, data):
    for index, image_id in enumerate(data.ids):
        for task in found.tasks:
            there = (found.folder / task.name / f"{image_id}.png").exists()
            assert there == (task.name not in data.annotated(index))


def test_what_is_kept_is_what_is_confident(found, teacher, data):
    index = next(i for i in range(len(data)) if "semseg" not in data.annotated(i))
    image_id = data.ids[index]
    value, confidence = teacher.predict(data.load(index, ()).image)["semseg"]
    label = found.label("semseg", image_id)
    assert torch.equal(label.valid, confidence > found.thresholds["semseg"])
    assert torch.equal(label.value[label.valid], value[label.valid])
    assert torch.allclose(found.confidence("semseg", image_id), confidence, atol=1 / 255)


def test_the_kept_share_is_the_one_that_was_asked_for(found):
    for name, entry in found.manifest["tasks"].items():
        assert entry["kept_share"] == pytest.approx(0.6, abs=0.02), name
        assert entry["rule"] == "share 0.6"
        pixels = sum(row["pixels"] for row in entry["classes"].values())
        assert pixels == entry["images"] * SIZE[0] * SIZE[1]
        kept = sum(row["pixels"] * row["kept"] for row in entry["classes"].values())
        assert kept / pixels == pytest.approx(entry["kept_share"])


def test_label_maps_open_as_ordinary_pictures(found, data):
    index = next(i for i in range(len(data)) if "semseg" not in data.annotated(i))
    with Image.open(found.folder / "semseg" / f"{data.ids[index]}.png") as image:
        ids = np.array(image)
    assert ids.shape == SIZE
    assert set(np.unique(ids)) <= {*range(13), 255}


def test_an_interrupted_discovery_goes_on_and_ends_the_same(found, teacher, data, tmp_path):
    again = md.discover(teacher, data, tmp_path / "again")
    (tmp_path / "again" / "manifest.json").unlink()
    lines = (tmp_path / "again" / "index.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "again" / "index.jsonl").write_text("".join(lines[:5]) + lines[5][:20])
    lost = json.loads(lines[5])
    name = next(iter(lost["groups"]))
    (tmp_path / "again" / name / f"{lost['id']}.png").unlink()
    resumed = md.discover(teacher, data, tmp_path / "again")
    assert resumed.manifest["tasks"] == again.manifest["tasks"] == found.manifest["tasks"]
    assert (tmp_path / "again" / name / f"{lost['id']}.png").exists()
    assert (tmp_path / "again" / "index.jsonl").read_text() == "".join(lines)


def test_a_folder_of_another_discovery_is_refused(found, teacher, data):
    with pytest.raises(md.MultidenseError, match="discovered differently: rules changed"):
        md.discover(teacher, data, found.folder, threshold="share 0.5")


def test_a_finished_discovery_is_read_back(found, teacher, data):
    again = Discovered.open(found.folder)
    assert again.thresholds == found.thresholds
    assert all(torch.equal(again.codebooks[name], book) for name, book in teacher.codebooks.items())


def test_a_network_that_only_regresses_is_refused(data):
    tasks = [md.SemanticSegmentation(13), md.Depth()]
    with pytest.raises(md.MultidenseError, match=r"depth only regress.*Depth\(bins=30\)"):
        md.discover(md.build_model("segnet", "shared", tasks, width=0.125, seed=0), data)


def test_precision_needs_calibration_labels_and_reaches_it_on_them(teacher, data):
    with pytest.raises(md.MultidenseError, match="calibration"):
        md.discover(teacher, data, threshold="precision 0.5")
    shown, withheld = partial.hold_out(partial.full(data.reader), share=0.3, seed=0)
    assert not any(shown.annotated(i) == data.reader.annotated(i) and shown.ids[i] in withheld.ids for i in range(len(shown)))
    found = md.discover(teacher, data, threshold={"default": "precision 0.05", "edges": "share 0.5"}, calibration=withheld)
    right = kept = 0
    for index in range(len(withheld)):
        if "saliency" in withheld.annotated(index):
            sample = withheld[index]
            value, confidence = teacher.predict(sample.image)["saliency"]
            believed = (confidence > found.thresholds["saliency"]) & sample.targets["saliency"].valid
            right += int((((value > 0.5).float() == sample.targets["saliency"].value) & believed).sum())
            kept += int(believed.sum())
    assert right >= 0.05 * kept > 0


def test_found_maps_and_features_reach_the_batch_under_the_draw_of_the_image(found, data):
    augmented = Augmented(found.attach(data), Augment(scales=(1.0,), flip=1.0), seed=0)
    index = next(i for i in range(len(data)) if "normals" not in data.annotated(i))
    batch = collate([augmented[index]], data.tasks)
    label = found.label("normals", data.ids[index])
    assert torch.equal(batch.discovered["normals"].valid[0], label.valid.flip(-1))
    mirrored = label.value.flip(-1) * torch.tensor([-1.0, 1, 1])[:, None, None]
    there = batch.discovered["normals"].valid[0].expand(3, -1, -1)
    assert torch.allclose(batch.discovered["normals"].value[0][there], mirrored[there], atol=1e-5)
    saved = found.features(data.ids[index])["normals"]
    assert saved.stride == 4
    assert torch.allclose(batch.features["normals"].value[0], saved.value.flip(-1), atol=1e-4)


def test_online_sees_what_offline_saved(teacher, data, found):
    online = md.discover(teacher, data, mode="online")
    assert online.thresholds == found.thresholds
    assert not (online.folder / "semseg").exists()
    plain = Augment.none()
    stored = collate([Augmented(found.attach(data), plain, seed=0)[i] for i in range(3)], data.tasks)
    seen = online.complete(collate([Augmented(online.attach(data), plain, seed=0)[i] for i in range(3)], data.tasks))
    for task in data.tasks:
        both = stored.discovered[task.name].valid & seen.discovered[task.name].valid
        assert (stored.discovered[task.name].valid == seen.discovered[task.name].valid).float().mean() > 0.995
        apart = task.distance(stored.discovered[task.name].value, seen.discovered[task.name].value)[both]
        assert apart.numel() == 0 or apart.max() < (1.5 if task.name == "normals" else 0.01)
        assert set(seen.features) == set(stored.features)


def test_online_finds_nothing_outside_the_image(teacher, data):
    online = md.discover(teacher, data, mode="online", threshold=0.0)
    away = Augmented(online.attach(data), Augment(scales=(0.5,), flip=0.0), seed=0)
    batch = online.complete(collate([away[0]], data.tasks))
    missing = [task.name for task in data.tasks if task.name not in data.annotated(0)]
    for name in missing:
        assert 0 < batch.discovered[name].valid.float().mean() < 0.35


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_students_may_have_other_tasks_than_their_teacher(teacher, data, mode):
    found = md.discover(teacher, data, mode=mode)
    single = md.build_model("segnet", "shared", [md.Depth(bins=8)], width=0.125, seed=0)
    md.fit(single, Tasks(data, ["depth"]), discovered=found, epochs=1, objective=md.Objective(features=0))
    alone = md.fit(
        md.build_model("segnet", "shared", [md.Depth(bins=8)], width=0.125, seed=0), Tasks(data, ["depth"]), epochs=1
    )
    found = md.discover(alone, data, mode=mode)
    several = md.build_model("segnet", "shared", ALL, width=0.125, seed=0)
    md.fit(several, data, discovered=found, epochs=1)


def test_features_can_be_left_out(teacher, data):
    bare = md.discover(teacher, data, features=False)
    assert not (bare.folder / "features").exists()
    batch = collate([bare.attach(data)[0]], data.tasks)
    assert not batch.features


def test_balanced_keeps_the_same_share_of_every_category(teacher, data):
    found = md.discover(teacher, data, threshold="balanced 0.5", features=False)
    for task in (task for task in found.tasks if task.categories > 1):
        counts = np.zeros((task.categories, 2))
        for index, image_id in enumerate(data.ids):
            label = found.label(task.name, image_id)
            if label is not None:
                with torch.no_grad():
                    logits = teacher(data.load(index, ()).image[None]).logits[task.name]
                category = task.category(task.harden(task.decode(logits)))
                counts[:, 0] += np.bincount(category.flatten(), minlength=task.categories)
                counts[:, 1] += np.bincount(category.flatten()[label.valid.flatten()], minlength=task.categories)
        common = counts[:, 0] > 400
        assert common.any()
        assert np.abs(counts[common, 1] / counts[common, 0] - 0.5).max() < 0.1, task.name


def test_labels_may_count_by_the_confidence_in_them(teacher, data):
    found = md.discover(teacher, data, threshold="share 1", weighting="confidence", features=False)
    index = next(i for i in range(len(data)) if "semseg" not in data.annotated(i))
    batch = collate([Augmented(found.attach(data), Augment(scales=(1.0,), flip=1.0), seed=0)[index]], data.tasks)
    stored = found.confidence("semseg", data.ids[index])
    assert torch.equal(batch.discovered["semseg"].weight[0], stored.flip(-1))
    online = md.discover(teacher, data, mode="online", threshold="share 1", weighting="confidence")
    seen = online.complete(collate([online.attach(data)[index]], data.tasks))
    assert torch.allclose(seen.discovered["semseg"].weight[0], stored, atol=1 / 255)


def test_soft_targets_are_what_the_teacher_thinks_of_the_very_view(teacher, data):
    found = md.discover(teacher, data, mode="online", targets="soft", threshold="share 1")
    mirrored = Augmented(found.attach(data), Augment(scales=(1.0,), flip=1.0), seed=0)
    index = next(i for i in range(len(data)) if not {"normals", "edges"} & data.annotated(i))
    batch = found.complete(collate([mirrored[index]], data.tasks))
    with torch.no_grad():
        logits = teacher(batch.clean).logits
    assert torch.equal(batch.discovered["normals"].soft, logits["normals"].softmax(1))
    assert batch.discovered["edges"].soft is None
    assert torch.equal(batch.discovered["edges"].value, logits["edges"].sigmoid())
    student = md.build_model("segnet", "hitts", ALL, width=0.125, seed=0)
    md.fit(student, data, discovered=found, epochs=1)


def test_soft_targets_are_not_stored(teacher, data):
    with pytest.raises(md.MultidenseError, match="set mode to 'online'"):
        md.discover(teacher, data, targets="soft")


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_several_teachers_supervise_one_student(data, mode):
    kinds = [md.SemanticSegmentation(13), md.Depth(bins=8)]
    teachers = [
        md.fit(md.build_model("segnet", "shared", [kind], width=0.125, seed=0), Tasks(data, [kind.name]), epochs=1)
        for kind in kinds
    ]
    found = [md.discover(one, data, mode=mode, features=False) for one in teachers]
    reader = data
    for one in found:
        reader = one.attach(reader)
    index = next(i for i in range(len(data)) if not {"semseg", "depth"} & data.annotated(i))
    batch = collate([reader[index]], data.tasks)
    for one in found:
        batch = one.complete(batch)
    assert all(batch.discovered[kind.name].valid.any() for kind in kinds)
    assert not batch.discovered["normals"].valid.any()
    student = md.build_model("segnet", "shared", kinds, width=0.125, seed=0)
    md.fit(student, Tasks(data, ["semseg", "depth"]), discovered=found, epochs=1)
    assert torch.equal(student.codebooks["depth"], teachers[1].codebooks["depth"])
