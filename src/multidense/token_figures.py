"""What the tokens of a report's networks say, as plots, tables and picture rows: the report's section on them.

Reads `NETWORK/tokens/` as `multidense report RUN --tokens` leaves it. A run without it has no such section.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from multidense import curves
from multidense.files import read_json
from multidense.pictures import colour_share, data_url, file_url
from multidense.tables import Cell, Column, Table, number, signed

WIDTH = 348
"""Of every plot, as of those of learning curves."""
HEIGHT, EDGE = 272, 16
"""Of a scatter plot, and how far from its border the outermost tokens lie."""
SIDE = 240
"""Of a matrix without its names."""
LETTER, LINE = 7.4, 15
"""About how wide a letter is, and how high a line, at the size that names are written in."""
SHAPES = ("M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z", "M-4,-4h8v8h-8z", "M0,-5l5,9h-10z", "M0,-5.5l5.5,5.5l-5.5,5.5l-5.5,-5.5z")
SHAPES += ("M0,5l5,-9h-10z", "M-1.6,-5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4z")
"""Marks of tasks, so that they are told apart without colour."""
STAGES = {"before": "G, before the tokens", "even": "tokens held even", "after": "G′, after the tokens"}


@dataclass(frozen=True)
class Matrix:
    """Numbers as colours from dark (`low`) to bright (`high`), rows and columns alike named; `numbers` are written into cells."""

    title: str
    said: str
    low: str
    high: str
    url: str
    left: float
    height: float
    cell: float
    rows: Sequence[tuple[float, str]]
    columns: Sequence[tuple[float, str]]
    strip: Sequence[tuple[float, str]]
    numbers: Sequence[tuple[float, float, str, bool]]


@dataclass(frozen=True)
class Mark:
    """One token: its place, its task by shape and colour number, the colour of its category, what a pointer is told."""

    x: float
    y: float
    shape: str
    task: int
    colour: str
    said: str


@dataclass(frozen=True)
class Cloud:
    """Tokens in the plane of their principal axes; `chain` joins those that have an order, `names` are (x, y, anchor, text)."""

    title: str
    said: str
    marks: Sequence[Mark]
    chain: str
    names: Sequence[tuple[float, float, str, str]]


@dataclass(frozen=True)
class Strip:
    """Maps of one image: rows are a task and, for each column, None or (address, width, enlarged, words below, words for all)."""

    name: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, int, bool, str, str] | None]]]


@dataclass(frozen=True)
class Told:
    """All figures of one network."""

    label: str
    images: int
    split: str
    inter_task: Matrix | None
    together: Cloud | None
    clouds: Sequence[Cloud]
    matrices: Sequence[Matrix]
    confidences: Sequence[Strip]
    scores: Sequence[Strip]


def figures(runs: Sequence, pairs: Sequence[tuple]) -> dict | None:
    """The figures of every network whose tokens were looked at; None where there is none.

    `runs` are those of the report, by which broken files are noted; `pairs` are its students, each with its teacher.
    """
    read = []
    for run in runs:
        for training in run.trainings:
            told = _read(run, training)
            if told:
                read.append((run, training, told))
    if not read:
        return None
    names = list(dict.fromkeys(name for _, _, told in read for name in told["tasks"]))
    networks = []
    for run, training, told in read:
        made = run.piece("tokens", f"{training.path.name}/tokens", lambda folder, *known: _network(folder, *known), None, known=(training, told, names)) if False else _network(training, told, names)
        networks.append(made)
    shown = {name for _, _, told in read for name, of_task in told["tasks"].items() if "places" in of_task}
    return {
        "networks": networks,
        "legend": [(name, index, SHAPES[index % len(SHAPES)]) for index, name in enumerate(names) if name in shown],
        "confidence": confidence_table([(training, told["tasks"]) for _, training, told in read]),
        "overlays": overlays([(student, teacher) for student, teacher in pairs]),
    }
