"""Learning curves: history files to small plots, as plain geometry that the report's page draws."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT = 348, 200
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 10, 28
NOT_PLOTTED = ("epoch", "step", "lr")

History = Mapping[str, Sequence[tuple[float, float]]]
"""Column name to its (epoch, value) pairs."""


@dataclass(frozen=True)
class Line:
    """One training's course: `points` in the form SVG reads, `end` the last point, `said` what a pointer is told."""

    title: str
    colour: int
    dash: int
    points: str
    end: tuple[float, float]
    said: str


@dataclass(frozen=True)
class Plot:
    """One column of the histories, a line a training; ticks are (position, text)."""

    title: str
    lines: Sequence[Line]
    across: Sequence[tuple[float, str]]
    up: Sequence[tuple[float, str]]


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
    names = list(dict.fromkeys(name for *_, history in histories for name in history))
    names.sort(key=lambda name: name.count(".") > 0 and not name.startswith("val."))
    groups: dict[str, list[Plot]] = {}
    for name in names:
        term, _, rest = name.partition(".")
        heading = "Total loss and validation scores" if not rest or term == "val" else f"Loss term: {term}"
        title = f"total {term}" if not rest else rest.replace(".", " ")
        courses = [(*known, history[name]) for *known, history in histories if history.get(name)]
        groups.setdefault(heading, []).append(_plot(title, courses))
    return list(groups.items())


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most + 1` round numbers from `low` to `high`."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(step for factor in (1, 2, 2.5, 5, 10, 20) if span / (step := factor * power) <= most)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _plot(title: str, courses: Sequence[tuple[str, int, int, Sequence[tuple[float, float]]]]) -> Plot:
    epochs = [epoch for *_, pairs in courses for epoch, _ in pairs]
    values = [value for *_, pairs in courses for _, value in pairs]
    first, last = min(epochs), max(max(epochs), min(epochs) + 1)
    room = 0.06 * (max(values) - min(values)) or 0.1 * abs(max(values)) or 1.0
    low, high = min(values) - room, max(values) + room

    def across(epoch: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (epoch - first) / (last - first), 1)

    def up(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low), 1)

    lines = []
    for name, colour, dash, pairs in courses:
        places = [(across(epoch), up(value)) for epoch, value in pairs]
        said = f"{name}: {pairs[-1][1]:.4g} at epoch {pairs[-1][0]:g}"
        lines.append(Line(name, colour, dash, " ".join(f"{x},{y}" for x, y in places), places[-1], said))
    epoch_ticks = [tick for tick in nice_ticks(first, last, 5) if tick == round(tick)]
    return Plot(
        title,
        lines,
        [(across(tick), f"{tick:g}") for tick in epoch_ticks],
        [(up(tick), f"{tick:.4g}") for tick in nice_ticks(low, high, 5)],
    )


def _finite(cell: object) -> float | None:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
