"""Recipes: typed, overridden, and refused by file and name where they make no sense."""

from dataclasses import replace

import pytest

from multidense import MultidenseError
from multidense.config import load_recipe, recipe_path, settings_help, shipped
from multidense.thresholds import Threshold


def rooms(*overrides: str):
    return load_recipe(recipe_path("rooms"), list(overrides))


def test_every_shipped_recipe_loads_and_says_what_it_is():
    for path in shipped().values():
        load_recipe(path)
        assert path.read_text(encoding="utf-8").startswith("# ")


def test_a_saved_recipe_is_the_same_recipe(tmp_path):
    recipe = rooms("--training.epochs", "3", "--discovery.threshold.semseg", "fixed 0.9")
    recipe.save(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_the_command_line_overrides_the_file():
    recipe = rooms("--training.lr", "0.02", "--data.size", "[40, 56]", "--networks.mtl.decoder", "hitts", "--seed", "4")
    assert (recipe.training.lr, recipe.data.size, recipe.networks["mtl"].decoder, recipe.seed) == (0.02, (40, 56), "hitts", 4)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("epochs:", "epohcs:", "unknown key 'training.epohcs' (did you mean 'epochs'?)"),
        ("baseline:", "baselin:", "unknown key 'baselin' (did you mean 'baseline'?)"),
        ("setting: one-label", "setting: onelabel", "labels.setting"),
        ("decoder: shared", "decoder: shred", "networks.mtl.decoder: there is no 'shred' (did you mean 'shared'?)"),
        ("teacher: hitts", "teacher: hits", "networks.student.teacher: there is no 'hits' (did you mean 'hitts'?)"),
        ("decoder: shared", "decodr: shared", "unknown key 'networks.mtl.decodr' (did you mean 'decoder'?)"),
        ("classes: 13", "clases: 13", "tasks.semseg: unknown key 'clases' (did you mean 'classes'?)"),
        ("classes: 13", "classes: many", "tasks.semseg: Parser key \"classes\": Expected a <class 'int'>. Got value: many"),
        ("classes: 13", "classes: 1", "classes must lie in 2 … 254, found 1"),
        ("depth:", "deepth:", "tasks: there is no 'deepth' (did you mean 'depth'?)"),
        ("width: 0.25", "width: wide", "width"),
        ("width: 0.25", "width: -1", "width must be positive"),
        ("baseline: mtl", "baseline: mlt", "baseline: there is no 'mlt' (did you mean 'mtl'?)"),
        ("share 0.6", "shere 0.6", "threshold: expected 'fixed T', 'share S', 'balanced S' or 'precision P'"),
        ("name: rooms", "name: [rooms", "cannot be read as YAML"),
        ("processes: 2", "processes: 0", "processes must be at least 1"),
        ("size: [48, 64]", "size: [48, 6]", "data.size must be at least 32"),
        ("decoder: hitts, title: HiTTs}", "decoder: hitts, options: {intra_taks: false}}", "did you mean 'intra_task'?"),
        ("bins: 30", "low: 0.5", "networks.hitts is a teacher, but depth only regress(es)"),
        ("bins: 30", "bins: 30, low: 5, high: 2", "low must lie below high"),
        ("  mtl: {", "  discovered: {", "networks: 'discovered' becomes a folder"),
        ("epochs: 12", "epochs: 12, schedule: cosine", "training.schedule"),
        ("epochs: 12", "epochs: 12, milestones: [5]", "milestones must be shares"),
    ],
)
def test_a_mistake_in_a_recipe_is_named_with_its_file(tmp_path, before, after, said):
    text = recipe_path("rooms").read_text(encoding="utf-8")
    assert before in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(MultidenseError) as error:
        load_recipe(path)
    assert str(path) in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["--training.epohcs", "3"], "--training.epohcs"),
        (["--training.epohcs", "3"], "did you mean '--training.epochs'?"),
        (["--training.epochs", "many"], 'Parser key "training.epochs"'),
        (["--training.batch_size", "0"], "batch_size must be at least 1"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(overrides, said):
    with pytest.raises(MultidenseError, match="the command line: ") as error:
        rooms(*overrides)
    assert said in str(error.value)


def test_a_bare_number_is_a_fixed_threshold():
    assert Threshold.parse("0.9") == Threshold.parse(0.9) == Threshold.parse("fixed 0.9")
    assert rooms("--discovery.threshold.default", "0.9").discovery.threshold["default"] == "0.9"


def test_settings_of_a_task_add_to_those_of_the_file():
    recipe = rooms("--tasks.depth.low", "0.5", "--tasks.depth.high=9", "--tasks.semseg.weight", "2")
    assert recipe.tasks["depth"] == {"bins": 30, "low": 0.5, "high": 9}
    assert recipe.tasks["semseg"] == {"classes": 13, "weight": 2}
    with pytest.raises(MultidenseError, match="did you mean 'bins'"):
        rooms("--tasks.depth.bin", "40")


def test_one_threshold_for_all_tasks_needs_no_name(tmp_path):
    text = recipe_path("rooms").read_text(encoding="utf-8").replace("{default: share 0.6}", "share 0.5")
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(tmp_path / "mine.yaml").discovery.threshold == {"default": "share 0.5"}


def test_a_recipe_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(MultidenseError, match="no recipe 'room' \\(did you mean 'rooms'\\?\\)"):
        recipe_path("room")
    with pytest.raises(MultidenseError, match=r"nowhere\.yaml is not there"):
        recipe_path("nowhere.yaml")


def test_the_help_lists_every_setting():
    text = settings_help()
    assert all(word in text for word in ("--training.epochs", "--discovery.mode", "--labels.setting", "--data.reader"))


def test_a_recipe_extends_another_key_by_key(tmp_path):
    (tmp_path / "base.yaml").write_text(recipe_path("rooms").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nname: mine\ntraining: {epochs: 3}\ntasks: {depth: {low: 0.5}}\n")
    base, mine = load_recipe(tmp_path / "base.yaml"), load_recipe(tmp_path / "mine.yaml")
    assert (mine.name, mine.training.epochs, mine.tasks["depth"]) == ("mine", 3, {"bins": 30, "low": 0.5})
    assert replace(mine, name=base.name, training=base.training, tasks=base.tasks) == base
    assert replace(mine.training, epochs=base.training.epochs) == base.training


@pytest.mark.parametrize(
    ("extended", "said"),
    [("nowhere.yaml", "no such file beside it"), ("mine.yaml", "extends this file in turn"), ("other.yaml", "in turn")],
)
def test_what_cannot_be_extended_is_named(tmp_path, extended, said):
    (tmp_path / "mine.yaml").write_text(f"extends: {extended}\nname: mine\n")
    (tmp_path / "other.yaml").write_text("extends: mine.yaml\nname: other\n")
    with pytest.raises(MultidenseError, match=said):
        load_recipe(tmp_path / "mine.yaml")
