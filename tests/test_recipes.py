"""Recipes of published rows: each trains two steps and is scored, on small trees in the benchmarks' own formats."""

from pathlib import Path

import pytest

from multidense import published
from multidense.config import load_recipe, shipped
from multidense.paper_table import table
from multidense.run import Run
from trees_cityscapes import write_preprocessed as write_cityscapes
from trees_nyuv2 import write_preprocessed as write_nyuv2

RECIPES = {name: load_recipe(path) for name, path in shipped().items()}
ROWS = {name: recipe for name, recipe in RECIPES.items() if recipe.published}
SMALL = ["--data.size", "[32, 48]", "--width", "0.0625", "--training.epochs", "2", "--training.batch_size", "6"]
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


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    roots = {name: tmp_path_factory.mktemp(name) for name in ("nyuv2", "cityscapes")}
    write_nyuv2(roots["nyuv2"], train=6, val=2, size=(32, 48))
    write_cityscapes(roots["cityscapes"], train=6, val=2, size=(32, 64))
    return roots


def run(name: str, trees: dict[str, Path], out: Path) -> Run:
    recipe = load_recipe(shipped()[name], [*SMALL, "--data.root", str(trees[ROWS[name].data.reader])])
    work = Run(recipe, out / name)
    work.run()
    return work


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # small trees leave classes without a pixel
@pytest.mark.parametrize("name", ROWS)
def test_every_published_recipe_trains_and_is_scored(name, trees, tmp_path):
    work = run(name, trees, tmp_path)
    results = work.results()
    assert set(results) == set(work.recipe.networks)
    for network, result in results.items():
        tasks = {task.name for task in work.recipe.task_objects(network)}
        assert {score.partition(".")[0] for score in result.scores} == tasks
        assert result.provenance["data"]["layout"] == "preprocessed"
    assert any("32 × 48" in line for line in table(work.recipe.published.table, [work.folder]).splitlines())


def test_a_published_recipe_says_what_it_should_reach_and_what_it_costs():
    for name, recipe in ROWS.items():
        text = shipped()[name].read_text(encoding="utf-8")
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
    """STL, MTL, naive pseudo labels, HiTTs and its ablations; the other methods have recipes of their own kind."""
    wanted = {
        (number, setting, method)
        for number in (1, 2, 3, 5, 6, 7)
        for setting, rows in published.table(number).rows.items()
        for method in rows
        if method.startswith(("STL", "MTL", "HiTTs"))
    }
    made = {
        (number, setting, method)
        for recipe in ROWS.values()
        for number in (1, 2, 3, 5, 6, 7)
        for setting, method, _ in recipe.published.serves(number)
    }
    assert wanted <= made
