"""The command `multidense compare`: its options, the catalogue as a list, the table that ends it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from multidense import comparison_table
from multidense.comparison import catalogue, compare
from multidense.config import load_recipe, recipe_path
from multidense.types import MultidenseError

ABOUT = """\
A method is a network of the recipe, or one of `multidense compare --list`. The teachers of a method are trained and told with
it. A seed is of weights, order, augmentation and label assignment. What is done is skipped: the same command goes on where it
was stopped, also with more methods or seeds. Any setting of the recipe can be given, for instance --training.epochs 20.

OUT/seed-N is a run for each seed; OUT/compare.html, .md, .svg and .json tell of all of them."""


def main(arguments: Sequence[str]) -> None:
    """train several methods with several seeds: one table of scores, gains and costs"""
    parser = _parser()
    options, overrides = parser.parse_known_args(arguments)
    if options.list:
        print("\n".join(listed()))
        return
    if options.recipe is None:
        parser.print_help()
        sys.exit(2)
    seeds = _numbers("--seeds", options.seeds)
    overrides += ["--data.root", options.root] if options.root else []
    given = [override.partition("=")[0] for override in overrides]
    for option in ("--seed", "--labels.seed"):
        if option in given:
            raise MultidenseError(f"{option} is set by --seeds, for each run its own: leave it out")
    recipe = load_recipe(recipe_path(options.recipe), overrides)
    out = Path(options.out or f"runs/{recipe.name}-compare")
    told = compare(
        recipe,
        _words(options.methods),
        seeds,
        out,
        processes=options.processes,
        baseline=options.baseline,
        train=not options.tell,
    )
    print(comparison_table.markdown(told), end="")
    print(f"\nPage: {out / 'compare.html'}")
    if told["failed"]:
        sys.exit(1)


def listed() -> list[str]:
    """The catalogue, a line for each method."""
    width = max(map(len, catalogue())) + 2
    return [
        f"{name:<{width}}{method.about}" + (f" · needs {method.needs}" if method.needs else "")
        for name, method in catalogue().items()
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="multidense compare",
        description="Train several methods with several seeds: one table of scores, gains and costs.",
        epilog=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a recipe's name (see `multidense recipes`) or file")
    parser.add_argument("--methods", metavar="A,B,…", default="", help="what is compared (default: the recipe's networks)")
    parser.add_argument("--seeds", metavar="N,M,…", default="0,1,2", help="default: 0,1,2")
    parser.add_argument("--out", metavar="DIR", help="folder of the runs and of what is told (default: runs/NAME-compare)")
    parser.add_argument("--root", metavar="DIR", help="where the data lies; short for --data.root")
    parser.add_argument(
        "--processes",
        metavar="N",
        type=int,
        help="how many networks train side by side (default: one on each GPU; on the CPU as the recipe says, or as the cores "
        "allow; 0: one after the other in this process)",
    )
    parser.add_argument("--baseline", metavar="METHOD", help="what differences are to (default: the recipe's baseline)")
    parser.add_argument("--tell", action="store_true", help="train nothing, tell what is there")
    parser.add_argument("--list", action="store_true", help="the methods that there are by name")
    return parser


def _words(given: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in given.split(",") if word.strip()))


def _numbers(option: str, given: str) -> list[int]:
    words = _words(given)
    if not words or not all(word.isdecimal() for word in words):
        raise MultidenseError(f"{option} should be whole numbers such as 0,1,2, found {given!r}")
    return [int(word) for word in words]
