"""Trainings and discoveries of several runs as jobs: what is left to do, in which order, in processes of their own.

Every job has a fresh process (so that its peak memory is its own, and a crash takes nobody along), which ends when this one is
killed. What is done is not planned again, and a training goes on from its last checkpoint.

What a job does stands in `run.do`; `child` is the process that does one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import torch

from multidense.files import read_json
from multidense.progress import bars
from multidense.recipe import Recipe
from multidense.tables import duration
from multidense.types import MultidenseError

FINDING = 0.1
"""What a discovery counts where a training counts 1, for the time left."""


@dataclass(frozen=True)
class Job:
    """Train a network of a run, or (with a `teacher`) find what that teacher knows for it."""

    folder: Path
    network: str
    teacher: str | None = None

    @property
    def done(self) -> bool:
        """Whether a training is finished; what was found is looked after by the run."""
        return self.teacher is None and (self.folder / self.network / "results.json").exists()

    @property
    def weight(self) -> float:
        """How much of the work it is."""
        return FINDING if self.teacher else 1.0

    def __str__(self) -> str:
        return f"{self.folder.name} · {f'labels of {self.teacher} for ' if self.teacher else ''}{self.network}"


def with_teachers(recipe: Recipe, networks: Iterable[str]) -> list[str]:
    """Networks and those that they learn from, these first."""
    found: dict[str, None] = {}
    for name in networks:
        found |= dict.fromkeys(with_teachers(recipe, recipe.networks[name].teachers)) | {name: None}
    return list(found)


def plan(folders: Sequence[Path], recipe: Recipe, networks: Collection[str]) -> dict[Job, set[Job]]:
    """Every job that is not done, with those that come before it: one network over all folders, then the next."""
    jobs: dict[Job, set[Job]] = {}
    for name in (name for stage in recipe.stages for name in stage if name in networks):
        for folder in folders:
            job = Job(folder, name)
            if job.done:
                continue
            jobs[job] = set()
            for teacher in recipe.networks[name].teachers:
                # Students with the recipe's own discovery share what is found, so only the first of them is waited for.
                own = recipe.networks[name].discovery is not None
                first = name if own else next(other.network for other in _sharing(recipe, jobs, folder, teacher))
                find = Job(folder, first, teacher)
                jobs[find] = {one for one in [Job(folder, teacher)] if one in jobs}
                jobs[job].add(find)
    return jobs


def _sharing(recipe: Recipe, jobs: Collection[Job], folder: Path, teacher: str) -> Iterator[Job]:
    """The trainings planned in a folder that share the recipe's discovery of a teacher."""
    for job in jobs:
        network = recipe.networks[job.network]
        if job.folder == folder and not job.teacher and teacher in network.teachers and network.discovery is None:
            yield job


# Places -----------------------------------------------------------------------------------------------------------------


def places(recipe: Recipe, processes: int | None = None) -> list[dict[str, str]]:
    """Where jobs run side by side: for each process what its environment has beside this one's.

    A process has a GPU of its own (or as many as the recipe's training wants) where there are any; more processes than GPUs
    share them. On the CPU there are as many as the recipe says, or else as its threads fill the cores. 0 processes: no place;
    jobs are done here.
    """
    if processes is not None and processes < 0:
        raise MultidenseError(f"--processes must not be negative, found {processes}")
    training, groups = recipe.training, [""]
    if training.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        each = seen.split(",") if seen else list(map(str, range(torch.cuda.device_count())))
        count = training.devices
        groups = [",".join(each[first : first + count]) for first in range(0, len(each) - count + 1, count)] or [",".join(each)]
        wanted = len(groups)
    elif recipe.processes > 1:
        wanted = recipe.processes
    else:  # threads of torch's own choice fill all cores
        wanted = max(1, (os.cpu_count() or 1) // (training.threads * training.devices)) if training.threads else 1
    told = {"OMP_NUM_THREADS": str(training.threads)} if training.threads else {}
    chosen = islice(cycle(groups), wanted if processes is None else processes)
    return [told | ({"CUDA_VISIBLE_DEVICES": group} if group else {}) for group in chosen]


# Work -------------------------------------------------------------------------------------------------------------------


def work_off(
    jobs: Mapping[Job, set[Job]], places: Sequence[Mapping[str, str]], here: Callable[[Job], object]
) -> dict[Job, str]:
    """Do every job once those before it are done, one at each of the `places`; without places, one after the other by `here`.

    One that fails stops only those that need it. Returns what failed, and why.
    """
    waiting, done, failed = list(jobs), set(), {}
    free, running = list(places) or [{}], []
    with _Told(jobs) as told:
        try:
            while waiting or running:
                for job in [job for job in waiting if jobs[job] & failed.keys()]:
                    waiting.remove(job)
                    failed[job] = f"needs {next(iter(jobs[job] & failed.keys()))}"
                for job in [job for job in waiting if jobs[job] <= done][: len(free)]:
                    waiting.remove(job)
                    running.append(_Process(job, free.pop(0)) if places else _Here(job, here))
                ended = [one for one in running if one.ended]
                for one in ended:
                    running.remove(one)
                    free.append(one.place)
                    if one.problem:
                        failed[one.job] = one.problem
                    else:
                        done.add(one.job)
                    told.ended(one, running, done | failed.keys())
                told.look(running, done | failed.keys())
                if running and not ended:
                    time.sleep(0.2)
        finally:
            for one in running:
                one.stop()
    return failed


class _Process:
    """A job in a process of its own. What it says goes to `log.txt` of the network's folder, the last of it is the error."""

    def __init__(self, job: Job, place: Mapping[str, str]):
        self.job, self.place, self.began = job, place, time.monotonic()
        folder = job.folder / job.network
        folder.mkdir(parents=True, exist_ok=True)
        self.log, self.progress = folder / "log.txt", folder / "progress.json"
        self.progress.unlink(missing_ok=True)
        environment = os.environ | place | {"MULTIDENSE_CHILD_OF": str(os.getpid())}
        words = [str(job.folder), job.network, *([job.teacher] if job.teacher else [])]
        with open(self.log, "w", encoding="utf-8") as log:
            command = [sys.executable, "-m", "multidense.child", *words]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def problem(self) -> str:
        """Why it failed, empty where it did not."""
        status = self.process.returncode
        if not status:
            return ""
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        said = f"killed by signal {-status}" if status < 0 else lines[-1].strip() if lines else f"exit status {status}"
        return f"{said} (see {self.log})"

    def state(self) -> Mapping:
        """What it is at: title, total, done, note; nothing where it has not said so yet."""
        try:
            return read_json(self.progress)
        except MultidenseError:
            return {}

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


class _Here:
    """A job done in this process, before anything else happens."""

    place: Mapping[str, str] = {}

    def __init__(self, job: Job, here: Callable[[Job], object]):
        self.job, self.problem, self.ended, self.began = job, "", True, time.monotonic()
        try:
            here(job)
        except Exception as error:  # one that fails does not stop the others
            self.problem = str(error) if isinstance(error, MultidenseError) else f"{type(error).__name__}: {error}"

    def state(self) -> Mapping:
        return {}

    def stop(self) -> None:
        pass


class _Told:
    """How far all jobs are: a line for each that ends, with the time left; on a terminal also bars."""

    def __init__(self, jobs: Collection[Job], seconds: float = 30.0):
        self.jobs, self.seconds, self.began, self.last = list(jobs), seconds, time.monotonic(), time.monotonic()
        self.first: dict[Job, float] = {}
        self.live = bars() if sys.stderr.isatty() and self.jobs else None
        self.rows: dict[Job | None, int] = {}

    def __enter__(self) -> _Told:
        if self.live:
            self.live.start()
            self.rows[None] = self.live.add_task("all", total=len(self.jobs), note="")
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()

    def ended(self, one: _Process | _Here, running: Sequence[_Process | _Here], over: Collection[Job]) -> None:
        how = f"failed: {one.problem}" if one.problem else f"done in {duration(time.monotonic() - one.began)}"
        self._say(f"{len(over)}/{len(self.jobs)} · {one.job}: {how}{self._left(running, over)}")
        if self.live and one.job in self.rows:
            self.live.remove_task(self.rows.pop(one.job))

    def look(self, running: Sequence[_Process | _Here], over: Collection[Job]) -> None:
        """Show where running jobs are."""
        states = {one: one.state() for one in running}
        quiet = time.monotonic() - self.last < self.seconds
        if self.live:
            self.live.update(self.rows[None], completed=len(over), note=self._left(running, over).lstrip(", "))
            for one, state in states.items():
                if one.job not in self.rows:
                    self.rows[one.job] = self.live.add_task(str(one.job), total=None, note="")
                if state:
                    title = f"{one.job}: {state['title']}"
                    self.live.update(
                        self.rows[one.job],
                        description=title,
                        total=state["total"],
                        completed=state["done"],
                        note=state["note"],
                    )
        elif not quiet and any(states.values()):
            at = (f"{one.job} {state['title']} {state['done']}/{state['total']}" for one, state in states.items() if state)
            self._say(f"{len(over)}/{len(self.jobs)} · {'; '.join(at)}{self._left(running, over)}")

    def _left(self, running: Sequence[_Process | _Here], over: Collection[Job]) -> str:
        """The time left at the pace so far; a running training counts for the share that it made since this began."""
        made, todo = 0.0, sum(job.weight for job in self.jobs if job not in over)
        for one in running:
            share = self._share(one)
            made += (share - self.first.get(one.job, share)) * one.job.weight
            todo -= share * one.job.weight
        made += sum((1 - self.first.get(job, 0.0)) * job.weight for job in over)
        spent = time.monotonic() - self.began
        return f", about {duration(spent / made * todo)} left" if made > 0 and todo > 0 else ""

    def _share(self, one: _Process | _Here) -> float:
        """How much of a job is done: the share of its steps; after them, nearly all."""
        state = one.state()
        if state.get("title") == "training" and state["total"]:
            share = state["done"] / state["total"]
            self.first.setdefault(one.job, share)
            return share
        return 1.0 if one.job in self.first else 0.0

    def _say(self, line: str) -> None:
        self.last = time.monotonic()
        if self.live:
            self.live.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)


def end_with_parent() -> None:
    """A child ends when whoever started it is killed, so that nothing goes on writing unseen."""
    parent = os.environ.get("MULTIDENSE_CHILD_OF")
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
