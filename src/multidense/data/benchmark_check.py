"""Benchmark check: reads every file of a copy of a benchmark once and says what is wrong with it, and what there is.

Errors: a part of which no file is there; a file that is missing among others, cannot be read or holds something else; a label
of another size than its image; a file that differs from its checksum. Warnings: files that belong to no image, labels that are
valid nowhere, parts with fewer files than the benchmark has, and a copy that is consistent but smaller than the benchmark.
One fault is told once: where a folder is missing nothing is said about the labels that each image therefore lacks.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from multidense.data.benchmark import Benchmark, Layout, Part
from multidense.data.benchmark_look import Seen, below, problem_of, see
from multidense.data.check import SHOWN, Findings, Split, Summary
from multidense.data.checksums import read_checksums, sums_of, write_checksums
from multidense.data.look import Problem
from multidense.data.packed import Packed
from multidense.data.spread import spread
from multidense.data.subset import evenly
from multidense.progress import Reporter, silent
from multidense.task import Task
from multidense.types import MultidenseError


def check_benchmark(
    benchmark: type[Benchmark],
    root: str | Path,
    layout: str | None = None,
    tasks: Sequence[Task] | None = None,
    checksums: str | Path | None = None,
    processes: int | None = None,
    reporter: Reporter = silent,
    **options,
) -> Findings:
    """Read all images and labels of a copy through its layout, and tell what is wrong with them.

    `layout`, `tasks` and `options` are the benchmark's own. `checksums`: a file with the SHA-256 of every file, compared with
    if it is there and written if it is not (and nothing is wrong). `processes` read side by side; by default as many as there
    are cores and the images are worth (in a script, put such a call under `if __name__ == "__main__":`). A folder that is none
    of the benchmark's layouts is a MultidenseError; whatever is wrong with files is in the findings.
    """
    root = Path(root).expanduser()
    kind = benchmark.layout_of(root, layout)
    asked = kind.offered(root, benchmark.default_tasks()) if tasks is None else tuple(tasks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a reader warns of is found here too
        copy = Copy.open(benchmark, kind, root, asked, options)
        seen = _see_all(copy.readers, processes, reporter)
    problems = [*copy.missing(seen), *copy.unreadable]
    problems += [problem for each in seen.values() for one in each for problem in one.problems]
    lone = [*copy.lone_labels(seen), *copy.left_over(seen)]
    problems = list({(one.file, one.found): one for one in [*problems, *lone]}.values())
    problems += [*copy.short_parts(seen, problems), *copy.smaller(problems)]
    problems += _compared(copy, checksums, problems, processes, reporter)
    return Findings(
        f"{benchmark.name}, layout {kind.name}",
        [Split(split, len(reader), _sizes(seen[split])) for split, reader in copy.readers.items()],
        [_summary(reader, task, seen[split]) for split, reader in copy.readers.items() for task in reader.tasks],
        [one for level in ("error", "warning") for one in problems if one.level == level],
        [one.shown for each in seen.values() for one in each if one.shown],
        (),
    )


def _see_all(readers: Mapping[str, Benchmark], processes: int | None, reporter: Reporter) -> dict[str, list[Seen]]:
    """Every image of every split, in order."""
    pictured = {split: set(evenly(len(reader), SHOWN)) for split, reader in readers.items()}
    places = [(split, index, index in pictured[split]) for split, reader in readers.items() for index in range(len(reader))]
    seen: dict[str, list[Seen]] = {split: [] for split in readers}
    each = reporter.track(spread(see, dict(readers), places, processes), "reading", len(places))
    for (split, *_), one in zip(places, each, strict=True):
        seen[split].append(one)
    return seen


# The copy as a whole --------------------------------------------------------------------------------------------------


@dataclass
class Copy:
    """A copy in one layout: its root, the parts that the tasks need with the files that are there, and a reader a split."""

    kind: type[Layout]
    root: Path
    found: Mapping[Part, list[Path]]
    readers: Mapping[str, Benchmark]
    asked: frozenset[str]
    unreadable: list[Problem]
    """What kept a split from being opened, where that is not a missing part."""

    @classmethod
    def open(cls, benchmark: type[Benchmark], kind: type[Layout], root: Path, asked: Sequence[Task], options: dict) -> Copy:
        names = {task.name for task in asked}
        inside = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
        root_of_parts = next((one for one in inside if any(part.found(one) for part in kind.parts())), root)
        parts = [part for part in kind.parts() if not part.tasks or names.intersection(part.tasks)]
        found = {part: part.found(root_of_parts) for part in parts}
        gone = [part for part, files in found.items() if not files and not part.optional]
        lacking = {name for part in gone for name in part.tasks}
        readers, unreadable = {}, []
        for split in kind.lengths:
            for tasks in dict.fromkeys((tuple(asked), tuple(task for task in asked if task.name not in lacking))):
                try:
                    readers[split] = benchmark(root, split, tasks, layout=kind.name, cache=False, **options)
                    break
                except MultidenseError as error:
                    said = str(error)
            else:
                if not any(part.files.split("*")[0] in said for part in gone):
                    unreadable.append(problem_of(said, root_of_parts, split, "", "", ""))
        return cls(kind, root_of_parts, found, readers, frozenset(names), unreadable)

    @cached_property
    def whole(self) -> bool:
        """Whether every split can be opened and has as many images as the benchmark."""
        return all(split in self.readers and len(self.readers[split]) >= n for split, n in self.kind.lengths.items())

    def part_of(self, file: str) -> Part | None:
        """The part that a file (below the root) belongs to."""
        return next((part for part in self.found if _stars(part, file) is not None), None)

    def missing(self, seen: Mapping[str, Sequence[Seen]]) -> Iterator[Problem]:
        """Parts of which no file is there; not those whose tasks all splits have from another part."""
        labelled = {split: {name for one in each for name in one.annotated} for split, each in seen.items()}
        for part, files in self.found.items():
            served = self.asked.intersection(part.tasks)
            elsewhere = served and all(served <= labelled.get(split, set()) for split in self.kind.lengths)
            if not files and not part.optional and not elsewhere:
                whole = f"{part.count} file{'s' if part.count != 1 else ''}"
                said = f"{part.files} is missing: expected {whole}, found none"
                yield Problem("error", "", "", ", ".join(part.tasks), part.files, said, _sentence(part.source))

    def lone_labels(self, seen: Mapping[str, Sequence[Seen]]) -> Iterator[Problem]:
        """Files that are not there though their part has one for every image."""
        every = Counter()
        for split, each in seen.items():
            for part in {self.part_of(file) for one in each for file in one.files.values()}:
                every[part] += self.kind.lengths[split]
        for split, each in seen.items():
            for one, image in zip(each, self.readers[split].ids, strict=True):
                for task, file in one.files.items():
                    part = self.part_of(file)
                    if task in one.annotated or not task or part is None or (self.root / file).exists():
                        continue
                    if self.found[part] and part.count >= every[part]:
                        yield Problem(
                            "error", split, image, task, file, "the file is missing, others of its kind are there",
                            f"Copy it again. {_sentence(part.source)}",
                        )  # fmt: skip

    def left_over(self, seen: Mapping[str, Sequence[Seen]]) -> Iterator[Problem]:
        """Files that belong to no image of any split; where several kinds have them, it is the image that is missing."""
        claimed = {file for each in seen.values() for one in each for file in one.files.values()}
        images, owners = self._images(seen), self._owners(seen)
        extra: dict[tuple[Part | None, str], list[tuple[Part, str]]] = defaultdict(list)
        for part, files in self.found.items():
            splits = owners[part] or (set(self.kind.lengths) if self.whole else set())
            image_part = next((images[split][0] for split in splits), None)
            known = {key for split in splits for key in images[split][1]}
            if not (known or owners[part]):
                continue  # nothing says which image such a file would be of
            for file in (below(path, self.root) for path in files):
                key = _stars(part, file)
                if splits and key and file not in claimed and key[-1] not in known and "/".join(key) not in known:
                    extra[image_part, "/".join(key)].append((part, file))
        for (image_part, key), files in extra.items():
            of_image = next((file for part, file in files if part == image_part), None)
            if of_image:
                remedy = "Let it be if it came so, or delete it."
                yield Problem("warning", "", key, "", of_image, "the image belongs to no split", remedy)
            elif image_part and len(files) > 1 and image_part.files.count("*") == key.count("/") + 1:
                file = re.sub(r"\*", lambda star, parts=iter(key.split("/")): next(parts), image_part.files)
                said, remedy = "the image is missing, its labels are there", f"Copy it again. {_sentence(image_part.source)}"
                yield Problem("error", "", key, "", file, said, remedy)
            else:
                for part, file in files:
                    remedy = "Add the image, correct the file's name, or delete it."
                    said = "the file belongs to no image"
                    yield Problem("warning", "", key, ", ".join(self.asked.intersection(part.tasks)), file, said, remedy)

    def _images(self, seen: Mapping[str, Sequence[Seen]]) -> dict[str, tuple[Part | None, set[str]]]:
        """For each split the part its images are of, and what the stars of that part stand for in their names."""
        images = {}
        for split, each in seen.items():
            part = self.part_of(each[0].files[""]) if each else None
            stars = [_stars(part, one.files[""]) for one in each] if part else []
            images[split] = part, {key for found in stars if found for key in (found[-1], "/".join(found))}
        return images

    def _owners(self, seen: Mapping[str, Sequence[Seen]]) -> dict[Part, set[str]]:
        """For each part the splits that have files of it."""
        owners: dict[Part, set[str]] = {part: set() for part in self.found}
        for split, each in seen.items():
            for part in {self.part_of(file) for one in each for file in one.files.values()} - {None}:
                owners[part].add(split)
        return owners

    def short_parts(self, seen: Mapping[str, Sequence[Seen]], told: Sequence[Problem]) -> Iterator[Problem]:
        """Parts of a whole copy with fewer files than the benchmark has, where it is not known which are missing."""
        explained = {self.part_of(problem.file) for problem in told}
        for part, files in self.found.items():
            if self.whole and files and len(files) < part.count and not part.optional and part not in explained:
                said = f"{part.files}: expected {part.count} files, found {len(files)}"
                yield Problem("warning", "", "", ", ".join(part.tasks), part.files, said, _sentence(part.source))

    def smaller(self, told: Sequence[Problem]) -> Iterator[Problem]:
        """Splits with fewer images than the benchmark has, the ones known to be missing not counted, in one warning."""
        lost = Counter(self.part_of(one.file) for one in told if one.found.startswith("the image is missing"))
        counts = []
        for split, reader in self.readers.items():
            part = self.part_of(below(reader.layout.file(0), reader.root)) if len(reader) else None
            if len(reader) + lost[part] < self.kind.lengths[split]:
                counts.append((split, f"{len(reader)} of {self.kind.lengths[split]} images", part))
        if counts:
            said = f"not the whole benchmark, found {', '.join(f'{split} {count}' for split, count, _ in counts)}"
            part = counts[0][2]
            remedy = "Complete it, unless a part of it is what you want."
            remedy += f" {_sentence(part.source)}" if part else ""
            yield Problem("warning", "", "", "", part.files if part else "", said, remedy)


def _stars(part: Part, file: str) -> tuple[str, ...] | None:
    """What the stars of a part's pattern stand for in a file's name; None for a file of another part."""
    found = re.fullmatch("([^/]*)".join(map(re.escape, part.files.split("*"))), file)
    return None if found is None else found.groups()


def _sentence(source: str) -> str:
    """A part's source as a sentence."""
    return source[:1].upper() + source[1:] + ("" if source.endswith(".") else ".")


def _summary(reader: Benchmark, task: Task, seen: Sequence[Seen]) -> Summary:
    labels = [one.labels[task.name] for one in seen if task.name in one.labels]
    names = reader.class_names.get(task.name) or task.group_names
    kinds = tuple(names) if len(task.group_names) > 1 else ()
    counts = np.array([label.counts for label in labels] or [[0] * len(kinds)], np.int64).sum(axis=0)
    extents = [label.range for label in labels if label.range]
    return Summary(
        split=reader.split,
        task=task.name,
        images=len(reader),
        labelled=sum(task.name in one.annotated for one in seen),
        valid=sum(label.valid for label in labels) / max(sum(label.pixels for label in labels), 1),
        kinds=kinds,
        shares=tuple((counts / max(counts.sum(), 1)).tolist()),
        range=(min(low for low, _ in extents), max(high for _, high in extents)) if extents else None,
        measure="",
    )


def _sizes(seen: Sequence[Seen]) -> dict[str, int]:
    counts = Counter(f"{one.size[0]}×{one.size[1]}" for one in seen if one.size)
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


# Checksums ------------------------------------------------------------------------------------------------------------


def _compared(
    copy: Copy, checksums: str | Path | None, told: Sequence[Problem], processes: int | None, reporter: Reporter
) -> list[Problem]:
    """What differs from the checksums, of files of which nothing has been told; or a warning where they are not written."""
    packed = Packed.checksums(copy.root) if issubclass(copy.kind, Packed) else {}
    if checksums is None and not packed:
        return []
    path = None if checksums is None else Path(checksums).expanduser()
    names = sorted({below(file, copy.root) for files in copy.found.values() for file in files} | set(packed))
    sums = sums_of(copy.root, [name for name in names if (copy.root / name).is_file()], processes, reporter)
    known = dict(packed)
    if path is not None and path.exists():
        known |= read_checksums(path)
    elif path is not None and any(problem.level == "error" for problem in told):
        said, remedy = "checksums were not written, for the copy is damaged", "Mend it, then check again."
        return [Problem("warning", "", "", "", str(path), said, remedy)]
    elif path is not None:
        write_checksums(path, sums)
        known |= sums
    gone = [part for part, files in copy.found.items() if not files]
    silent_about = {problem.file for problem in told}
    problems = []
    for name in sorted(known.keys() | (sums.keys() if path else set())):
        part = next((part for part in gone if _stars(part, name) is not None), None)
        if name in silent_about or part in gone or sums.get(name) == known.get(name):
            continue
        if name not in known:
            said, remedy = "the file is not among the checksums", "Delete it, or write the checksums anew."
            problems.append(Problem("warning", "", "", "", name, said, remedy))
        else:
            said = "the file differs from its checksum" if name in sums else "the file is missing, it has a checksum"
            problems.append(Problem("error", "", "", "", name, said, "Copy it again."))
    return problems
