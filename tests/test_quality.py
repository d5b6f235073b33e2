"""How good discovered labels are: what counts, what precision, coverage and calibration come to, and that it is done once."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import multidense as md
from multidense.config import load_recipe
from multidense.data import Rooms, partial
from multidense.data.partial import Assignment, Partial
from multidense.data.reader import Reader, Wrapped
from multidense.data.subset import Subset
from multidense.quality import (
    calibration_error,
    curve_of,
    judge,
    on_training_images,
    reliability_of,
    stated_chance,
)
from multidense.run import Run
from multidense.store import found_by, seen_by
from multidense.thresholds import BINS, Confidences, keep
from multidense.types import Outputs, Sample, Target

SIZE = (32, 48)
ALL = [md.SemanticSegmentation(13), md.HumanParts(), md.Depth(bins=8), md.Normals(centers=6), md.Edges(), md.Saliency()]
EVERYTHING = {task.name: -1.0 for task in ALL}


@pytest.fixture(scope="module")
def truth():
    return Rooms(ALL, "train", size=SIZE, length=12)


@pytest.fixture(scope="module")
def shown(truth):
    return partial.one_label(truth, seed=0)


@pytest.fixture(scope="module")
def teacher(shown):
    return md.fit(md.build_model("segnet", "shared", ALL, width=0.125, seed=0), shown, epochs=1).eval()


@pytest.fixture(scope="module")
def thresholds(teacher, shown):
    return md.discover(teacher, shown, mode="online", threshold={"default": "share 0.4", "semseg": "share 0.7"}).thresholds


@pytest.fixture(scope="module")
def judged(teacher, shown, truth, thresholds):
    return judge(teacher, shown, truth, thresholds)


def counted(confidence: torch.Tensor, right: torch.Tensor) -> Confidences:
    """Pixels in a row, all of them counted."""
    found = Confidences()
    found.add(confidence[None, None], torch.ones(1, 1, *confidence.shape, dtype=torch.bool), right[None, None])
    return found


class Draws(Reader):
    """Images whose red says how probable "yes" is, and truths that are drawn accordingly; nothing is valid where green is 1."""

    name, split, tasks, class_names = "draws", "train", (md.Saliency(),), {}

    def __init__(self, length: int = 6, size: int = 128):
        self.ids = [str(index) for index in range(length)]
        draw = torch.Generator().manual_seed(0)
        self.red = torch.rand(length, 1, size, size, generator=draw).clamp(0.01, 0.99)
        self.yes = (torch.rand(length, 1, size, size, generator=draw) < self.red).float()

    def annotated(self, index):
        return frozenset(["saliency"])

    def load(self, index, tasks):
        image = torch.cat([self.red[index], torch.zeros_like(self.red[index]), self.red[index]])
        everywhere = torch.ones_like(self.yes[index], dtype=torch.bool)
        return Sample(image, {name: Target(self.yes[index], everywhere) for name in tasks}, self.ids[index])

    def provenance(self):
        return {"name": self.name}


def seer(sharpness: float = 1.0):
    """A network that sees the probability in the red and states it, sharpened."""
    model = md.build_model("segnet", "shared", Draws.tasks, width=0.125, seed=0).eval()
    model.forward = lambda image: Outputs({"saliency": sharpness * torch.logit(image[:, :1])})
    return model


def nothing_shown(data: Reader) -> Partial:
    names = tuple(task.name for task in data.tasks)
    return Partial(data, Assignment(tuple(data.ids), names, np.zeros((len(data), len(names)), bool)))


class Changed(Wrapped):
    """A reader whose targets went through a function of index, task and target."""

    def __init__(self, reader, change):
        super().__init__(reader)
        self.change = change

    def load(self, index, tasks):
        sample = self.reader.load(index, tasks)
        told = {name: self.change(index, name, target) for name, target in sample.targets.items()}
        return replace(sample, targets=told)


# Calibration


def test_a_calibrated_network_has_no_calibration_error():
    told = judge(seer(), nothing_shown(Draws()), Draws(), {"saliency": 0.5})["saliency"]
    assert told["pixels"] == 6 * 128 * 128
    assert told["ece"] < 0.006
    assert told["ece_by_share"] < 0.008
    assert told["accuracy"] == pytest.approx(0.75, abs=0.005)  # the mean of max(p, 1 - p) for p even in 0 … 1
    assert told["coverage"] == pytest.approx(0.5, abs=0.005)
    assert told["precision"] == pytest.approx(0.875, abs=0.005)


def test_an_overconfident_network_is_found_out():
    data = Draws()
    told = judge(seer(sharpness=8), nothing_shown(data), data, {"saliency": 0.5})["saliency"]
    stated = torch.sigmoid(8 * torch.logit(data.red))
    assert told["accuracy"] == pytest.approx(0.75, abs=0.005)
    assert told["ece"] == pytest.approx(torch.maximum(stated, 1 - stated).mean().item() - told["accuracy"], abs=0.006)
    assert told["ece"] > 0.15


@pytest.mark.parametrize("by_share", [False, True])
def test_the_error_of_one_confidence_is_its_distance_to_the_accuracy(by_share):
    right = torch.arange(1000).reshape(10, 100) < 600
    bins = reliability_of(counted(torch.full((10, 100), 0.9), right), by_share=by_share)
    assert [(each["accuracy"], each["share"]) for each in bins] == [(0.6, 1.0)]
    assert calibration_error(bins) == pytest.approx(0.3, abs=1e-5)


@pytest.mark.parametrize("by_share", [False, True])
def test_confidences_that_are_right_as_often_as_they_say_have_no_error(by_share):
    confidence = torch.rand(500, 500)
    bins = reliability_of(counted(confidence, torch.rand(500, 500) < confidence), by_share=by_share)
    assert len(bins) == 15
    assert sum(each["share"] for each in bins) == pytest.approx(1)
    assert calibration_error(bins) < 0.006


def test_bins_by_share_tell_apart_what_bunches_up():
    """Of confidences within one bin of equal width the lower half is never right, the upper always: only the mean is."""
    confidence = torch.linspace(0.48, 0.52, 3000)[None]
    told = counted(confidence, confidence > 0.5)
    even, by_share = reliability_of(told), reliability_of(told, bins=14, by_share=True)
    assert len(even) == 1
    assert calibration_error(even) < 0.01
    assert len(by_share) == 14
    assert all(each["share"] == pytest.approx(1 / 14, abs=0.01) for each in by_share)
    assert calibration_error(by_share) == pytest.approx(0.49, abs=0.01)


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_the_stated_chance_is_never_below_that_of_the_other_answer(task, teacher):
    task = next(each for each in teacher.tasks if each.name == task.name)
    logits = 3 * torch.randn(2, task.channels, 4, 5)
    chance, confidence = stated_chance(task, logits), task.confidence(logits)
    assert chance.shape == confidence.shape
    if task.channels == 1:
        assert torch.allclose(chance, (1 + confidence) / 2, atol=1e-6)
    else:
        assert torch.equal(chance, confidence)


# Precision and coverage


def test_precision_at_full_coverage_is_the_accuracy(teacher, shown, truth):
    for name, told in judge(teacher, shown, truth, EVERYTHING).items():
        assert told["coverage"] == 1, name
        assert told["precision"] == told["accuracy"], name
        assert told["curve"][-1]["coverage"] == 1, name
        assert told["curve"][-1]["precision"] == pytest.approx(told["accuracy"]), name


def test_nothing_kept_has_no_precision_and_is_plain_json(teacher, shown, truth):
    told = judge(teacher, shown, truth, dict.fromkeys(EVERYTHING, 1.0))
    assert all(each["precision"] is None and each["coverage"] == 0 for each in told.values())
    assert all(row["kept"] in (0, None) and row["precision"] is None for row in told["semseg"]["classes"].values())
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_a_curve_goes_from_few_sure_pixels_to_all_of_them(judged):
    for name, told in judged.items():
        steps = np.array([[each["coverage"], each["threshold"]] for each in told["curve"]])
        assert len(steps) <= 50, name
        assert (np.diff(steps[:, 0]) > 0).all(), name
        assert (np.diff(steps[:, 1]) < 0).all(), name


def test_a_curve_is_that_of_a_sort():
    confidence = torch.rand(40, 50) ** 3
    right = torch.rand(40, 50) < confidence
    order = confidence.flatten().argsort(descending=True)
    precision = right.flatten()[order].double().cumsum(0) / torch.arange(1, 2001)
    curve = curve_of(counted(confidence, right), points=20)
    assert [each["coverage"] for each in curve] == pytest.approx([step / 20 for step in range(1, 21)], abs=0.002)
    assert [each["precision"] for each in curve] == pytest.approx(precision[99::100].tolist(), abs=0.002)
    assert [each["threshold"] for each in curve] == pytest.approx(confidence.flatten()[order][99::100].tolist(), abs=2 / BINS)


def test_pixels_that_are_equally_sure_stay_together():
    confidence = torch.tensor([[0.9] * 6 + [0.2] * 4])
    curve = curve_of(counted(confidence, confidence > 0.5))
    assert [(each["coverage"], each["precision"]) for each in curve] == [(0.6, 1.0), (1.0, 0.6)]
    assert curve_of(Confidences()) == []
    assert reliability_of(Confidences()) == []


def test_what_is_kept_may_be_said_by_a_function(teacher, shown, truth, thresholds, judged):
    asked = set()

    def rule(name, value, confidence):
        asked.add(name)
        return confidence > thresholds[name]

    assert judge(teacher, shown, truth, rule) == judged
    assert asked == set(thresholds)


def test_each_category_may_have_its_own_threshold(teacher, shown, truth, thresholds):
    of_each = [1.0 if place % 2 else -1.0 for place in range(13)]
    classes = judge(teacher, shown, truth, thresholds | {"semseg": of_each})["semseg"]["classes"]
    assert [row["kept"] for row in classes.values() if row["pixels"]] == [
        0 if place % 2 else 1 for place, row in enumerate(classes.values()) if row["pixels"]
    ]


# What counts


def test_labels_that_an_image_shows_never_count(teacher, shown, truth, thresholds, judged):
    def lie(index, name, target):
        return Target(target.value.flip(-1).contiguous(), target.valid) if name in shown.annotated(index) else target

    assert judge(teacher, shown, Changed(truth, lie), thresholds) == judged
    for name, told in judged.items():
        missing = [index for index in range(12) if name not in shown.annotated(index)]
        assert told["images"] == len(missing)
        assert told["pixels"] == sum(int(truth.load(i, [name]).targets[name].valid.sum()) for i in missing)


def test_truth_that_is_not_valid_never_counts(teacher, shown, truth, thresholds, judged):
    def upper(index, name, target):
        valid = target.valid.clone()
        valid[:, SIZE[0] // 2 :] = False
        return Target(target.value, valid)

    def lie(index, name, target):
        target = upper(index, name, target)
        return Target(torch.where(target.valid, target.value, target.value.flip(-1)), target.valid)

    told = judge(teacher, shown, Changed(truth, lie), thresholds)
    assert told == judge(teacher, shown, Changed(truth, upper), thresholds)
    assert all(told[name]["pixels"] < judged[name]["pixels"] for name in judged)


def test_where_nothing_is_hidden_there_is_nothing_to_judge(teacher, truth, shown, thresholds):
    assert judge(teacher, partial.full(truth), truth, thresholds) == {}
    assert on_training_images(teacher, partial.full(truth), truth) == {}
    few = partial.few_shot(truth, "depth", 3)
    assert set(judge(teacher, few, truth, thresholds)) == {"depth"}


def test_tasks_without_a_confidence_are_left_out(truth):
    tasks = [md.SemanticSegmentation(13), md.Depth()]
    data = Rooms(tasks, "train", size=SIZE, length=2)
    model = md.build_model("segnet", "shared", tasks, width=0.125, seed=0)
    assert set(judge(model, nothing_shown(data), data, {"semseg": 0.0})) == {"semseg"}


# Against plain arithmetic


def test_the_numbers_are_those_of_a_brute_force_count(teacher, shown, truth, thresholds, judged):
    for task in teacher.tasks:
        rows = []
        for index in (i for i in range(len(truth)) if task.name not in shown.annotated(i)):
            sample = truth.load(index, [task.name])
            outputs = seen_by(teacher, sample.image[None])
            (value, confidence), target = found_by(task, outputs), sample.targets[task.name]
            chance = stated_chance(task, outputs.logits[task.name])
            right = task.distance(value, target.value[None]) <= task.tolerance
            groups = [task.groups(each)[None] for each in (value, target.value[None])]
            every = [confidence, chance, keep(task, value, confidence, thresholds[task.name]), right, *groups]
            rows.append(np.stack([each.numpy().astype(np.float64)[0][target.valid[None].numpy()[0]] for each in every]))
        confidence, chance, kept, right, predicted, true = np.concatenate(rows, axis=1)
        kept, right = kept > 0, right > 0
        told = judged[task.name]
        assert told["pixels"] == len(right)
        assert told["coverage"] == pytest.approx(kept.mean(), abs=1e-3)
        assert told["precision"] == pytest.approx(right[kept].mean(), abs=1e-3)
        assert told["accuracy"] == pytest.approx(right.mean(), abs=1e-3)
        assert told["tolerance"] == task.tolerance
        places = np.minimum((chance * 15).astype(int), 14)
        ece = sum(abs(right[places == b].sum() - chance[places == b].sum()) for b in range(15)) / len(right)
        assert told["ece"] == pytest.approx(ece, abs=1e-3)
        order = np.argsort(-confidence, kind="stable")
        for step in told["curve"]:
            surest = order[: round(step["coverage"] * len(order))]
            assert step["precision"] == pytest.approx(right[surest].mean(), abs=2e-3)
            assert step["threshold"] == pytest.approx(confidence[surest].min(), abs=1e-4)
        for group, row in enumerate(told.get("classes", {}).values()):
            found, there = predicted == group, true == group
            assert row["pixels"] == pytest.approx(found.sum(), abs=3)
            assert row["true_pixels"] == there.sum()
            if found.any():
                assert row["kept"] == pytest.approx(kept[found].mean(), abs=5e-3)
            if (found & kept).sum() > 100:
                assert row["precision"] == pytest.approx(right[found & kept].mean(), abs=1e-2)
            if there.any():
                assert row["recall"] == pytest.approx((kept & right)[there].mean(), abs=5e-3)


def test_categories_add_up(judged, truth):
    assert "classes" not in judged["depth"]
    assert list(judged["semseg"]["classes"]) == list(truth.class_names["semseg"])
    for told in (judged["semseg"], judged["edges"]):
        rows = told["classes"].values()
        assert sum(row["pixels"] for row in rows) == sum(row["true_pixels"] for row in rows) == told["pixels"]
        kept = sum(row["pixels"] * (row["kept"] or 0) for row in rows)
        good = sum(row["pixels"] * (row["kept"] or 0) * (row["precision"] or 0) for row in rows)
        assert kept / told["pixels"] == pytest.approx(told["coverage"])
        assert good / kept == pytest.approx(told["precision"])
        assert sum(row["true_pixels"] * (row["recall"] or 0) for row in rows) == pytest.approx(good)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_batches_change_nothing(teacher, shown, truth, thresholds, judged, batch_size):
    again = judge(teacher, shown, truth, thresholds, batch_size=batch_size)
    assert again.keys() == judged.keys()
    for name, told in judged.items():
        for key in ("coverage", "precision", "accuracy", "ece", "ece_by_share"):
            assert again[name][key] == pytest.approx(told[key], abs=1e-3), (name, key)
    apart, together = (on_training_images(teacher, shown, truth, batch_size=size) for size in (batch_size, 8))
    for part, scores in together.items():
        assert apart[part] == pytest.approx(scores, rel=1e-3), part


def test_the_network_is_left_as_it_was(teacher, shown, truth, thresholds):
    before = md.models.multitask.weights_hash(teacher)
    judge(teacher, shown, truth, thresholds)
    on_training_images(teacher, shown, truth)
    assert md.models.multitask.weights_hash(teacher) == before


# Labelled and unlabelled training images


def test_training_images_are_scored_apart(teacher, shown, truth):
    told = on_training_images(teacher, shown, truth)
    for task in ALL:
        for part, wanted in (("labelled", True), ("unlabelled", False)):
            images = [index for index in range(len(truth)) if (task.name in shown.annotated(index)) == wanted]
            alone = md.evaluate(teacher, Subset(truth, images)).scores
            for score in task.scores:
                name = f"{task.name}.{score.name}"
                assert told[part][name] == pytest.approx(alone[name], rel=1e-3), (part, name)


def test_images_that_training_left_out_are_unlabelled(teacher, shown, truth):
    some = Subset(shown, [index for index in range(len(shown)) if shown.annotated(index)][:6])
    told = on_training_images(teacher, some, truth)
    labelled = {name for index in range(6) for name in some.annotated(index)}
    assert {name.partition(".")[0] for name in told["labelled"]} == labelled
    assert {name.partition(".")[0] for name in told["unlabelled"]} == {task.name for task in ALL}


# In a run

RECIPE = """
name: tiny
data: {reader: rooms, size: [32, 48], train: 6, val: 2}
labels: {setting: SETTING, seed: 0}
tasks: {semseg: {classes: 13}, depth: {bins: 8}}
width: 0.125
networks:
  first: {decoder: shared}
  second: {decoder: shared, teacher: first, objective: {features: 0}}
baseline: first
training: {epochs: 1, batch_size: 3}
discovery: {mode: MODE}
pictures: 1
"""


def small_run(folder, setting: str, mode: str) -> Run:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("SETTING", setting).replace("MODE", mode))
    work = Run(load_recipe(path), folder / "run")
    work.run()
    return work


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_run_judges_what_it_discovered_once(tmp_path, mode):
    work = small_run(tmp_path, "one-label", mode)
    place, scores = work.folder / "discovered" / "quality.json", work.folder / "first" / "training_images.json"
    told, manifest = json.loads(place.read_text()), json.loads((work.folder / "discovered" / "manifest.json").read_text())
    assert set(told) == {"semseg", "depth"}
    for name, entry in manifest["tasks"].items():
        assert {key: entry[key] for key in ("precision", "coverage", "tolerance")}.items() <= told[name].items()
        assert told[name]["coverage"] == pytest.approx(entry["kept_share"], abs=0.01)  # some truth is not valid
    assert json.loads(scores.read_text()).keys() == {"labelled", "unlabelled"}
    assert (work.folder / "second" / "training_images.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (place, scores, place.with_name("manifest.json"))}
    work.run()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_where_no_truth_is_hidden_there_is_no_file(tmp_path):
    work = small_run(tmp_path, "full", "offline")
    assert not list(work.folder.rglob("quality.json"))
    assert not list(work.folder.rglob("training_images.json"))
