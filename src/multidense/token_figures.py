"""What the tokens of a report's networks say, as plots, tables and picture rows: the report's section on them.

Reads `NETWORK/tokens/` as `multidense report RUN --tokens` leaves it. A run without it has no such section.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
WIDEST = 160
"""Maps are shown at most this wide."""
LETTER, LINE = 7.8, 15
"""About how wide a letter is, and how high a line, at the size that names are written in."""
SHAPES = ("M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z", "M-4,-4h8v8h-8z", "M0,-5l5,9h-10z", "M0,-5.5l5.5,5.5l-5.5,5.5l-5.5,-5.5z")
SHAPES += ("M0,5l5,-9h-10z", "M-1.6,-5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4z")
"""Marks of tasks, so that they are told apart without colour."""
STAGES = {"before": "G, before the tokens", "even": "tokens held even", "after": "G′, after the tokens"}


@dataclass(frozen=True)
class Map:
    """A map as the page shows it: its address, its width there, whether pixels are enlarged, and what it is in words.

    Below it stand the category it belongs to, with its colour in pictures, and its lowest and highest value.
    """

    url: str
    width: int
    enlarged: bool
    said: str
    category: str = ""
    colour: str = ""
    between: str = ""


@dataclass(frozen=True)
class Matrix:
    """Numbers as colours. `names` and the colours `strip` are those of rows and columns alike. `numbers` are written into the
    cells: (x, y, text, whether on a bright one).
    """

    title: str
    said: str
    url: str
    left: int
    cell: float
    names: Sequence[tuple[float, str]]
    strip: Sequence[tuple[float, str]]
    numbers: Sequence[tuple[float, float, str, bool]]
    side: int = SIDE
    width: int = WIDTH

    @property
    def height(self) -> int:
        """With the names below."""
        return SIDE + self.left


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
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True)
class Strip:
    """Maps of one image: rows are a task and a map, or None, for each column."""

    name: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Map | None]]]


@dataclass(frozen=True)
class Told:
    """All figures of one network, or of one of its scales."""

    label: str
    images: int
    split: str
    inter_task: Matrix | None
    together: Cloud | None = None
    clouds: Sequence[Cloud] = ()
    matrices: Sequence[Matrix] = ()
    confidences: Sequence[Strip] = ()
    scores: Sequence[Strip] = ()


def figures(runs: Sequence, pairs: Sequence[tuple]) -> dict | None:
    """The figures of every network whose tokens were looked at; None where none was.

    `runs` are those of the report, by which broken files are noted; `pairs` are its students, each with its teacher.
    """
    found = [(run, each, told) for run in runs for each in run.trainings if (told := _read(run, each))]
    names = list(dict.fromkeys(name for _, _, told in found for name in told["tasks"]))
    networks, counted = [], []
    for run, each, told in found:
        made = run.piece("tokens", _place(each), lambda file, each=each, told=told: _network(each, told, names))
        if made:
            networks += made
            counted.append((each, told["tasks"]))
    if not networks and not any("tokens" in run.notes for run in runs):
        return None
    drawn = {mark.task for network in networks if network.together for mark in network.together.marks}
    return {
        "networks": networks,
        "legend": [(name, index, _shape(index)) for index, name in enumerate(names) if index in drawn],
        "confidence": confidence_table(counted),
        "agreement": number_table("Rank correlation", "agreement", counted),
        "finding": number_table("AUC", "finding", counted, below="finding_by_logits"),
        "overlays": overlays(pairs),
    }


def confidence_table(networks: Sequence[tuple[object, Mapping]]) -> Table | None:
    """Before and after the fine-grained tokens: how sure, how right, and how well the first tells of the second."""
    groups = {"confidence": "mean confidence", "right": "right", "separation": "confidence tells right from wrong (AUC)"}
    columns = [
        Column(stage, group, "" if kind == "separation" else "%") for kind, group in groups.items() for stage in STAGES.values()
    ]
    rows = []
    for training, tasks in networks:
        for name, told in tasks.items():
            if any(stage in told for stage in STAGES):
                known = [number(told.get(stage, {}).get(kind)) for kind in groups for stage in STAGES]
                texts = [_percent(value) for value in known[:-3]] + [_plain(value, 2) for value in known[-3:]]
                rows.append((f"{training.label}: {name}", training.colour, [Cell(text) for text in texts]))
    return Table("Network", columns, rows) if rows else None


def number_table(corner: str, kind: str, networks: Sequence[tuple[object, Mapping]], below: str = "") -> Table | None:
    """One number of each task that has it, a row a network; in small print what is called `below`, if anything."""
    names = [name for _, tasks in networks for name, told in tasks.items() if not math.isnan(number(told.get(kind)))]
    names = list(dict.fromkeys(names))
    rows = []
    for training, tasks in networks:
        pairs = [[_plain(number(tasks.get(name, {}).get(key)), 2) for key in (kind, below)] for name in names]
        cells = [Cell(text, small if below else "") for text, small in pairs]
        rows.append((training.label, training.colour, cells))
    return Table(corner, [Column(name) for name in names], rows) if names else None


def overlays(pairs: Sequence[tuple]) -> list[tuple[str, list[tuple[str, int, int]], list[curves.Plot]]]:
    """For each student its heading, its legend and its primary validation scores with those of its teacher."""
    told = []
    for student, teacher in pairs:
        first = {name.partition(".")[0]: f"val.{name}" for name in reversed(student.results.scores)}
        histories = [
            (
                each.label,
                each.colour,
                each.dash,
                {name: each.history[name] for name in reversed(first.values()) if name in each.history},
            )
            for each in (teacher, student)
        ]
        plots = [plot for _, group in curves.plot_groups(histories) for plot in group]
        if plots:
            legend = [(each.label, each.colour, each.dash) for each in (teacher, student)]
            told.append((f"{student.label} against {teacher.title}", legend, plots))
    return told


def matrix(
    title: str,
    values: Float[np.ndarray, "n n"],
    names: Sequence[str],
    colours: Sequence[str] = (),
    low: float = -1.0,
    written: bool = False,
) -> Matrix:
    """Similarities or shares from `low` to 1, with names where there is room for them."""
    size = len(values)
    cell = SIDE / size
    step = max(1, math.ceil(LINE / cell))
    shown = [(index, name) for index, name in enumerate(names) if index % step == 0]
    longest = max(len(name) for _, name in shown)
    left = min(WIDTH - SIDE, round(LETTER * longest) + 18)
    middles = [(round((index + 0.5) * cell, 1), _short(name, left)) for index, name in shown]
    strip = [(round(index * cell, 2), colour) for index, colour in enumerate(colours)]
    cells = np.ndindex(size, size) if written else ()
    numbers = [
        (
            round((j + 0.5) * cell, 1),
            round((i + 0.5) * cell, 1),
            f"{values[i, j]:.2f}",
            bool((values[i, j] - low) / (1 - low) > 0.5),
        )
        for i, j in cells
    ]
    url = data_url(colour_share((values - low) / (1 - low)))
    apart = values[~np.eye(size, dtype=bool)]
    said = (
        f"{title}: {size} by {size}, apart from the diagonal from {apart.min():.2f} to {apart.max():.2f}" if size > 1 else title
    )
    return Matrix(title, said, url, left, round(cell, 3), middles, strip, numbers)


def cloud(
    title: str,
    places: Sequence[Sequence[float]],
    marks: Sequence[Mapping],
    names: Sequence[str] = (),
    chained: bool = False,
) -> Cloud:
    """Tokens in one plane, both axes to one scale, so that distances can be compared; names where there is room."""
    middle, widths = zip(
        *(((max(side) + min(side)) / 2, max(side) - min(side)) for side in zip(*places, strict=True)), strict=True
    )
    scale = min((room - 2 * EDGE) / max(wide, 1e-9) for room, wide in zip((WIDTH, HEIGHT), widths, strict=True))
    drawn = [(round(WIDTH / 2 + scale * (x - middle[0]), 1), round(HEIGHT / 2 - scale * (y - middle[1]), 1)) for x, y in places]
    dots = [Mark(x, y, **mark) for (x, y), mark in zip(drawn, marks, strict=True)]
    chain = " ".join(f"{x},{y}" for x, y in drawn) if chained else ""
    return Cloud(title, f"{title}: {len(dots)} tokens", dots, chain, placed(drawn, names) if names else [])


def placed(dots: Sequence[tuple[float, float]], names: Sequence[str]) -> list[tuple[float, float, str, str]]:
    """A place beside its dot for each name that has one without covering a dot, another name or the border."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in dots]
    found = []
    for (x, y), name in zip(dots, names, strict=True):
        wide = LETTER * len(name)
        for place, anchor, start in (
            ((x + 8, y + 5), "start", x + 8),
            ((x - 8, y + 5), "end", x - 8 - wide),
            ((x, y - 9), "middle", x - wide / 2),
            ((x, y + 20), "middle", x - wide / 2),
        ):
            box = (start, place[1] - LINE + 3, start + wide, place[1] + 3)
            inside = box[0] >= 0 and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT
            if name and inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                found.append((round(place[0], 1), round(place[1], 1), anchor, name))
                break
    return found


def _place(training) -> str:
    return f"{training.path.name}/tokens/tokens.json"


def _read(run, training) -> dict | None:
    """What was told of a network's tokens; noted and left out where it was told of other weights than were scored."""
    if not (run.path / _place(training)).exists():
        return None
    told = run.piece("tokens", _place(training), _told)
    scored = training.results.provenance.get("weights")
    if told and scored and told["request"].get("weights") != scored:
        run.notes.setdefault("tokens", []).append(
            f"{run.path.name}/{_place(training)} is of other weights than were scored; look again with `--tokens`."
        )
        return None
    return told


def _told(file: Path) -> dict:
    data = read_json(file)
    missing = {"request", "tasks", "pictures"} - data.keys()
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    return data


def _network(training, told: Mapping, names: Sequence[str]) -> list[Told]:
    """All figures of one network; affinities of further scales, which have nothing else of their own, follow one by one."""
    tasks = told["tasks"]
    with_tokens = {name: each for name, each in tasks.items() if "places" in each}
    affinity = told.get("affinity") or {}
    by_scale = affinity if isinstance(affinity, dict) else {"": affinity}
    mixing = {
        scale: matrix("Inter-task affinity A", np.array(each), list(tasks), low=0.0, written=True)
        for scale, each in by_scale.items()
    }
    together = None
    if told.get("plane"):
        places = [place for name in with_tokens for place in told["plane"]["places"][name]]
        marks = [
            {"shape": _shape(index), "task": index, "colour": colour, "said": f"{name}: {category}"}
            for name, each in with_tokens.items()
            for index in [names.index(name)]
            for category, colour in zip(each["categories"], each["colours"], strict=True)
        ]
        together = cloud(f"All tasks{_variance(told['plane']['variance'])}", places, marks)
    pictures = [_pictures(training, told, image) for image in told["pictures"]]
    whole = Told(
        training.label,
        int(told["images"]),
        str(told["split"]),
        mixing.pop("", None),
        together,
        [_own_cloud(name, each, names.index(name)) for name, each in with_tokens.items()],
        [_own_matrix(name, each) for name, each in with_tokens.items() if len(each["categories"]) > 1],
        [confidence for confidence, _ in pictures if confidence.rows],
        [scores for _, scores in pictures if scores.rows],
    )
    return [
        whole,
        *(Told(f"{training.label}, {scale}", whole.images, whole.split, each) for scale, each in mixing.items()),
    ]


def _own_cloud(name: str, told: Mapping, index: int) -> Cloud:
    ordered = told["centres"] is not None and len(told["centres"][0]) == 1
    titles, size = told["categories"], len(told["categories"])
    if ordered:
        names = [title if place % max(1, (size - 1) // 5) == 0 else "" for place, title in enumerate(titles)]
    else:
        names = titles if told["centres"] is None else []
    marks = [
        {"shape": _shape(index), "task": index, "colour": colour, "said": f"{name}: {title}"}
        for title, colour in zip(titles, told["colours"], strict=True)
    ]
    return cloud(f"{name}{_variance(told['variance'])}", told["places"], marks, names, chained=ordered)


def _own_matrix(name: str, told: Mapping) -> Matrix:
    values, titles, centres = np.array(told["cosines"]), list(told["categories"]), told["centres"]
    order = list(range(len(titles)))
    if centres is not None and len(centres[0]) > 1:
        order.sort(key=lambda index: math.atan2(centres[index][1], centres[index][0]))
        titles = [""] * len(titles)  # the colour says more than three numbers
    colours = [told["colours"][index] for index in order]
    return matrix(name, values[np.ix_(order, order)], [titles[index] for index in order], colours)


def _pictures(training, told: Mapping, image: Mapping) -> tuple[Strip, Strip]:
    """Confidence maps, and score maps of global and fine-grained tokens, of one image."""
    confidences, scores = [], []
    kinds = {kind for each in image["tasks"].values() for kind in each["ranges"]}
    scales = range(sum(kind.startswith("gate-") for kind in kinds))
    gates = {f"gate-{j}": f"gate g, scale {j}" for j in scales} or {"gate": "gate g"}
    for name, each in image["tasks"].items():
        titles, colours = told["tasks"][name]["categories"], told["tasks"][name]["colours"]

        def shown(kind: str, title: str, *category: str, name: str = name, ranges: Mapping = each["ranges"]) -> Map | None:
            file = training.path / "tokens" / image["folder"] / (kind if "." in kind else f"{name}.{kind}.png")
            if not file.exists():
                return None
            url, width = file_url(file, WIDEST)
            between = " … ".join(signed(end, 2, sign=False) for end in ranges.get(kind, ()))
            words = f"{title}, {name}, image {image['id']}"
            return Map(url, width * max(1, round(128 / width)), width < WIDEST, words, *(category or ("", "")), between)

        stages = [shown(stage, f"Confidence, {title}") for stage, title in STAGES.items()]
        if any(stages):
            confidences.append((name, [shown("input.png", "Input"), shown("truth", "Truth"), *stages]))
        looks = [shown(kind, title.capitalize()) for kind, title in gates.items()] + [shown("trust", "Trust Mᶠ")]
        for index in map(int, each["covered"]):
            looks.append(shown(f"score-{index}", f"Score of {titles[index]}", titles[index], colours[index]))
        if any(looks):
            scores.append((name, [shown("truth", "Truth"), *looks]))
    looked = [f"Global: {title}" for title in gates.values()]
    return (
        Strip(image["id"], ["Input", "Truth", *STAGES.values()], confidences),
        Strip(image["id"], ["Truth", *looked, "Global: trust Mᶠ", "Fine-grained: φF′"], scores),
    )


def _shape(index: int) -> str:
    return SHAPES[index % len(SHAPES)]


def _variance(shares: Sequence[float]) -> str:
    return f": {100 * shares[0]:.0f} + {100 * shares[1]:.0f} %"


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _short(name: str, room: float) -> str:
    most = int((room - 16) / LETTER)
    return name if len(name) <= most else f"{name[: max(1, most - 1)]}…"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _plain(value: float, decimals: int) -> str:
    return "–" if math.isnan(value) else signed(value, decimals, sign=False)
