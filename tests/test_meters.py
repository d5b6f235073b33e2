"""Meters: pooled sums, which no batching or order changes, held against numpy and against torchmetrics."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import (
    BinaryF1Score,
    BinaryFBetaScore,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassJaccardIndex,
)
from torchmetrics.regression import (
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
)

from multidense.boundaries import Counts, count
from multidense.meters import SaliencyMeter, ValueMeter, reaching
from multidense.tasks import Depth, Edges, HumanParts, Normals, Saliency, SemanticSegmentation
from multidense.types import IMAGES, PIXELS, SCORES, Target

COUNT, SIZE = 6, (7, 9)
BINNED, CENTRED = Depth(bins=8, low=0.5, high=8.0), Normals(centers=12, spread="hemisphere")
TASKS = {
    "confusion": SemanticSegmentation(5),
    "parts": HumanParts(5),
    "error": Depth(),
    "error of bins": BINNED.with_codebook(BINNED.fit_codebook([], seed=0)),
    "angle": Normals(),
    "angle of centres": CENTRED.with_codebook(CENTRED.fit_codebook([], seed=0)),
    "binary": Edges(),
    "saliency": Saliency(),
    "saliency, softmax": Saliency(2),
}
each_meter = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def draw(task, rng, images=COUNT) -> tuple[torch.Tensor, Target]:
    """Random logits and targets; the third image is valid nowhere."""
    targets = []
    for i in range(images):
        valid = rng.random(SIZE) < (0.0 if i == 2 else rng.uniform(0.2, 1))
        array = {
            SemanticSegmentation: lambda: rng.integers(0, 5, SIZE),
            HumanParts: lambda: rng.integers(0, 5, SIZE),
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
    expected |= {"logErr": abs(np.log(predicted) - np.log(true)).mean()}
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
    quick = task.quick_meter()
    quick.update(logits, target)
    assert quick.compute() == pytest.approx({"bestF": 100 * best, "loss": losses.mean().item()}, rel=1e-6)
    assert quick.compute().items() <= measured(task, logits, target).items(), "the whole meter tells them too"


def test_boundaries_are_counted_where_the_truth_is_valid_and_by_the_settings_of_the_task(rng):
    for task in (Edges(), Edges(max_dist=0.2, thresholds=9), Edges(nms=True)):
        logits, target = draw(task, rng)
        counts = Counts.none(task.protocol)
        for p, t, v in zip(logits.sigmoid().numpy(), target.value.numpy() > 0.5, target.valid.numpy(), strict=True):
            if v.any():
                counts = counts + count((p * v)[0].astype(np.float64), [(t & v)[0]], task.protocol)
        scores = measured(task, logits, target)
        assert {name: scores[name] for name in ("odsF", "oisF", "AP")} == pytest.approx(
            {name: counts.scores()[name] for name in ("odsF", "oisF", "AP")}, rel=1e-12
        )


def test_edges_can_be_scored_by_both_protocols_each_under_its_name():
    logits = torch.randn(2, 1, 24, 32)
    target = Edges().encode(np.random.default_rng(0).random((24, 32)) > 0.9)
    target = Target(target.value.expand(2, 1, -1, -1), target.valid.expand(2, 1, -1, -1))

    def told(**settings):
        meter = Edges(**settings).meter()
        meter.update(logits, target)
        return meter.compute()

    plain, nms = told(), told(nms=True)
    assert told(both=True) == plain | {f"{name}_nms": nms[name] for name in ("odsF", "oisF", "AP")}
    assert told(both=True, nms=True) == nms | {f"{name}_plain": plain[name] for name in ("odsF", "oisF", "AP")}
    assert set(told(both=True)) <= set(SCORES)


def test_only_edges_have_a_quicker_meter():
    quicker = {name for name, task in TASKS.items() if type(task.quick_meter()) is not type(task.meter())}
    assert quicker == {"binary"}


def f_of(found: np.ndarray, true: np.ndarray, beta_squared: float = 0.3) -> float:
    """F from precision and recall as the textbook has it; 0 where nothing right was found."""
    right = (found & true).sum()
    if not right:
        return 0.0
    precision, recall = right / found.sum(), right / true.sum()
    return (1 + beta_squared) * precision * recall / (beta_squared * precision + recall)


@pytest.mark.parametrize("name", ["saliency", "saliency, softmax"])
def test_saliency_agrees_with_trying_all_thresholds_in_numpy(rng, name):
    task = TASKS[name]
    logits, target = draw(task, rng)
    maps = task.decode(logits.double()).numpy()
    images = [(maps[i][v], target.value[i].numpy()[v] > 0.5) for i, v in enumerate(target.valid.numpy()) if v.any()]
    overlaps = [
        np.mean(
            [
                ((p > k / 20) & true).sum() / ((p > k / 20) | true).sum() if ((p > k / 20) | true).any() else 1
                for p, true in images
            ]
        )
        for k in range(4, 19)
    ]
    stretched = [((p - p.min()) / (p.max() - p.min()), true) for p, true in images]
    single = [np.mean([f_of(p >= k / 255, true) for p, true in stretched]) for k in range(1, 256)]
    p, true = (np.concatenate(each) for each in zip(*images, strict=True))
    pooled = [f_of(p >= k / 20, true) for k in range(1, 20)]
    expected = {"mIoU": 100 * max(overlaps), "maxF": 100 * max(single), "maxF_pooled": 100 * max(pooled)}
    expected |= {"MAE": np.mean([abs(p - true).mean() for p, true in images])}
    assert measured(task, logits, target) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("strictly", [False, True])
def test_thresholds_that_stored_levels_fall_on_are_met_exactly(strictly):
    levels = torch.arange(256)
    found = reaching(levels.double() / 255, SaliencyMeter.pooled_thresholds, strictly)
    assert found.tolist() == [
        float(sum(20 * level > 255 * k or (20 * level == 255 * k and not strictly) for level in range(256)))
        for k in range(1, 20)
    ]


def test_a_stretched_map_reaches_each_of_the_255_levels_where_whole_numbers_do():
    for least, greatest in ((0, 255), (10, 200), (3, 54), (100, 151), (1, 8)):
        levels = torch.arange(least, greatest + 1).double() / 255
        stretched = (levels - levels.min()) / (levels.max() - levels.min())
        whole = [sum(255 * i >= k * (greatest - least) for i in range(greatest - least + 1)) for k in range(1, 256)]
        assert reaching(stretched, SaliencyMeter.levels).tolist() == whole


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


def test_the_counts_of_classes_are_the_confusion_matrix_of_torchmetrics(rng):
    task = TASKS["confusion"]
    logits, target = draw(task, rng)
    meter = task.meter()
    meter.update(logits, target)
    ids = torch.where(target.valid, target.value, 255)[:, 0]
    assert torch.equal(meter.matrix.long(), MulticlassConfusionMatrix(5, ignore_index=255)(logits.argmax(1), ids))


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


def test_saliency_agrees_with_torchmetrics(rng):
    task = TASKS["saliency"]
    logits, target = draw(task, rng)
    maps, scores = task.decode(logits.double()), measured(task, logits, target)
    true = target.value[target.valid].long()
    pooled = [BinaryFBetaScore(beta=0.3**0.5, threshold=k / 20)(maps[target.valid], true).item() for k in range(1, 20)]
    assert scores["maxF_pooled"] == pytest.approx(100 * max(pooled), rel=1e-5)
    errors = [MeanAbsoluteError()(maps[i][v], target.value[i][v].double()) for i, v in enumerate(target.valid) if v.any()]
    assert scores["MAE"] == pytest.approx(np.mean(errors), rel=1e-5)


# One fact each


@each_meter
def test_values_may_be_added_in_place_of_logits(task, rng):
    meter = task.meter()
    if not isinstance(meter, ValueMeter):
        pytest.skip("its scores need logits")
    logits, target = draw(task, rng)
    meter.add(task.decode(logits.double()), target)
    assert meter.compute() == measured(task, logits, target)


@pytest.mark.parametrize("task", [*TASKS.values()], ids=TASKS)
def test_every_score_says_how_it_pools(task):
    assert all(score.pooling in (PIXELS, IMAGES) for score in task.scores)
    assert all(score.pooling == (IMAGES if isinstance(task, Saliency) else PIXELS) for score in task.scores)


def test_two_images_of_one_score_tell_its_rule_of_pooling():
    """A large image that is all wrong and a small one that is all right: half by images, their shares by pixels."""
    task = Saliency()
    target = Target(
        torch.ones(2, 1, 1, 4), torch.tensor([[True, True, True, True], [True, False, False, False]])[:, None, None]
    )
    scores = measured(task, torch.tensor([-99.0, 99.0])[:, None, None, None].expand(2, 1, 1, 4), target)
    assert scores["MAE"] == pytest.approx(0.5, abs=1e-12)
    assert scores["mIoU"] == 50.0
    assert scores["maxF_pooled"] == pytest.approx(100 * 1.3 * 1 / (1 + 0.3 * 5), rel=1e-12)


def test_saliency_that_can_be_counted_by_hand():
    value = torch.tensor([[[[0.2, 0.4, 0.6, 0.6]]]], dtype=torch.float64)
    meter = Saliency().meter()
    meter.add(value, stacked(Saliency(), np.array([[0, 0, 1, 0]])))
    scores = meter.compute()
    assert scores["MAE"] == pytest.approx((0.2 + 0.4 + 0.4 + 0.6) / 4, abs=1e-15)
    assert scores["mIoU"] == 50.0, "above 0.4 … 0.55 two pixels are found, one of them right"
    assert scores["maxF"] == scores["maxF_pooled"] == pytest.approx(100 * 1.3 * 1 / (2 + 0.3), rel=1e-12)


def test_a_faint_map_has_the_maxf_of_a_strong_one_and_not_its_pooled_one(rng):
    strong = torch.from_numpy(rng.random((1, 1, *SIZE)))
    target = stacked(Saliency(), rng.integers(0, 2, SIZE))
    first, second = Saliency().meter(), Saliency().meter()
    first.add(strong, target)
    second.add(0.04 * strong, target)
    assert second.compute()["maxF"] == pytest.approx(first.compute()["maxF"], rel=1e-9)
    assert second.compute()["maxF_pooled"] == 0.0 < first.compute()["maxF_pooled"]


def test_a_constant_map_is_not_stretched():
    for level, expected in ((0.0, 0.0), (0.5, 100.0)):
        meter = Saliency().meter()
        meter.add(torch.full((1, 1, *SIZE), level), stacked(Saliency(), np.ones(SIZE)))
        assert meter.compute()["maxF"] == pytest.approx(expected)


def test_an_image_where_nothing_is_salient_has_an_f_of_zero(rng):
    meter = Saliency().meter()
    meter.add(torch.from_numpy(rng.random((1, 1, *SIZE))), stacked(Saliency(), np.zeros(SIZE)))
    assert meter.compute()["maxF"] == meter.compute()["maxF_pooled"] == 0.0


def test_images_without_people_are_skipped(rng):
    task = HumanParts(3)
    people, nobody = stacked(task, np.array([[0, 1], [2, 2]])), stacked(task, np.zeros((2, 2)))
    logits = torch.from_numpy(rng.normal(size=(1, 3, 2, 2)))
    alone, both = task.meter(), task.meter()
    alone.update(logits, people)
    both.update(
        torch.cat([logits, logits]), Target(*(torch.cat(each) for each in zip(parts(people), parts(nobody), strict=True)))
    )
    assert both.compute() == alone.compute()
    assert (alone.skipped, both.skipped) == (0, 1)
    assert SemanticSegmentation(3).meter().sums.keys() == {"matrix"}


def test_people_that_nobody_may_believe_are_nobody():
    task = HumanParts(3)
    meter = task.meter()
    target = task.encode(np.array([[0, 1]]), np.array([[True, False]]))
    meter.update(torch.zeros(1, 3, 1, 2), Target(target.value[None], target.valid[None]))
    assert (meter.skipped, meter.matrix.sum()) == (1, 0)
    meter.update(torch.zeros(1, 3, 1, 2), Target(target.value[None], torch.zeros(1, 1, 1, 2, dtype=torch.bool)))
    assert meter.skipped == 1, "what is not valid at all is not an image without people"


def test_a_prediction_without_direction_is_a_right_angle_off():
    meter = Normals().meter()
    meter.add(torch.zeros(1, 3, 1, 1), stacked(Normals(), np.array([[[0, 1, 1]]])))
    assert meter.compute()["mErr"] == pytest.approx(90)


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
    assert scores["logErr"] == pytest.approx((math.log(1.5) + math.log(2)) / 3)
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


def parts(target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    return target.value, target.valid
