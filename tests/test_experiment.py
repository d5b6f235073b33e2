"""The experiment's own arithmetic: paired differences, verdicts, and what is told of them."""

import importlib.util
import sys
from pathlib import Path

import pytest

from multidense.config import load_recipe
from multidense.results import Results

HOUSE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("experiment", HOUSE / "benchmarks" / "experiment.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["experiment"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["experiment"]


def scored(value: float) -> Results:
    return Results(scores={"semseg.mIoU": value, "normals.mErr": 20.0}, cost={"train_seconds": 1.0})


def told(experiment, **gains):
    """What is told of three seeds in which STL scores 50 and the others so much more."""
    found = {seed: {"stl": scored(50)} | {name: scored(50 + gain[seed]) for name, gain in gains.items()} for seed in range(3)}
    return experiment.tell(found, {"mtl": "MTL"}) | {"quality": {}, "training_images": {}}


def test_differences_are_paired_by_seed(experiment):
    result = told(experiment, mtl=(0, 10, 20), hitts=(1, 11, 21))
    assert result["over"]["mtl"]["hitts"]["mean"] == pytest.approx(1)
    assert result["over"]["mtl"]["hitts"]["error"] == pytest.approx(0, abs=1e-9)
    assert result["delta_mtl"]["hitts"] == pytest.approx({"0": 1, "1": 11, "2": 21})


@pytest.mark.parametrize(
    ("gains", "verdict"), [((2, 3, 4), "shown"), ((-2, -3, -4), "refuted"), ((5, 5, -1), "open"), ((0.1, 9, 0.1), "open")]
)
def test_a_claim_needs_every_seed_and_two_standard_errors(experiment, gains, verdict):
    claims = told(experiment, mtl=(0, 0, 0), hitts=gains)["claims"]
    assert [one["verdict"] for one in claims] == [verdict]


def test_the_share_of_the_headroom_is_against_full_labels_and_none_without_headroom(experiment):
    result = told(experiment, mtl=(1, 1, 1), hitts=(2, 2, 2), **{"mtl-full": (5, 5, 5)})
    assert result["headroom_closed"]["hitts"] == pytest.approx(0.25)
    assert told(experiment, mtl=(5, 5, 5), hitts=(6, 6, 6), **{"mtl-full": (1, 1, 1)})["headroom_closed"]["hitts"] is None


def test_tables_and_plot_name_every_network(experiment, tmp_path):
    result = told(experiment, mtl=(0, 1, 2), hitts=(3, 4, 5))
    page = experiment.markdown(result, "tiny")
    assert "| MTL | +1.00 ± 1.00 |" in page
    assert "| hitts > MTL | task tokens beat the plain multi-task network | +3.00 ± 0.00 | shown |" in page
    experiment.plot(result, "tiny", tmp_path / "plot.svg")
    assert "hitts" in (tmp_path / "plot.svg").read_text()


@pytest.mark.parametrize("name", [path.stem for path in sorted((HOUSE / "benchmarks" / "experiments").glob("[!_]*.yaml"))])
def test_the_recipes_of_the_experiments_can_be_read(name):
    recipe = load_recipe(HOUSE / "benchmarks" / "experiments" / f"{name}.yaml")
    of_systems = {"mtl", "hitts-single", "hitts-multi", "mtcp-lps", "mtl-ccr", "hitts-ccr", "mtcp-taught"}
    wanted = of_systems if name.startswith("systems") else {"stl-semseg", "mtl", "mtl-full", "hitts", "both"}
    assert wanted <= set(recipe.networks)


def test_an_earlier_experiment_gives_the_reference_and_is_compared_with(experiment):
    before = told(experiment, mtl=(0, 10, 20), hitts=(1, 11, 21))
    now = {0: {"hitts": scored(51)}, 1: {"hitts": scored(63)}, 2: {"no-oe": scored(70)}}
    again = experiment.join(now, before)
    assert all(set(by_name) - {"hitts", "no-oe"} == {"stl"} for by_name in now.values())
    assert again["hitts"]["semseg.mIoU"] == {"here": 57, "earlier": 56}
    assert "no-oe" not in again
    result = experiment.tell(now, {})
    assert result["delta_mtl"]["hitts"] == pytest.approx({"0": 1, "1": 13})
    assert result["delta_mtl"]["no-oe"] == pytest.approx({"2": 20})
    result |= {"quality": {}, "training_images": {}, "again": again}
    assert "| hitts | semseg.mIoU | 57 | 56 |" in experiment.markdown(result, "again")
