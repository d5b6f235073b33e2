"""The command: a small run from the recipe to the report, and every other command on what it left."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from multidense.cli import main
from multidense.config import load_recipe
from multidense.results import Results
from multidense.run import Run
from multidense.types import MultidenseError

TINY = """# a run that takes seconds
name: tiny
data: {reader: rooms, size: [32, 48], train: 9, val: 4}
labels: {setting: one-label, seed: 0}
tasks:
  semseg: {classes: 13}
  depth: {bins: 8}
  normals: {centers: 6}
width: 0.125
networks:
  mtl: {decoder: shared, title: MTL baseline}
  hitts: {decoder: hitts, title: HiTTs}
  student: {decoder: hitts, title: HiTTs + discovered labels, teacher: hitts}
baseline: mtl
training: {epochs: 1, batch_size: 3}
pictures: 2
"""


def command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "multidense", *map(str, arguments)], capture_output=True, text=True, timeout=280, check=False
    )


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def done(recipe, tmp_path_factory):
    """The finished run, made by the real command with two networks side by side."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    made = command("run", recipe, "--out", folder, "--processes", "2")
    assert made.returncode == 0, made.stdout + made.stderr
    return folder, made


def test_a_run_ends_with_a_table_and_the_path_of_its_report(done):
    folder, made = done
    assert re.search(r"\| MTL baseline \|.*\| \+0\.00 % \|", made.stdout)
    assert re.search(r"\| HiTTs \+ discovered labels \|.*\| [+-]\d+\.\d\d % \|", made.stdout)
    assert str(folder / "report.html") in made.stdout
    assert (folder / "report.md").exists()


def test_results_say_where_they_come_from(done):
    results = Results.load(done[0] / "student" / "results.json")
    assert {"seed", "commit", "versions", "machine", "settings", "labels", "data", "checkpoint"} <= set(results.provenance)
    assert results.provenance["labels"]["counts"] == {"semseg": 3, "depth": 3, "normals": 3}
    assert {"parameters", "multiply_adds", "train_seconds", "peak_memory_mb"} <= set(results.cost)


OTHERS = """
  stl: {decoder: shared, tasks: [depth]}
  mtl: {decoder: shared}
  naive: {decoder: shared, teacher: mtl, objective: {features: 0}}
  hitts: {decoder: hitts}
  student: {decoder: hitts, teacher: hitts}
"""


def test_single_tasks_naive_labels_and_several_teachers_make_one_run(tmp_path):
    head, _, tail = TINY.partition("networks:")
    (tmp_path / "others.yaml").write_text(head + "networks:" + OTHERS + tail[tail.index("baseline:") :])
    work = Run(load_recipe(tmp_path / "others.yaml", ["--discovery.mode", "online"]), tmp_path / "run")
    data, _ = work.labels_of("stl")
    assert len(data) == 3
    assert all(data.annotated(index) == {"depth"} for index in range(3))
    assert work.run().exists()
    assert set(work.results()["stl"].scores) == {"depth.absErr", "depth.rmse"}
    assert set(work.gains()) == {"mtl", "naive", "hitts", "student"}
    for name in ("mtl", "hitts"):
        assert json.loads((tmp_path / "run" / f"discovered-{name}" / "manifest.json").read_text())["mode"] == "online"


def test_the_manifest_says_how_right_discovered_labels_are(done):
    manifest = json.loads((done[0] / "discovered" / "manifest.json").read_text())
    assert all(0 <= entry["precision"] <= 1 for entry in manifest["tasks"].values())


def test_a_second_run_skips_what_is_done(done, recipe, capsys):
    folder, _ = done
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name in ("model.safetensors", "results.json")}
    main(["run", str(recipe), "--out", str(folder)])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "delta_mtl" in capsys.readouterr().out


def test_a_folder_of_another_recipe_is_refused_in_one_line(done, recipe, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", str(recipe), "--out", str(done[0]), "--seed", "5"])
    assert "holds another recipe: seed was 0, is now 5" in str(stop.value)


def test_a_run_goes_on_where_its_data_lies_elsewhere_by_now(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    recipe = load_recipe(tmp_path / "tiny.yaml")

    def lying_at(place, name="mine.yaml"):
        return replace(recipe, data=replace(recipe.data, description=f"/{place}/{name}", root=f"/{place}", cache=f"/{place}/c"))

    begun = Run(lying_at("there"), tmp_path / "run")
    (begun.folder / "hitts" / "model").mkdir(parents=True)
    Run(lying_at("here"), begun.folder)
    assert Run.open(begun.folder).recipe.data.root == "/here"
    with pytest.raises(MultidenseError, match=r"data.description was 'mine.yaml', is now 'other.yaml'"):
        Run(lying_at("here", "other.yaml"), begun.folder)


def test_of_networks_side_by_side_one_that_fails_keeps_no_other_from_ending(tmp_path):
    recipe = with_networks(tmp_path, "\n  bad: {decoder: shared}\n  good: {decoder: shared, tasks: [depth]}\n")
    work = Run(replace(recipe, processes=2), tmp_path / "run")
    (work.folder / "bad" / "model").mkdir(parents=True)
    (work.folder / "bad" / "training.json").write_text("no JSON")
    with pytest.raises(MultidenseError, match=r"run · bad failed: .*training.json"):
        work.run()
    assert set(work.results()) == {"good"}


def test_a_misspelt_command_and_a_misspelt_key_get_one_line(recipe):
    said = command("rnu", recipe)
    assert said.returncode == 1
    assert said.stderr.strip() == (
        "multidense: there is no command 'rnu' (did you mean 'run'?); "
        "there are run, train, discover, evaluate, predict, report, compare, table, score, data, recipes"
    )
    said = command("run", recipe, "--training.epohcs=3")
    assert said.returncode == 1
    assert "Traceback" not in said.stderr
    assert "did you mean '--training.epochs'?" in said.stderr


def test_evaluate_scores_what_is_there(done, capsys):
    before = Results.load(done[0] / "hitts" / "results.json")
    main(["evaluate", str(done[0]), "--network", "hitts"])
    assert "HiTTs" in capsys.readouterr().out
    assert Results.load(done[0] / "hitts" / "results.json").scores == before.scores


def test_discover_writes_to_another_folder_with_other_rules(done, tmp_path, capsys):
    main(
        [
            "discover",
            str(done[0]),
            "--network",
            "hitts",
            "--out",
            str(tmp_path / "d"),
            "--threshold",
            "share 0.9",
            "depth=fixed 0",
        ]
    )
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    assert manifest["rules"] == {"semseg": "share 0.9", "depth": "fixed 0", "normals": "share 0.9"}
    assert "kept 100.0 % of their pixels" in capsys.readouterr().out


def test_discover_tells_of_thresholds_for_each_category(done, tmp_path, capsys):
    main(["discover", str(done[0]), "--network", "hitts", "--out", str(tmp_path / "d"), "--threshold", "balanced 0.5"])
    assert re.search(r"semseg: .*\(balanced 0\.5, confidence above -?\d\.\d{3} … \d\.\d{3}\)", capsys.readouterr().out)


def test_predict_takes_pictures_of_any_size(done, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, shape in {"a.png": (37, 51, 3), "b.jpg": (64, 40, 3), "grey.png": (48, 48)}.items():
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(tmp_path / name)
    model = done[0] / "student"
    main(["predict", str(tmp_path), "--model", str(model), "--out", str(tmp_path / "out"), "--size", "32", "48"])
    with Image.open(tmp_path / "out" / "semseg" / "a.png") as ids, Image.open(tmp_path / "out" / "depth" / "b.png") as steps:
        assert (ids.size, steps.size, steps.mode[0]) == ((51, 37), (40, 64), "I")
    assert (tmp_path / "out" / "normals" / "grey.confidence.png").exists()
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:200])
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(tmp_path / "torn.jpg"), "--model", str(model), "--out", str(tmp_path / "out")])
    assert "torn.jpg cannot be read as a picture" in str(stop.value)


def test_predictions_of_images_of_one_name_do_not_overwrite_each_other(done, tmp_path, capsys):
    for name in ("p/one/a.png", "p/two/a.png", "q/b.png", "q/b.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 32)).save(tmp_path / name)
    images = [str(tmp_path / name) for name in ("p/one", "p/two", "q")]
    main(["predict", *images, "--model", str(done[0] / "hitts"), "--out", str(tmp_path / "out")])
    assert len(list((tmp_path / "out" / "depth").glob("*.picture.png"))) == 4


def test_report_takes_several_runs(done, tmp_path, capsys):
    main(["report", str(done[0]), "--out", str(tmp_path / "page.html")])
    assert "MTL baseline" in (tmp_path / "page.html").read_text()


def test_data_can_be_labelled_and_looked_at(tmp_path, capsys):
    main(["data", "label", "rooms", "--setting", "one-label", "--size", "32", "48", "--out", str(tmp_path / "labels.csv")])
    assert "200 images" in capsys.readouterr().out
    assert (tmp_path / "labels.csv").read_text().startswith("#")
    main(["data", "show", "rooms", "--count", "2", "--size", "32", "48", "--out", str(tmp_path / "sheet.png")])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (7 * 50 - 2, 2 * 34 - 2)


def test_calibrated_thresholds_hold_labels_out_of_the_teacher_alone(recipe, tmp_path):
    settings = ["--discovery.threshold", '{"default": "precision 0.3"}', "--discovery.calibration", "0.34", "--pictures", "0"]
    recipe_with = load_recipe(recipe, settings)
    work = Run(recipe_with, tmp_path)
    shown, withheld = work.labels_of("hitts")
    assert sum(len(shown.annotated(i)) for i in range(len(shown))) == 6
    assert len(withheld) == 3
    for other in ("student", "mtl"):
        assert sum(len(work.labels_of(other)[0].annotated(i)) for i in range(9)) == 9
    assert work._labels_told("hitts")["counts"] == {"semseg": 2, "depth": 2, "normals": 2}


def test_labels_from_a_file_of_ones_own(recipe, tmp_path):
    rows = ["id,semseg,depth,normals"] + [f"train-{i:06d},1,0,{int(i % 2 == 0)}" for i in range(9)]
    (tmp_path / "mine.csv").write_text("\n".join(rows) + "\n")
    work = Run(load_recipe(recipe, ["--labels.file", str(tmp_path / "mine.csv")]), tmp_path / "run")
    assert work.train.annotated(0) == {"semseg", "normals"}
    assert work.train.annotated(1) == {"semseg"}


def test_a_first_mistake_does_not_bind_the_folder(recipe, tmp_path):
    wrong = load_recipe(recipe, ["--tasks.depth.low", "50", "--labels.seed", "3"])
    (tmp_path / "mtl").mkdir()
    (tmp_path / "mtl" / "training.json").write_text("{}")
    assert Run(wrong, tmp_path).train.assignment.seed == 3
    assert Run(load_recipe(recipe), tmp_path).train.assignment.seed == 0


def test_a_run_given_as_a_model_is_told_from_its_networks(done, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(tmp_path), "--model", str(done[0]), "--out", str(tmp_path)])
    assert "is a whole run: name one of its networks" in str(stop.value)


def test_an_unwritable_folder_is_named(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        main(["run", str(recipe), "--out", str(tmp_path / "file" / "run")])
    assert "cannot make the folder" in str(stop.value)


def with_networks(tmp_path, networks: str):
    """The tiny recipe with other networks, and neither baseline nor pictures."""
    head, _, tail = TINY.partition("networks:")
    training = next(line for line in tail.splitlines() if line.startswith("training:"))
    (tmp_path / "mine.yaml").write_text(f"{head}networks:{networks}{training}\npictures: 0\n")
    return load_recipe(tmp_path / "mine.yaml")


def test_further_rounds_several_teachers_and_full_labels_make_one_run(tmp_path):
    recipe = with_networks(
        tmp_path,
        """
  semseg: {decoder: shared, tasks: [semseg]}
  rest: {decoder: shared, tasks: [depth, normals]}
  naive: {decoder: shared, teacher: [semseg, rest], discovery: {features: false}, objective: {features: 0}}
  again: {decoder: shared, teacher: naive, discovery: {features: false, threshold: balanced 0.5}, objective: {features: 0}}
  upper: {decoder: shared, full_labels: true}
""",
    )
    assert recipe.stages == [["semseg", "rest", "upper"], ["naive"], ["again"]]
    work = Run(recipe, tmp_path / "run")
    work.run()
    assert set(work.results()) == {"semseg", "rest", "naive", "again", "upper"}
    places = {path.parent.name for path in (tmp_path / "run").glob("discovered*/manifest.json")}
    assert places == {"discovered-naive-semseg", "discovered-naive-rest", "discovered-again-naive"}
    manifest = json.loads((tmp_path / "run" / "discovered-again-naive" / "manifest.json").read_text())
    assert manifest["rules"]["depth"] == "balanced 0.5"
    assert len(manifest["tasks"]["depth"]["threshold"]) == 8
    assert work._labels_told("upper")["counts"] == {"semseg": 9, "depth": 9, "normals": 9}
    assert work._labels_told("naive")["counts"] == {"semseg": 3, "depth": 3, "normals": 3}


@pytest.mark.parametrize(
    ("networks", "said"),
    [
        ("  a: {teacher: b}\n  b: {teacher: a}\n", "a, b wait for each other as teachers"),
        (
            "  a: {}\n  b: {}\n  c: {teacher: [a, b]}\n",
            "several teachers need tasks of their own each, found 'semseg'",
        ),
        ("  a: {}\n  b: {teacher: a, discovery: {targets: soft}}\n", "soft targets are not stored: set mode to 'online'"),
        ("  a: {}\n  b: {teacher: a, discovery: {treshold: share 1}}\n", "did you mean 'threshold'?"),
    ],
)
def test_teachers_that_cannot_teach_are_refused(tmp_path, networks, said):
    with pytest.raises(MultidenseError) as error:
        with_networks(tmp_path, "\n" + networks)
    assert said in str(error.value)


def test_networks_can_be_added_to_a_run_but_not_changed(tmp_path):
    begun = "\n  a: {decoder: shared}\n"
    Run(with_networks(tmp_path, begun), tmp_path / "run").train_network("a")
    more = with_networks(tmp_path, begun + "  b: {decoder: hitts}\n")
    assert set(Run(more, tmp_path / "run").results()) == {"a"}
    assert set(Run.open(tmp_path / "run").recipe.networks) == {"a", "b"}
    with pytest.raises(MultidenseError, match=r"networks\.a\.decoder was 'shared', is now 'hitts'"):
        Run(with_networks(tmp_path, "\n  a: {decoder: hitts}\n"), tmp_path / "run")
