"""What a comparison says: gains and differences paired by seed, tables of scores and costs, one page.

`tell` puts it into plain data, which is what is kept as JSON; everything else is made from that alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev

import jinja2

from multidense.results import Results, delta_mtl, score_of
from multidense.tables import Cell, Column, Table, duration, signed, spread

GAIN = "delta_mtl"
COSTS = {
    "train_seconds": "training",
    "with_teachers": "with its teachers",
    "peak_memory_mb": "peak memory, MiB",
    "parameters": "parameters, M",
    "multiply_adds": "multiply–adds, G",
}
"""The costs of a method and what their columns are called."""


@dataclass(frozen=True)
class Compared:
    """A method: its results by seed, and where they are all there, the seconds its teachers trained."""

    name: str
    title: str
    results: Mapping[int, Results]
    teacher_seconds: Mapping[int, float] = field(default_factory=dict)


# Arithmetic -------------------------------------------------------------------------------------------------------------


def gains_over(scores: Mapping[str, Mapping[int, Mapping[str, float]]], reference: str | None) -> dict[str, dict[int, float]]:
    """`delta_mtl` of every method over a reference, seed by seed; none where scores differ in kind or one is no number."""
    over = scores.get(reference, {}) if reference else {}
    gains: dict[str, dict[int, float]] = {}
    for name, by_seed in scores.items():
        for seed, ours in by_seed.items():
            if seed in over and ours and set(ours) == set(over[seed]):
                gain = delta_mtl(ours, over[seed])
                if math.isfinite(gain):
                    gains.setdefault(name, {})[seed] = gain
    return gains


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict:
    """Differences seed by seed, their mean and its standard error (from two seeds on)."""
    each = {str(seed): ours[seed] - theirs[seed] for seed in ours if seed in theirs}
    values = list(each.values())
    return {"mean": mean(values) if values else None, "error": standard_error(values), "seeds": each}


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean; None for a single value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def tell(
    name: str, methods: Sequence[Compared], seeds: Sequence[int], reference: str | None = None, baseline: str | None = None
) -> dict:
    """Everything a comparison says, as plain data.

    `delta_mtl` is over the method `reference`, or the `baseline` without one; differences are to the `baseline`, or without one
    to the first method that has the most scores.
    """
    scores = {
        one.name: {
            seed: {score: value for score, value in result.scores.items() if math.isfinite(value)}
            for seed, result in one.results.items()
        }
        for one in methods
    }
    most = max((len(each) for by_seed in scores.values() for each in by_seed.values()), default=0)
    if baseline is None:
        complete = [n for n, by_seed in scores.items() if any(len(each) == most for each in by_seed.values())]
        baseline = next((n for n in complete if n != reference), complete[0] if complete else methods[0].name)
    reference = reference or baseline
    gains = gains_over(scores, reference)
    columns = list(dict.fromkeys(score for by_seed in scores.values() for each in by_seed.values() for score in each))
    kinds = {GAIN: gains} | {
        score: {n: {seed: each[score] for seed, each in by.items() if score in each} for n, by in scores.items()}
        for score in columns
    }
    return {
        "name": name,
        "seeds": list(seeds),
        "titles": {one.name: one.title for one in methods},
        "reference": reference,
        "baseline": baseline,
        "scores": {str(seed): {n: by[seed] for n, by in scores.items() if seed in by} for seed in seeds},
        GAIN: {n: {str(seed): gain for seed, gain in by.items()} for n, by in gains.items()},
        "differences": {
            n: {kind: paired(by[n], by[baseline]) for kind, by in kinds.items() if by.get(n) and by.get(baseline)}
            for n in scores
            if n != baseline
        },
        "cost": {one.name: _cost(one) for one in methods},
        "provenance": {one.name: {str(seed): _provenance(result) for seed, result in one.results.items()} for one in methods},
    }


def _cost(one: Compared) -> dict[str, dict[str, float]]:
    """Each cost by seed; that with the teachers where they have trained."""
    told: dict[str, dict[str, float]] = {}
    for seed, result in one.results.items():
        cost = dict(result.cost)
        if "train_seconds" in cost and seed in one.teacher_seconds:
            cost["with_teachers"] = cost["train_seconds"] + one.teacher_seconds[seed]
        for name, value in cost.items():
            if math.isfinite(value):
                told.setdefault(name, {})[str(seed)] = value
    return told


def _provenance(result: Results) -> dict:
    """What each result says of where it comes from, but for the settings, which are told once."""
    said = result.provenance
    labels = said.get("labels")
    told = {key: said[key] for key in ("commit", "versions", "machine", "date") if key in said}
    return told | ({"labels": labels} if isinstance(labels, Mapping) else {})


# In words ---------------------------------------------------------------------------------------------------------------


def sentences(told: Mapping) -> list[str]:
    """How to read the table."""
    seeds, titles = told["seeds"], told["titles"]
    what = f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''} ({', '.join(map(str, seeds))})"
    said = [
        f"{what}: mean ± sample deviation."
        if len(seeds) > 1
        else f"{what}: how much the numbers vary between seeds is not known.",
        f"{GAIN} is the mean relative gain over {titles[told['reference']]} in per cent, seed by seed, over all its scores.",
    ]
    if any("with_teachers" in cost for cost in told["cost"].values()):
        said.append("Training with teachers is what a method takes from nothing.")
    return said


def failures(told: Mapping) -> list[str]:
    """What could not be done, a sentence each."""
    return [f"{job}: {why}" for job, why in told.get("failed", {}).items()]


def tables_of(told: Mapping) -> list[tuple[str, Table]]:
    """The tables with their headings: scores, differences, costs."""
    made = [("Scores", score_table(told))]
    if told["differences"]:
        made.append(
            (f"Differences to {told['titles'][told['baseline']]}, paired by seed: mean ± standard error", _differences(told))
        )
    return [*made, ("Cost", _costs(told))]


def score_table(told: Mapping) -> Table:
    """Methods down, the best gain first; scores across: mean ± deviation."""
    columns, values = [Column(GAIN, "", "%", 1, large=True)], [told[GAIN]]
    for score in _scores(told):
        by = {
            n: {seed: each[n][score] for seed, each in told["scores"].items() if score in each.get(n, {})}
            for n in told["titles"]
        }
        known, (task, _, name) = score_of(score), score.partition(".")
        large = any(value >= 10 for each in by.values() for value in each.values())
        columns.append(Column(name, task, known.unit, 1 if known.higher_is_better else -1, large))
        values.append(by)
    rows = []
    for name in order_of(told):
        cells = [
            Cell(spread(list(by.get(name, {}).values()), lambda value, c=column: c.write(value, sign=c.name == GAIN)))
            for column, by in zip(columns, values, strict=True)
        ]
        rows.append((_title(told, name), None, cells))
    for place, (column, by) in enumerate(zip(columns, values, strict=True)):
        best = _best({name: column.direction * mean(each.values()) for name, each in by.items() if each})
        if best:
            cells = rows[order_of(told).index(best)][2]
            cells[place] = Cell(cells[place].text, best=True)
    return Table("Method", columns, rows)


def _best(values: Mapping[str, float]) -> str | None:
    """Whose value is the highest, if there are several."""
    return max(values, key=lambda name: values[name]) if len(values) > 1 else None


def _differences(told: Mapping) -> Table:
    kinds = list(dict.fromkeys(kind for each in told["differences"].values() for kind in each))
    columns = [Column(GAIN, "", "points", 1, large=True) if kind == GAIN else _column(kind) for kind in kinds]
    rows = []
    for name in order_of(told):
        if name not in told["differences"]:
            continue
        cells = []
        for kind, column in zip(kinds, columns, strict=True):
            one = told["differences"][name].get(kind)
            if one is None or one["mean"] is None:
                cells.append(Cell())
                continue
            decimals = 2 if column.unit in ("%", "°", "points") else 4
            error = "" if one["error"] is None else f" ± {one['error']:.{decimals}f}"
            change = column.direction * one["mean"]
            clear = one["error"] is not None and abs(one["mean"]) > 2 * one["error"]
            tone = ("better" if change > 0 else "worse") if clear else ""
            cells.append(Cell(signed(one["mean"], decimals) + error, tone=tone))
        rows.append((_title(told, name), None, cells))
    return Table("Method", columns, rows)


def _costs(told: Mapping) -> Table:
    write: dict[str, Callable[[float], str]] = {
        "train_seconds": duration,
        "with_teachers": duration,
        "peak_memory_mb": lambda value: f"{value:,.0f}",
        "parameters": lambda value: f"{value / 1e6:.3g}",
        "multiply_adds": lambda value: f"{value / 1e9:.3g}",
    }
    names = [name for name in COSTS if any(name in cost for cost in told["cost"].values())]
    rows = []
    for name in order_of(told):
        cost = told["cost"][name]
        rows.append(
            (
                _title(told, name),
                None,
                [Cell(write[each](mean(cost[each].values())) if each in cost else "–") for each in names],
            )
        )
    return Table("Method", [Column(COSTS[name]) for name in names], rows)


def _column(score: str) -> Column:
    task, _, name = score.partition(".")
    known = score_of(score)
    return Column(name, task, known.unit, 1 if known.higher_is_better else -1)


def _scores(told: Mapping) -> list[str]:
    names = list(dict.fromkeys(score for by in told["scores"].values() for each in by.values() for score in each))
    tasks = list(dict.fromkeys(name.partition(".")[0] for name in names))
    return sorted(names, key=lambda name: tasks.index(name.partition(".")[0]))


def order_of(told: Mapping) -> list[str]:
    """Methods by their mean gain, the best first; then those without one."""
    return sorted(told["titles"], key=lambda name: -mean(told[GAIN][name].values()) if name in told[GAIN] else math.inf)


def _title(told: Mapping, name: str) -> str:
    """The method, and of how many seeds it is, where not all of them are there."""
    there = sum(name in each for each in told["scores"].values())
    return told["titles"][name] + (f" ({there} of {len(told['seeds'])} seeds)" if there < len(told["seeds"]) else "")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in GitHub's Markdown."""
    lines = (head, ["---"] * len(head), *rows)
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def markdown(told: Mapping) -> str:
    """The tables in Markdown."""
    lines = [f"# {told['name']}: methods compared", "", *sentences(told)]
    for heading, table in tables_of(told):
        arrows = ("", " ↑", " ↓")
        named = (
            f"{column.group} {column.name}{column.unit and f' ({column.unit})'}{arrows[column.direction]}".strip()
            for column in table.columns
        )
        rows = [[title, *(f"**{cell.text}**" if cell.best else cell.text for cell in cells)] for title, _, cells in table.rows]
        lines += ["", f"## {heading}", "", *markdown_table([table.corner, *named], rows)]
    if failures(told):
        lines += ["", "## Could not be done", "", *(f"- {each}" for each in failures(told))]
    return "\n".join(lines) + "\n"


def page(told: Mapping, plot: str) -> str:
    """One HTML page that needs no other file; `plot` is SVG."""
    templates = jinja2.Environment(loader=jinja2.PackageLoader("multidense"), autoescape=True, trim_blocks=True)
    return templates.get_template("compare.html.jinja").render(
        title=told["name"],
        sentences=sentences(told),
        tables=tables_of(told),
        failures=failures(told),
        plot=plot[plot.index("<svg") :],
        settings=told.get("recipe", ""),
        origin={key: told[key] for key in ("commit", "versions", "machine", "date") if key in told},
    )
