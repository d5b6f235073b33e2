"""Tables of the report: scores, classes, discovered labels, cost and provenance as words in cells, for page and Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import mean, stdev

from multidense.results import Results, score_of
from multidense.types import MultidenseError


@dataclass(frozen=True)
class Entry:
    """One training as tables see it: its results, those of the baseline (None for the baseline itself), and its delta_mtl."""

    label: str
    colour: int
    results: Results
    baseline: Results | None = None
    gain: float = math.nan


@dataclass(frozen=True)
class Cell:
    """A number in words and what is said below it in small print, whose `tone` is better, worse or neither."""

    text: str = "–"
    small: str = ""
    tone: str = ""
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A column's name, the group it stands in, its unit, and its direction: 1 higher is better, −1 lower, 0 unknown."""

    name: str
    group: str = ""
    unit: str = ""
    direction: int = 0
    large: bool = False
    """Whether its values reach 10, so that two decimals say enough."""

    def write(self, value: float, sign: bool = False) -> str:
        """The value with as many decimals as papers give it."""
        return "–" if math.isnan(value) else signed(value, 2 if self.large or self.unit in ("%", "°") else 4, sign)


@dataclass(frozen=True)
class Table:
    """Rows are a title, the colour of its training (or None), and a cell for each column."""

    corner: str
    columns: Sequence[Column]
    rows: Sequence[tuple[str, int | None, Sequence[Cell]]]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Each group of neighbouring columns with how many they are."""
        return [(group, len(list(members))) for group, members in groupby(column.group for column in self.columns)]


DELTA = Column("delta_mtl", "", "%", 1)


def number(value: object) -> float:
    """The value where it is a finite number, else NaN."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def signed(value: float, decimals: int, sign: bool = True) -> str:
    """The number with a true minus, and no sign where it rounds to zero."""
    text = f"{value:{'+' if sign else ''}.{decimals}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def percent(gain: float) -> str:
    """A gain as the report says it everywhere: one decimal, signed."""
    return f"{signed(gain, 1)} %"


def numbers(data: Mapping) -> dict[str, float]:
    """All values of a mapping as numbers, what is none as NaN."""
    return {str(name): number(value) for name, value in data.items()}


def score_table(entries: Sequence[Entry], pick: Callable[[Results], Mapping[str, float]], with_gain: bool = False) -> Table:
    """Entries down, scores across, task by task: the best bold, differences to the baseline below."""
    names = _score_names(pick(entry.results) for entry in entries)
    columns = [_column(name) for name in names]
    stacks = []
    for place, name in enumerate(names):
        values = [pick(entry.results).get(name, math.nan) for entry in entries]
        columns[place] = column = replace(columns[place], large=any(value >= 10 for value in values))
        references = [pick(entry.baseline).get(name, math.nan) if entry.baseline else math.nan for entry in entries]
        stacks.append(_cells(column, values, references))
    if with_gain:
        columns.insert(0, DELTA)
        texts = ["–" if math.isnan(entry.gain) else signed(entry.gain, 1) for entry in entries]
        bests = _bests(DELTA, [entry.gain for entry in entries])
        stacks.insert(0, [Cell(text, best=best) for text, best in zip(texts, bests, strict=True)])
    rows = [(entry.label, entry.colour, [stack[place] for stack in stacks]) for place, entry in enumerate(entries)]
    return Table("Training", columns, rows)


def mean_table(alike: Mapping[str, Sequence[Entry]]) -> Table:
    """Mean ± sample deviation over each title's entries, delta_mtl first."""
    names = _score_names(entry.results.scores for members in alike.values() for entry in members)
    columns, rows = [_column(name) for name in names], []
    for title, members in alike.items():
        cells = [
            Cell(spread([entry.results.scores.get(name, math.nan) for entry in members], column.write))
            for name, column in zip(names, columns, strict=True)
        ]
        cells.insert(0, Cell(spread([entry.gain for entry in members], lambda value: signed(value, 1))))
        rows.append((f"{title} ({len(members)} seeds)", members[0].colour, cells))
    return Table("Training", [DELTA, *columns], rows)


def spread(values: Sequence[float], write: Callable[[float], str]) -> str:
    """Mean ± sample deviation in words; a single value stands alone."""
    values = [value for value in values if not math.isnan(value)]
    if len(values) < 2:
        return write(values[0]) if values else "–"
    return f"{write(mean(values))} ± {write(stdev(values)).lstrip('+')}"


def class_tables(entries: Sequence[Entry]) -> list[tuple[str, Table]]:
    """For each task with classes: classes down, entries across, IoU in per cent."""
    tables = []
    for task in dict.fromkeys(task for entry in entries for task in entry.results.per_class):
        having = [entry for entry in entries if entry.results.per_class.get(task)]
        rows = []
        for name in dict.fromkeys(name for entry in having for name in entry.results.per_class[task]):
            values = [entry.results.per_class[task].get(name, math.nan) for entry in having]
            rows.append((name, None, _cells(Column("", unit="%", direction=1), values, [math.nan] * len(values))))
        tables.append((task, Table("Class", [Column(entry.label) for entry in having], rows)))
    return tables


def label_table(bars: Sequence[tuple[str, int, int]]) -> Table:
    """How many images are labelled for each task, of how many."""
    rows = [(task, None, [Cell(str(count)), Cell(str(whole))]) for task, count, whole in bars]
    return Table("Task", [Column("labelled"), Column("all")], rows)


def discovered_table(tasks: Mapping[str, Mapping]) -> Table:
    """What was discovered for each task of a manifest, and how far it may be believed."""
    columns = [Column("rule"), Column("threshold"), Column("images"), Column("kept", unit="%")]
    columns.append(Column("precision on hidden truth", unit="%"))
    rows = []
    for task, found in tasks.items():
        kept, precision = (_plain(100 * number(found.get(name)), 1) for name in ("kept_share", "precision"))
        threshold = _plain(found.get("threshold"), 3)
        texts = [str(found.get("rule") or "–"), threshold, str(found.get("images", "–")), kept, precision]
        rows.append((task, None, [Cell(text) for text in texts]))
    return Table("Task", columns, rows)


def cost_table(entries: Sequence[Entry]) -> Table:
    """What each training took, with ratios to the baseline below."""
    writers = {
        "parameters": ("parameters", _count),
        "multiply_adds": ("multiply-adds an image", _count),
        "train_seconds": ("training time", duration),
        "step_seconds": ("time a step", duration),
        "peak_memory_mb": ("peak memory", lambda value: f"{value:,.0f} MB"),
    }
    present = dict.fromkeys(name for entry in entries for name in entry.results.cost)
    writers = {name: writer for name, writer in writers.items() if name in present} | {
        name: (name.replace("_", " "), _count) for name in present if name not in writers
    }
    rows = []
    for entry in entries:
        cells = []
        for name, (_, write) in writers.items():
            value = entry.results.cost.get(name, math.nan)
            reference = entry.baseline.cost.get(name, math.nan) if entry.baseline else math.nan
            ratio = f"× {value / reference:.2f}" if reference and not math.isnan(value / reference) else ""
            cells.append(Cell("–" if math.isnan(value) else write(value), ratio))
        rows.append((entry.label, entry.colour, cells))
    return Table("Training", [Column(title) for title, _ in writers.values()], rows)


def provenance_table(entries: Sequence[Entry]) -> Table:
    """Everything the results say of where they came from, entries across; one column where all say the same."""
    flat = {entry.label: _flat(entry.results.provenance) for entry in entries if entry.results.provenance}
    if len(flat) > 1 and all(values == next(iter(flat.values())) for values in flat.values()):
        flat = {"all trainings": next(iter(flat.values()))}
    names = dict.fromkeys(name for values in flat.values() for name in values)
    rows = [(name, None, [Cell(values.get(name, "–")) for values in flat.values()]) for name in names]
    return Table("What", [Column(label) for label in flat], rows)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def markdown(page: Mapping) -> str:
    """The same words and numbers without pictures."""
    notes = page["notes"]
    pieces = [f"# {page['title']}", *page["verdicts"], *page["remarks"], "## Labels", *notes.get("labels", [])]
    for run in page["runs"]:
        if run.labels:
            known = ", ".join(f"{name} {run.labels[name]}" for name in ("setting", "seed", "hash") if name in run.labels)
            pieces += [f"{run.label}: {run.labels['images']} images; {known}.", label_table(run.labels["bars"])]
    pieces += ["## Scores", *notes.get("scores", []), page["scores"]]
    pieces += [piece for heading, table in page["means"] for piece in (f"### Mean ± deviation: {heading}", table)]
    pieces += [piece for name, table in page["collections"] for piece in (f"### On the collection {name} alone", table)]
    pieces += ["### Further scores", page["further"]] if page["further"].columns else []
    pieces += [piece for task, table in page["classes"] for piece in (f"### IoU of each class, %: {task}", table)]
    pieces += ["## Discovered labels", *notes.get("discovered", [])] if page["discovered"] or "discovered" in notes else []
    pieces += [piece for run, table in page["discovered"] for piece in (run.label, table)]
    for run, table in page["discovered_apart"]:
        pieces += [f"On each collection ({run.label}); what is not listed is not discovered there:", table]
    if page["quality"]:
        quality = page["quality"]
        pieces += ["## How good the discovered labels are", *notes.get("quality", [])]
        pieces += [piece for judged, table in quality["judged"] for piece in (judged.label, table)]
        pieces += ["### Precision against coverage", quality["precision_table"]] if quality["judged"] else []
        pieces += [piece for heading, table in quality["classes"] for piece in (f"### By class, %: {heading}", table)]
        if quality["training_images"]:
            pieces += ["### Labelled and unlabelled training images", quality["training_images"]]
    pieces += ["## Cost", page["cost"], *page["time_with_teacher"], "## Provenance", page["provenance"]]
    pieces += [f"Reproduce: `multidense run {run.label}/recipe.yaml --out ANOTHER`" for run in page["runs"]]
    return "\n\n".join(_markdown_table(piece) if isinstance(piece, Table) else _markdown_text(piece) for piece in pieces) + "\n"


def _markdown_table(table: Table) -> str:
    """The table in GitHub's Markdown."""
    arrows = ("", "↑", "↓")
    names = [f"{each.group} {each.name} {each.unit and f'({each.unit})'} {arrows[each.direction]}" for each in table.columns]
    lines = [[table.corner, *names], ["---"] * (len(names) + 1)]
    for title, _, cells in table.rows:
        texts = [f"**{cell.text}**" if cell.best else cell.text for cell in cells]
        lines.append([title, *(f"{text} {cell.small and f'({cell.small})'}" for text, cell in zip(texts, cells, strict=True))])
    return "\n".join("| " + " | ".join(" ".join(_markdown_text(text).split()) for text in line) + " |" for line in lines)


def _markdown_text(text: str) -> str:
    """Text that Markdown takes for text, also in a table."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def _score_names(mappings: object) -> list[str]:
    """Every score's name once, those of one task together."""
    names = list(dict.fromkeys(name for mapping in mappings for name in mapping))
    tasks = list(dict.fromkeys(name.partition(".")[0] for name in names))
    return sorted(names, key=lambda name: tasks.index(name.partition(".")[0]))


def _column(name: str) -> Column:
    task, _, score = name.partition(".")
    try:
        known = score_of(name)
    except MultidenseError:
        return Column(score, task)
    return Column(score, task, known.unit, 1 if known.higher_is_better else -1)


def _bests(column: Column, values: Sequence[float]) -> list[bool]:
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2 or not column.direction:
        return [False] * len(values)
    best = column.write(max(known, key=lambda value: column.direction * value))
    return [column.write(value) == best for value in values]


def _cells(column: Column, values: Sequence[float], references: Sequence[float]) -> list[Cell]:
    cells = []
    for value, reference, best in zip(values, references, _bests(column, values), strict=True):
        change = column.direction * (value - reference)
        tone = "better" if change > 0 else "worse" if change < 0 else ""
        small = "" if math.isnan(value - reference) else column.write(value - reference, sign=True)
        cells.append(Cell(column.write(value), small, tone, best))
    return cells


def _plain(value: object, digits: int) -> str:
    known = number(value)
    if math.isnan(known):
        return "–"
    return f"{known:.1f}" if digits == 1 else f"{known:.{digits}g}"


def _count(value: float) -> str:
    size, letter = next((step for step in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")) if value >= step[0]), (1, ""))
    return f"{value / size:.3g}{letter}"


def _flat(data: Mapping, before: str = "") -> dict[str, str]:
    flat = {}
    for name, value in data.items():
        flat |= _flat(value, f"{before}{name} ") if isinstance(value, Mapping) else {f"{before}{name}": str(value)}
    return flat
