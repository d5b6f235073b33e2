"""Scoring: a folder of predictions against a folder of truth, made by anyone.

    >>> scored = score_files(SaliencyScorer(), Path("mine"), Path("truth"))
    >>> scored.scores["MAE"], scored.without_prediction

Files belong together that have the same path below their folders but for the suffix. What has no partner is named and not
scored.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multidense.files import write_json
from multidense.meters import Meter
from multidense.progress import Reporter, silent
from multidense.scorers import Scorer
from multidense.types import MultidenseError
from multidense.version import __version__

Sums = dict[str, np.ndarray]


@dataclass(frozen=True)
class Scored:
    """Scores of files, with all that is needed to take them again.

    `scores` by name, each in the unit and by the rule of pooling that `units` and `pooling` say. `protocol` are the settings
    that change the numbers; `further` what else is worth knowing. `images` were scored; `without_prediction` and
    `without_truth` name the files that have no partner and were not.
    """

    task: str
    scores: Mapping[str, float]
    units: Mapping[str, str]
    pooling: Mapping[str, str]
    protocol: Mapping[str, Any]
    further: Mapping[str, Any]
    images: int
    without_prediction: Sequence[str]
    without_truth: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Plain data: the scores by name beside everything else; null where a score is of nothing."""
        told = {name: vars(self)[name] for name in ("task", "images", "protocol", "units", "pooling")}
        lists = {"without_prediction": list(self.without_prediction), "without_truth": list(self.without_truth)}
        return _null_for_nan({**self.scores, **told, **lists, **self.further, "multidense": __version__})

    def save(self, path: Path) -> None:
        """Write `to_json`, whole or not at all."""
        write_json(path, self.to_json())


def score_files(
    scorer: Scorer,
    predictions: Path,
    truth: Path,
    *,
    processes: int | None = None,
    reporter: Reporter = silent,
) -> Scored:
    """Score all predictions that have a truth. Neither `processes` nor the order of files changes a digit.

    By default there are as many processes as there are cores and the images are worth (in a script, put such a call under
    `if __name__ == "__main__":`). A file that is not as it should be is a MultidenseError that names it.
    """
    ours, theirs = found_in(predictions, scorer.predicted_in), found_in(truth, scorer.truth_in)
    both = sorted(set(ours) & set(theirs))
    if not both:
        raise MultidenseError(
            f"no prediction has a truth: {predictions} holds {_some(ours)}, {truth} holds {_some(theirs)}. "
            "A prediction and its truth need the same path below their folders, but for the suffix."
        )
    meter = scorer.meter()
    pairs = [(ours[stem], theirs[stem]) for stem in both]
    for sums in reporter.track(_all_sums(scorer, pairs, processes), "scoring", len(pairs)):
        meter.merge({name: torch.from_numpy(np.asarray(value)) for name, value in sums.items()})
    scores = scorer.scores(meter)
    return Scored(
        task=scorer.task.name,
        scores=scores,
        units={name: scorer.unit(name) for name in scores},
        pooling={name: scorer.pooling(name) for name in scores},
        protocol=scorer.protocol(),
        further=scorer.further(meter),
        images=len(pairs),
        without_prediction=[str(theirs[stem].relative_to(truth)) for stem in sorted(set(theirs) - set(ours))],
        without_truth=[str(ours[stem].relative_to(predictions)) for stem in sorted(set(ours) - set(theirs))],
    )


def found_in(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files below a folder that have one of the suffixes, by their path without it; hidden ones are left out."""
    folder = Path(folder)
    if not folder.is_dir():
        raise MultidenseError(f"{folder} is not a folder: name the one that holds the files")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if path.suffix.lower() not in suffixes or any(part.startswith(".") for part in below.parts) or not path.is_file():
            continue
        stem = below.with_suffix("").as_posix()
        if stem in found:
            raise MultidenseError(f"{path} and {found[stem]} are both '{stem}': leave one of them in {folder}")
        found[stem] = path
    if not found:
        raise MultidenseError(f"{folder} holds no file to score: expected files that end in {', '.join(suffixes)}")
    return found


# Pair by pair, in any process -----------------------------------------------------------------------------------------


_scorer: Scorer | None = None


def _begin(scorer: Scorer) -> None:
    global _scorer
    _scorer = scorer
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops them


def _sums_there(pair: tuple[Path, Path]) -> Sums:
    return _sums(_scorer, pair)


def _sums(scorer: Scorer, pair: tuple[Path, Path]) -> Sums:
    """The sums of one pair alone: they are added up in one order, so rounding too is the same for any number of processes."""
    meter: Meter = scorer.meter()
    scorer.add(meter, *pair)
    return {name: value.numpy() for name, value in meter.sums.items()}


def _all_sums(scorer: Scorer, pairs: Sequence[tuple[Path, Path]], processes: int | None) -> Iterator[Sums]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = min(cores, 1 + len(pairs) // scorer.images_a_process) if processes is None else processes
    if wanted < 1:
        raise MultidenseError(f"processes should be at least 1, found {wanted}")
    if wanted == 1:
        yield from (_sums(scorer, pair) for pair in pairs)
        return
    # Spawned, for a fork would copy locks that torch's threads or a progress bar's may hold.
    pool = ProcessPoolExecutor(min(wanted, len(pairs)), get_context("spawn"), _begin, (scorer,))
    try:
        yield from pool.map(_sums_there, pairs, chunksize=max(1, min(16, len(pairs) // (4 * wanted))))
    except BrokenProcessPool as error:
        raise MultidenseError("a process that scored files ended, likely for want of memory; pass --processes 1") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _some(files: Mapping[str, Path]) -> str:
    names = ", ".join(f"'{stem}'" for stem in list(files)[:3])
    return f"{names} and {len(files) - 3} more" if len(files) > 3 else names


def _null_for_nan(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _null_for_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_null_for_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
