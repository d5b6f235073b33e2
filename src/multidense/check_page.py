"""Check page: what a check of a data set found, in words for a terminal and as one HTML page.

`findings` are those of `multidense.data.check`; no task is known here by name.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from multidense.files import write_text
from multidense.pictures import data_url

FEW = 3  # files that stand for all of a fold on the terminal
MANY = 200  # files that the page names
WIDTH = 100  # characters of a line on the terminal


@dataclass(frozen=True)
class Fold:
    """Problems that differ only in file and numbers: where they are, the first one's words, and all files."""

    level: str
    where: str
    found: str
    remedy: str
    files: Sequence[str]
    count: int

    @property
    def example(self) -> str:
        """Whose words `found` are, where there are several."""
        return f" (in {self.files[0]})" if self.count > 1 and ", found" in self.found else ""

    def some(self, most: int) -> str:
        """The first files, and how many more there are."""
        named = list(self.files)[:most]
        return ", ".join(named) + (f" and {len(self.files) - most} more" if len(self.files) > most else "")


def fold(problems: Sequence[Any]) -> list[Fold]:
    """Equal problems together, in the order of the first of each."""
    kinds: dict[tuple, list] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    folds = []
    for (level, task, _), members in kinds.items():
        splits = ", ".join(dict.fromkeys(one for each in members for one in each.split.split(", ") if one))
        files = list(dict.fromkeys(each.file for each in members))
        where = " · ".join(filter(None, (task, splits)))
        folds.append(Fold(level, where, members[0].found, members[0].remedy, files, len(members)))
    return folds


def verdict(findings: Any) -> str:
    """The outcome in a sentence."""
    images = sum(split.images for split in findings.splits)
    counts = [(level, sum(each.level == level for each in findings.problems)) for level in ("error", "warning")]
    told = [f"{count} {level}{'s' if count != 1 else ''}" for level, count in counts if count]
    return f"{' and '.join(told) or 'Nothing wrong'} in {images} image{'s' if images != 1 else ''}"


def text(findings: Any) -> str:
    """All findings as plain text: problems folded, then a table of what there is."""
    lines = []
    for each in fold(findings.problems):
        times = f"{each.count} × " if each.count > 1 else ""
        lines += _wrapped(f"{each.level}: {times}{f'[{each.where}] ' if each.where else ''}{each.found}{each.example}", "")
        lines += _wrapped(each.some(FEW), "  ") if each.files else []
        lines += [*_wrapped(f"→ {each.remedy}", "  "), ""]
    for split in findings.splits:
        lines += _wrapped(f"{split.name}: {split.images} images; height×width {sizes(split)}", "")
    return "\n".join([*lines, "", *_table(findings.summaries), verdict(findings)])


def write_page(findings: Any, place: Path) -> None:
    """Write one HTML page that needs no other file, whole or not at all."""
    tasks = list(dict.fromkeys(each.task for each in findings.summaries))
    page = {
        "title": findings.name,
        "verdict": verdict(findings),
        "folds": fold(findings.problems),
        "many": MANY,
        "splits": [(split, sizes(split)) for split in findings.splits],
        "summaries": [(each, valid(each), extent(each)) for each in findings.summaries],
        "shares": [(task, _bars([each for each in findings.summaries if each.task == task])) for task in tasks],
        "samples": [_addresses(each) for each in findings.samples],
        "pairs": [_addresses(each) for each in findings.pairs],
    }
    templates = jinja2.Environment(loader=jinja2.PackageLoader("multidense"), autoescape=True, trim_blocks=True)
    write_text(place, templates.get_template("check.html.jinja").render(page))


def percent(share: float) -> str:
    """A share as people say it; a little is not nothing, and nearly all is not all."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    return "> 99.9 %" if 0.999 < share < 1 else f"{100 * share:.3g} %"


def valid(summary: Any) -> str:
    """The share of valid pixels, in words."""
    return percent(summary.valid) if summary.labelled else "–"


def extent(summary: Any) -> str:
    """The range of what is measured, in words."""
    if summary.range is None:
        return "–"
    low, high = (f"{value:.3g}" for value in summary.range)
    unit = summary.measure
    return f"{low} … {high} {unit}" if len(unit) < 3 else f"{unit} {low} … {high}"


def sizes(split: Any) -> str:
    """The most frequent image sizes, and how many further ones there are."""
    most = [f"{size} ({count})" for size, count in list(split.sizes.items())[:3]]
    return ", ".join(most) + (f" and {len(split.sizes) - 3} further sizes" if len(split.sizes) > 3 else "")


def largest(summary: Any) -> list[tuple[str, float]]:
    """The kinds that occur with their shares, most first."""
    occurring = [each for each in zip(summary.kinds, summary.shares, strict=True) if each[1]]
    return sorted(occurring, key=lambda each: -each[1])


def _bars(summaries: Sequence[Any]) -> list[tuple[str, list[tuple[str, float, str]]]]:
    """For each split (kind, length in per cent of the longest, words), from the first to the last kind that occurs in any;
    nothing for a split without a label.
    """
    used = [place for place in range(len(summaries[0].kinds)) if any(each.shares[place] for each in summaries)]
    places = range(used[0], used[-1] + 1) if used else ()
    most = max((share for each in summaries for share in each.shares), default=0) or 1
    return [
        (each.split, [(each.kinds[place], 100 * each.shares[place] / most, percent(each.shares[place])) for place in places])
        if any(each.shares)
        else (each.split, [])
        for each in summaries
    ]


def _addresses(shown: Any) -> tuple[str, list[tuple[str, str, int]]]:
    return shown.name, [(title, data_url(picture), picture.shape[1]) for title, picture in shown.pictures]


def _table(summaries: Sequence[Any]) -> list[str]:
    """Lines of a table of what there is, and an empty one after it; none where there is nothing."""
    if not summaries:
        return []
    rows = [["split", "task", "labelled", "valid", "values", "of the valid pixels"]]
    for each in summaries:
        told = (each.split, each.task, f"{each.labelled} of {each.images}", valid(each), extent(each))
        rows.append([*told, ", ".join(f"{kind} {percent(share)}" for kind, share in largest(each)[:3])])
    widths = [max(len(row[place]) for row in rows) for place in range(5)]
    return [*("  ".join([*map(str.ljust, row, widths), row[5]]).rstrip() for row in rows), ""]


def _wrapped(line: str, before: str) -> list[str]:
    inner = before + "  "
    return textwrap.wrap(
        line, WIDTH, initial_indent=before, subsequent_indent=inner, break_long_words=False, break_on_hyphens=False
    )
