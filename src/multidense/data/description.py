"""Descriptions: the YAML file that says what a data set is, read with a message for every mistake in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import yaml

from multidense.types import MultidenseError


@dataclass(frozen=True)
class Section:
    """One mapping of a description; `where` says which file and keys, for messages."""

    data: Mapping[Any, Any]
    where: str

    def refuse(self, problem: str) -> NoReturn:
        raise MultidenseError(f"{self.where}: {problem}")

    def wrong(self, key: str, expected: str, remedy: str = "") -> NoReturn:
        found = f"found {self.data[key]!r}" if key in self.data else "found no such key"
        self.refuse(f"`{key}` should be {expected}, {found}.{' ' if remedy else ''}{remedy}")

    def section(self, key: str, allowed: Collection[str] | None = None) -> Section:
        """The mapping under `key`; keys beyond those allowed are refused, with the nearest one that is."""
        if not isinstance(self.data.get(key), Mapping):
            self.wrong(key, "a mapping (`key: value` lines below it)")
        inner = Section(self.data[key], f"{self.where}, {key}")
        return inner if allowed is None else inner.only(allowed)

    def only(self, allowed: Collection[str]) -> Section:
        for key in self.data:
            if key not in allowed:
                near = "".join(f" Is it `{other}`?" for other in get_close_matches(str(key), allowed, 1, 0.5))
                self.refuse(f"expected only {', '.join(allowed)}, found `{key}`.{near}")
        return self

    def text(self, key: str, default: str) -> str:
        if not isinstance(value := self.data.get(key, default), str):
            self.wrong(key, "text", "Quote it.")
        return value

    def flag(self, key: str) -> bool:
        if not isinstance(value := self.data.get(key, False), bool):
            self.wrong(key, "true or false")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        if not is_number(value := self.data.get(key, default)):
            self.wrong(key, "a number")
        return float(value)

    def whole(self, key: str, default: int) -> int:
        if not is_whole(value := self.data.get(key, default)) or value < 0:
            self.wrong(key, "a whole number from 0 on")
        return value

    def pattern(self, key: str, root: Path) -> str:
        """A file name relative to `root` with {id} in it, whose folder is there."""
        value = self.data.get(key)
        if not isinstance(value, str) or "{id}" not in value:
            self.wrong(key, "a file name with {id} in it, such as labels/{id}.png", "Quote it if it begins with {id}.")
        folder = root / value[: value.index("{id}")].rpartition("/")[0]
        if not folder.is_dir():
            self.wrong(key, f"in a folder that is there, but {folder} is not", "Correct it, or `root`.")
        return value


@dataclass(frozen=True)
class Interval:
    """Numbers between `low` and `high`; the ends belong to it where closed."""

    low: float
    high: float
    closed_low: bool
    closed_high: bool

    @classmethod
    def read(cls, section: Section, key: str) -> Interval | None:
        """ ">= a", "> a", "(a, b)", "[a, b)", … or the list [a, b], which is closed."""
        value = section.data.get(key)
        if value is None:
            return None
        text = str(value)
        if bound := re.fullmatch(r"(>=|>)\s*([\d.eE+-]+)", text.strip()):
            ends = [bound[2], "inf"]
            closed = (bound[1] == ">=", True)
        elif both := re.fullmatch(r"([\[(])([^,]+),([^,]+)([\])])", text.strip()):
            ends, closed = [both[2], both[3]], (both[1] == "[", both[4] == "]")
        else:
            ends, closed = ["nothing"], (True, True)
        try:
            low, high = map(float, ends)
            if not low <= high:
                raise ValueError
        except ValueError:
            section.wrong(key, 'a bound such as ">= 0.3" or an interval such as "(0, 0.3)", of shares in 0 … 1', "Quote it.")
        return cls(low, high, *closed)

    def holds(self, values: np.ndarray) -> np.ndarray:
        """Which of the values lie inside."""
        above = values >= self.low if self.closed_low else values > self.low
        return above & (values <= self.high if self.closed_high else values < self.high)


# The file ------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key `{key}` stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_description(description: str | Path | Mapping[str, Any]) -> tuple[Section, Path, str]:
    """The description's top, the folder its `root` is relative to, and a name if it has none."""
    keys = ("name", "source", "licence", "root", "images", "splits", "tasks")
    if isinstance(description, Mapping):
        return Section(description, "the description").only(keys), Path(), "folder"
    path = Path(description)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise MultidenseError(f"{path} cannot be read as a description: {error}") from error
    except yaml.YAMLError as error:
        hint = "Quote text that begins with one of > [ { or holds a colon and a space."
        raise MultidenseError(f"{path} cannot be read as YAML: {error}. {hint}") from error
    if not isinstance(data, dict):
        raise MultidenseError(f"{path}: expected a mapping with the keys {', '.join(keys)}, found {type(data).__name__}")
    return Section(data, str(path)).only(keys), path.parent, path.stem


# Splits ---------------------------------------------------------------------------------------------------------------


def read_splits(top: Section) -> Section:
    """What the description says of its splits; without a word on them, all images are `train`."""
    splits = top.section("splits") if "splits" in top.data else Section({"train": "rest"}, f"{top.where}, splits")
    if not all(isinstance(name, str) for name in splits.data):
        splits.refuse("the names of splits should be text. Quote them.")
    return splits


def read_ids(
    top: Section, split: str, root: Path, images: str, tell: Callable[[str, str, list[str]], None] | None = None
) -> list[str]:
    """The ids of one split, each with an image.

    `tell(split, message, ids)` hears of ids that stand there twice or lack their image; what is left of them is then returned,
    instead of all being refused.
    """
    splits = read_splits(top)
    if split not in splits.data:
        splits.refuse(f"expected one of {', '.join(map(str, splits.data))}, found '{split}'")

    def complain(name: str, message: str, ids: list[str]) -> None:
        if tell is None:
            splits.refuse(message)
        tell(name, message, ids)

    needed = splits.data if tell is None or _is_rule(splits.data[split]) else [split]
    listed = {name: _listed(splits, name, root, complain) for name in needed if not _is_rule(splits.data[name])}
    if split in listed:
        missing = [one for one in listed[split] if not (root / images.replace("{id}", one)).is_file()]
        if missing:
            some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            remedy = "Take them out or add the images."
            complain(split, f"'{split}' lists ids without an image {root / images}: {some}. {remedy}", missing)
        lacking = set(missing)
        ids = [one for one in listed[split] if one not in lacking]
    else:
        ids = _ruled(splits, split, ids_of_files(root, images), {one for found in listed.values() for one in found})
    if not ids:
        splits.refuse(f"'{split}' has no image at all. Look at `images` ({root / images}) and at the split.")
    return ids


def _is_rule(value: object) -> bool:
    return value == "rest" or isinstance(value, Mapping)


def _listed(splits: Section, name: str, root: Path, complain: Callable[[str, str, list[str]], None]) -> list[str]:
    """The ids of a split that is a list, or a text file with one id a line (blank lines and # comments do not count)."""
    ids = splits.data[name]
    if isinstance(ids, str):
        try:
            lines = (root / ids).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            splits.wrong(name, f"a text file of ids, but {root / ids} cannot be read ({error})", "Correct it, or `root`.")
        ids = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        splits.wrong(name, "a text file, a list of ids, `rest` or {fraction: …, seed: …}", "Quote ids made of digits.")
    for one, times in Counter(ids).items():
        if times > 1:
            complain(name, f"'{name}' lists '{one}' twice. Leave one of them out.", [one])
    return list(dict.fromkeys(ids))


def _ruled(splits: Section, split: str, every: list[str], taken: set[str]) -> list[str]:
    """The ids of a split given as a fraction, each drawn from what those before it left, or as the rest of all."""
    left = [one for one in every if one not in taken]
    for name, rule in splits.data.items():
        if isinstance(rule, Mapping):
            section = splits.section(name, ("fraction", "seed"))
            number = round(section.number("fraction") * len(every))
            if not 0 < number <= len(left):
                section.wrong("fraction", f"a share that takes 1 … {len(left)} of {len(every)} images", f"It takes {number}.")
            chosen = set(np.random.default_rng(section.whole("seed", 0)).permutation(left)[:number].tolist())
            if name == split:
                return [one for one in left if one in chosen]
            left = [one for one in left if one not in chosen]
    return left


def ids_of_files(root: Path, pattern: str) -> list[str]:
    """The ids of all files whose names fit the pattern, sorted."""
    start, *others = (re.escape(part) for part in pattern.split("{id}"))
    fits = re.compile(start + "(?P<id>.+?)" + "(?P=id)".join(others))
    folder = root / pattern[: pattern.index("{id}")].rpartition("/")[0]
    names = (path.relative_to(root).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(found["id"] for name in names if (found := fits.fullmatch(name)))


# Numbers --------------------------------------------------------------------------------------------------------------


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
