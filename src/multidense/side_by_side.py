"""Several networks of a run at once, each in a process of its own, and how they come along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from multidense.progress import bars
from multidense.types import MultidenseError


def train_side_by_side(folder: Path, titles: Mapping[str, str], processes: int, threads: int) -> None:
    """Train the networks of the run in `folder` that `titles` names, `processes` at a time with `threads` each (0: torch's
    choice). When one fails the others are stopped, and what it said last is the error.
    """
    waiting, running = list(titles), {}
    with _Watch(folder, titles) as look:
        try:
            while waiting or running:
                while waiting and len(running) < processes:
                    name = waiting.pop(0)
                    running[name] = _start(folder, name, threads)
                time.sleep(0.3)
                look()
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    if running.pop(name).returncode:
                        raise MultidenseError(_last_words(folder / name / "log.txt", name))
        finally:
            for process in running.values():
                process.terminate()
                process.wait()


def _start(folder: Path, name: str, threads: int) -> subprocess.Popen:
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"MULTIDENSE_CHILD_OF": str(os.getpid())}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "multidense", "train", str(folder), "--network", name]
    with open(place / "log.txt", "w", encoding="utf-8") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def _last_words(log: Path, name: str) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"training '{name}' failed: {lines[-1] if lines else 'it said nothing'} (see {log})"


class _Watch:
    """Shows how several trainings in other processes come along: bars on a terminal, lines elsewhere."""

    def __init__(self, folder: Path, titles: Mapping[str, str]):
        self.folder, self.titles = folder, titles
        self.live = bars() if sys.stderr.isatty() else None
        self.told = {name: (0.0, {}) for name in titles}

    def __enter__(self):
        for name in self.titles:
            (self.folder / name / "progress.json").unlink(missing_ok=True)
        if self.live:
            self.live.start()
            self.rows = {name: self.live.add_task(title, total=None, note="") for name, title in self.titles.items()}
        return self.look

    def look(self) -> None:
        for name in self.titles:
            try:
                state = json.loads((self.folder / name / "progress.json").read_text())
            except (OSError, ValueError):
                continue
            title = f"{self.titles[name]}: {state['title']}"
            if self.live:
                row = self.rows[name]
                self.live.update(row, description=title, total=state["total"], completed=state["done"], note=state["note"])
            elif time.monotonic() - self.told[name][0] > 15 and state != self.told[name][1]:
                self.told[name] = (time.monotonic(), state)
                print(f"{title}: {state['done']}/{state['total']}  {state['note']}", file=sys.stderr, flush=True)

    def __exit__(self, *error) -> None:
        if self.live:
            self.live.stop()
