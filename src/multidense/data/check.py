"""Check: reads every file of a described data set once and says what is wrong, and what there is.

Errors: a file that is missing, cannot be read or does not hold what the description says; a label of another size than its
image or valid nowhere; numbers that are legal but hardly meant (`Encoding.suspicions`); an id twice, or in two splits; images
of two splits that are nearly the same; an empty split; a task that no image of a split is labelled for.
Warnings: label files without an image, images in no split, classes that (almost) never occur.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from multidense.data.description import ids_of_files, read_description, read_ids, read_splits
from multidense.data.duplicates import NEAR, near_pairs
from multidense.data.folder import Folder
from multidense.data.look import Look, Problem, Shown, in_two, look_at, short, small
from multidense.data.subset import evenly
from multidense.progress import Reporter, silent
from multidense.task import Task
from multidense.types import MultidenseError

SHOWN = 3  # images of each split, and pairs of near-duplicates, whose pictures are kept
RARE = 0.001  # share of the valid pixels below which a class is worth a warning


@dataclass(frozen=True)
class Summary:
    """What one split has for one task: of `images` those `labelled`, the share of their pixels that is `valid`, the share of
    these that is of each kind, and the range of what is measured (None where nothing is).
    """

    split: str
    task: str
    images: int
    labelled: int
    valid: float
    kinds: tuple[str, ...]
    shares: tuple[float, ...]
    range: tuple[float, float] | None
    measure: str


@dataclass(frozen=True)
class Split:
    """One split: how many images it has, and how many of each size ("height×width"), most first."""

    name: str
    images: int
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Seen:
    """A split's images as they are compared with others: where to read them again, and a sketch of each."""

    reader: Folder
    sketches: Sequence[Float[np.ndarray, " n"] | None]

    def file(self, index: int) -> str:
        return short(self.reader, self.reader.file(self.reader.ids[index]))


@dataclass(frozen=True)
class Findings:
    """All that a check found, in an order that does not depend on the number of processes. `seen`, by split, is what other
    collections are compared with (`multidense.data.across`).
    """

    name: str
    splits: Sequence[Split]
    summaries: Sequence[Summary]
    problems: Sequence[Problem]
    samples: Sequence[Shown]
    pairs: Sequence[Shown]
    seen: Mapping[str, Seen] = field(default_factory=dict, repr=False, compare=False)

    @property
    def errors(self) -> int:
        return sum(problem.level == "error" for problem in self.problems)


def check(
    description: str | Path | Mapping[str, Any],
    splits: Sequence[str] | None = None,
    tasks: Sequence[Task] | None = None,
    root: str | Path | None = None,
    processes: int | None = None,
    near: float = NEAR,
    reporter: Reporter = silent,
    without: Sequence[str] = (),
) -> Findings:
    """Read all images and labels that a description names, at their own size, and tell what is wrong with them.

    `splits`, `tasks`: only these; `root`: where the files are. `processes` read side by side; by default as many as there are
    cores and the images are worth (in a script, put such a call under `if __name__ == "__main__":`). `near`: likeness from
    which on images of two splits are near-duplicates (`multidense.data.duplicates`); 1 leaves only equal ones. Of images
    `without` nothing is read or told. A mistake in the description itself is a MultidenseError; whatever is wrong with files is
    in the findings.
    """
    if not 0 < near <= 1:
        raise MultidenseError(f"near should be a likeness above 0, at most 1, found {near}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a reader warns of is found here too
        described = [str(name) for name in read_splits(read_description(description)[0]).data]
        for name in splits or ():
            if name not in described:
                raise MultidenseError(f"expected splits out of {', '.join(described)}, found '{name}'")
        probe = Folder(description, "", tasks, root=root, ids=())
        ids, problems = _ids(description, probe, described)
        ids = {name: [one for one in each if one not in without] for name, each in ids.items()}
        readers = {
            name: Folder(description, name, tasks, root=root, cache=False, ids=ids[name])
            for name in (splits or described)
            if ids.get(name)
        }
    looks = _look_at_all(readers, processes, reporter)
    problems = [one for one in problems if splits is None or one.split in splits]
    for name, reader in readers.items():
        problems += [problem for look in looks[name] for problem in look.problems]
        problems += _unlabelled(reader, name, readers)
    summaries = [_summary(reader, task, looks[name]) for name, reader in readers.items() for task in reader.encodings]
    seen = {name: Seen(reader, [look.sketch for look in looks[name]]) for name, reader in readers.items()}
    alike, pairs = _near_duplicates(seen, near)
    problems += [*_strange_palettes(readers, looks), *_in_two_splits(readers), *alike]
    problems += [*_left_over(probe, ids, {one.id for one in problems}.union(without)), *_rare_classes(probe, summaries)]
    problems = list(dict.fromkeys(problems))
    return Findings(
        probe.name,
        [Split(name, len(reader), _sizes(looks[name])) for name, reader in readers.items()],
        summaries,
        [one for level in ("error", "warning") for one in problems if one.level == level],
        [shown for each in looks.values() for look in each if (shown := look.shown)],
        pairs,
        seen,
    )


def most_alike(places: Sequence[tuple[float, tuple[Seen, int, str], tuple[Seen, int, str]]]) -> list[Shown]:
    """Of pairs (likeness, image, image), an image being (where, index, title), the most alike as pictures."""
    pairs = []
    for alike, *both in sorted(places, key=lambda place: -place[0])[: 2 * SHOWN]:
        pictures = [
            (f"{title} {seen.reader.ids[index]}", small(seen.reader.read_image(index)["image"].transpose(1, 2, 0)))
            for seen, index, title in both
        ]
        pairs.append(Shown(f"likeness {alike:.3f}", pictures))
    return pairs


# One image and its labels, in any process -----------------------------------------------------------------------------


_readers: Mapping[str, Folder] = {}


def _begin(readers: Mapping[str, Folder]) -> None:
    global _readers  # a pool's processes are given it once, not with every image
    _readers = readers
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops them


def _look_there(place: tuple[str, int, bool]) -> Look:
    split, index, show = place
    return look_at(_readers[split], index, show)


def _look_at_all(readers: Mapping[str, Folder], processes: int | None, reporter: Reporter) -> dict[str, list[Look]]:
    """A look at every image of every split, in order."""
    shown = {name: set(evenly(len(reader), SHOWN)) for name, reader in readers.items()}
    places = [(name, index, index in shown[name]) for name, reader in readers.items() for index in range(len(reader))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Beginning a process takes about as long as reading a hundred images.
    wanted = min(cores, 1 + len(places) // 100) if processes is None else processes
    if wanted < 1:
        raise MultidenseError(f"processes should be at least 1, found {wanted}")
    looks: dict[str, list[Look]] = {name: [] for name in readers}

    def gather(each: Iterator[Look]) -> None:
        for (name, *_), look in zip(places, reporter.track(each, "reading", len(places)), strict=True):
            looks[name].append(look)

    if wanted == 1:
        gather(look_at(readers[name], index, show) for name, index, show in places)
        return looks
    # Spawned, for a fork would copy locks that torch's threads or a progress bar's may hold.
    pool = ProcessPoolExecutor(wanted, get_context("spawn"), _begin, (readers,))
    try:
        gather(pool.map(_look_there, places, chunksize=max(1, min(16, len(places) // (4 * wanted)))))
    except BrokenProcessPool as error:
        raise MultidenseError("a process that read files ended, likely for want of memory; pass --processes 1") from error
    finally:
        pool.shutdown(cancel_futures=True)
    return looks


# The set as a whole ---------------------------------------------------------------------------------------------------


def _ids(description: Any, probe: Folder, splits: Sequence[str]) -> tuple[dict[str, list[str]], list[Problem]]:
    """The ids of each split as far as they can be read, and what was wrong with the others."""
    top = read_description(description)[0]
    ids: dict[str, list[str]] = {}
    problems: list[Problem] = []

    def problem(split: str, one: str, file: str, message: str) -> None:
        problems.append(
            Problem("error", split, one, "", file, *in_two(message.removeprefix(f"{top.where}, splits: "), probe.root))
        )

    def tell(split: str, message: str, wrong: list[str]) -> None:
        for one in wrong:
            problem(split, one, probe.images.replace("{id}", one), message)

    for split in splits:
        value = top.data.get("splits", {}).get(split)
        try:
            ids[split] = read_ids(top, split, probe.root, probe.images, tell)
        except MultidenseError as error:
            problem(split, "", value if isinstance(value, str) and value != "rest" else Path(top.where).name, str(error))
    return ids, problems


def _unlabelled(reader: Folder, split: str, readers: Mapping[str, Folder]) -> Iterator[Problem]:
    """Tasks that no image of the split is labelled for."""
    for name, encoding in reader.encodings.items():
        if not any(name in reader.annotated(index) for index in range(len(reader))):
            others = any(name in each.annotated(index) for each in readers.values() for index in range(len(each)))
            found = "no image of the split has a label" if others else "no image of any split has a label"
            remedy = f"Add files, correct `files` in {encoding.where}, or leave the task out."
            yield Problem("error", split, "", name, encoding.files, found, remedy)


def _strange_palettes(readers: Mapping[str, Folder], looks: Mapping[str, Sequence[Look]]) -> Iterator[Problem]:
    """Palette pictures of which the colours seem to mean something, not the ids: few among others, or a colour that has another
    id in most files.
    """
    usual: dict[tuple[str, str], Counter] = defaultdict(Counter)
    palettes, files = Counter(), Counter()
    for task, label in (each for looked in looks.values() for look in looked for each in look.labels.items()):
        files[task] += 1
        palettes[task] += bool(label.colours)
        for one, colour in label.colours.items():
            usual[task, colour][one] += 1
    remedy = "The ids count, not the colours: see that one id stands for one colour, and save all files alike, best in grey."
    for split, reader in readers.items():
        for image, look in zip(reader.ids, looks[split], strict=True):
            for task, label in look.labels.items():
                often = {one: usual[task, colour].most_common(1)[0][0] for one, colour in label.colours.items()}
                other = next((one for one in often if often[one] not in often), None)
                file = short(reader, reader.file(image, task))
                if label.colours and palettes[task] < files[task] / 2:
                    yield Problem("error", split, image, task, file, "a palette picture stands among grey ones", remedy)
                elif other is not None:
                    found = "a colour of its palette stands for another id than in most files: "
                    found += f"{label.colours[other]} is {other} here, {often[other]} there"
                    yield Problem("error", split, image, task, file, found, remedy)


def _in_two_splits(readers: Mapping[str, Folder]) -> Iterator[Problem]:
    for (one, first), (other, second) in combinations(readers.items(), 2):
        shared = set(first.ids).intersection(second.ids)
        for image in (image for image in first.ids if image in shared):
            found, remedy = "the image is in two splits", f"Take it out of '{one}' or '{other}'."
            yield Problem("error", f"{one}, {other}", image, "", short(first, first.file(image)), found, remedy)


def _near_duplicates(seen: Mapping[str, Seen], near: float) -> tuple[list[Problem], list[Shown]]:
    """Images of two splits that show nearly the same, and the most alike of them as pictures."""
    problems, places = [], []
    for (one, first), (other, second) in combinations(seen.items(), 2):
        for i, j, alike in near_pairs(first.sketches, second.sketches, near):
            if first.reader.ids[i] == second.reader.ids[j]:
                continue
            file, twin = first.file(i), second.file(j)
            found = f"images of two splits are nearly the same: {file} in {one}, {twin} in {other} (likeness {alike:.3f})"
            remedy = "Keep both in one split: what is trained on must not be validated on."
            problems.append(Problem("error", f"{one}, {other}", first.reader.ids[i], "", file, found, remedy))
            places.append((alike, (first, i, one), (second, j, other)))
    return problems, most_alike(places)


def _left_over(probe: Folder, ids: Mapping[str, Sequence[str]], told: set[str]) -> Iterator[Problem]:
    """Label files that no image has, and images that no split has; not of ids of which something is `told` already."""
    images = ids_of_files(probe.root, probe.images)
    known = dict.fromkeys([*images, *told, *(one for each in ids.values() for one in each)])
    patterns = {"": probe.images} | {name: encoding.files for name, encoding in probe.encodings.items()}
    claimed = {pattern.replace("{id}", one) for pattern in patterns.values() for one in known}
    labels = {pattern.replace("{id}", one) for name, pattern in patterns.items() if name for one in known}
    for task, pattern in patterns.items():
        for one in ids_of_files(probe.root, pattern) if task else ():
            if (file := pattern.replace("{id}", one)) not in claimed:
                remedy = "Add the image, correct the file's name, or delete it."
                yield Problem("warning", "", one, task, file, "the label belongs to no image", remedy)
    in_splits = told.union(one for each in ids.values() for one in each)
    for one in images:
        if one not in in_splits and (file := probe.images.replace("{id}", one)) not in labels:
            yield Problem("warning", "", one, "", file, "the image is in no split", "Add its id to a split, or let it be.")


def _rare_classes(probe: Folder, summaries: Sequence[Summary]) -> Iterator[Problem]:
    for each in summaries:
        encoding = probe.encodings[each.task]
        if not encoding.every_kind or not any(each.shares):
            continue
        for what, low, high in (("no pixel", -1, 0), (f"less than {100 * RARE:g} %", 0, RARE)):
            rare = [kind for kind, share in zip(each.kinds, each.shares, strict=True) if low < share <= high]
            if rare:
                remedy = "Look whether they are meant; move images between splits, or merge classes with `remap`."
                found = f"classes (almost) never occur, found {what} of {', '.join(rare)}"
                yield Problem("warning", each.split, "", each.task, encoding.files, found, remedy)


def _summary(reader: Folder, task: str, looks: Sequence[Look]) -> Summary:
    encoding = reader.encodings[task]
    labels = [look.labels[task] for look in looks if task in look.labels]
    counts = np.array([label.counts for label in labels] or [[0] * len(encoding.kinds)]).sum(axis=0)
    valid, pixels = sum(label.valid for label in labels), sum(label.pixels for label in labels)
    extents = [label.range for label in labels if label.range]
    return Summary(
        split=reader.split,
        task=task,
        images=len(reader),
        labelled=sum(task in reader.annotated(index) for index in range(len(reader))),
        valid=valid / max(pixels, 1),
        kinds=encoding.kinds,
        shares=tuple((counts / max(counts.sum(), 1)).tolist()),
        range=(min(low for low, _ in extents), max(high for _, high in extents)) if extents else None,
        measure=encoding.measure,
    )


def _sizes(looks: Sequence[Look]) -> dict[str, int]:
    counts = Counter(f"{look.size[0]}×{look.size[1]}" for look in looks if look.size)
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))
