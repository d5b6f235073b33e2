"""The command `multidense data`: check, show, label, convert."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from multidense.command_words import one_of, parser_of


def data(arguments: list[str]) -> None:
    """check: find what is wrong with files; show: look at them; label: say who is labelled; convert: a faster copy"""
    from multidense.types import MultidenseError

    kinds = {"check": data_check, "show": data_show, "label": data_label, "convert": data_convert}
    if arguments and arguments[0] in kinds:
        kinds[arguments[0]](arguments[1:])
    elif not arguments or arguments[0] in ("-h", "--help"):
        print("usage: multidense data check|show|label|convert DATA …\n")
        print("DATA: a description (.yaml) of images, a recipe, a run, `rooms`, nyuv2, cityscapes or pascal-context.")
    else:
        raise MultidenseError(f"data: expected one of {', '.join(kinds)}, found {arguments[0]!r}")


def data_check(arguments: list[str]) -> None:
    """read everything once and list what is wrong; exit status 1 where anything is"""
    parser = parser_of("data check", data_check)
    parser.add_argument(
        "data", metavar="DATA", help="a description (.yaml) of your own images, a recipe that names one, a run, or a benchmark"
    )
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="only these (default: all)")
    parser.add_argument("--root", help="where the described files lie")
    parser.add_argument("--out", help="a page (.html) with the same, shares and pictures")
    parser.add_argument("--near", type=float, help="likeness of near-duplicates (default: 0.85; 1: only equal images)")
    parser.add_argument("--processes", type=int, help="how many read side by side (default: as many as there are cores)")
    parser.add_argument("--layout", help="of a benchmark: how its files lie (default: found out)")
    parser.add_argument("--checksums", help="of a benchmark: SHA-256 of every file; written if not there, else compared with")
    parser.add_argument("--classes", type=int, help="of a benchmark with several class lists: which")
    options = parser.parse_args(arguments)
    from multidense import check_page
    from multidense.types import MultidenseError

    if options.out and Path(options.out).suffix.lower() not in (".html", ".htm"):
        raise MultidenseError(f"--out should end in .html, found {options.out}")
    errors = 0
    for name, found in _checked(options):
        print(*([f"\n{name}\n"] if name else []), check_page.text(found), sep="\n")
        if options.out:
            page = Path(options.out)
            page = page.with_stem(f"{page.stem}-{name.replace(' ', '-')}") if name else page
            check_page.write_page(found, page)
            print(page)
        errors += found.errors
    if errors:
        sys.exit(1)


def _checked(options: argparse.Namespace):
    """What a check of a benchmark's copy, or of described files, finds; of joined collections of each, after its name, and
    between them.
    """
    from multidense.config import is_recipe, load_recipe
    from multidense.data.benchmarks import BENCHMARKS
    from multidense.progress import reporter
    from multidense.types import MultidenseError

    if options.data in BENCHMARKS:
        from multidense.data.benchmark_check import check_benchmark
        from multidense.data.convert import tasks_of

        if not options.root:
            raise MultidenseError(f"say with --root where the copy of {options.data} lies")
        if options.splits or options.near is not None:
            raise MultidenseError(f"--splits and --near are not for {options.data}; leave them out")
        kind = BENCHMARKS[options.data]
        wanted = tasks_of(kind, classes=options.classes) if options.classes else None
        told = reporter()
        found = check_benchmark(kind, options.root, options.layout, wanted, options.checksums, options.processes, told)
        return [("", found)]
    if options.layout or options.checksums or options.classes:
        raise MultidenseError(f"--layout, --checksums and --classes are for {', '.join(BENCHMARKS)}")
    from multidense.data.check import NEAR, check

    description, root, tasks, path = options.data, options.root, None, Path(options.data)
    near = NEAR if options.near is None else options.near
    if (path / "recipe.yaml").exists() or is_recipe(path):
        recipe = load_recipe(path if path.is_file() else path / "recipe.yaml")
        if recipe.data.collections:
            return _checked_collections(recipe, options, near)
        description, root, tasks = recipe.data.description, root or recipe.data.root, recipe.task_objects()
    if description is None or options.data == "rooms":
        raise MultidenseError(f"{options.data} renders its images and has no files to check; name a description of files")
    return [("", check(description, options.splits, tasks, root, options.processes, near, reporter()))]


def _checked_collections(recipe, options: argparse.Namespace, near: float):
    """What the check of each collection finds, by its name, and what all of them show together; that they fit together is
    looked at first.
    """
    from multidense.data.across import across
    from multidense.data.check import check
    from multidense.joining import checked_descriptions, joined_reader
    from multidense.progress import reporter

    recipe = replace(recipe, data=replace(recipe.data, root=options.root or recipe.data.root))
    joined_reader(recipe, "train")
    found = {}
    for name, what in checked_descriptions(recipe):
        found[name] = check(**what, splits=options.splits, processes=options.processes, near=near, reporter=reporter())
        yield name, found[name]
    together = across(found, near)
    yield together.name, together


def data_convert(arguments: list[str]) -> None:
    """write a packed copy of a benchmark, the fastest to train from; run again after a kill, it goes on"""
    parser = parser_of("data convert", data_convert)
    parser.add_argument("data", metavar="NAME", help="a benchmark: nyuv2, cityscapes or pascal-context")
    parser.add_argument("--root", required=True, help="where its copy lies")
    parser.add_argument("--out", required=True, help="the folder to write")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="only these (default: all)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these (default: all)")
    parser.add_argument("--classes", type=int, help="which of several class lists")
    parser.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--layout", help="how its files lie (default: found out)")
    parser.add_argument("--processes", type=int, help="how many read side by side")
    options = parser.parse_args(arguments)
    from multidense.data.benchmarks import BENCHMARKS
    from multidense.data.convert import convert, tasks_of
    from multidense.progress import reporter

    kind = BENCHMARKS[one_of(options.data, list(BENCHMARKS), "benchmark")]
    size = tuple(options.size) if options.size else None
    wanted = tasks_of(kind, options.tasks, options.classes)
    told = reporter()
    print(convert(kind, options.root, options.out, options.splits, wanted, size, options.layout, options.processes, told))


def data_label(arguments: list[str]) -> None:
    """write a label assignment: a readable CSV that says which images are labelled for which tasks"""
    parser = parser_of("data label", data_label)
    _add_data(parser)
    parser.add_argument("--setting", default="full", choices=("full", "one-label", "random-labels", "few-shot"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", help="of few-shot: the task that keeps few labels")
    parser.add_argument("--k", type=int, default=10, help="of few-shot: how many (default: 10)")
    parser.add_argument("--out", required=True, help="the CSV")
    options = parser.parse_args(arguments)
    if options.setting == "few-shot" and not options.task:
        parser.error("few-shot needs --task")
    from multidense.data import partial

    reader = _reader(options)
    chosen = partial.by_setting(reader, options.setting, options.seed, options.task, options.k)
    chosen.assignment.to_csv(Path(options.out))
    counts = ", ".join(f"{count} {name}" for name, count in chosen.assignment.counts().items())
    print(f"{options.out}: {len(reader)} images; labelled: {counts}; hash {chosen.assignment.hash}")


def data_show(arguments: list[str]) -> None:
    """a picture of some images with all their labels"""
    parser = parser_of("data show", data_show)
    _add_data(parser)
    parser.add_argument("--count", type=int, default=8, help="how many images (default: 8)")
    parser.add_argument("--out", required=True, help="the picture (.png)")
    options = parser.parse_args(arguments)
    from multidense.data.joined import spread
    from multidense.evaluation import contact_sheet
    from multidense.types import MultidenseError

    if options.count < 1:
        raise MultidenseError(f"--count must be at least 1, found {options.count}")
    if Path(options.out).suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise MultidenseError(f"--out should end in .png, .jpg or .webp, found {options.out}")
    reader = _reader(options)
    contact_sheet(reader, spread(reader, options.count), Path(options.out))
    print(f"{options.out}: image, {', '.join(task.name for task in reader.tasks)}")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="a description (.yaml) of your own images, a recipe's file, or `rooms`")
    parser.add_argument("--split", default="train")
    parser.add_argument("--root", help="where the described files lie")
    parser.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"))


def _reader(options: argparse.Namespace):
    """The data that a command line names."""
    from multidense.config import is_recipe, load_recipe
    from multidense.data import Folder, Rooms
    from multidense.data.benchmarks import BENCHMARKS
    from multidense.run import Run
    from multidense.sources import reader_of
    from multidense.tasks import Depth, Edges, HumanParts, Normals, Saliency, SemanticSegmentation
    from multidense.types import MultidenseError

    size = tuple(options.size) if options.size else None
    if options.data == "rooms":
        tasks = [SemanticSegmentation(13), HumanParts(7), Depth(), Normals(), Edges(), Saliency()]
        return Rooms(tasks, options.split, size=size or (96, 128), length=200)
    if options.data in BENCHMARKS:
        if not options.root:
            raise MultidenseError(f"say with --root where the copy of {options.data} lies")
        return BENCHMARKS[options.data](options.root, options.split, size=size)
    if (Path(options.data) / "recipe.yaml").exists():
        if size or options.root:
            raise MultidenseError("a run has its own size and root: leave out --size and --root, or name its recipe.yaml")
        work = Run.open(Path(options.data))
        return work.everything if options.split == "train" else work.val
    if is_recipe(Path(options.data)):
        recipe = load_recipe(Path(options.data))
        changed = {"root": options.root or recipe.data.root, "size": size or recipe.data.size}
        return reader_of(replace(recipe, data=replace(recipe.data, **changed)), options.split)
    return Folder(options.data, options.split, size=size, root=options.root)
