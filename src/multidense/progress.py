"""How long work tells where it is: bars with time left on a terminal, plain lines elsewhere, a small file for another
process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from multidense.files import written_aside

Item = TypeVar("Item")
Advance = Callable[..., None]
"""`advance(steps=1, note="")`: so much more is done, and a few words on how it goes."""


class Reporter:
    """Tells nobody. The base of those that tell somebody."""

    @contextmanager
    def work(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        """A piece of work of `total` steps, `done` of them already."""
        yield lambda steps=1, note="": None

    def track(
        self, items: Iterable[Item], title: str, total: int, size: Callable[[Item], int] = lambda item: 1
    ) -> Iterator[Item]:
        """The items, one after the other, each counting for `size(item)` steps."""
        with self.work(title, total) as advance:
            for item in items:
                yield item
                advance(size(item))


silent = Reporter()


class Lines(Reporter):
    """A line at the start and the end and at most one every `seconds`, for logs and pipes."""

    def __init__(self, seconds: float = 15.0, prefix: str = ""):
        self.seconds, self.prefix = seconds, prefix

    @contextmanager
    def work(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        clock = _Clock(total, done)
        told = time.monotonic()

        def advance(steps: int = 1, note: str = "") -> None:
            nonlocal told
            clock.advance(steps)
            if clock.done >= total or time.monotonic() - told >= self.seconds:
                told = time.monotonic()
                print(f"{self.prefix}{title}: {clock}  {note}".rstrip(), file=sys.stderr, flush=True)

        yield advance


class Bars(Reporter):
    """Bars with the time left, on a terminal."""

    @contextmanager
    def work(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        with bars() as progress:
            bar = progress.add_task(title, total=total, completed=done, note="")
            yield lambda steps=1, note="": progress.update(bar, advance=steps, note=note)


class ToFile(Reporter):
    """The newest state in a small JSON file, for a parent process that shows several at once."""

    def __init__(self, path: Path):
        self.path = path

    @contextmanager
    def work(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        clock = _Clock(total, done)
        told = 0.0

        def advance(steps: int = 1, note: str = "") -> None:
            nonlocal told
            clock.advance(steps)
            if clock.done >= total or time.monotonic() - told >= 0.5:
                told = time.monotonic()
                with written_aside(self.path) as beside:
                    beside.write_text(json.dumps({"title": title, "total": total, "done": clock.done, "note": note}))

        advance(0)
        yield advance


def bars():
    """A rich progress display: title, bar, counts, time spent and left, a note."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=Console(stderr=True))


def reporter() -> Reporter:
    """Bars where somebody watches a terminal, lines where not."""
    return Bars() if sys.stderr.isatty() else Lines()


class _Clock:
    """Steps done, and the time left at the pace so far."""

    def __init__(self, total: int, done: int):
        self.total, self.done, self.first, self.began = total, done, done, time.monotonic()

    def advance(self, steps: int) -> None:
        self.done += steps

    def __str__(self) -> str:
        spent = time.monotonic() - self.began
        made = self.done - self.first
        left = spent / made * (self.total - self.done) if made else 0.0
        return f"{self.done}/{self.total}, {spent:.0f} s, {left:.0f} s left"
