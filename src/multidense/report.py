"""Report: what the trainings of one or several runs scored, looked like and cost, as one HTML page and one Markdown file.

A run folder is gathered into plain records; these are told as sentences, tables and picture rows; the template draws
them. No task is known here by name: tasks, scores, loss terms and classes are whatever the files hold. What is missing
or broken is said in the section where it would have been.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import jinja2

from multidense import collection_tables, curves, quality_figures, tables, token_figures
from multidense.files import read_json, write_text
from multidense.pictures import file_url
from multidense.results import Results, check_same_protocol, delta_mtl, first_difference
from multidense.tables import Entry, Table, markdown, number, numbers, percent, signed, spread
from multidense.types import MultidenseError

LARGEST_PICTURE = 256  # pixels; larger pictures are reduced before they go into the page
SPLIT_ORDER = {"val": 0, "test": 1, "train": 3}


@dataclass(frozen=True, eq=False)
class Training:
    """One training of a run; `label` is its title, after the run's where there are several runs."""

    title: str
    label: str
    path: Path
    results: Results
    history: curves.History
    teacher: str | None
    colour: int
    dash: int


@dataclass(eq=False)
class Run:
    """All that one run folder holds; `notes` maps a section to sentences about what is missing there."""

    path: Path
    label: str
    recipe: str
    trainings: list[Training] = field(default_factory=list)
    baseline: Training | None = None
    labels: Mapping = field(default_factory=dict)
    manifest: Mapping = field(default_factory=dict)
    discovered: Path | None = None
    settings: str = ""
    notes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def seed(self) -> object:
        """The seed the results name, else that of the label assignment."""
        named = (training.results.provenance.get("seed") for training in self.trainings)
        return next((seed for seed in named if seed is not None), self.labels.get("seed"))

    def piece(self, section: str, name: str, read: Callable, otherwise: object = None) -> object:
        """What `read` makes of a file of this run; a missing or broken one is noted and replaced by `otherwise`."""
        try:
            return read(self.path / name)
        except (MultidenseError, OSError, LookupError, TypeError, ValueError, AttributeError, csv.Error) as error:
            reason = f"cannot be used ({type(error).__name__}: {error})" if (self.path / name).exists() else "is not there"
            self.notes.setdefault(section, []).append(f"{self.path.name}/{name} {reason}.")
            return otherwise


@dataclass(frozen=True)
class Shown:
    """One image's pictures: rows are (task, chip, for each column None or an address, a width and whether to enlarge)."""

    name: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[tuple[str, int, bool] | None]]]


def write_report(runs: Sequence[Path], out: Path | None = None, mixed: bool = False) -> Path:
    """Write the report of `runs` as HTML to `out` (one run: `report.html` in its folder) and as Markdown beside it.

    Several runs that were not scored alike are refused; `mixed` allows them, and the page says what differs.
    """
    paths = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    if not paths:
        raise MultidenseError("a report needs at least one run folder, found none")
    if out is None and len(paths) > 1:
        raise MultidenseError(f"a report of {len(paths)} runs needs a place of its own: say which HTML file to write")
    place = paths[0] / "report.html" if out is None else Path(out)
    if place.suffix not in (".html", ".htm"):
        place = place / "report.html" if place.is_dir() else place.with_name(place.name + ".html")
    gathered = gather(paths)
    if len(gathered) > 1 and not mixed:
        check_same_protocol(_named(gathered), "a report of several runs")
    page = describe(gathered)
    templates = jinja2.Environment(loader=jinja2.PackageLoader("multidense"), autoescape=True, trim_blocks=True)
    write_text(place, templates.get_template("report.html.jinja").render(page))
    write_text(place.with_suffix(".md"), markdown(page))
    return place


def gather(paths: Sequence[Path]) -> list[Run]:
    """The runs in these folders; a folder without any usable scores is an error only where it is the only one."""
    declared, troubles = {}, []
    for path in dict.fromkeys(path.resolve() for path in paths):
        try:
            declared[path] = _declaration(path / "run.json")
        except MultidenseError as error:
            troubles.append(str(error))
    names = [str(data.get("name") or path.name) for path, data in declared.items()]
    if len(set(names)) < len(names):
        names = [f"{name} ({path.name})" for name, path in zip(names, declared, strict=True)]
    titles = list(dict.fromkeys(entry["title"] for data in declared.values() for entry in data["trainings"]))
    runs = [
        _run(path, data, name, titles, dash, several=len(declared) > 1)
        for dash, ((path, data), name) in enumerate(zip(declared.items(), names, strict=True))
    ]
    usable = [run for run in runs if any(training.results.scores for training in run.trainings)]
    for run in runs:
        if run not in usable:
            reasons = " ".join(run.notes.get("scores", []))
            troubles.append(f"{run.path} holds no scores to report; train or evaluate it again. {reasons}".rstrip())
    if not usable:
        raise MultidenseError(" ".join(troubles))
    usable[0].notes.setdefault("scores", []).extend(troubles)
    return usable


def _named(runs: Sequence[Run]) -> list[tuple[str, Results]]:
    """Everything that has scores, by label."""
    return [(each.label, each.results) for run in runs for each in run.trainings if each.results.scores]


def _declaration(file: Path) -> dict:
    data = read_json(file) if file.exists() else None
    named = data.get("trainings") if isinstance(data, dict) else None
    if not isinstance(named, list) or not named or not all(isinstance(each, dict) and each.get("folder") for each in named):
        found = "a file without them" if file.exists() else "no such file"
        raise MultidenseError(f"{file} should name the trainings of a run, found {found}; give a folder `multidense run` wrote")
    return data | {"trainings": [each | {"title": str(each.get("title") or each["folder"])} for each in named]}


def _run(path: Path, data: Mapping, label: str, titles: list[str], dash: int, several: bool) -> Run:
    run = Run(path, label, str(data.get("recipe") or path.name))
    for entry in data["trainings"]:
        title, folder = entry["title"], str(entry["folder"])
        results = run.piece("scores", f"{folder}/results.json", _results, Results({}))
        history = run.piece("curves", f"{folder}/history.csv", curves.read_history, {})
        named, colour = f"{label} · {title}" if several else title, titles.index(title)
        run.trainings.append(Training(title, named, path / folder, results, history, entry.get("teacher"), colour, dash))
    run.baseline = next((each for each in run.trainings if each.path == path / str(data.get("baseline"))), None)
    run.labels = run.piece("labels", "labels.json", _labels, {})
    run.settings = run.piece("provenance", "recipe.yaml", lambda file: file.read_text(encoding="utf-8"), "")
    if data.get("discovered"):
        run.discovered = path / str(data["discovered"])
        run.manifest = run.piece("discovered", f"{data['discovered']}/manifest.json", _manifest, {})
    return run


def _results(file: Path) -> Results:
    loaded = Results.load(file)
    classes = {task: numbers(shares) for task, shares in loaded.per_class.items()}
    apart = {name: numbers(scores) for name, scores in loaded.collections.items()}
    numbered = numbers(loaded.scores), numbers(loaded.further), classes, dict(loaded.provenance), numbers(loaded.cost)
    return Results(*numbered, collections=apart)


def _labels(file: Path) -> dict:
    data = read_json(file)
    full = data.get("full") or {}
    return data | {"bars": [(task, int(count), int(full.get(task, data["images"]))) for task, count in data["counts"].items()]}


def _manifest(file: Path) -> dict:
    data = read_json(file)
    for found in data["tasks"].values():
        classes = (found.get("classes") or {}).items()
        found["classes"] = {str(name): (number(each.get("kept")), number(each.get("pixels"))) for name, each in classes}
    return data


def describe(runs: Sequence[Run]) -> dict:
    """Everything the report says, as the template's variables."""
    entries = _entries(runs)
    rows = list(entries.values())
    scores = tables.score_table(rows, lambda results: results.scores, with_gain=True)
    seeds = [_over_seeds(members, entries) for members in _same_but_seed(runs)]
    page = {
        "title": runs[0].label if len(runs) == 1 else f"{len(runs)} runs compared",
        "runs": runs,
        "legend": list(entries),
        "verdicts": [verdict for *_, verdict in seeds if verdict] or [_verdict(run, runs, entries) for run in runs],
        "remarks": _remarks(runs, entries, len(scores.columns) - 1),
        "gains": [(entry, percent(entry.gain)) for entry in rows if not math.isnan(entry.gain)],
        "scores": scores,
        "means": [(heading, table) for heading, table, _ in seeds],
        "collections": collection_tables.score_tables(rows),
        "further": tables.score_table(rows, lambda results: results.further),
        "classes": tables.class_tables(rows),
        "splits": _splits(runs, list(dict.fromkeys(column.group for column in scores.columns))),
        "discovered": [(run, tables.discovered_table(run.manifest["tasks"])) for run in runs if run.manifest],
        "discovered_apart": [(run, table) for run in runs if (table := collection_tables.discovered_table(run.manifest))],
        "quality": quality_figures.figures(runs),
        "tokens": token_figures.figures(runs, _students(runs)),
        "plots": curves.plot_groups([(each.label, each.colour, each.dash, each.history) for each in entries]),
        "weights": curves.weight_plots([(each.label, each.history) for each in entries]),
        "frame": curves,
        "cost": tables.cost_table(rows),
        "time_with_teacher": _time_with_teacher(runs),
        "provenance": tables.provenance_table(rows),
    }
    every_note = [(section, note) for run in runs for section, notes in run.notes.items() for note in dict.fromkeys(notes)]
    page["notes"] = {section: [note for place, note in every_note if place == section] for section, _ in every_note}
    return page


def _entries(runs: Sequence[Run]) -> dict[Training, Entry]:
    """Each training with its baseline and its delta_mtl; why one has none is noted."""
    entries = {}
    for run in runs:
        baseline, without = _baseline(run, runs), {}
        for each in run.trainings:
            if baseline is None or each is baseline or not each.results.scores:
                entries[each] = Entry(each.label, each.colour, each.results)
                continue
            gain, reason = math.nan, f"only scores of the same names compare with {baseline.label}"
            if set(each.results.scores) == set(baseline.results.scores):
                gain = delta_mtl(each.results, baseline.results)
                reason = "a score is not a number, or the baseline's is zero"
            if math.isnan(gain):
                without.setdefault(reason, []).append(each.label)
            entries[each] = Entry(each.label, each.colour, each.results, baseline.results, gain)
        for reason, labels in without.items():
            run.notes.setdefault("scores", []).append(f"No delta_mtl for {', '.join(labels)}: {reason}.")
    return entries


def _baseline(run: Run, runs: Sequence[Run]) -> Training | None:
    """The run's own baseline, else the first one among runs of the same recipe."""
    return run.baseline or next((each.baseline for each in runs if each.baseline and each.recipe == run.recipe), None)


def _told(courses: Sequence[tuple[str, float, str]], over: str) -> str:
    """One sentence from (title, gain, gain in words), the last one leading."""
    *others, (title, gain, words) = courses
    judged = "over" if round(gain, 1) > 0 else "– worse than" if round(gain, 1) < 0 else "– no gain over"
    aside = ", ".join(f"{other} {'alone ' if other in title else ''}{text}" for other, _, text in others)
    return f"{title}: {words} delta_mtl {judged} {over}" + (f" ({aside})" if aside else "")


def _verdict(run: Run, runs: Sequence[Run], entries: Mapping[Training, Entry]) -> str:
    gains = [(each.label, entries[each].gain) for each in run.trainings if not math.isnan(entries[each].gain)]
    if gains:
        return _told([(label, gain, percent(gain)) for label, gain in gains], _baseline(run, runs).label)
    return f"{run.label}: no delta_mtl, for there is no other training with the same scores to compare with"


def _students(runs: Sequence[Run]) -> list[tuple[Training, Training]]:
    """Each student with its teacher; where only the labels name a network, the last training learnt from them."""
    pairs = []
    for run in runs:
        network = run.manifest.get("network")
        named = network.get("folder") if isinstance(network, Mapping) else None
        for student in run.trainings:
            folder = student.teacher or (named if student is run.trainings[-1] else None)
            pairs += [(student, each) for each in run.trainings if each is not student and each.path == run.path / str(folder)]
    return pairs


def _remarks(runs: Sequence[Run], entries: Mapping[Training, Entry], columns: int) -> list[str]:
    """What the discovered labels were worth, and how to read the numbers."""
    remarks = []
    for student, teacher in _students(runs):
        worth = entries[student].gain - entries[teacher].gain
        if not math.isnan(worth):
            told = f"{signed(worth, 1)} points of delta_mtl: {student.label} against its teacher {teacher.title}"
            remarks.append(f"Discovered labels were worth {told}.")
    if any(not math.isnan(entry.gain) for entry in entries.values()):
        over = runs[0].baseline.label if len(runs) == 1 else "the baseline of its own run, else of the first run of the recipe"
        remarks.append(f"delta_mtl is the mean relative gain over {over}, over all {columns} scores of the table.")
    different = first_difference(_named(runs)) if len(runs) > 1 else ""
    if different:
        remarks.append(f"These runs do not compare: {different}.")
    if len(runs) == 1:
        remarks.append(f"One run, seed {runs[0].seed}: how much the scores vary between seeds is not known from it.")
    return remarks


def _time_with_teacher(runs: Sequence[Run]) -> list[str]:
    """Students train after their teachers: what both took together."""
    told = []
    for student, teacher in _students(runs):
        seconds = sum(each.results.cost.get("train_seconds", math.nan) for each in (student, teacher))
        if not math.isnan(seconds):
            told.append(f"{student.label} with its teacher {teacher.title}: {tables.duration(seconds)} of training.")
    return told


def _same_but_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of one recipe and label setting, one for each seed, where there are at least two seeds."""
    alike: dict[tuple, dict[object, Run]] = {}
    for run in runs:
        alike.setdefault((run.recipe, str(run.labels.get("setting"))), {}).setdefault(str(run.seed), run)
    return [list(members.values()) for members in alike.values() if len(members) > 1]


def _over_seeds(runs: Sequence[Run], entries: Mapping[Training, Entry]) -> tuple[str, Table, str]:
    """Heading, mean ± deviation of each training over the runs, and the verdict in these terms."""
    alike: dict[str, list[Entry]] = {}
    for training in (training for run in runs for training in run.trainings if training.results.scores):
        alike.setdefault(training.title, []).append(entries[training])
    gains = {title: [entry.gain for entry in members if not math.isnan(entry.gain)] for title, members in alike.items()}
    words = {title: spread(each, lambda gain: signed(gain, 1)) for title, each in gains.items() if len(each) > 1}
    told = [(title, mean(gains[title]), f"{text} %") for title, text in words.items()]
    seeds, baseline = ", ".join(str(run.seed) for run in runs), _baseline(runs[0], runs)
    verdict = _told(told, f"{baseline.title}, mean of {len(runs)} seeds") if told else ""
    return f"{runs[0].recipe}, seeds {seeds}", tables.mean_table(alike), verdict


def _splits(runs: Sequence[Run], tasks: Sequence[str]) -> list[tuple[str, list[Shown]]]:
    """The images that any part of any run has pictures of, by split."""
    splits: dict[str, list[Shown]] = {}
    roots = [(run, root) for run in runs for root in (run.path, run.discovered, *(each.path for each in run.trainings)) if root]
    found = {(run.recipe, image.parent.name, image.name) for run, root in roots for image in root.glob("pictures/*/*/")}
    for recipe, split, name in sorted(found, key=lambda key: (SPLIT_ORDER.get(key[1], 2), key)):
        shown = _shown([run for run in runs if run.recipe == recipe], Path("pictures", split, name), tasks)
        if shown.rows:
            splits.setdefault(split, []).append(shown)
    return list(splits.items())


def _shown(runs: Sequence[Run], place: Path, tasks: Sequence[str]) -> Shown:
    shared = [run.path / place for run in runs]
    columns = [("Input", [(at, "input.png") for at in shared]), ("Truth", [(at, "{}.truth.png") for at in shared])]
    columns += [(each.label, [(each.path / place, "{}.prediction.png")]) for run in runs for each in run.trainings]
    for run in runs:
        after = f" · {run.label}" if len(runs) > 1 else ""
        discovered = [run.discovered / place] if run.discovered else []
        trusted = [*discovered, *(each.path / place for each in reversed(run.trainings))]
        columns.append((f"Discovered label{after}", [(at, "{}.discovered.png") for at in discovered]))
        columns.append((f"Confidence{after}", [(at, "{}.confidence.png") for at in trusted]))
    files = {at: {file.name for file in at.glob("*.png")} for _, places in columns for at, _ in places}
    present = {name.split(".")[0] for names in files.values() for name in names} - {"input"}
    marked = [run for run in runs if (run.path / place / "labels.json").exists()]
    labelled = [run.piece("pictures", f"{place}/labels.json", lambda file: set(read_json(file)["labelled"])) for run in marked]
    rows = []
    for task in sorted(present, key=lambda task: (tasks.index(task) if task in tasks else len(tasks), task)):
        row = []
        for _, places in columns:
            file = next((at / name.format(task) for at, name in places if name.format(task) in files[at]), None)
            row.append(_picture(file, runs))
        said = {task in known for known in labelled if known is not None}
        chip = "" if not said else "differs by run" if len(said) > 1 else "labelled" if True in said else "hidden"
        rows.append((task, chip, row))
    kept = [index for index in range(len(columns)) if any(row[index] for *_, row in rows)]
    rows = [(task, chip, [row[index] for index in kept]) for task, chip, row in rows]
    return Shown(place.name.replace("__", "/"), [columns[index][0] for index in kept], rows)


def _picture(file: Path | None, runs: Sequence[Run]) -> tuple[str, int, bool] | None:
    """Address, width on the page, and whether pixels are enlarged: small pictures by a whole factor."""
    run = next((run for run in runs if file and file.is_relative_to(run.path)), None)
    read = run.piece("pictures", str(file.relative_to(run.path)), lambda path: file_url(path, LARGEST_PICTURE)) if run else None
    if read is None:
        return None
    url, width = read
    return url, min(width * max(1, round(144 / width)), 176), width <= 176
