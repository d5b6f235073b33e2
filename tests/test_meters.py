"""Meters: pooled sums, which no batching or order changes, held against numpy and against torchmetrics."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy, MulticlassJaccardIndex
from torchmetrics.regression import MeanAbsoluteError, MeanAbsolutePercentageError, MeanSquaredError

from multidense.tasks import Depth, Edges, Normals, Saliency, SemanticSegmentation
from multidense.types import SCORES, Target

IMAGES, SIZE = 6, (7, 9)
BINNED, CENTRED = Depth(bins=8, low=0.5, high=8.0), Normals(centers=12, spread="hemisphere")
TASKS = {
    "confusion": SemanticSegmentation(5),
    "error": Depth(),
    "error of bins": BINNED.with_codebook(BINNED.fit_codebook([], seed=0)),
    "angle": Normals(),
    "angle of centres": CENTRED.with_codebook(CENTRED.fit_codebook([], seed=0)),
    "binary": Edges(),
    "saliency": Saliency(),
    "saliency, softmax": Saliency(2),
}
each_meter = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def draw(task, rng, images=IMAGES) -> tuple[torch.Tensor, Target]:
    """Random logits and targets; the third image is valid nowhere."""
    targets = []
    for i in range(images):
        valid = rng.random(SIZE) < (0.0 if i == 2 else rng.uniform(0.2, 1))
        array = {
            SemanticSegmentation: lambda: rng.integers(0, 5, SIZE),
            Depth: lambda: rng.uniform(0.5, 8, SIZE),
            Normals: lambda: rng.normal(size=(*SIZE, 3)),
        }.get(type(task), lambda: rng.integers(0, 2, SIZE))()
        targets.append(task.encode(array, valid))
    logits = torch.from_numpy(rng.normal(size=(images, task.channels, *SIZE)) * 2).float()
    stacked = Target(torch.stack([t.value for t in targets]), torch.stack([t.valid for t in targets]))
    return logits, stacked


def pick(target: Target, rows) -> Target:
    return Target(target.value[rows], target.valid[rows])


def measured(task, logits, target, batches=None) -> dict[str, float]:
    meter = task.meter()
    for rows in batches or [list(range(len(logits)))]:
        meter.update(logits[rows], pick(target, rows))
    return meter.compute()


# Every meter


@each_meter
def test_reset_forgets_everything(task, rng):
    logits, target = draw(task, rng)
    meter = task.meter()
    meter.update(*draw(task, rng))
    meter.reset()
    assert all((total == 0).all() for total in meter.sums.values())
    meter.update(logits, target)
    assert meter.compute() == measured(task, logits, target)


@each_meter
def test_a_score_of_nothing_is_not_a_number(task):
    assert all(math.isnan(score) for score in task.meter().compute().values())


@each_meter
def test_images_that_are_valid_nowhere_add_nothing(task, rng):
    logits, target = draw(task, rng)
    assert measured(task, logits, target) == pytest.approx(measured(task, logits, target, [[0, 1, 3, 4, 5]]), rel=1e-9)
    assert all(math.isnan(score) for score in measured(task, logits, target, [[2]]).values())


@each_meter
@pytest.mark.parametrize(
    "batches",
    [[[0], [1], [2], [3], [4], [5]], [[0, 1], [2, 3], [4, 5]], [[0, 1, 2, 3], [4, 5]], [[5, 2, 0], [4, 1, 3]]],
    ids=["ones", "pairs", "uneven", "shuffled"],
)
def test_no_batching_and_no_order_changes_a_score(task, batches, rng):
    logits, target = draw(task, rng)
    assert measured(task, logits, target, batches) == pytest.approx(measured(task, logits, target), rel=1e-9)


@each_meter
def test_two_merged_meters_are_one_over_all(task, rng):
    logits, target = draw(task, rng)
    first, second = task.meter(), task.meter()
    first.update(logits[:4], pick(target, slice(4)))
    second.update(logits[4:], pick(target, slice(4, None)))
    first.merge(second.sums)
    assert first.compute() == pytest.approx(measured(task, logits, target), rel=1e-9)


@each_meter
def test_what_is_not_valid_is_not_measured(task, rng):
    logits, target = draw(task, rng)
    other_logits, other = draw(task, rng)
    elsewhere = Target(torch.where(target.valid, target.value, other.value), target.valid)
    mixed = torch.where(target.valid, logits, other_logits)
    assert measured(task, mixed, elsewhere) == measured(task, logits, target)


@each_meter
def test_every_score_is_known_and_a_plain_number(task, rng):
    scores = measured(task, *draw(task, rng))
    assert set(scores) <= set(SCORES)
    assert all(type(score) is float for score in scores.values())


# Against numpy


@pytest.fixture
def pixels(rng):
    """Logits and truth of a task as numpy arrays of valid pixels `[n c]`, beside what its meter says."""

    def drawn(task):
        logits, target = draw(task, rng)
        valid = target.valid[:, 0]
        true, predicted = target.value.movedim(1, -1)[valid], task.decode(logits).movedim(1, -1)[valid]
        return true.double().numpy(), predicted.double().numpy(), measured(task, logits, target)

    return drawn


def test_classes_agree_with_numpy(pixels):
    true, predicted, scores = pixels(TASKS["confusion"])
    ious = [((true == k) & (predicted == k)).sum() / ((true == k) | (predicted == k)).sum() for k in range(5)]
    assert scores == pytest.approx({"mIoU": 100 * np.mean(ious), "pixAcc": 100 * (true == predicted).mean()}, rel=1e-9)


@pytest.mark.parametrize("name", ["error", "error of bins"])
def test_errors_agree_with_numpy(pixels, name):
    true, predicted, scores = pixels(TASKS[name])
    error, ratio = abs(predicted - true), np.maximum(predicted / true, true / predicted)
    expected = {"absErr": error.mean(), "rmse": np.sqrt((error**2).mean()), "absRel": (error / true).mean()}
    expected |= {f"within_1.25^{n}": 100 * (ratio < 1.25**n).mean() for n in (1, 2, 3)}
    assert scores == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["angle", "angle of centres"])
def test_angles_agree_with_numpy(pixels, name):
    true, predicted, scores = pixels(TASKS[name])
    degrees = np.degrees(np.arccos(np.clip((true * predicted).sum(1), -1, 1)))
    expected = {"mErr": degrees.mean(), "rmse": np.sqrt((degrees**2).mean())}
    expected |= {f"within_{limit:g}": 100 * (degrees < limit).mean() for limit in (11.25, 22.5, 30)}
    assert scores == pytest.approx(expected, rel=1e-5)


def test_the_best_f_measure_is_the_one_found_by_trying_all(rng):
    task = TASKS["binary"]
    logits, target = draw(task, rng)
    valid = target.valid
    true, probability = target.value[valid].numpy() > 0.5, task.decode(logits)[valid].numpy()
    levels = (np.arange(1, 100, dtype=np.float32) / np.float32(100))[:, None]
    found = probability >= levels
    best = (2 * (found & true).sum(1) / (found.sum(1) + true.sum())).max()
    losses = task.loss(logits, target)[valid.flatten(1).any(1)]
    assert measured(task, logits, target) == pytest.approx({"bestF": 100 * best, "loss": losses.mean().item()}, rel=1e-6)


@pytest.mark.parametrize("name", ["saliency", "saliency, softmax"])
def test_the_best_mean_overlap_is_the_one_found_by_trying_all(rng, name):
    task = TASKS[name]
    logits, target = draw(task, rng)
    images = [(task.decode(logits)[i][v], target.value[i][v] > 0.5) for i, v in enumerate(target.valid) if v.any()]
    means = [
        np.mean([((p > t) & true).sum() / ((p > t) | true).sum() if ((p > t) | true).any() else 1.0 for p, true in images])
        for t in torch.linspace(0.2, 0.9, 15)
    ]
    error = torch.cat([(p - true.float()).abs() for p, true in images]).double().mean().item()
    assert measured(task, logits, target) == pytest.approx({"mIoU": 100 * max(means), "MAE": error}, rel=1e-6)


# Against torchmetrics


def test_classes_agree_with_torchmetrics(rng):
    task = TASKS["confusion"]
    logits, target = draw(task, rng)
    ids = torch.where(target.valid, target.value, 255)[:, 0]
    oracle = MulticlassJaccardIndex(5, ignore_index=255), MulticlassAccuracy(5, average="micro", ignore_index=255)
    found = {name: 100 * metric(logits.argmax(1), ids).item() for name, metric in zip(("mIoU", "pixAcc"), oracle, strict=True)}
    assert measured(task, logits, target) == pytest.approx(found, rel=1e-5)
    each = MulticlassJaccardIndex(5, average=None, ignore_index=255)(logits.argmax(1), ids)
    meter = task.meter()
    meter.update(logits, target)
    assert meter.per_class() == pytest.approx((100 * each).tolist(), rel=1e-5)


def test_errors_agree_with_torchmetrics(rng):
    task = TASKS["error of bins"]
    logits, target = draw(task, rng)
    true, predicted = target.value[target.valid], task.decode(logits)[target.valid]
    scores = measured(task, logits, target)
    oracle = {
        "absErr": MeanAbsoluteError(),
        "rmse": MeanSquaredError(squared=False),
        "absRel": MeanAbsolutePercentageError(),
    }
    for name, metric in oracle.items():
        assert scores[name] == pytest.approx(metric(predicted, true).item(), rel=1e-5)


def test_the_best_f_measure_agrees_with_torchmetrics(rng):
    task = TASKS["binary"]
    logits, target = draw(task, rng)
    true, probability = target.value[target.valid].long(), task.decode(logits)[target.valid]
    best = max(BinaryF1Score(threshold=level)(probability, true).item() for level in np.arange(0.01, 1, 0.01))
    assert measured(task, logits, target)["bestF"] == pytest.approx(100 * best, rel=1e-5)


# One fact each


@pytest.mark.parametrize(("name", "mean"), [("error", "absErr"), ("angle", "mErr")])
def test_the_root_of_the_mean_square_is_no_less_than_the_mean(rng, name, mean):
    for _ in range(10):
        scores = measured(TASKS[name], *draw(TASKS[name], rng, images=2))
        assert scores["rmse"] >= scores[mean]


def test_a_class_that_is_nowhere_leaves_the_mean_as_it_is():
    narrow, wide = SemanticSegmentation(2), SemanticSegmentation(3)
    ids = np.array([[0, 0, 1, 1]])
    logits = torch.tensor([[[[1.0, 0, 0, 0]], [[0.0, 1, 1, 1]]]])
    found = [
        measured(task, torch.nn.functional.pad(logits, (0, 0, 0, 0, 0, extra), value=-9.0), stacked(task, ids))
        for task, extra in ((narrow, 0), (wide, 1))
    ]
    assert found[0] == found[1] == pytest.approx({"mIoU": 100 * (1 / 2 + 2 / 3) / 2, "pixAcc": 75.0})


def test_a_class_that_is_only_predicted_counts_as_zero():
    task = SemanticSegmentation(3)
    logits = torch.tensor([[[[9.0, 9, 0]], [[0.0, 0, 0]], [[0.0, 0, 9]]]])
    assert measured(task, logits, stacked(task, np.array([[0, 0, 0]])))["mIoU"] == pytest.approx(100 * (2 / 3) / 2)


def test_permuting_the_classes_permutes_their_scores(rng):
    task = TASKS["confusion"]
    logits, target = draw(task, rng)
    order = torch.tensor([3, 0, 4, 1, 2])
    first, second = task.meter(), task.meter()
    first.update(logits, target)
    second.update(logits[:, order], Target(order.argsort()[target.value], target.valid))
    assert second.per_class() == pytest.approx([first.per_class()[k] for k in order])
    assert second.compute() == pytest.approx(first.compute())


def test_scores_of_a_picture_that_can_be_counted_by_hand():
    target = stacked(Depth(), np.array([[1.0, 2.0, 4.0, 0.0]]))
    scores = measured(Depth(), torch.tensor([[[[1.0, 3.0, 2.0, 50.0]]]]), target)
    assert scores["absErr"] == pytest.approx(1.0)
    assert scores["rmse"] == pytest.approx(math.sqrt(5 / 3))
    assert scores["absRel"] == pytest.approx(1 / 3)
    assert scores["within_1.25^1"] == pytest.approx(100 / 3)
    assert scores["within_1.25^3"] == pytest.approx(200 / 3)


def test_limits_of_angles_are_strict():
    scores = measured(Normals(), torch.tensor([0.0, 0, 1])[None, :, None, None], stacked(Normals(), np.array([[[0, 1, 1]]])))
    assert scores == pytest.approx({"mErr": 45, "rmse": 45, "within_11.25": 0, "within_22.5": 0, "within_30": 0})


def test_an_empty_image_that_is_left_empty_overlaps_fully():
    task = Saliency()
    assert measured(task, torch.full((1, 1, 2, 2), -30.0), stacked(task, np.zeros((2, 2))))["mIoU"] == 100


def stacked(task, array) -> Target:
    target = task.encode(array)
    return Target(target.value[None], target.valid[None])
