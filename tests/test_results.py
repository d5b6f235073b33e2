"""Scores with where they came from, and the relative gain over a baseline."""

import json
import math

import pytest

from multidense.results import (
    BEST,
    MEAN_OF_LAST,
    Results,
    check_same_protocol,
    delta_mtl,
    environment,
    other_rules,
    protocol,
    relative_gains,
    score_of,
)
from multidense.types import SCORES, MultidenseError

# The relative gain


def test_the_gain_is_the_mean_over_scores_each_by_its_direction():
    scores, single = {"semseg.mIoU": 44.0, "depth.absErr": 0.4}, {"semseg.mIoU": 40.0, "depth.absErr": 0.5}
    assert relative_gains(scores, single) == pytest.approx({"semseg.mIoU": 10.0, "depth.absErr": 20.0})
    assert delta_mtl(scores, single) == pytest.approx(15.0)
    assert delta_mtl(single, single) == 0.0


def test_worse_is_negative_whatever_the_direction():
    single = {"a.mIoU": 40.0, "b.rmse": 2.0}
    assert relative_gains({"a.mIoU": 30.0, "b.rmse": 3.0}, single) == pytest.approx({"a.mIoU": -25.0, "b.rmse": -50.0})


def test_results_and_plain_numbers_compare_alike():
    assert (
        delta_mtl(Results({"a.mIoU": 50.0}), {"a.mIoU": 40.0}) == delta_mtl({"a.mIoU": 50.0}, Results({"a.mIoU": 40.0})) == 25
    )


def test_the_order_of_scores_does_not_matter():
    assert delta_mtl({"a.mIoU": 1.0, "b.rmse": 2.0}, {"b.rmse": 4.0, "a.mIoU": 2.0}) == 0.0


@pytest.mark.parametrize(("score", "reference"), [(math.nan, 40.0), (40.0, math.nan), (40.0, 0.0)])
def test_a_gain_that_is_not_defined_is_not_a_number(score, reference):
    assert math.isnan(delta_mtl({"a.mIoU": score}, {"a.mIoU": reference}))


def test_different_scores_cannot_be_compared():
    with pytest.raises(MultidenseError, match=r"only one side has a\.mIoU, b\.rmse"):
        delta_mtl({"a.mIoU": 1.0, "c.MAE": 1.0}, {"b.rmse": 1.0, "c.MAE": 1.0})
    with pytest.raises(MultidenseError, match="at least one score"):
        delta_mtl({}, {})


@pytest.mark.parametrize("name", ["a.miou", "mIoU", "a.", "a.mIoU.mean"])
def test_an_unknown_score_is_named_with_those_there_are(name):
    with pytest.raises(MultidenseError, match=r"unknown score .*expected 'task\.score' with a score out of mIoU, pixAcc"):
        delta_mtl({name: 1.0}, {name: 1.0})


@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_found_behind_any_task(name):
    assert score_of(f"anything.{name}") is SCORES[name]


# Files


def test_results_come_back_as_they_were_saved(tmp_path):
    results = Results(
        scores={"a.mIoU": 41.25, "b.rmse": math.nan},
        further={"b.absRel": 0.1, "b.AP": math.nan},
        per_class={"a": {"wall": 80.0, "lamp": math.nan}},
        provenance={"seed": 1, "labels": {"setting": "one-label"}, "teacher": None},
        cost={"parameters": 25.3e6, "seconds": math.nan},
        beside={"best epoch": {"a.mIoU": 42.0, "b.rmse": math.nan, "epoch": 12.0}},
    )
    results.save(tmp_path / "results.json")
    back = Results.load(tmp_path / "results.json")
    assert back.scores == pytest.approx(results.scores, nan_ok=True)
    assert back.further == pytest.approx(results.further, nan_ok=True)
    assert back.per_class["a"] == pytest.approx(results.per_class["a"], nan_ok=True)
    assert back.cost == pytest.approx(results.cost, nan_ok=True)
    assert back.provenance == results.provenance
    assert back.beside["best epoch"] == pytest.approx(results.beside["best epoch"], nan_ok=True)


def test_results_from_before_there_were_other_rules_are_read(tmp_path):
    (tmp_path / "results.json").write_text('{"scores": {"a.mIoU": 40.0}}')
    assert Results.load(tmp_path / "results.json").beside == {}


def test_a_file_of_results_is_json_that_everybody_reads(tmp_path):
    Results({"a.mIoU": math.nan, "b.rmse": math.inf, "c.MAE": 0.5}).save(tmp_path / "results.json")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert data["scores"] == {"a.mIoU": None, "b.rmse": None, "c.MAE": 0.5}


@pytest.mark.parametrize("text", ['{"score": {}}', '{"scores": {}, "extra": 1}', "{}"])
def test_another_file_is_not_taken_for_results(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(
        MultidenseError,
        match=r"other\.json is not a results file: expected the keys beside, collections, cost, further, per_class",
    ):
        Results.load(tmp_path / "other.json")


def test_results_print_their_scores_with_units():
    lines = str(Results({"a.mIoU": 41.25, "b.absErr": 0.5, "c.MAE": 0.125})).splitlines()
    assert [line.split() for line in lines] == [["a.mIoU", "41.25", "%"], ["b.absErr", "0.5", "m"], ["c.MAE", "0.125"]]


def test_the_environment_says_which_versions_and_machine_and_can_be_saved(tmp_path):
    found = environment()
    assert {"torch", "multidense", "python"} <= set(found["versions"])
    Results({}, provenance=found).save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json").provenance == found


# Checkpoint rules


def history(**scores: list[float]) -> dict[str, list[tuple[float, float]]]:
    """Validation courses over the epochs 10, 20, …, beside a loss."""
    courses = {
        f"val.{task}": [(10.0 * (place + 1), value) for place, value in enumerate(values)] for task, values in scores.items()
    }
    return {"loss": [(1.0, 9.0)], **courses}


def test_the_best_epoch_is_the_one_with_the_best_mean_gain_over_the_last():
    courses = history(**{"a.mIoU": [30.0, 44.0, 40.0], "b.rmse": [1.0, 2.0, 2.0]})
    assert other_rules(courses) == {BEST: {"a.mIoU": 30.0, "b.rmse": 1.0, "epoch": 10.0}}, "−25 % and +50 %, against +10 %"


def test_of_equally_good_epochs_the_latest_is_taken():
    assert other_rules(history(**{"a.mIoU": [50.0, 40.0, 50.0, 50.0]}))[BEST]["epoch"] == 40.0


def test_the_mean_is_over_exactly_ten_epochs():
    ten = other_rules(history(**{"a.mIoU": [0.0, *map(float, range(10))]}))[MEAN_OF_LAST]
    assert ten == {"a.mIoU": 4.5, "epoch": 20.0}
    assert MEAN_OF_LAST not in other_rules(history(**{"a.mIoU": list(map(float, range(1, 10)))}))


def test_epochs_that_lack_a_score_do_not_count_and_unknown_columns_are_passed_over():
    courses = history(**{"a.mIoU": [90.0, 41.0, 40.0]})
    courses |= {"val.b.rmse": [(20.0, 1.0), (30.0, 1.0)], "val.b.something": [(30.0, 1.0)]}
    assert other_rules(courses)[BEST] == {"a.mIoU": 41.0, "b.rmse": 1.0, "epoch": 20.0}


@pytest.mark.parametrize("courses", [{}, {"loss": [(1.0, 2.0)]}, {"val.a.mIoU": [(1.0, 2.0)]}], ids=["none", "loss", "one"])
def test_without_several_validations_there_is_no_other_rule(courses):
    assert other_rules(courses) == {}


def test_a_last_score_of_zero_judges_nothing():
    assert other_rules(history(**{"a.mIoU": [5.0, 0.0], "b.rmse": [2.0, 1.0]}))[BEST]["epoch"] == 20.0


# Protocols


def scored(classes: int = 2, **said) -> Results:
    """Results on some data, which differ from those of the same words in nothing that a protocol knows."""
    data = {"name": "nyuv2", "layout": "preprocessed", "split": "val", "length": 654, "size": [288, 384]}
    told = {"data": data | said.pop("data", {}), "images": {"a": 654}, "checkpoint": "last epoch", "seed": 0} | said
    return Results({"a.mIoU": 1.0}, per_class={"a": {str(place): 1.0 for place in range(classes)}}, provenance=told)


def test_a_protocol_is_what_was_scored_and_how():
    assert protocol(scored()) == {
        "data": "nyuv2",
        "layout": "preprocessed",
        "split": "val",
        "images": 654,
        "size": "288 × 384",
        "checkpoint": "last epoch",
        "images with a": 654,
        "classes of a": 2,
    }


def test_what_does_not_change_the_scored_images_is_no_difference():
    check_same_protocol([("one", scored()), ("two", scored(seed=1)), ("old", Results({"a.mIoU": 1.0}))], "a table")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"data": {"name": "rooms"}}, "data: nyuv2 here, rooms there"),
        ({"data": {"layout": "official"}}, "layout: preprocessed here, official there"),
        ({"data": {"split": "test"}}, "split: val here, test there"),
        ({"data": {"images": 20}}, "images: 654 here, 20 there"),
        ({"data": {"size": [96, 128]}}, "size: 288 × 384 here, 96 × 128 there"),
        ({"data": {"size": None, "image_size": [96, 128]}}, "size: 288 × 384 here, 96 × 128 there"),
        ({"images": {"a": 3, "b": 4}}, "images with a: 654 here, 3 there"),
        ({"classes": 3}, "classes of a: 2 here, 3 there"),
        ({"checkpoint": "best epoch"}, "checkpoint: last epoch here, best epoch there"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_scores_that_were_not_taken_alike_are_refused(other, said):
    with pytest.raises(MultidenseError) as refused:
        check_same_protocol([("first", scored()), ("again", scored()), ("other", scored(**other))], "table 1")
    assert str(refused.value).startswith(f"table 1: first (here) and other (there) were not scored alike: {said}.")
    assert "--mixed" in str(refused.value)
