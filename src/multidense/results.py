"""Results: the scores of one run with where they came from; the relative gain `delta_mtl`."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from multidense.files import read_json, write_json
from multidense.types import SCORES, MultidenseError, Score
from multidense.version import __version__


@dataclass(frozen=True)
class Results:
    """What one network scored, and everything needed to believe it.

    `scores` maps `task.score` to a number in the score's unit: the columns that published tables have, and over which
    `delta_mtl` is taken. `further` holds more of the same kind; `per_class` maps task to class name to IoU in per cent.
    `provenance` says which data, labels, settings, seed, versions and machine; `cost` has parameters, multiply–adds, seconds
    and memory. `beside` has what other rules than the last epoch would have told, by rule (see `other_rules`).
    `collections` has the scores, by `task.score`, over each of several joined data sets alone.
    """

    scores: Mapping[str, float]
    further: Mapping[str, float] = field(default_factory=dict)
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    provenance: Mapping = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    beside: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    collections: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all; a score that is not a number is written as null."""
        write_json(path, _null_for_nan(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote."""
        data = read_json(path)
        known = set(cls.__dataclass_fields__)
        if "scores" not in data or not set(data) <= known:
            raise MultidenseError(f"{path} is not a results file: expected the keys {', '.join(sorted(known))}")
        parts = ("scores", "further", "per_class", "cost", "beside", "collections")
        numbers = {key: _nan_for_null(data[key]) for key in parts if key in data}
        return cls(**data | numbers)

    def __str__(self) -> str:
        lines = [f"{name:<24}{value:>10.4g} {score_of(name).unit}".rstrip() for name, value in self.scores.items()]
        return "\n".join(lines)


def score_of(name: str) -> Score:
    """What the score behind `task.score` is: its unit and direction."""
    score = SCORES.get(name.partition(".")[2])
    if score is None:
        raise MultidenseError(f"unknown score {name!r}: expected 'task.score' with a score out of {', '.join(SCORES)}")
    return score


def relative_gains(scores: Results | Mapping[str, float], baseline: Results | Mapping[str, float]) -> dict[str, float]:
    """Each score's change against the baseline in per cent, positive where it is better."""
    ours, theirs = (data.scores if isinstance(data, Results) else data for data in (scores, baseline))
    if not ours:
        raise MultidenseError("delta_mtl needs at least one score, found none")
    if set(ours) != set(theirs):
        only = sorted(set(ours) ^ set(theirs))
        raise MultidenseError(f"delta_mtl compares the same scores on both sides; only one side has {', '.join(only)}")
    gains = {}
    for name, value in ours.items():
        sign = 1 if score_of(name).higher_is_better else -1
        reference = theirs[name]
        gains[name] = 100 * sign * (value - reference) / reference if reference else math.nan
    return gains


def delta_mtl(scores: Results | Mapping[str, float], baseline: Results | Mapping[str, float]) -> float:
    """Mean relative gain over the baseline in per cent, over all scores given, each signed by its direction.

    HiTTs, equation (9). The printed formula is a sum; the mean over all columns (not first per task) reproduces every published
    value. Plain mappings look like `{"semseg.mIoU": 35.81, "depth.absErr": 0.554, "normals.mErr": 28.5}`.
    """
    gains = relative_gains(scores, baseline)
    return sum(gains.values()) / len(gains)


BEST, MEAN_OF_LAST = "best epoch", "mean of the last 10 validated epochs"


def other_rules(history: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """What other checkpoint rules would have told, from the validation scores `val.task.score` of a history's (epoch, value).

    The headline is always the last epoch; published numbers were often taken otherwise. "best epoch" is the one with the best
    mean relative gain over the last validated epoch's scores, of equals the latest, with its `epoch`: it is chosen on the very
    images it is scored on, so it flatters. "mean of the last 10 validated epochs" is score by score, with the first `epoch` of
    the ten. Both are over epochs that have every score; a rule for which there are too few (2, 10) is left out. With
    `precise_bn` only the last epoch's averages are settled, so others may look worse than they are.
    """
    courses = {name.removeprefix("val."): dict(pairs) for name, pairs in history.items() if name.startswith("val.")}
    courses = {name: course for name, course in courses.items() if name.partition(".")[2] in SCORES}
    epochs = sorted(set.intersection(*map(set, courses.values()))) if courses else []
    rows = {epoch: {name: course[epoch] for name, course in courses.items()} for epoch in epochs}
    if len(rows) < 2:
        return {}

    def gain(epoch: float) -> float:
        gains = [each for each in relative_gains(rows[epoch], rows[epochs[-1]]).values() if math.isfinite(each)]
        return sum(gains) / max(len(gains), 1)

    best, last = max(epochs, key=lambda epoch: (gain(epoch), epoch)), epochs[-10:]
    rules = {BEST: rows[best] | {"epoch": best}}
    if len(last) == 10:
        means = {name: sum(rows[epoch][name] for epoch in last) / 10 for name in courses}
        rules[MEAN_OF_LAST] = means | {"epoch": last[0]}
    return rules


def protocol(results: Results) -> dict[str, object]:
    """What must agree for scores to stand in one table: the data and how many images of it at which size, classes, checkpoint.

    Only what the results say of it; older ones say less.
    """
    said = results.provenance
    data = said.get("data") if isinstance(said.get("data"), Mapping) else {}
    sizes = (data.get("image_size"), data.get("size"))
    size = next((" × ".join(map(str, each)) for each in sizes if isinstance(each, list | tuple)), None)
    told = {
        "data": data.get("name"),
        "layout": data.get("layout"),
        "split": data.get("split"),
        "images": data.get("images", data.get("length")),
        "size": size,
        "seed of the data": data.get("seed"),
        "version of the data": data.get("version"),
        "checkpoint": said.get("checkpoint"),
    }
    images = said.get("images")
    for task, count in images.items() if isinstance(images, Mapping) else ():
        told[f"images with {task}"] = count
    told |= {f"classes of {task}": len(classes) for task, classes in results.per_class.items()}
    return {name: value for name, value in told.items() if value is not None}


def protocol_differences(one: Results, other: Results) -> list[str]:
    """What the protocols of two results differ in, a phrase for each; of what only one of them says, nothing."""
    ours, theirs = protocol(one), protocol(other)
    return [f"{name}: {value} here, {theirs[name]} there" for name, value in ours.items() if theirs.get(name, value) != value]


def first_difference(named: Sequence[tuple[str, Results]]) -> str:
    """Which of the results by name were first not scored alike, and in what; empty where all were."""
    for place, (name, results) in enumerate(named):
        for other, before in named[:place]:
            different = protocol_differences(before, results)
            if different:
                return f"{other} (here) and {name} (there) were not scored alike: {'; '.join(different)}"
    return ""


def check_same_protocol(named: Sequence[tuple[str, Results]], where: str) -> None:
    """Refuse to put scores into one table (`where`) that were not taken alike."""
    different = first_difference(named)
    if different:
        raise MultidenseError(
            f"{where}: {different}. Such numbers do not compare: leave one out, evaluate it again, or allow it with --mixed"
        )


def _null_for_nan(data):
    if isinstance(data, dict):
        return {key: _null_for_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_null_for_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _nan_for_null(data):
    if isinstance(data, dict):
        return {key: _nan_for_null(value) for key, value in data.items()}
    return math.nan if data is None else data


def environment() -> dict:
    """Commit, versions and machine, for the provenance of a result."""
    return {
        "commit": _commit(),
        "versions": {name: version(name) for name in ("torch", "lightning", "numpy", "pillow")}
        | {"multidense": __version__, "python": platform.python_version()},
        "machine": {"processor": _processor(), "system": platform.system(), "cores": os.cpu_count()} | _accelerator(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """The commit this package's sources stand at, with a plus if they were changed since; None outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        status = subprocess.run(["git", "status", "--porcelain", "."], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("+" if status.stdout.strip() else "") if commit.returncode == 0 else None


def _processor() -> str:
    """The processor's name: results are equal bit for bit only on one that computes in the same order."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{named} ({torch.backends.cpu.get_cpu_capability()})"


def _accelerator() -> dict:
    return {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
