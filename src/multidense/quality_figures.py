"""How good the discovered labels of runs are, and how labelled and unlabelled training images score: the report's section.

Reads what a run left on benchmarks, where the truth behind hidden labels is known: `quality.json` in the folders of discoveries
and `training_images.json` in those of networks. Runs without them have no such section.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from multidense import curves
from multidense.files import read_json
from multidense.results import Results
from multidense.tables import Cell, Column, Entry, Table, number, numbers, score_table, signed

Pairs = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class TaskQuality:
    """What is known of one task's labels: numbers by name, NaN where unknown; (coverage, precision) and (confidence, accuracy)
    pairs; numbers of each category.
    """

    numbers: Mapping[str, float]
    curve: Pairs
    reliability: Pairs
    classes: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Judged:
    """One discovery of one run, with the rule that each of its tasks was thresholded by."""

    label: str
    colour: int
    dash: int
    tasks: Mapping[str, TaskQuality]
    rules: Mapping[str, str]


def figures(runs: Sequence) -> dict | None:
    """Tables and plots of the runs of a report (its `Run`s, by which broken files are noted); None where there is nothing."""
    judged = _judged(runs)
    training_images = _training_images(runs)
    if not judged and not training_images:
        return None
    tasks = list(dict.fromkeys(task for each in judged for task in each.tasks))
    return {
        "judged": [(each, quality_table(each)) for each in judged],
        "classes": [
            (f"{task}{f' · {each.label}' if len(judged) > 1 else ''}", class_table(each.tasks[task].classes))
            for task in tasks
            for each in judged
            if task in each.tasks and each.tasks[task].classes
        ],
        "precision": precision_plots(judged, tasks),
        "precision_table": precision_table(judged, tasks),
        "reliability": [reliability_plot(judged, task) for task in tasks],
        "training_images": training_images,
    }


def quality_table(judged: Judged) -> Table:
    """Coverage, precision and calibration of each task; below the precision, what it gains over that of all pixels."""
    columns = [Column("rule"), *(Column(name, unit="%") for name in ("coverage", "precision", "accuracy"))]
    columns += [Column(name, "ECE, bins of", "%") for name in ("equal width", "equal share")]
    rows = []
    for task, told in judged.tasks.items():
        cells = [Cell(judged.rules.get(task, "–"))]
        for name in ("coverage", "precision", "accuracy", "ece", "ece_by_share"):
            gain = 100 * (told.numbers[name] - told.numbers["accuracy"]) if name == "precision" else math.nan
            tone = "better" if gain > 0 else "worse" if gain < 0 else ""
            cells.append(Cell(_percent(told.numbers[name]), "" if math.isnan(gain) else signed(gain, 1), tone))
        rows.append((task, None, cells))
    return Table("Task", columns, rows)


def class_table(classes: Mapping[str, Mapping[str, float]]) -> Table:
    """Each category as it was predicted, and as it is in the truth; pixels as shares of all."""
    columns = [Column(name, "as predicted", "%") for name in ("of all pixels", "kept", "precision")]
    columns += [Column(name, "in the truth", "%") for name in ("of all pixels", "recall")]
    whole = {name: sum(row[name] for row in classes.values()) or math.nan for name in ("pixels", "true_pixels")}
    rows = []
    for title, row in classes.items():
        shares = (row["pixels"] / whole["pixels"], row["kept"], row["precision"])
        shares += (row["true_pixels"] / whole["true_pixels"], row["recall"])
        rows.append((title, None, [Cell(_percent(share)) for share in shares]))
    return Table("Class", columns, rows)


def precision_plots(judged: Sequence[Judged], tasks: Sequence[str]) -> list[curves.Plot]:
    """Precision against coverage, a plot a task; the dot is what was kept. All have the same axes."""
    lowest = min((precision for each in judged for told in each.tasks.values() for _, precision in told.curve), default=0)
    kept = [told.numbers["precision"] for each in judged for told in each.tasks.values()]
    lowest = math.floor(5 * min([lowest, *(precision for precision in kept if not math.isnan(precision)), 0.8])) / 5
    plots = []
    for task in tasks:
        drawn = [(each, each.tasks[task]) for each in judged if task in each.tasks and each.tasks[task].curve]
        dots, said = [], []
        for each, told in drawn:
            coverage, precision = told.numbers["coverage"], told.numbers["precision"]
            dots.append([] if math.isnan(coverage + precision) else [(coverage, precision)])
            known = f"{_percent(precision)} % precision at {_percent(coverage)} % coverage"
            said.append(f"{each.label}: {known}, {_percent(told.numbers['accuracy'])} % of everything")
        courses = [(each.label, each.colour, each.dash, told.curve) for each, told in drawn]
        plots.append(curves.share_plot(task, courses, dots, said, ("coverage", "precision"), lowest))
    return plots


def precision_table(judged: Sequence[Judged], tasks: Sequence[str]) -> Table:
    """The same in numbers: the precision of the most confident 20, 40, … 100 % of the pixels."""
    steps = (0.2, 0.4, 0.6, 0.8, 1.0)
    rows = []
    for task, each in ((task, each) for task in tasks for each in judged if task in each.tasks):
        curve = each.tasks[task].curve
        found = [next((precision for coverage, precision in curve if coverage >= step), math.nan) for step in steps]
        title = f"{task} · {each.label}" if len(judged) > 1 else task
        rows.append((title, None, [Cell(_percent(precision)) for precision in found]))
    return Table("Task", [Column(f"{100 * step:g} %", "precision in % at a coverage of") for step in steps], rows)


def reliability_plot(judged: Sequence[Judged], task: str) -> curves.Plot:
    """How often pixels are right against how sure they are: a dot for each bin of equal share."""
    drawn = [(each, each.tasks[task]) for each in judged if task in each.tasks and each.tasks[task].reliability]
    courses = [(each.label, each.colour, each.dash, told.reliability) for each, told in drawn]
    said = [f"{each.label}: ECE {_percent(told.numbers['ece'])} %" for each, told in drawn]
    dots = [told.reliability for _, told in drawn]
    return curves.share_plot(task, courses, dots, said, ("confidence", "right"), diagonal="as often right as sure")


def read_quality(file: Path) -> dict[str, TaskQuality]:
    """The tasks of a `quality.json`, whatever is no number as NaN."""
    told = {}
    for task, data in read_json(file).items():
        known = numbers({name: data.get(name) for name in ("coverage", "precision", "accuracy", "ece", "ece_by_share")})
        classes = {
            str(name): numbers({key: row.get(key) for key in ("pixels", "kept", "precision", "true_pixels", "recall")})
            for name, row in (data.get("classes") or {}).items()
        }
        curve = _pairs(data["curve"], "coverage", "precision")
        told[str(task)] = TaskQuality(known, curve, _pairs(data["reliability_by_share"], "confidence", "accuracy"), classes)
    return told


def _judged(runs: Sequence) -> list[Judged]:
    """Every discovery that was judged, those of one folder name in one colour."""
    found = []
    for dash, run in enumerate(runs):
        places = sorted(place.parent for place in run.path.glob("discovered*/quality.json"))
        of_run = []
        for place in places:
            tasks = run.piece("quality", f"{place.name}/quality.json", read_quality)
            if tasks:
                manifest = run.piece("quality", f"{place.name}/manifest.json", read_json, {})
                of_run.append((place.name, _teacher(run, manifest), tasks, _rules(manifest)))
        teachers = [teacher for _, teacher, *_ in of_run]
        for folder, teacher, tasks, rules in of_run:
            words = [run.label] if len(runs) > 1 else []
            words += [teacher] if teacher and teachers.count(teacher) == 1 else [f"{teacher}, {folder}" if teacher else folder]
            found.append((" · ".join(words), folder, dash, tasks, rules))
    folders = list(dict.fromkeys(folder for _, folder, *_ in found))
    return [Judged(label, folders.index(folder) + 1, *rest) for label, folder, *rest in found]


def _teacher(run, manifest: Mapping) -> str:
    """The title of the network that discovered, as far as the manifest tells."""
    network = manifest.get("network")
    folder = network.get("folder") if isinstance(network, Mapping) else None
    parts = Path(str(folder or "")).parts
    return next((training.title for training in run.trainings if training.path.name in parts), "")


def _rules(manifest: Mapping) -> dict[str, str]:
    rules = manifest.get("rules")
    return {str(task): str(rule) for task, rule in rules.items()} if isinstance(rules, Mapping) else {}


def _training_images(runs: Sequence) -> Table | None:
    """Two rows a network: its scores over the training images labelled for a task, and over those that are not, with the
    difference below.
    """
    entries = []
    for run in runs:
        for training in run.trainings:
            name = f"{training.path.name}/training_images.json"
            told = run.piece("quality", name, _read_parts) if (run.path / name).exists() else None
            if told:
                entries.append(Entry(f"{training.label}: labelled", training.colour, told["labelled"]))
                entries.append(Entry(f"{training.label}: unlabelled", training.colour, told["unlabelled"], told["labelled"]))
    if not entries:
        return None
    table = score_table(entries, lambda results: results.scores)
    # Bold would only say that a network does best on images whose labels it was trained with.
    rows = [(title, colour, [replace(cell, best=False) for cell in cells]) for title, colour, cells in table.rows]
    return replace(table, rows=rows)


def _read_parts(file: Path) -> dict[str, Results]:
    data = read_json(file)
    return {part: Results(numbers(data.get(part) or {})) for part in ("labelled", "unlabelled")}


def _pairs(rows: Sequence[Mapping], *names: str) -> list[tuple[float, float]]:
    pairs = [tuple(number(row[name]) for name in names) for row in rows]
    return [pair for pair in pairs if not any(map(math.isnan, pair))]


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f}"
