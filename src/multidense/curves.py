"""Small plots as plain geometry that the report's page draws: learning curves from history files, shares against shares."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT = 348, 200
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 10, 28
NOT_PLOTTED = ("epoch", "step", "lr")
WEIGHT = "weight."
"""What columns begin with that say how much the loss of a task weighs."""

History = Mapping[str, Sequence[tuple[float, float]]]
"""Column name to its (epoch, value) pairs."""


Course = tuple[str, int, int, Sequence[tuple[float, float]]]
"""A line to be drawn: its title, colour and dash, and its points in the units of the axes."""


@dataclass(frozen=True)
class Line:
    """One course: `points` in the form SVG reads, `dots` the points that are marked, `said` what a pointer is told.

    The colour None is that of a line to compare with.
    """

    title: str
    colour: int | None
    dash: int
    points: str
    dots: Sequence[tuple[float, float]]
    said: str


@dataclass(frozen=True)
class Plot:
    """A few courses over the same axes; ticks are (position, text). `over` is said of the axis across; `bottom` and `side` are
    the names written beside the axes.
    """

    title: str
    lines: Sequence[Line]
    across: Sequence[tuple[float, str]]
    up: Sequence[tuple[float, str]]
    over: str = "epochs"
    bottom: str = ""
    side: str = ""


def read_history(path: Path) -> dict[str, list[tuple[float, float]]]:
    """The columns of a history file with their (epoch, value) pairs; cells that hold no finite number are left out."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns: dict[str, list[tuple[float, float]]] = {}
    for place, row in enumerate(rows):
        epoch = _finite(row.get("epoch"))
        for name, cell in row.items():
            value = _finite(cell)
            if isinstance(name, str) and name not in NOT_PLOTTED and value is not None:
                columns.setdefault(name, []).append((float(place) if epoch is None else epoch, value))
    if not columns:
        raise ValueError("it holds no numbers")
    return columns


def plot_groups(histories: Sequence[tuple[str, int, int, History]]) -> list[tuple[str, list[Plot]]]:
    """Small multiples of (title, colour, dash, history): total loss and validation scores, then a group for each term."""
    names = list(dict.fromkeys(name for *_, history in histories for name in history if not name.startswith(WEIGHT)))
    names.sort(key=lambda name: name.count(".") > 0 and not name.startswith("val."))
    groups: dict[str, list[Plot]] = {}
    for name in names:
        term, _, rest = name.partition(".")
        heading = "Total loss and validation scores" if not rest or term == "val" else f"Loss term: {term}"
        title = f"total {term}" if not rest else rest.replace(".", " ")
        courses = [(*known, history[name]) for *known, history in histories if history.get(name)]
        groups.setdefault(heading, []).append(_plot(title, courses))
    return list(groups.items())


def weight_plots(histories: Sequence[tuple[str, History]]) -> tuple[list[tuple[str, int, int]], list[Plot]]:
    """The weights of the losses: of each (title, history) in which any moves a plot with a line a task.

    The first is the legend of all of them: task, colour, dash.
    """
    found = [
        (title, {name.removeprefix(WEIGHT): pairs for name, pairs in history.items() if name.startswith(WEIGHT)})
        for title, history in histories
    ]
    moving = [(title, weights) for title, weights in found if any(map(_moves, weights.values()))]
    tasks = dict.fromkeys(task for _, weights in moving for task in weights)
    drawn = {task: ((place + 1) % 6, place // 6) for place, task in enumerate(tasks)}
    plots = [_plot(title, [(task, *drawn[task], pairs) for task, pairs in weights.items()]) for title, weights in moving]
    return [(task, *look) for task, look in drawn.items()], plots


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most + 1` round numbers from `low` to `high`."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(step for factor in (1, 2, 2.5, 5, 10, 20) if span / (step := factor * power) <= most)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def share_plot(
    title: str,
    courses: Sequence[Course],
    marked: Sequence[Sequence[tuple[float, float]]],
    said: Sequence[str],
    names: tuple[str, str],
    lowest: float = 0.0,
    diagonal: str = "",
) -> Plot:
    """Shares (0 … 1, written in per cent) against shares, from 0 across and from `lowest` up.

    `marked` and `said` are the dots and the words of each course, `names` those of the axes (across, up), `diagonal` what a
    line of equal shares means; without it none is drawn.
    """
    across, up = _scales(0, 1, lowest, 1)

    def line(name: str, colour: int | None, dash: int, pairs: Sequence, dots: Sequence, words: str) -> Line:
        places = [(across(x), up(y)) for x, y in pairs]
        return Line(name, colour, dash, _svg(places), [(across(x), up(y)) for x, y in dots], words)

    lines = [line(diagonal, None, 1, [(lowest, lowest), (1, 1)], [], diagonal)] if diagonal else []
    lines += [line(*course, dots, words) for course, dots, words in zip(courses, marked, said, strict=True)]
    return Plot(
        title,
        lines,
        [(across(tick), f"{100 * tick:.4g}") for tick in nice_ticks(0, 1, 5)],
        [(up(tick), f"{100 * tick:.4g}") for tick in nice_ticks(lowest, 1, 5)],
        names[0],
        *(f"{name}, %" for name in names),
    )


def _plot(title: str, courses: Sequence[Course]) -> Plot:
    epochs = [epoch for *_, pairs in courses for epoch, _ in pairs]
    values = [value for *_, pairs in courses for _, value in pairs]
    first, last = min(epochs), max(max(epochs), min(epochs) + 1)
    room = 0.06 * (max(values) - min(values)) or 0.1 * abs(max(values)) or 1.0
    low, high = min(values) - room, max(values) + room
    across, up = _scales(first, last, low, high)
    lines = []
    for name, colour, dash, pairs in courses:
        places = [(across(epoch), up(value)) for epoch, value in pairs]
        said = f"{name}: {pairs[-1][1]:.4g} at epoch {pairs[-1][0]:g}"
        lines.append(Line(name, colour, dash, _svg(places), places[-1:], said))
    epoch_ticks = [tick for tick in nice_ticks(first, last, 5) if tick == round(tick)]
    return Plot(
        title,
        lines,
        [(across(tick), f"{tick:g}") for tick in epoch_ticks],
        [(up(tick), f"{tick:.4g}") for tick in nice_ticks(low, high, 5)],
    )


def _moves(pairs: Sequence[tuple[float, float]]) -> bool:
    return len({value for _, value in pairs}) > 1


def _scales(first: float, last: float, low: float, high: float) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """From values to places in the frame: across, and up."""

    def across(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - first) / (last - first), 1)

    def up(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low), 1)

    return across, up


def _svg(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in places)


def _finite(cell: object) -> float | None:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
