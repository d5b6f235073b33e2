"""Methods compared: the catalogue, who waits for whom, the arithmetic by hand, small runs that are killed and go on."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec

import pytest

from multidense import comparison, comparison_table
from multidense.balancing import BALANCERS
from multidense.cli import main as command
from multidense.compare_command import listed, main
from multidense.comparison import Chosen, catalogue, choose, compare, seed_runs, together
from multidense.comparison_plot import plot
from multidense.comparison_table import Compared, gains_over, paired, tell
from multidense.config import load_recipe
from multidense.files import fingerprint, read_json
from multidense.jobs import Job, places, plan, work_off
from multidense.recipe import Network
from multidense.results import Results
from multidense.run import Run, do
from multidense.types import MultidenseError

TINY = """
name: tiny
data: {reader: rooms, size: [32, 48], train: 4, val: 2}
labels: {setting: full}
tasks: {semseg: {classes: 13}, depth: {bins: 8}}
width: 0.0625
networks:
  mtl: {decoder: shared, title: MTL baseline}
  hitts: {decoder: hitts, options: {aligned: false}}
  student: {decoder: hitts, options: {aligned: false}, teacher: hitts}
baseline: mtl
training: {epochs: 1, batch_size: 2, threads: 1, accelerator: cpu}
pictures: 0
"""

BUILT = [name for name, method in catalogue().items() if "torchjd" not in method.needs or find_spec("torchjd")]
"""The methods for which all packages are there."""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def recipe(file):
    return load_recipe(file)


# The catalogue --------------------------------------------------------------------------------------------------------


def test_every_method_of_the_catalogue_builds_on_a_recipe_and_brings_its_teacher(recipe):
    bare = replace(recipe, networks={}, baseline=None)
    made, chosen = choose(bare, BUILT)
    assert [one.name for one in chosen] == BUILT, "teachers stand before those that they teach"
    names = [name for one in chosen for name in one.networks]
    assert sorted(names) == sorted(made.networks)
    for one in chosen:
        assert set(one.teachers) == {teacher for name in one.networks for teacher in made.networks[name].teachers}
    assert {name for name in BUILT if catalogue()[name].teacher} == {one.name for one in chosen if one.teachers}


def test_every_loss_balancing_is_a_method(recipe):
    made, _ = choose(recipe, [name for name in catalogue() if name in BALANCERS])
    for name in set(BALANCERS) - {"fixed"}:
        assert made.networks[name].balancing.method == name


def test_rows_of_the_catalogue_are_those_of_the_paper():
    from multidense.published import tables

    known = {method for table in tables().values() for rows in table.rows.values() for method in rows}
    assert {method.row for method in catalogue().values() if method.row} <= known


def test_a_network_of_the_recipe_comes_before_the_catalogue(recipe):
    made, chosen = choose(recipe, ["hitts+lp", "uncertainty"])
    assert [one.name for one in chosen] == ["hitts", "hitts+lp", "uncertainty"]
    assert made.networks["hitts"] == recipe.networks["hitts"]
    assert made.networks["hitts+lp"] == replace(
        recipe.networks["hitts"],
        title="HiTTs + L_p",
        teacher="hitts",
        objective=replace(recipe.training.objective, features=0),
    )


def test_one_network_for_each_task_is_one_method_also_as_teacher(recipe):
    made, chosen = choose(recipe, ["naive-stl"])
    single = ("stl-semseg", "stl-depth")
    assert chosen[0] == Chosen("stl", "STL", single, (), each_task=True)
    assert chosen[1].teachers == single
    assert made.networks["stl-depth"] == Network(decoder="shared", tasks=["depth"], title="STL depth")
    assert [one.name for one in choose(made, [])[1]][:2] == ["stl", "mtl"], "also where the recipe has them as its own"


def test_settings_of_discovery_and_objective_are_put_over_the_recipes(file):
    recipe = load_recipe(file, ["--discovery.mode", "online", "--training.objective.discovered", "0.5"])
    student = choose(recipe, ["naive-mtl"])[0].networks["naive-mtl"]
    assert (student.discovery.mode, student.discovery.features) == ("online", False)
    assert (student.objective.discovered, student.objective.features) == (0.5, 0)


def test_methods_serve_the_rows_of_the_papers_tables():
    from multidense.config import shipped

    made, _ = choose(load_recipe(shipped()["nyuv2-onelabel-mtl"]), ["stl", "mtan"])
    assert ("one-label", "MTAN", "mtan") in made.published.serves(1)
    assert ("one-label", "STL", "stl-depth") in made.published.serves(1)


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (["hits"], "did you mean 'hitts'?"),
        (["uncertainity"], "did you mean 'uncertainty'?"),
        (["mtl", "qqq"], "no method 'qqq'"),
    ],
)
def test_an_unknown_method_is_named_with_what_was_probably_meant(recipe, methods, said):
    with pytest.raises(MultidenseError, match="multidense compare --list") as error:
        choose(recipe, methods)
    assert said in str(error.value)


def test_a_method_that_the_recipe_cannot_have_is_refused_before_anything_is_trained(file):
    recipe = load_recipe(file, ["--tasks.depth.bins", "null", "--networks", "{mtl: {decoder: shared}}"])
    with pytest.raises(MultidenseError, match=r"tiny with these methods: networks.mtl is a teacher, but depth only regress"):
        choose(recipe, ["naive-mtl"])


def test_the_list_says_what_each_method_is_and_needs():
    lines = listed()
    assert len(lines) == len(catalogue())
    assert next(line for line in lines if line.startswith("mgda ")).endswith("· needs the package torchjd")


# Jobs -----------------------------------------------------------------------------------------------------------------


def test_a_student_waits_for_its_labels_and_those_for_their_teacher(recipe, tmp_path):
    made, _ = choose(recipe, ["student", "hitts+lp", "naive-mtl"])
    planned = plan([tmp_path], made, {"hitts", "student", "hitts+lp", "mtl", "naive-mtl"})
    student, other, own = (Job(tmp_path, name) for name in ("student", "hitts+lp", "naive-mtl"))
    labels = Job(tmp_path, "student", "hitts")
    assert planned[student] == planned[other] == {labels}, "one discovery for all that have the recipe's settings"
    assert planned[own] == {Job(tmp_path, "naive-mtl", "mtl")}
    assert planned[labels] == {Job(tmp_path, "hitts")}


def test_what_is_done_is_not_planned_again(recipe, tmp_path):
    (tmp_path / "hitts").mkdir()
    (tmp_path / "hitts" / "results.json").write_text("{}")
    planned = plan([tmp_path], recipe, {"hitts", "student"})
    assert Job(tmp_path, "hitts") not in planned
    assert planned[Job(tmp_path, "student", "hitts")] == set()


def test_a_failure_stops_only_those_that_need_it(tmp_path, capsys):
    seen = []

    def work(job):
        seen.append(job.network)
        if job.network == "bad":
            raise ValueError("no luck")

    bad, needs, further, good = (Job(tmp_path, name) for name in ("bad", "needs", "further", "good"))
    failed = work_off({bad: set(), needs: {bad}, further: {needs}, good: set()}, [], work)
    assert seen == ["bad", "good"]
    assert failed == {bad: "ValueError: no luck", needs: f"needs {bad}", further: f"needs {needs}"}
    assert f"{bad}: failed: ValueError: no luck" in capsys.readouterr().err


@pytest.mark.parametrize(("threads", "expected"), [(1, 8), (3, 2), (0, 1)])
def test_on_the_cpu_processes_fill_the_cores(recipe, monkeypatch, threads, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    recipe = replace(recipe, training=replace(recipe.training, threads=threads))
    assert len(places(recipe)) == expected
    assert len(places(replace(recipe, processes=5))) == 5
    assert len(places(recipe, 3)) == 3
    assert places(recipe, 0) == []


@pytest.mark.parametrize(
    ("seen", "devices", "processes", "expected"),
    [
        (None, 1, None, ["0", "1", "2", "3"]),
        ("5,7", 1, None, ["5", "7"]),
        (None, 2, None, ["0,1", "2,3"]),
        ("2", 1, 3, ["2", "2", "2"]),
    ],
)
def test_every_process_has_a_gpu_of_its_own(recipe, monkeypatch, seen, devices, processes, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    training = replace(recipe.training, accelerator="auto", devices=devices)
    found = places(replace(recipe, training=training), processes)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == expected


# Small runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(file, tmp_path_factory):
    """Two methods, one the other's teacher, two seeds, done in this process."""
    out = tmp_path_factory.mktemp("compare")
    recipe = load_recipe(file)
    return out, compare(recipe, ["naive-mtl"], [0, 1], out, processes=0)


def test_a_comparison_leaves_runs_a_table_a_plot_a_page_and_all_numbers(done):
    out, told = done
    assert told == read_json(out / "compare.json")
    assert told["failed"] == {}
    for seed in (0, 1):
        run = Run.open(out / f"seed-{seed}")
        assert (run.recipe.seed, run.recipe.labels.seed) == (seed, seed)
        assert told["scores"][str(seed)] == {name: result.scores for name, result in run.results().items()}
    assert set(told["cost"]["naive-mtl"]) >= set(comparison_table.COSTS)
    assert told["provenance"]["naive-mtl"]["1"]["labels"]["seed"] == 1
    assert {"commit", "versions", "machine", "settings", "recipe", "seeds"} <= set(told)
    assert told["baseline"] == told["reference"] == "mtl"
    assert "mean relative gain over MTL baseline" in (out / "compare.md").read_text()
    page = (out / "compare.html").read_text()
    assert "<svg" in page
    assert "naive L_p on MTL" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", ""), "nothing is fetched"


def test_the_run_of_a_seed_has_a_report_of_the_networks_that_were_begun(done, tmp_path):
    out, _ = done
    command(["report", str(out / "seed-1"), "--out", str(tmp_path / "page.html")])
    told = (tmp_path / "page.md").read_text()
    assert "naive L_p on MTL" in told
    assert "HiTTs" not in told.partition("## Provenance")[0]
    with pytest.raises(SystemExit, match=r"holds no run: there is no recipe\.yaml in it"):
        command(["report", str(tmp_path)])


def test_it_goes_on_with_more_methods_and_keeps_what_is_there(done, file, capsys):
    out, _ = done
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    main([str(file), "--methods", "stl, mtl", "--seeds", "1", "--out", str(out), "--processes", "0"])
    said = capsys.readouterr()
    assert "seed-1 · stl-depth: done" in said.err
    assert "seed-1 · mtl:" not in said.err
    assert "over STL" in said.out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "naive-mtl" in Run.open(out / "seed-1").recipe.networks
    main([str(file), "--seeds", "0,1", "--methods", "naive-mtl", "--out", str(out), "--tell"])
    said = capsys.readouterr()
    assert "done" not in said.err
    assert "| naive L_p on MTL | " in said.out


def test_a_training_killed_with_its_command_goes_on_and_ends_as_one_left_alone(file, tmp_path):
    recipe = load_recipe(file, ["--training.epochs", "25", "--data.train", "2"])
    recipe = replace(recipe, tasks={"depth": {"bins": 8}}, networks={"mtl": recipe.networks["mtl"]})
    whole, cut = (seed_runs(recipe, [3], tmp_path / name)[3] for name in ("whole", "cut"))
    whole.train_network("mtl")
    parent = (
        "import os, subprocess, sys; here = {'MULTIDENSE_CHILD_OF': str(os.getpid())}; "
        "subprocess.run([sys.executable, '-m', 'multidense.child', *sys.argv[1:]], env=os.environ | here)"
    )
    command = subprocess.Popen([sys.executable, "-c", parent, str(cut.folder), "mtl"])
    place = cut.folder / "mtl"
    while not (place / "checkpoint.pt").exists():
        assert command.poll() is None
        time.sleep(0.01)
    command.send_signal(signal.SIGKILL)
    command.wait()
    assert not (place / "results.json").exists()
    assert work_off({Job(cut.folder, "mtl"): set()}, [], do) == {}
    for file_name in ("model/model.safetensors", "history.csv"):
        assert fingerprint(place / file_name) == fingerprint(whole.folder / "mtl" / file_name)
    assert Results.load(place / "results.json").scores == whole.results()["mtl"].scores


def test_a_job_that_fails_in_its_process_says_why_in_its_last_line(tmp_path):
    failed = work_off({Job(tmp_path, "mtl"): set()}, [{}], do)
    (said,) = failed.values()
    assert said.startswith(f"{tmp_path} holds no run: there is no recipe.yaml in it")
    assert str(tmp_path / "mtl" / "log.txt") in said


def test_failed_methods_are_told_beside_the_others_and_end_with_status_1(done, file, monkeypatch, capsys):
    out, _ = done

    def broken(job):
        if job.network == "mtan":
            raise MultidenseError("out of luck")
        do(job)

    monkeypatch.setattr(comparison, "do", broken)
    with pytest.raises(SystemExit) as stop:
        main([str(file), "--methods", "mtl,mtan", "--seeds", "0", "--out", str(out), "--processes", "0"])
    assert stop.value.code == 1
    said = capsys.readouterr().out
    assert "- seed-0 · mtan: out of luck" in said
    assert "| MTAN (0 of 1 seeds) | – |" in said
    assert "| **MTL baseline**" not in said
    assert "| MTL baseline |" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seeds", "a"], "--seeds should be whole numbers"),
        (["--labels.seed", "4"], "--labels.seed is set by --seeds"),
        (["--baseline", "mtan"], "the baseline 'mtan' is not compared"),
        (["--methods", "mtn"], "there is no method 'mtn'"),
        (["--training.epochss", "4"], "--training.epochss"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(file, tmp_path, options, said):
    with pytest.raises(MultidenseError) as error:
        main([str(file), "--out", str(tmp_path / "out"), *options])
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


# The arithmetic -------------------------------------------------------------------------------------------------------


def scored(iou: float, error: float, seconds: float = 60.0) -> Results:
    cost = {"train_seconds": seconds, "parameters": 2e6, "peak_memory_mb": 512.0, "multiply_adds": 3e9}
    return Results(scores={"semseg.mIoU": iou, "depth.absErr": error}, cost=cost)


def by_hand() -> dict:
    """STL scores 50 and 1.0 in both seeds."""
    return tell(
        "hand",
        [
            Compared("stl", "STL", {0: scored(50, 1.0), 1: scored(50, 1.0)}, {0: 0.0, 1: 0.0}),
            Compared("mtl", "MTL", {0: scored(45, 0.9), 1: scored(55, 1.1)}, {0: 0.0, 1: 0.0}),
            Compared("a|b", "A|B", {0: scored(60, 0.8), 1: scored(65, 0.9)}, {0: 30.0, 1: 90.0}),
        ],
        [0, 1],
        reference="stl",
    )


def test_gains_are_seed_by_seed_over_the_reference_and_signed_by_direction():
    told = by_hand()
    assert told["delta_mtl"]["mtl"] == pytest.approx({"0": 0, "1": 0})  # −10 + 10, +10 − 10
    assert told["delta_mtl"]["a|b"] == pytest.approx({"0": 20, "1": 20})  # (20 + 20) / 2, (30 + 10) / 2
    assert told["baseline"] == "mtl", "the first that is not the reference"


def test_differences_are_paired_by_seed_with_their_standard_error():
    told = by_hand()["differences"]
    assert "mtl" not in told
    assert told["a|b"]["semseg.mIoU"] == pytest.approx({"mean": 12.5, "error": 2.5, "seeds": pytest.approx({"0": 15, "1": 10})})
    assert told["a|b"]["depth.absErr"]["mean"] == pytest.approx(-0.15)
    assert told["a|b"]["depth.absErr"]["error"] == pytest.approx(0.05)
    assert told["a|b"]["delta_mtl"]["mean"] == pytest.approx(20)
    assert paired({0: 1.0}, {0: 3.0, 1: 5.0}) == {"mean": -2.0, "error": None, "seeds": {"0": -2.0}}


def test_the_table_has_mean_and_deviation_the_best_is_bold_and_the_order_is_that_of_the_gain():
    page = comparison_table.markdown(by_hand())
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert rows[0] == "| Method | delta_mtl (%) ↑ | semseg mIoU (%) ↑ | depth absErr (m) ↓ |"
    assert rows[2] == "| A\\|B | **+20.00 ± 0.00** | **62.50 ± 3.54** | **0.8500 ± 0.0707** |"
    assert rows[3].startswith(("| STL | 0.00 ± 0.00 | 50.00 ± 0.00 |", "| MTL | 0.00 ± 0.00 | 50.00 ± 7.07 |"))
    assert "| A\\|B | +20.00 ± 0.00 | +12.50 ± 2.50 | −0.1500 ± 0.0500 |" in rows
    assert "| A\\|B | 60 s | 2 min | 512 | 2 | 3 |" in rows
    assert "| STL | 60 s | 60 s | 512 | 2 | 3 |" in rows


def test_methods_of_other_tasks_or_without_a_number_have_no_gain():
    other = {"depth.absErr": 1.0}
    both = {"depth.absErr": 2.0, "semseg.mIoU": 4.0}
    zero = {"depth.absErr": 0.0}
    assert gains_over({"a": {0: other}, "b": {0: both}, "c": {1: other}}, "a") == {"a": {0: 0.0}}
    assert gains_over({"a": {0: zero}, "b": {0: other}}, "a") == {}
    assert gains_over({"a": {0: other}}, None) == {}


def test_without_any_result_there_is_still_a_table():
    told = tell("none", [Compared("mtl", "MTL", {})], [0])
    assert "| MTL (0 of 1 seeds) | – |" in comparison_table.markdown(told)
    assert "<svg" in comparison_table.page(told, plot(told))


def test_networks_of_single_tasks_cost_what_all_of_them_cost():
    one, other = Results({"a.mIoU": 1.0}, cost={"train_seconds": 2.0, "peak_memory_mb": 5.0}), scored(1, 2, 3.0)
    joined = together([one, other])
    assert joined.cost == {"train_seconds": 5.0, "parameters": 2e6, "peak_memory_mb": 512.0, "multiply_adds": 3e9}
    assert set(joined.scores) == {"a.mIoU", "semseg.mIoU", "depth.absErr"}


def test_the_plot_names_methods_and_axes():
    drawn = plot(by_hand())
    for words in ("A|B", "parameters, millions", "training, with teachers, minutes", "delta_mtl over STL, %"):
        assert words in drawn
    assert drawn == plot(by_hand()), "the same numbers, the same file"
