"""One table of the paper with our rows below the published ones, as Markdown; what keeps them from comparing is marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from multidense import published
from multidense.published import GAIN, SINGLE, SOURCE, Table
from multidense.published.runs import Piece, Row, rows_of, setting
from multidense.results import (
    BEST,
    MEAN_OF_LAST,
    check_same_protocol,
    delta_mtl,
    first_difference,
    protocol_differences,
    score_of,
)
from multidense.tables import signed, spread
from multidense.types import MultidenseError

COSTS = {"params_M": ("parameters", "M"), "flops_G": ("multiply-adds", "G"), "train_memory_G": ("memory in training", "GiB")}


def table(number: int, folders: Sequence[Path] = (), *, mixed: bool = False, rules: bool = False) -> str:
    """Table `number` of the paper, and below each of its rows what the run `folders` make of it.

    Several seeds are a mean ± their sample deviation; in parentheses stands the difference to the published value, in the
    column's unit. `delta_mtl` is taken as the paper takes it: over all columns, against our own single-task row, or where there
    is none against the published one, which is marked. So is what was not done as the paper did it. `rules` also tells what
    other checkpoint rules than the last epoch would have. Runs that were not scored alike are refused, unless they may be
    `mixed`.
    """
    wanted = published.table(number)
    rows, strangers = rows_of(wanted, folders)
    if folders and len(strangers) == len(set(map(Path, folders))):
        raise MultidenseError(
            f"none of {', '.join(str(folder) for folder in strangers)} serves table {number}: its recipe should say so under "
            "`published`, as the shipped ones do (multidense recipes)"
        )
    pieces = [piece for alike in rows.values() for row in alike for piece in row.pieces]
    named = [(piece.label, piece.results) for piece in pieces]
    if not mixed:
        check_same_protocol(named, f"table {number}")
    page = _Page(wanted, rows, pieces, rules)
    text = [f"## Table {number}: {wanted.title}"]
    for name in wanted.settings:
        lines = [["", *(_heading(wanted, column) for column in wanted.columns)]]
        for method in wanted.rows[name]:
            lines += page.published(name, method)
            lines += page.ours(name, method) or ([["— ours: not run", *("" for _ in wanted.columns)]] if folders else [])
        text += [f"### {name}", _aligned(lines)]
    text.append(f"Published values: HiTTs, {SOURCE}.{_reading(wanted, bool(pieces))}")
    text += [f"[{place}] {said}" for place, said in enumerate(page.notes, 1)]
    different = first_difference(named)
    text += [f"These rows do not compare: {different}."] if different else []
    text += [f"{folder} serves no row of this table." for folder in strangers]
    return "\n\n".join(text) + "\n"


@dataclass(eq=False)
class _Page:
    """What the lines of a table are made from; `notes` grows with the remarks that are said below it, each once."""

    table: Table
    rows: Mapping[tuple[str, str], Sequence[Row]]
    pieces: Sequence[Piece]
    rules: bool
    notes: list[str] = field(default_factory=list)

    def mark(self, texts: Sequence[str]) -> str:
        """The numbers of these remarks in brackets, to stand behind what they are about."""
        texts = list(dict.fromkeys(texts))
        self.notes += [text for text in texts if text not in self.notes]
        return f" [{', '.join(str(self.notes.index(text) + 1) for text in texts)}]" if texts else ""

    def published(self, name: str, method: str) -> list[list[str]]:
        """The paper's row."""
        values = self.table.rows[name][method]
        return [[method, *(_written(self.table, column, values.get(column, math.nan)) for column in self.table.columns)]]

    def ours(self, name: str, method: str) -> list[list[str]]:
        """Our rows below it, and what other checkpoint rules would have told."""
        lines = []
        for row in self.rows.get((name, method), ()):
            first, *more = row.recipes
            seeds = f"{len(row.by_seed)} seeds" if len(row.by_seed) > 1 else f"seed {row.pieces[0].seed[0]}"
            title = f"— ours: {first}{f' and {len(more)} more' if more else ''}, {seeds}"
            lines.append(self._line(name, method, row, title + self.mark([*marks(self.table, name, row), *self._mixed(row)])))
            for rule in (BEST, MEAN_OF_LAST) if self.rules else ():
                flattery = ["The best epoch is chosen on the images that it is scored on, so it flatters."] * (rule == BEST)
                if row.scores(rule):
                    lines.append(self._line(name, method, row, f"—— by {rule}{self.mark(flattery)}", rule))
        return lines

    def _mixed(self, row: Row) -> list[str]:
        """In what a row's protocol is not that of the first of all."""
        first = self.pieces[0]
        told = [each for piece in row.pieces for each in protocol_differences(first.results, piece.results)]
        return [f"Not scored as {first.label} (here): {'; '.join(dict.fromkeys(told))}."] if told else []

    def _line(self, name: str, method: str, row: Row, title: str, rule: str | None = None) -> list[str]:
        """Title and cells: mean ± deviation, how many seeds where not all have a score, the difference to the paper's."""
        scores, cells = row.scores(rule), [title]
        for column in self.table.columns:
            if column == GAIN:
                values, remarks = self._gains(name, method, row, rule)
            else:
                values, remarks = [each.get(column, math.nan) for each in scores], []
            values = [value for value in values if not math.isnan(value)]
            text = spread(values, lambda value, column=column: _written(self.table, column, value))
            text += f", {len(values)} of {len(row.by_seed)} seeds" if 0 < len(values) < len(row.by_seed) else ""
            difference = mean(values) - self.table.rows[name][method].get(column, math.nan) if values else math.nan
            text += "" if math.isnan(difference) else f" ({signed(difference, self.table.decimals[column])})"
            cells.append(text + (self.mark(remarks) if values else ""))
        return cells

    def _gains(self, name: str, method: str, row: Row, rule: str | None) -> tuple[list[float], list[str]]:
        """delta_mtl of each seed that has every score of the table, and what is to be said of what it compares with."""
        columns = self.table.scores
        if method == SINGLE:
            return [], []
        single, remarks = self._single(name, row, rule)
        whole = [{column: each[column] for column in columns} for each in row.scores(rule) if set(columns) <= set(each)]
        return [delta_mtl(each, single) for each in whole], remarks

    def _single(self, name: str, row: Row, rule: str | None) -> tuple[dict[str, float], list[str]]:
        """Our single-task scores, means over seeds; the published ones where ours are not there."""
        complete = []
        for each in self.rows.get((name, SINGLE), ()):
            means = {column: _mean([one.get(column, math.nan) for one in each.scores(rule)]) for column in self.table.scores}
            if not any(map(math.isnan, means.values())):
                complete.append((each, means))
        if not complete:
            theirs = {column: self.table.rows[name][SINGLE][column] for column in self.table.scores}
            return theirs, [f"delta_mtl against the published {SINGLE} row: ours is not run, or lacks scores."]
        alike = [found for found in complete if found[0].conditions() == row.conditions()]
        chosen, means = (alike or complete)[0]
        said = f"delta_mtl against our {SINGLE} row of {chosen.recipes[0]}, which was trained under other conditions."
        return means, [] if alike else [said]


def marks(table: Table, name: str, row: Row) -> list[str]:
    """What keeps our row from comparing with the published one, a sentence for each."""
    told = [each for piece in row.pieces for each in _marks(table, name, piece)]
    told += [f"{label} repeats a seed of this row and is left out." for label in row.repeated]
    return list(dict.fromkeys(told))


def _marks(table: Table, name: str, piece: Piece) -> list[str]:
    paper, said, told = table.conditions, piece.results.provenance, []
    data = said.get("data") if isinstance(said.get("data"), Mapping) else {}
    cost = name.startswith("cost")
    known = {_plain(data.get(key)) for key in ("name", "reader")}
    elsewhere = bool(known - {""}) and _plain(table.dataset) not in known
    if elsewhere:
        told.append(f"Data: {data.get('name') or data.get('reader')}, not {table.dataset}.")
    size = data.get("image_size") or data.get("size") or setting(piece.settings, "data", "size")
    if paper.size and size and tuple(size) != paper.size:
        told.append(f"Images of {_by(size)}, the paper's have {_by(paper.size)}.")
    width = setting(piece.settings, "width")
    if width not in (None, 1):
        told.append(f"A backbone of width {width}, the paper's has 1.")
    if cost:
        batch = setting(piece.settings, "training", "batch_size")
        return [
            *told,
            *(
                [f"Memory with {batch} images a step, peak of {setting(said, 'machine', 'gpu')}."]
                if "train_memory_G" in piece.scores
                else ["Memory is that of a GPU: this was not trained on one."]
            ),
        ]
    expected, epochs = piece.epochs or paper.epochs, setting(piece.settings, "training", "epochs")
    if epochs not in (None, expected):
        told.append(f"Trained for {epochs} epochs, the paper for {expected}.")
    if not elsewhere:
        told += _of_the_data(table, name, piece, data)
    told += _of_the_labels(name, piece)
    rule = said.get("checkpoint")
    if rule not in (None, "last epoch"):
        told.append(f"Checkpoint: {rule}, where ours is the last epoch.")
    return told


def _of_the_data(table: Table, name: str, piece: Piece, data: Mapping) -> list[str]:
    """What of the data set is not the whole, or not what the paper used: other files, and labels derived from others."""
    told = []
    length, scored = data.get("length"), data.get("images", data.get("length"))
    if ", train " not in name and (data.get("whole") is False or scored != length):
        told.append(f"Scored on {scored} images, not on the whole split.")
    trained = setting(piece.results.provenance, "labels", "images")
    if trained not in (None, table.conditions.training_images):
        told.append(f"Trained on {trained} images of {table.conditions.training_images}.")
    same = data.get("layout") == table.conditions.layout
    if not same and data.get("layout"):
        told.append(f"Layout {data['layout']}; the paper's numbers rest on {table.conditions.layout}.")
    notes = data.get("notes") if isinstance(data.get("notes"), Mapping) else {}
    tasks = {column.partition(".")[0] for column in piece.scores}
    told += [
        f"{task}: {str(note).rstrip('.')}."
        for task, note in notes.items()
        if task in tasks and (str(note).startswith("derived") or not same)
    ]
    return told


def _of_the_labels(name: str, piece: Piece) -> list[str]:
    """Labels that are not the published assignment."""
    chosen, file = (setting(piece.settings, "labels", key) for key in ("setting", "file"))
    if name.startswith("few-shot"):
        few = setting(piece.settings, "labels", "k")
        return [] if few in (None, 10) else [f"{few} labelled images of the task, the paper has 10."]
    if name.startswith("full") or not (chosen or file) or (chosen == f"published {name.partition(',')[0]}" and not file):
        return []
    source = f"from {Path(str(file)).name}" if file else f"{chosen}, seed {setting(piece.settings, 'labels', 'seed')}"
    return [f"Label assignment: {source}, not the published one of this setting."]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return mean(known) if known else math.nan


def _heading(table: Table, column: str) -> str:
    if column == GAIN:
        return f"{GAIN} (%) ↑"
    if column in COSTS:
        name, unit = COSTS[column]
        return f"{name} ({unit}) ↓"
    task, _, name = column.partition(".")
    score = score_of(column)
    unit = "" if score.unit == "m" and not table.metric else score.unit
    return " ".join(filter(None, [task, name, unit and f"({unit})", "↑" if score.higher_is_better else "↓"]))


def _written(table: Table, column: str, value: float) -> str:
    return "–" if math.isnan(value) else signed(value, table.decimals[column], sign=False)


def _reading(table: Table, ours: bool) -> str:
    """How to read the numbers."""
    told = [] if table.metric else ["Depth is inverse depth here: its errors have no unit."]
    if ours:
        told.append("Ours: mean ± sample deviation over seeds, in parentheses the difference to the published value.")
        if GAIN in table.columns:
            told.append(f"delta_mtl is over all {len(table.scores)} scores, against our own {SINGLE} row if not marked.")
    return "".join(f" {each}" for each in told)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table in GitHub's Markdown whose columns stand below each other."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *(len(line[place]) for line in cells)) for place in range(len(cells[0]))]
    first = [cell.ljust(width) for cell, width in zip(cells[0], widths, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    rest = [
        [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))] for line in cells[1:]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (first, rule, *rest))


def _plain(name: object) -> str:
    """A name without case and punctuation, as a reader's class and its data set may be written."""
    return "".join(letter for letter in str(name or "").casefold() if letter.isalnum())


def _by(size: Sequence[int]) -> str:
    return " × ".join(map(str, size))
