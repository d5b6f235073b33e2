"""Tables of the paper with our rows, from run folders written as a run writes them; and reports that refuse to mix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from multidense import published
from multidense.paper_table import table
from multidense.published import SINGLE
from multidense.report import write_report
from multidense.results import BEST, MEAN_OF_LAST, Results, delta_mtl
from multidense.types import MultidenseError

ONE = published.table(1).rows["one-label"]
TASKS = ("semseg", "depth", "normals")
SCORES = published.table(1).scores


def scaled(method: str, factor: float = 1.0, setting: str = "one-label", number: int = 1) -> dict[str, float]:
    """The paper's scores of a method, every one `factor` times as large."""
    row = published.table(number).rows[setting][method]
    return {name: factor * row[name] for name in published.table(number).scores}


def of(task: str, scores: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if name.startswith(f"{task}.")}


def write_run(
    folder: Path,
    networks: dict[str, dict[str, float]],
    rows: dict[str, str],
    *,
    number: int = 1,
    setting: str = "one-label",
    name: str = "ours",
    seed: int = 0,
    epochs: int = 400,
    labels: dict | None = None,
    data: dict | None = None,
    recipe: dict | None = None,
    **results,
) -> Path:
    """A run folder whose networks have these scores and make these published rows."""
    dataset = published.table(number).dataset
    settings = {
        "name": name,
        "seed": seed,
        "width": 1.0,
        "data": {"reader": dataset, "size": [288, 384], "root": str(folder)},
        "labels": {"setting": "published one-label", "seed": 0, "file": None, "task": None, "k": 10} | (labels or {}),
        "training": {"epochs": epochs, "batch_size": 8, "workers": seed},
        "networks": {network: {"decoder": "shared", "title": network} for network in networks},
        "published": {"table": number, "dataset": dataset, "setting": setting, "rows": rows},
    } | (recipe or {})
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    trainings = [{"folder": network, "title": network} for network in networks]
    (folder / "run.json").write_text(json.dumps({"name": folder.name, "recipe": name, "trainings": trainings}))
    read = {"reader": "NYUv2", "name": dataset, "layout": "preprocessed", "split": "val", "length": 654, "whole": True}
    for network, scores in networks.items():
        provenance = {
            "data": read | {"size": [288, 384], "notes": {}} | (data or {}),
            "images": {task: 654 for task in TASKS if of(task, scores)},
            "seed": seed,
            "checkpoint": "last epoch",
            "labels": {"images": 795},
            "settings": settings,
        }
        (folder / network).mkdir()
        Results(scores, **{"provenance": provenance} | results).save(folder / network / "results.json")
    return folder


def mtl(folder: Path, factor: float = 1.0, **said) -> Path:
    """A run of the row "MTL baseline" that is as good as the paper's times `factor`."""
    return write_run(folder, {"mtl": scaled("MTL baseline", factor)}, {"mtl": "MTL baseline"}, **said)


def stl(folder: Path, factor: float = 1.0, **said) -> Path:
    """A run of the row "STL": a network for each task."""
    networks = {f"stl-{task}": of(task, scaled(SINGLE, factor)) for task in TASKS}
    return write_run(folder, networks, dict.fromkeys(networks, SINGLE), **said)


def lines(text: str, setting: str = "one-label") -> dict[str, dict[str, str]]:
    """The rows of a setting's table in Markdown: title to heading to cell; ours carry the title of the row above."""
    section = text.partition(f"### {setting}\n")[2].partition("###")[0]
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in section.splitlines() if line.startswith("|")]
    heading = [cell.strip() for cell in cells[0]]
    heading = heading if heading[0] == "" else ["", *heading]
    rows, above = {}, ""
    for title, *values in cells[2:]:
        above = above if title.startswith("—") else title
        key = f"{above} {title}" if title.startswith("—") else title
        rows[key] = dict(zip(heading[1:], [*values, *[""] * (len(heading) - 1 - len(values))], strict=True))
    return rows


def ours(text: str, method: str, setting: str = "one-label") -> tuple[str, dict[str, str]]:
    """Title and cells of our first row below a method."""
    return next((key, row) for key, row in lines(text, setting).items() if key.startswith(f"{method} — ours"))


def footnotes(text: str, title: str) -> list[str]:
    """The remarks that a title's marks point at."""
    marks = title.rpartition("[")[2].rstrip("]").split(", ") if title.endswith("]") else []
    return [line.partition("] ")[2] for line in text.splitlines() if line.split("] ")[0].strip("[") in marks]


# What stands in the table


def test_the_paper_alone_is_a_table_too():
    rows = lines(table(1))
    assert list(rows) == list(ONE)
    assert rows["HiTTs w. Lp+Lf"]["semseg mIoU (%) ↑"] == "35.81"
    assert rows["HiTTs w. Lp+Lf"]["depth absErr (m) ↓"] == "0.5540"
    assert (rows["MTL baseline"]["delta_mtl (%) ↑"], rows["STL"]["delta_mtl (%) ↑"]) == ("0.11", "–")
    assert "not run" not in table(1)


@pytest.mark.parametrize("number", published.tables())
def test_every_table_prints_all_its_rows_without_html(number):
    text = table(number)
    for setting, methods in published.table(number).rows.items():
        assert list(lines(text, setting)) == list(methods)
    assert "<" not in text


def test_our_row_stands_below_with_the_difference(tmp_path):
    text = table(1, [mtl(tmp_path / "a", 1.1)])
    title, row = ours(text, "MTL baseline")
    assert title.startswith("MTL baseline — ours: ours, seed 0")
    assert row["semseg mIoU (%) ↑"] == "34.01 (+3.09)"
    assert row["depth absErr (m) ↓"] == "0.6580 (+0.0598)"
    assert not footnotes(text, title)


def test_rows_that_nobody_ran_say_so(tmp_path):
    text = table(1, [mtl(tmp_path / "a")])
    assert "XTC — ours: not run" in lines(text)
    assert "MTL baseline — ours: not run" not in lines(text)
    assert "MTL baseline — ours: not run" in lines(text, "random-labels")


def test_a_network_without_results_is_not_run(tmp_path):
    run = mtl(tmp_path / "a")
    (run / "mtl" / "results.json").unlink()
    assert "MTL baseline — ours: not run" in lines(table(1, [run]))


def test_seeds_are_a_mean_and_a_deviation(tmp_path):
    runs = [mtl(tmp_path / str(seed), factor, seed=seed) for seed, factor in enumerate((0.9, 1.0, 1.1))]
    title, row = ours(table(1, runs), "MTL baseline")
    assert "3 seeds" in title
    assert row["semseg mIoU (%) ↑"] == "30.92 ± 3.09 (0.00)"


def test_a_seed_that_is_repeated_counts_once(tmp_path):
    text = table(1, [mtl(tmp_path / "a"), mtl(tmp_path / "b", 2.0)])
    title, row = ours(text, "MTL baseline")
    assert row["semseg mIoU (%) ↑"] == "30.92 (0.00)"
    assert footnotes(text, title) == ["b/mtl repeats a seed of this row and is left out."]


def test_other_settings_are_another_row(tmp_path):
    text = table(1, [mtl(tmp_path / "a"), mtl(tmp_path / "b", seed=1, recipe={"width": 0.5})])
    assert sum(key.startswith("MTL baseline — ours") for key in lines(text)) == 2


def test_a_score_that_not_all_seeds_have_says_of_how_many(tmp_path):
    lacking = {name: value for name, value in scaled("MTL baseline").items() if name != "semseg.mIoU"}
    other = write_run(tmp_path / "b", {"mtl": lacking}, {"mtl": "MTL baseline"}, seed=1)
    _, row = ours(table(1, [mtl(tmp_path / "a"), other]), "MTL baseline")
    assert row["semseg mIoU (%) ↑"] == "30.92, 1 of 2 seeds (0.00)"
    assert row["delta_mtl (%) ↑"].startswith("0.11, 1 of 2 seeds")


# Single-task networks and delta_mtl


def test_single_task_networks_make_one_row(tmp_path):
    _, row = ours(table(1, [stl(tmp_path / "a")]), SINGLE)
    assert [row[name] for name in ("semseg mIoU (%) ↑", "depth rmse ↓", "normals mErr (°) ↓")] == [
        "29.28 (0.00)",
        "1.0151 (0.0000)",
        "30.1971 (0.0000)",
    ]
    assert row["delta_mtl (%) ↑"] == "–"


def test_the_gain_is_over_our_own_single_task_row(tmp_path):
    text = table(1, [mtl(tmp_path / "a"), stl(tmp_path / "b", 1.2), stl(tmp_path / "c", 1.0, seed=1)])
    expected = delta_mtl(scaled("MTL baseline"), scaled(SINGLE, 1.1))
    assert ours(text, "MTL baseline")[1]["delta_mtl (%) ↑"] == f"{expected:.2f} ({expected - 0.11:+.2f})".replace("-", "−")
    assert "published STL" not in text


@pytest.mark.parametrize("complete", [True, False])
def test_without_a_whole_one_it_is_over_the_published_row_and_marked(tmp_path, complete):
    runs = [mtl(tmp_path / "a")]
    if not complete:
        runs.append(stl(tmp_path / "b", 3.0))
        (tmp_path / "b" / "stl-depth" / "results.json").unlink()
    text = table(1, runs)
    cell = ours(text, "MTL baseline")[1]["delta_mtl (%) ↑"]
    assert cell.startswith("0.11 (0.00) [")
    assert footnotes(text, cell) == ["delta_mtl against the published STL row: ours is not run, or lacks scores."]


def test_the_baseline_of_the_same_conditions_is_chosen(tmp_path):
    runs = [mtl(tmp_path / "a", epochs=40), stl(tmp_path / "b", 2.0), stl(tmp_path / "c", epochs=40)]
    assert ours(table(1, runs), "MTL baseline")[1]["delta_mtl (%) ↑"] == "0.11 (0.00)"
    text = table(1, runs[:2])
    cell = ours(text, "MTL baseline")[1]["delta_mtl (%) ↑"]
    assert footnotes(text, cell) == ["delta_mtl against our STL row of ours, which was trained under other conditions."]


def test_two_networks_of_a_run_cannot_make_the_same_scores(tmp_path):
    networks = {name: scaled("MTL baseline") for name in ("one", "two")}
    run = write_run(tmp_path / "a", networks, dict.fromkeys(networks, "MTL baseline"))
    with pytest.raises(MultidenseError, match=r"the networks one and two both make depth\.absErr of one published row"):
        table(1, [run])


# Other tables


def test_the_same_row_stands_in_another_table(tmp_path):
    assert ours(table(5, [mtl(tmp_path / "a")]), "MTL baseline")[1]["semseg mIoU (%) ↑"] == "30.92 (0.00)"


def test_training_images_make_table_6(tmp_path):
    run = mtl(tmp_path / "a")
    parts = {"labelled": {"semseg.mIoU": 90.0, "depth.rmse": None}, "unlabelled": {"semseg.mIoU": 30.0}}
    (run / "mtl" / "training_images.json").write_text(json.dumps(parts))
    text = table(6, [run])
    labelled, unlabelled = (ours(text, "MTL baseline", f"one-label, train {part}")[1] for part in parts)
    assert (labelled["semseg mIoU (%) ↑"], unlabelled["semseg mIoU (%) ↑"]) == ("90.00 (+1.00)", "30.00 (−4.31)")
    assert labelled["depth rmse ↓"] == "–"


def test_without_training_images_table_6_is_not_run(tmp_path):
    assert "MTL baseline — ours: not run" in lines(table(6, [mtl(tmp_path / "a")]), "one-label, train labelled")


def few_shot(folder: Path, task: str, seed: int = 0, **labels) -> Path:
    """A run in which `task` has few shots; of the other tasks it is ten times the paper's."""
    setting = published.table(7).settings[0]
    scores = scaled("HiTTs", 10.0, setting, 7) | of(task, scaled("HiTTs", 1.0, setting, 7))
    said = {"setting": "few-shot", "task": task} | labels
    name = f"few-{task}"
    return write_run(
        folder, {"hitts": scores}, {"hitts": "HiTTs"}, number=7, setting="few-shot", name=name, seed=seed, labels=said
    )


def test_few_shot_runs_join_each_with_the_task_that_had_few(tmp_path):
    text = table(7, [few_shot(tmp_path / task, task) for task in TASKS])
    title, row = ours(text, "HiTTs", published.table(7).settings[0])
    assert "few-semseg and 2 more, seed 0" in title
    assert len(row) == 9
    assert all("(0.00" in cell for cell in row.values())
    assert not footnotes(text, title)


def test_few_shot_tasks_that_are_missing_stay_open(tmp_path):
    text = table(7, [few_shot(tmp_path / f"{task}{seed}", task, seed, k=5) for task in TASKS[:2] for seed in (0, 1)])
    title, row = ours(text, "HiTTs", published.table(7).settings[0])
    assert "2 seeds" in title
    assert row["depth rmse ↓"] == "1.1272 ± 0.0000 (0.0000)"
    assert row["normals mErr (°) ↓"] == "–"
    assert footnotes(text, title) == ["5 labelled images of the task, the paper has 10."]


def test_few_shot_runs_must_say_which_task(tmp_path):
    with pytest.raises(MultidenseError, match=r"should say in labels\.task which task has few shots"):
        table(7, [mtl(tmp_path / "a", number=7, setting="few-shot")])


@pytest.mark.parametrize("gpu", [True, False])
def test_cost_makes_table_8(tmp_path, gpu):
    provenance = {"machine": {"gpu": "H200"} if gpu else {"cores": 2}, "data": {"name": "nyuv2", "size": [288, 384]}}
    cost = {"parameters": 25_055_185, "multiply_adds": 68.808e9, "peak_memory_mb": 4096.0}
    text = table(8, [mtl(tmp_path / "a", provenance=provenance, cost=cost, epochs=1)])
    title, row = ours(text, "MTL baseline", "cost, SegNet")
    memory = "4.00 (−5.36)" if gpu else "–"
    assert list(row.values()) == ["25.06 (0.00)", "68.81 (0.00)", memory]
    with_gpu, without = "Memory with 8 images a step, peak of H200.", "Memory is that of a GPU: this was not trained on one."
    assert footnotes(text, title) == [with_gpu if gpu else without]


# What keeps rows from comparing


@pytest.mark.parametrize(
    ("said", "remark"),
    [
        ({"epochs": 40}, "Trained for 40 epochs, the paper for 400."),
        ({"data": {"size": [96, 128]}}, "Images of 96 × 128, the paper's have 288 × 384."),
        ({"data": {"size": None, "image_size": [96, 128]}}, "Images of 96 × 128, the paper's have 288 × 384."),
        ({"recipe": {"width": 0.25}}, "A backbone of width 0.25, the paper's has 1."),
        ({"data": {"name": "rooms", "reader": "Rooms"}}, "Data: rooms, not nyuv2."),
        ({"data": {"length": 20, "whole": False}}, "Scored on 20 images, not on the whole split."),
        ({"data": {"images": 20}}, "Scored on 20 images, not on the whole split."),
        (
            {"data": {"notes": {"normals": "derived from depth", "edges": "derived", "depth": "metres"}}},
            "normals: derived from depth.",
        ),
        (
            {"labels": {"setting": "one-label", "seed": 3}},
            "Label assignment: one-label, seed 3, not the published one of this setting.",
        ),
        ({"labels": {"file": "/x/mine.csv"}}, "Label assignment: from mine.csv, not the published one of this setting."),
        (
            {"labels": {"setting": "published random-labels"}},
            "Label assignment: published random-labels, seed 0, not the published one of this setting.",
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_what_was_not_done_as_in_the_paper_is_marked(tmp_path, said, remark):
    text = table(1, [mtl(tmp_path / "a", **said)])
    title, _ = ours(text, "MTL baseline")
    assert footnotes(text, title) == [remark]


def test_fewer_training_images_and_another_checkpoint_are_marked(tmp_path):
    provenance = {"labels": {"images": 100}, "checkpoint": "best epoch"}
    text = table(1, [mtl(tmp_path / "a", provenance=provenance)])
    told = footnotes(text, ours(text, "MTL baseline")[0])
    assert told == ["Trained on 100 images of 795.", "Checkpoint: best epoch, where ours is the last epoch."]


def test_another_layout_is_marked_with_all_that_its_labels_are(tmp_path):
    notes = {"normals": "an archive", "depth": "in-painted", "edges": "thin"}
    text = table(1, [mtl(tmp_path / "a", data={"layout": "official", "notes": notes})])
    told = footnotes(text, ours(text, "MTL baseline")[0])
    assert told == ["Layout official; the paper's numbers rest on preprocessed.", "normals: an archive.", "depth: in-painted."]


def test_a_recipe_may_say_how_long_the_paper_trained(tmp_path):
    claims = {"table": 1, "dataset": "nyuv2", "setting": "one-label", "rows": {"mtl": "MTL baseline"}, "epochs": 200}
    text = table(1, [mtl(tmp_path / "a", epochs=200, recipe={"published": claims})])
    assert not footnotes(text, ours(text, "MTL baseline")[0])


def test_a_remark_is_said_once(tmp_path):
    text = table(1, [mtl(tmp_path / "a", epochs=9), stl(tmp_path / "b", epochs=9)])
    assert text.count("Trained for 9 epochs") == 1
    assert ours(text, "MTL baseline")[0][-3:] == ours(text, SINGLE)[0][-3:] == "[1]"


# Runs that were not scored alike


def test_runs_that_were_not_scored_alike_are_refused(tmp_path):
    runs = [mtl(tmp_path / "a"), stl(tmp_path / "b", data={"layout": "official"})]
    with pytest.raises(MultidenseError, match=r"table 1: .*layout: .*allow it with --mixed"):
        table(1, runs)
    text = table(1, runs, mixed=True)
    marked = [footnotes(text, ours(text, method)[0]) for method in ("MTL baseline", SINGLE)]
    assert [told[1:] for told in marked] == [[], ["Not scored as a/mtl (here): layout: preprocessed here, official there."]]


def test_a_mixed_table_says_so_even_where_the_first_row_knows_nothing_of_it(tmp_path):
    runs = [mtl(tmp_path / "a", provenance={}), mtl(tmp_path / "b", seed=1), mtl(tmp_path / "c", seed=2, data={"length": 9})]
    text = table(1, runs, mixed=True)
    assert "These rows do not compare: b/mtl (here) and c/mtl (there) were not scored alike: images: 654 here, 9 there." in text


def test_single_tasks_and_all_tasks_were_scored_alike(tmp_path):
    assert "ours" in table(1, [mtl(tmp_path / "a"), stl(tmp_path / "b")])


def test_a_report_refuses_runs_that_were_not_scored_alike(tmp_path):
    runs = [mtl(tmp_path / "a"), mtl(tmp_path / "b", seed=1, data={"size": [96, 128]})]
    with pytest.raises(MultidenseError, match=r"a report of several runs: a · mtl .* size: 288 × 384 here, 96 × 128 there"):
        write_report(runs, tmp_path / "both.html")
    assert not (tmp_path / "both.html").exists()
    text = write_report(runs, tmp_path / "both.html", mixed=True).with_suffix(".md").read_text()
    assert "These runs do not compare: a · mtl (here) and b · mtl (there) were not scored alike: size" in text


def test_a_report_of_runs_that_were_scored_alike_says_nothing(tmp_path):
    runs = [mtl(tmp_path / "a"), mtl(tmp_path / "b", seed=1)]
    assert "do not compare" not in write_report(runs, tmp_path / "both.html").with_suffix(".md").read_text()


# Other checkpoint rules


def test_other_rules_stand_beside_when_asked_for(tmp_path):
    beside = {BEST: scaled("MTL baseline", 1.5) | {"epoch": 7}, MEAN_OF_LAST: scaled("MTL baseline", 0.5)}
    run = mtl(tmp_path / "a", beside=beside)
    assert BEST not in table(1, [run])
    text = table(1, [run], rules=True)
    keys = [key for key in lines(text) if key.startswith("MTL baseline —— by")]
    assert [key.partition("by ")[2].partition(" [")[0] for key in keys] == [BEST, MEAN_OF_LAST]
    assert lines(text)[keys[0]]["semseg mIoU (%) ↑"] == "46.38 (+15.46)"
    assert lines(text)[keys[1]]["semseg mIoU (%) ↑"] == "15.46 (−15.46)"
    assert footnotes(text, keys[0]) == ["The best epoch is chosen on the images that it is scored on, so it flatters."]


def test_a_rule_is_compared_with_single_tasks_by_the_same_rule(tmp_path):
    best = mtl(tmp_path / "a", beside={BEST: scaled("MTL baseline", 2.0)})
    text = table(1, [best, stl(tmp_path / "b", 5.0, beside={BEST: scaled(SINGLE, 2.0)})], rules=True)
    row = next(row for key, row in lines(text).items() if key.startswith("MTL baseline —— by"))
    assert row["delta_mtl (%) ↑"] == "0.11 (0.00)"


def test_a_rule_that_not_all_seeds_know_says_of_how_many(tmp_path):
    runs = [mtl(tmp_path / "a", beside={BEST: scaled("MTL baseline", 2.0)}), mtl(tmp_path / "b", seed=1)]
    row = next(row for key, row in lines(table(1, runs, rules=True)).items() if key.startswith("MTL baseline —— by"))
    assert row["semseg mIoU (%) ↑"] == "61.84, 1 of 2 seeds (+30.92)"


# Mistakes


def test_runs_that_serve_no_row_are_named(tmp_path):
    run = mtl(tmp_path / "a")
    with pytest.raises(MultidenseError, match=r"none of .*a serves table 4: its recipe should say so under `published`"):
        table(4, [run])
    other = mtl(tmp_path / "b", recipe={"published": None})
    assert f"{other} serves no row of this table." in table(1, [run, other])


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(MultidenseError, match=r"holds no run: there is no recipe\.yaml in it"):
        table(1, [tmp_path])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [", r"recipe\.yaml cannot be read as YAML"),
        ("- a", r"recipe\.yaml: expected settings such as 'name: …', found list"),
        ("published: {tabel: 1}", r"recipe\.yaml: published should hold table, .* found \{'tabel': 1\}"),
        ("published: 4", r"recipe\.yaml: published should hold table, dataset, setting, rows and may hold epochs, found 4"),
        ("published: {table: 1, dataset: nyuv2, setting: x, rows: {}}", r"recipe\.yaml: published\.setting: table 1 has no"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_named(tmp_path, text, complaint):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(MultidenseError, match=complaint):
        table(1, [tmp_path])
