"""Convert: write a packed copy (`multidense.data.packed`) of a benchmark, image by image, from whichever layout there is.

Killed at any moment, the same call goes on where it stood, and the result has the same bytes. Until all is there the folder
holds `converting.json` (what is being made) and, for each split, `*.part` files and a journal of the images that are in them.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np

from multidense.data.benchmark import Benchmark, Layout
from multidense.data.checksums import sums_of
from multidense.data.packed import ALIGNED, FORMAT, FORMS, MANIFEST, NUMBER, Packed, stored_image, stored_label
from multidense.data.spread import spread
from multidense.files import plain, read_json, write_json, written_aside
from multidense.progress import Reporter, silent
from multidense.task import Task
from multidense.types import MultidenseError
from multidense.version import __version__

BEGUN = "converting.json"
JOURNAL = "journal.jsonl"
HEADER = 128
"""Bytes before the first array: what `numpy.save` writes before any one-dimensional array."""

Stored = tuple[int, int, int, bytes] | None
"""One array: height, width, number of its form, and its bytes; None where an image has no such label."""


def convert(
    benchmark: type[Benchmark],
    root: str | Path,
    out: str | Path,
    splits: Sequence[str] | None = None,
    tasks: Sequence[Task] | None = None,
    size: tuple[int, int] | None = None,
    layout: str | None = None,
    processes: int | None = None,
    reporter: Reporter = silent,
    **options,
) -> Path:
    """Write a packed copy of `splits` (default: all) with the labels of `tasks` (default: all) to the folder `out`.

    `size`, `layout` and `options` are the benchmark's own. Images are read in `processes` side by side. A copy that is there
    and was made by the same call is left as it is; a folder that holds anything else is a MultidenseError.
    """
    out, kind = Path(out).expanduser(), benchmark.layout_of(Path(root).expanduser(), layout)
    if issubclass(kind, Packed):
        raise MultidenseError(f"{root} is a packed copy already; convert the copy that it was made from")
    readers = {
        split: benchmark(root, split, tasks, size, layout=kind.name, cache=False, **options)
        for split in dict.fromkeys(splits or kind.lengths)
    }
    wanted = _wanted(readers, options)
    with _held(out):
        _claim(out, wanted)
        _clear(out)
        if (out / MANIFEST).exists():
            (out / BEGUN).unlink(missing_ok=True)
            return out / MANIFEST
        for split, reader in readers.items():
            _convert_split(reader, out / split, processes, reporter)
        names = [
            f"{split}/{name}"
            for split, reader in readers.items()
            for name in ("ids.json", *(f"{item}{end}" for item in _items(reader) for end in (".npy", ".index.npy")))
        ]
        sums = sums_of(out, names, reporter=reporter)
        files = {name: {"bytes": (out / name).stat().st_size, "sha256": sums[name]} for name in names}
        forms = {form.name: f"{form.dtype}: {form.meaning}" for form in FORMS}
        made_by = {"multidense": __version__, "numpy": np.__version__}
        write_json(out / MANIFEST, wanted | {"forms": forms, "made_by": made_by, "files": files})
        (out / BEGUN).unlink()
    return out / MANIFEST


def tasks_of(benchmark: type[Benchmark], names: Sequence[str] | None = None, classes: int | None = None) -> tuple[Task, ...]:
    """A benchmark's tasks, or those of these `names`; with `classes`, tasks that have a list of so many use that one."""
    known = {task.name: task for task in benchmark.default_tasks()}
    for name in names or ():
        if name not in known:
            raise MultidenseError(f"{benchmark.name}: expected tasks out of {', '.join(known)}, found '{name}'")
    tasks = [known[name] for name in dict.fromkeys(names or known)]
    if classes is None:
        return tuple(tasks)
    changed, refusals = [], []
    for task in tasks:
        try:
            other = replace(task, classes=classes, names=()) if hasattr(task, "classes") else task
            changed.append(replace(other, names=benchmark.names_of(other)) if hasattr(task, "classes") else task)
        except (MultidenseError, ValueError) as error:
            changed.append(task)
            refusals.append(str(error))
    if len(refusals) == sum(hasattr(task, "classes") for task in tasks):
        said = refusals[0] if refusals else "none of the tasks has classes; leave --classes out"
        raise MultidenseError(f"{benchmark.name}, {classes} classes: {said}")
    return tuple(changed)


def _wanted(readers: Mapping[str, Benchmark], options: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest says of what is made, known before anything is read."""
    first = next(iter(readers.values()))
    splits = {
        split: {
            "images": len(reader),
            "whole": len(reader) == reader.layout.lengths[split],
            "indexed": reader.layout.indexed,
            "notes": {name: note for name, note in reader.layout.notes.items() if name in _items(reader)},
        }
        for split, reader in readers.items()
    }
    wanted = {
        "format": FORMAT,
        "benchmark": first.name,
        "layout": first.layout.name,
        "options": _options(first.layout, options),
        "size": first.size,
        "tasks": {task.name: {"classes": len(task.group_names)} for task in first.tasks},
        "splits": splits,
    }
    try:
        return json.loads(json.dumps(plain(wanted), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise MultidenseError(f"options should be plain numbers, texts and lists, found {dict(options)}") from error


def _options(layout: Layout, passed: Mapping[str, Any]) -> dict[str, Any]:
    """What a layout's options are: as it says itself, or as they were passed, or their defaults."""
    known = [one for one in signature(type(layout)).parameters.values() if one.default is not Parameter.empty]
    return {one.name: getattr(layout, one.name, passed.get(one.name, one.default)) for one in known}


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """The folder, made if need be, and held against another process that would write to it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise MultidenseError(f"cannot write to the folder {out}: {error.strerror}; choose another") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise MultidenseError(f"another process is converting to {out}; wait for it, or choose another folder") from error
    finally:
        os.close(lock)


def _claim(out: Path, wanted: Mapping[str, Any]) -> None:
    """See that the folder is empty, or holds what was begun or made with the same settings."""
    there = next((out / name for name in (MANIFEST, BEGUN) if (out / name).exists()), None)
    if there is None:
        if found := sorted(path.name for path in out.iterdir() if not path.name.endswith(f".tmp{Path(BEGUN).suffix}")):
            raise MultidenseError(f"{out} should be empty or not there, found {', '.join(found[:4])}; choose another folder")
        write_json(out / BEGUN, wanted)
        return
    made = read_json(there)
    if different := [key for key, value in wanted.items() if made.get(key) != value]:
        told = "; ".join(f"{key} {_short(made.get(key))} there, {_short(wanted[key])} here" for key in different)
        raise MultidenseError(f"{there} was written with other settings ({told}); choose another folder, or delete this one")


def _clear(folder: Path) -> None:
    """Take away what a kill left half written."""
    for torn in folder.glob(".*.tmp*"):
        torn.unlink()


def _short(value: Any) -> str:
    said = json.dumps(value, ensure_ascii=False)
    return said if len(said) <= 120 else f"{said[:117]}…"


def _items(reader: Benchmark) -> tuple[str, ...]:
    return ("image", *(task.name for task in reader.tasks))


# One split ------------------------------------------------------------------------------------------------------------


def _convert_split(reader: Benchmark, folder: Path, processes: int | None, reporter: Reporter) -> None:
    """Write the files of a split, from wherever the folder stands."""
    folder.mkdir(exist_ok=True)
    _clear(folder)
    ids, items = {"ids": list(reader.ids)}, _items(reader)
    if not (folder / "ids.json").exists():
        write_json(folder / "ids.json", ids)
    elif read_json(folder / "ids.json") != ids:
        raise MultidenseError(f"{folder} was begun with other images; choose another folder, or delete this one")
    if all((folder / f"{item}.index.npy").exists() for item in items):
        (folder / JOURNAL).unlink(missing_ok=True)
        return
    done = _rows(folder, items)
    with ExitStack() as stack:
        try:
            if len(done) < len(reader) or not done:
                _append(reader, folder, items, done, processes, reporter, stack)
        except OSError as error:
            raise MultidenseError(
                f"cannot write to {folder}: {error.strerror or error}. Free some space, then run the same command again; "
                "it goes on from here."
            ) from error
    for place, item in enumerate(items):
        _finish(folder, item, np.array([row[place] for row in done], np.int64).reshape(-1, 4))
    (folder / JOURNAL).unlink()


def _append(
    reader: Benchmark,
    folder: Path,
    items: Sequence[str],
    done: list[list[list[int]]],
    processes: int | None,
    reporter: Reporter,
    stack: ExitStack,
) -> None:
    """Write the arrays of all images that are not `done`, which then are."""
    files = [stack.enter_context(_opened(folder / f"{item}.part", _end(done, place))) for place, item in enumerate(items)]
    journal = stack.enter_context(_opened(folder / JOURNAL, sum(len(_line(row)) for row in done)))
    advance = stack.enter_context(reporter.work(f"{reader.name} {reader.split}", len(reader), len(done)))
    for arrays in spread(_read, reader, range(len(done), len(reader)), processes):
        row = []
        for place, stored in enumerate(arrays):
            if stored is None:
                row.append([-1, 0, 0, -1])
                continue
            height, width, form, content = stored
            row.append([files[place].tell() - HEADER, height, width, form])
            _write(files[place], content + bytes(-len(content) % ALIGNED))
        _write(journal, _line(row))
        done.append(row)
        advance()
    for file in (*files, journal):
        os.fsync(file.fileno())


def _read(reader: Benchmark, index: int) -> list[Stored]:
    """One image and its labels as they are stored."""
    found: list[Stored] = [_packed(*stored_image(reader.image(index)))]
    annotated = reader.annotated(index)
    for task in reader.tasks:
        try:
            found.append(_packed(*stored_label(*reader.label(index, task.name))) if task.name in annotated else None)
        except ValueError as error:
            raise MultidenseError(f"{reader.layout.file(index, task.name)}: {error}") from error
    return found


def _packed(form: str, array: np.ndarray) -> Stored:
    return array.shape[0], array.shape[1], NUMBER[form], np.ascontiguousarray(array).tobytes()


def _line(row: Sequence[Sequence[int]]) -> bytes:
    return json.dumps(row, separators=(",", ":")).encode() + b"\n"


def _rows(folder: Path, items: Sequence[str]) -> list[list[list[int]]]:
    """The images of the journal of which everything is on the disk: for each item where its array begins, its size and form."""
    if not (folder / JOURNAL).exists():
        return []
    rows = [json.loads(line) for line in (folder / JOURNAL).read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    for place, item in enumerate(items):
        part = folder / f"{item}.part"
        held = part.stat().st_size if part.exists() else 0
        while rows and not (folder / f"{item}.npy").exists() and _end(rows, place) > held:
            rows.pop()
    return rows


def _end(rows: Sequence[Sequence[Sequence[int]]], place: int) -> int:
    """Where the next array of an item goes in its file."""
    last = next((row[place] for row in reversed(rows) if row[place][0] >= 0), None)
    if last is None:
        return HEADER
    start, height, width, form = last
    return HEADER + start + -(-FORMS[form].bytes(height, width) // ALIGNED) * ALIGNED


@contextmanager
def _opened(path: Path, length: int) -> Iterator[Any]:
    """A file to append to, cut to a length (what is missing is zero), of which nothing waits in this process."""
    with open(path, "r+b" if path.exists() else "w+b", buffering=0) as file:
        file.truncate(length)
        file.seek(length)
        yield file


def _write(file: Any, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def _finish(folder: Path, item: str, index: np.ndarray) -> None:
    """Give the arrays of an item their header and name, then write where each begins; what is done already stays."""
    part = folder / f"{item}.part"
    if part.exists():
        with open(part, "r+b") as file:
            length = part.stat().st_size - HEADER
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (length,)})
            if file.tell() != HEADER:
                raise RuntimeError(f"this version of NumPy begins its files with {file.tell()} bytes, not {HEADER}")
        os.replace(part, folder / f"{item}.npy")
    with written_aside(folder / f"{item}.index.npy") as beside:
        np.save(beside, index, allow_pickle=False)
