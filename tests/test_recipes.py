"""Recipes of published rows: each trains two steps and is scored, on small trees in the benchmarks' own formats."""

from functools import cache
from pathlib import Path

import pytest
import yaml

from multidense import published
from multidense.config import load_recipe, shipped
from multidense.paper_table import table
from multidense.run import Run
from trees_cityscapes import write_preprocessed as write_cityscapes
from trees_nyuv2 import write_preprocessed as write_nyuv2
from trees_pascal import write_tree as write_pascal

TEXTS = {name: path.read_text(encoding="utf-8") for name, path in shipped().items()}
ROWS = [name for name, text in TEXTS.items() if "published" in yaml.safe_load(text)]
"""By name alone: to read and check them all takes a minute, and every process of the tests collects them."""
SMALL = ["--width", "0.0625", "--training.epochs", "2", "--training.batch_size", "6"]
SMALL += [
    "--pictures",
    "0",
    "--labels.k",
    "2",
    "--training.workers",
    "0",
    "--training.threads",
    "1",
    "--training.accelerator",
    "cpu",
]
SIZES = {"nyuv2": [32, 48], "cityscapes": [32, 48], "pascal-context": [36, 48]}
"""Of stride 32, ResNet needs two pixels."""


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    roots = {name: tmp_path_factory.mktemp(name) for name in ("nyuv2", "cityscapes", "pascal-context")}
    write_nyuv2(roots["nyuv2"], train=6, val=2, size=(32, 48))
    write_cityscapes(roots["cityscapes"], train=6, val=2, size=(32, 64))
    # The published assignment gives its first images no label of some tasks, and single-task networks need one.
    write_pascal(roots["pascal-context"], train=21, val=2, size=(32, 48))
    return roots


@cache
def recipe_of(name: str):
    return load_recipe(shipped()[name])


def run(name: str, trees: dict[str, Path], out: Path) -> Run:
    whole = recipe_of(name)
    small = [*SMALL, "--data.size", str(SIZES[whole.data.reader]), "--data.root", str(trees[whole.data.reader])]
    small += ["--backbone_options.pretrained", "false"] if "pretrained" in whole.backbone_options else []  # no download
    recipe = load_recipe(shipped()[name], small)
    work = Run(recipe, out / name)
    work.run()
    return work


TWINS = [name for name in ROWS if name.startswith("pascal-randomlabels-")]


@pytest.mark.parametrize("name", TWINS)
def test_random_labels_of_pascal_differ_from_one_label_in_their_setting_alone(name):
    def plain(name: str) -> dict:
        told = yaml.safe_load(TEXTS[name])
        rows = str(told["published"].pop("rows"))
        setting = told["published"].pop("setting")
        return told | {
            "name": None,
            "rows": rows.replace(setting, ""),
            "labels": told["labels"]["setting"].replace(setting, ""),
        }

    assert plain(name) == plain(name.replace("randomlabels", "onelabel"))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # small trees leave classes without a pixel
@pytest.mark.parametrize("name", [name for name in ROWS if name not in TWINS or name.endswith("-mtl")])
def test_every_published_recipe_trains_and_is_scored(name, trees, tmp_path):
    work = run(name, trees, tmp_path)
    results = work.results()
    assert set(results) == set(work.recipe.networks)
    for network, result in results.items():
        tasks = {task.name for task in work.recipe.task_objects(network)}
        assert {score.partition(".")[0] for score in result.scores} == tasks
        assert result.provenance["data"]["layout"] == published.CONDITIONS[work.recipe.published.dataset].layout
    marked = "32 × 48" if published.CONDITIONS[work.recipe.published.dataset].size else "for 2 epochs, the paper for 24"
    assert any(marked in line for line in table(work.recipe.published.table, [work.folder]).splitlines())


def test_a_published_recipe_says_what_it_should_reach_and_what_it_costs():
    for name, recipe in ((name, recipe_of(name)) for name in ROWS):
        text = TEXTS[name]
        assert recipe.gpu_hours
        assert f"Table {recipe.published.table}" in text.partition("\n")[0]
        rows = published.table(recipe.published.table).rows
        for network in recipe.published.rows:
            number, setting, method = recipe.published.places(network)[0]
            if number != recipe.published.table:
                continue
            scores = next(rows[exact][method] for exact in published.table(number).settings_of(setting))
            task = recipe.labels.task or "semseg"
            column = next(score for score in scores if score.startswith(task))
            assert f"{scores[column]:g}" in text, (name, column)


def test_every_row_of_the_methods_here_has_a_recipe():
    """STL, MTL, naive pseudo labels, HiTTs and its ablations. CL and DL have no public description: they cannot be built."""
    wanted = {
        (number, setting, method)
        for number in (1, 2, 3, 4, 5, 6, 7, 9)
        for setting, rows in published.table(number).rows.items()
        for method in rows
        if method.startswith(("STL", "MTL", "HiTTs")) and not method.endswith((" CL", " DL"))
    }
    made = {
        (number, setting, method)
        for recipe in map(recipe_of, ROWS)
        for number in (1, 2, 3, 4, 5, 6, 7, 9)
        for setting, method, _ in recipe.published.serves(number)
    }
    assert wanted <= made
