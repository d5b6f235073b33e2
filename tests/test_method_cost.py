"""The cost table of all methods: what it counts, what a step is, how turns are compared, what is told."""

import argparse
import importlib
import io
import json
import sys
from pathlib import Path

import pytest

from multidense import train
from multidense.comparison import catalogue

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = argparse.Namespace(size=[32, 48], width=0.0625, batch=3, labels="one-label", rounds=2, seed=0, together=2)
ANSWERS = """import sys
print('{"peak": 100.0, "kept": 20.0}', flush=True)
for line in sys.stdin:
    print(0.5, flush=True)
"""


@pytest.fixture(scope="module")
def parts():
    """The modules `method_cost`, `method_rows` and `method_step`, by what they are of: cost, rows, step."""
    sys.path.insert(0, str(BENCHMARKS))
    known = set(sys.modules)
    yield {name: importlib.import_module(f"method_{name}") for name in ("rows", "step", "cost")}
    sys.path.remove(str(BENCHMARKS))
    for name in {"method_rows", "method_step", "method_cost", "step_cost"} - known:
        del sys.modules[name]


@pytest.fixture(scope="module")
def cost(parts):
    return parts["cost"]


@pytest.fixture(scope="module")
def rows(parts):
    return parts["rows"]


@pytest.fixture(scope="module")
def step(parts):
    return parts["step"]


def served(step, monkeypatch, capsys, row, steps: int = 2) -> tuple[dict, list[float]]:
    """What the process of a row's first network would say, when asked for so many steps."""
    for name in ("Feed", "_beside"):
        monkeypatch.setattr(train, name, getattr(train, name))  # undone at the end of the test
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n" * steps))
    with pytest.raises(SystemExit):
        step.serve(row, next(iter(step.networks_of(row)[1])), TINY)
    needs, *seconds = map(json.loads, capsys.readouterr().out.splitlines())
    return needs, seconds


def test_rows_are_methods_of_the_catalogue_and_the_first_is_the_baseline(rows):
    keys = [row.key for row in rows.ROWS]
    assert len(set(keys)) == len(keys)
    assert {row.method for row in rows.ROWS} <= set(catalogue())
    assert keys[0] == "mtl"


def test_the_network_of_xtc_is_that_of_table_8_and_its_mapping_network_counts_in_training_only(cost):
    told = cost.described(cost.Row("xtc"))
    assert told["parameters"] == 25_055_185
    assert told["parameters_in_training_only"] == 14_819_328
    assert told["multiply_adds"] == pytest.approx(68.808e9, rel=1e-5)
    assert told["published"] == {"params_M": 39.84, "flops_G": 223.16, "train_memory_G": 31.42}


def test_the_networks_of_a_method_that_has_one_for_each_task_are_added_up(rows, monkeypatch):
    monkeypatch.setattr(rows, "count_parameters", lambda module: 1)
    monkeypatch.setattr(rows, "multiply_adds", lambda model, size: 10.0)
    build = rows.build_model
    monkeypatch.setattr(rows, "build_model", lambda *parts, **options: build(*parts, width=0.0625, **options))
    assert rows.counted(rows.Row("stl")) == {"parameters": 3, "parameters_in_training_only": 3, "multiply_adds": 30.0}


@pytest.mark.parametrize("name", ["xtc", "x-task", "hitts+lp+lf"])
def test_a_step_is_one_of_the_training_and_waits_to_be_asked_for(rows, step, monkeypatch, capsys, name):
    seen = []
    total = train.Objective.gather
    monkeypatch.setattr(
        train.Objective, "gather", lambda self, tasks, terms, *rest: seen.append(set(terms)) or total(self, tasks, terms, *rest)
    )
    row = next(row for row in rows.ROWS if row.key == name)
    needs, seconds = served(step, monkeypatch, capsys, row)
    assert len(seconds) == 2
    assert min(seconds) > 0
    assert len(seen) == step.WARM_UP + 2
    assert needs["kept"] > 0
    wanted = {"xtc": {"xtc"}, "x-task": {"x-task"}, "hitts+lp+lf": {"discovered", "features"}}
    assert wanted.get(name, set()) <= seen[-1]


def test_what_is_kept_for_the_backward_pass_grows_with_the_batch_and_holds_no_weights(rows, step, monkeypatch, capsys):
    kept = {}
    for batch in (3, 6):
        monkeypatch.setattr(TINY, "batch", batch)
        kept[batch] = served(step, monkeypatch, capsys, rows.ROWS[0], steps=0)[0]["kept"]
    assert kept[6] == pytest.approx(2 * kept[3], rel=0.01)


def test_turns_are_compared_with_those_of_the_first_in_the_same_group(cost, monkeypatch):
    class Busy(cost.Serving):
        """The machine is slower for each further process."""

        begun = 0

        def __init__(self, row, options):
            self.row, self.failed, self.seconds, self.processes = row, "", [], []
            self.needs = [{"peak": 100.0, "kept": 20.0}]
            self.pace = 1 + Busy.begun // 2
            Busy.begun += 1

        def step(self):
            self.seconds.append(self.pace * (1.5 if self.row.key == "mtan" else 1.0))

    monkeypatch.setattr(cost, "Serving", Busy)
    monkeypatch.setattr(cost, "counted", lambda row: {"parameters": 25e6})
    rows = [cost.Row("mtl"), cost.Row("stl"), cost.Row("mtan"), cost.Row("mtl", "odd", "Odd", decoder="mtan")]
    found = cost.measure(rows, TINY)
    assert list(found) == ["mtl", "stl", "mtan", "odd"]
    assert found["mtan"]["seconds"] == [3.0, 3.0]
    assert found["mtan"]["seconds_of_first"] == [2, 2]
    page = cost.markdown({"settings": vars(TINY), "methods": found, "environment": {"machine": {"processor": "any"}}})
    assert "| MTAN | segnet + mtan | 25.00 | – | – | 3.000 | 1.50 | 3.000 | 1.50 | 100 | 20 | 44.23 | 217.26 | 43.46 |" in page
    assert "| Odd | segnet + mtan | 25.00 | – | – | 3.000 | 1.00 | 3.000 | 1.00 | 100 | 20 | – | – | – |" in page


def test_a_row_that_cannot_be_built_is_told_and_stops_no_other(cost, monkeypatch):
    monkeypatch.setattr(cost, "Serving", None)
    told = cost.described(cost.Row("mtl", "segnet+odd", "Odd", decoder="mtam"))
    assert "unknown decoder 'mtam'" in told["failed"]
    page = cost.markdown({"settings": vars(TINY), "methods": {"odd": told}, "environment": {"machine": {"processor": "any"}}})
    assert "Not measured: Odd, for unknown decoder 'mtam'" in page


def test_processes_answer_in_turn_and_one_that_ends_is_told(cost, monkeypatch, tmp_path):
    script = tmp_path / "answers.py"
    script.write_text(ANSWERS)
    monkeypatch.setattr(cost, "STEPPING", script)
    serving = cost.Serving(cost.Row("stl"), TINY)
    serving.step()
    serving.step()
    serving.close()
    assert serving.figures([0.5, 0.5]) == {"peak": 100, "kept": 20, "seconds": [1.5, 1.5], "seconds_of_first": [0.5, 0.5]}
    script.write_text("raise SystemExit(3)")
    serving = cost.Serving(cost.Row("mtl"), TINY)
    serving.step()
    serving.close()
    assert serving.figures([]) == {"failed": "its process ended with status 3"}
