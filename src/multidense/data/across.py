"""Across: images that several checked collections share, for they are joined to train one network.

An image that one collection trains on and another validates on makes scores too good. One that two collections train on counts
as two images, each labelled for its part; described once, with the labels of both, it says more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations, product

from multidense.data.check import Findings, most_alike
from multidense.data.duplicates import NEAR, near_pairs
from multidense.data.look import Problem

LEAK = "Take it out of one of them, by `without` in the recipe: what one collection trains on, no other must validate on."
TWICE = "It counts as two images; described once, with the labels of both, it teaches more."


def across(found: Mapping[str, Findings], near: float = NEAR) -> Findings:
    """What is wrong with collections together, from what was found in each: an image trained on in one and validated on in
    another is an error, one that two have in splits of the same name a warning. Splits are named `collection split`.
    """
    problems: dict[str, list[Problem]] = {"error": [], "warning": []}
    places: dict[str, list] = {"error": [], "warning": []}
    for (one, ours), (other, theirs) in combinations(found.items(), 2):
        for (split, first), (beside, second) in product(ours.seen.items(), theirs.seen.items()):
            level, remedy = ("warning", TWICE) if split == beside else ("error", LEAK)
            for i, j, alike in near_pairs(first.sketches, second.sketches, near):
                file, twin = f"{one}/{first.file(i)}", f"{other}/{second.file(j)}"
                said = f"two collections have nearly the same image: {file} in {split}, {twin} in {beside}"
                where, likeness = f"{one} {split}, {other} {beside}", f" (likeness {alike:.3f})"
                problems[level].append(Problem(level, where, first.reader.ids[i], "", file, said + likeness, remedy))
                places[level].append((alike, (first, i, f"{one} {split}"), (second, j, f"{other} {beside}")))
    return Findings(
        "between the collections",
        [replace(split, name=f"{one} {split.name}") for one, findings in found.items() for split in findings.splits],
        summaries=(),
        problems=[*problems["error"], *problems["warning"]],
        samples=(),
        pairs=[*most_alike(places["error"]), *most_alike(places["warning"])],
    )
