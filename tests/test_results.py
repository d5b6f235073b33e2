"""Scores with where they came from, and the relative gain over a baseline."""

import csv
import json
import math
from collections import defaultdict
from pathlib import Path

import pytest

from multidense.results import Results, delta_mtl, environment, relative_gains, score_of
from multidense.types import SCORES, MultidenseError

PUBLISHED = Path(__file__).parents[2] / "shared" / "published" / "hitts_tables.csv"


def published() -> list:
    """(case name, scores, single-task scores, printed delta_mtl) of every row of the paper that can be recomputed."""
    if not PUBLISHED.exists():
        return []
    rows = defaultdict(dict)
    with open(PUBLISHED, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows[row["table"], row["setting"], row["method"]][row["metric"]] = row["value"]
    cases = []
    for (table, setting, method), scores in rows.items():
        if "delta_mtl" in scores and (table, setting, "STL") in rows:
            numbers, single = ({k: float(v) for k, v in x.items() if "." in k} for x in (scores, rows[table, setting, "STL"]))
            cases.append(pytest.param(numbers, single, float(scores["delta_mtl"]), id=f"table {table}, {setting}, {method}"))
    return cases


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published tables are not beside the checkout")
def test_most_rows_of_the_paper_can_be_recomputed():
    assert len(published()) >= 40


@pytest.mark.parametrize(("scores", "single", "printed"), published())
def test_the_paper_is_reproduced(scores, single, printed):
    assert delta_mtl(scores, single) == pytest.approx(printed, abs=0.011)


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
    )
    results.save(tmp_path / "results.json")
    back = Results.load(tmp_path / "results.json")
    assert back.scores == pytest.approx(results.scores, nan_ok=True)
    assert back.further == pytest.approx(results.further, nan_ok=True)
    assert back.per_class["a"] == pytest.approx(results.per_class["a"], nan_ok=True)
    assert back.cost == pytest.approx(results.cost, nan_ok=True)
    assert back.provenance == results.provenance


def test_a_file_of_results_is_json_that_everybody_reads(tmp_path):
    Results({"a.mIoU": math.nan, "b.rmse": math.inf, "c.MAE": 0.5}).save(tmp_path / "results.json")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert data["scores"] == {"a.mIoU": None, "b.rmse": None, "c.MAE": 0.5}


@pytest.mark.parametrize("text", ['{"score": {}}', '{"scores": {}, "extra": 1}', "{}"])
def test_another_file_is_not_taken_for_results(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(MultidenseError, match=r"other\.json is not a results file: expected the keys cost, further, per_class"):
        Results.load(tmp_path / "other.json")


def test_results_print_their_scores_with_units():
    lines = str(Results({"a.mIoU": 41.25, "b.absErr": 0.5, "c.MAE": 0.125})).splitlines()
    assert [line.split() for line in lines] == [["a.mIoU", "41.25", "%"], ["b.absErr", "0.5", "m"], ["c.MAE", "0.125"]]


def test_the_environment_says_which_versions_and_machine_and_can_be_saved(tmp_path):
    found = environment()
    assert {"torch", "multidense", "python"} <= set(found["versions"])
    Results({}, provenance=found).save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json").provenance == found
