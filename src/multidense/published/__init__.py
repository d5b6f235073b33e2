"""The published numbers: Tables 1 to 9 of the HiTTs paper (arXiv 2411.18823), and what a recipe says of the rows it makes.

>>> from multidense import published
>>> published.table(1).rows["one-label"]["HiTTs w. Lp+Lf"]["semseg.mIoU"]
35.81
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from multidense.suggest import nearest
from multidense.types import MultidenseError

SOURCE = "arXiv 2411.18823"
SINGLE = "STL"
"""The method of the single-task baseline: its row is what `delta_mtl` compares with."""
GAIN = "delta_mtl"

Rows = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Setting, then method, then column to a value."""


@dataclass(frozen=True)
class Conditions:
    """How the numbers of a data set came about: `epochs` of training, `size` (height, width) of the images (None: images keep
    theirs), how many training images there are, and in which `layout` of a reader the files are those that were used.
    """

    epochs: int
    size: tuple[int, int] | None
    training_images: int
    layout: str


CONDITIONS = {
    "nyuv2": Conditions(400, (288, 384), 795, "preprocessed"),
    "cityscapes": Conditions(400, (128, 256), 2975, "preprocessed"),  # the paper restates no schedule: NYUv2's
    "pascal-context": Conditions(24, None, 4998, "PASCAL_MT"),  # 20,000 steps of 6 images
}

TITLES = {
    1: "NYUv2 with part of the labels",
    2: "NYUv2 with all labels",
    3: "Cityscapes with one label an image",
    4: "PASCAL-Context with part of the labels",
    5: "NYUv2 with one label an image: what each part of the method is worth",
    6: "NYUv2 with one label an image: scores on the training images",
    7: "NYUv2 with ten labels of one task and all of the others",
    8: "NYUv2: what the networks cost",
    9: "PASCAL-Context with part of the labels: one scale or several",
}


@dataclass(frozen=True)
class Table:
    """One table of the paper.

    `rows` maps setting, method and column to values; a column is `task.score`, `delta_mtl`, or a cost (`params_M`, `flops_G`,
    `train_memory_G`). `columns` stand in the paper's order, `decimals` says with how many the paper prints each.
    """

    number: int
    title: str
    dataset: str
    rows: Rows
    columns: tuple[str, ...]
    decimals: Mapping[str, int]

    @property
    def settings(self) -> tuple[str, ...]:
        """Its label settings, in the paper's order."""
        return tuple(self.rows)

    @property
    def scores(self) -> tuple[str, ...]:
        """The columns that `delta_mtl` is taken over."""
        return tuple(name for name in self.columns if name != GAIN)

    @property
    def metric(self) -> bool:
        """Whether its depth is in metres; Cityscapes' is inverse depth, in units of its files."""
        return self.dataset != "cityscapes"

    @property
    def conditions(self) -> Conditions:
        """How its numbers came about."""
        return CONDITIONS[self.dataset]

    def settings_of(self, name: str) -> tuple[str, ...]:
        """The setting of that name, or those that begin with it: "few-shot", or "one-label" for both parts of Table 6."""
        if name in self.rows:
            return (name,)
        return tuple(setting for setting in self.rows if re.match(rf"{re.escape(name)}[ ,]", setting))


@cache
def tables() -> Mapping[int, Table]:
    """All tables by number."""
    with (files(__name__) / "hitts_tables.csv").open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    made = {}
    for number in dict.fromkeys(int(cell["table"]) for cell in cells):
        mine = [cell for cell in cells if int(cell["table"]) == number]
        rows: dict[str, dict[str, dict[str, float]]] = {}
        decimals: dict[str, int] = {}
        for cell in mine:
            row = rows.setdefault(cell["setting"], {}).setdefault(cell["method"], {})
            row[cell["metric"]] = float(cell["value"])
            digits = len(cell["value"].partition(".")[2])
            decimals[cell["metric"]] = max(digits, decimals.get(cell["metric"], 0))
        columns = tuple(sorted(decimals, key=lambda name: name == GAIN))
        made[number] = Table(number, TITLES[number], mine[0]["dataset"], rows, columns, decimals)
    return made


def table(number: int) -> Table:
    """The table of that number."""
    if number not in tables():
        raise MultidenseError(f"there is no published table {number}; there are {', '.join(map(str, tables()))}")
    return tables()[number]


@dataclass(frozen=True)
class Published:
    """Which published rows the networks of a recipe are to reach.

    A network that makes a row also makes it wherever else the paper shows the same method of the same data set and setting:
    `multidense table 5` finds the baselines that are said to belong to Table 1, Table 6 their scores on training images, and
    Table 8 their cost.

    Args:
        table: number of the table in the HiTTs paper.
        dataset: the table's data set, as a reader is called.
        setting: the label setting as in that table, or what it begins with ("few-shot").
        rows: by network the method that it makes the row of, as in that table; or a list of [table, setting, method] where it
            makes several. The networks of one method make its row together: "STL" is one network for each task.
        epochs: how long the paper trained, where that is not what it says for this data set.
    """

    table: int
    dataset: str
    setting: str
    rows: dict[str, str | list[list[int | str]]]
    epochs: int | None = None

    def __post_init__(self):
        if table(self.table).dataset != self.dataset:
            raise MultidenseError(
                f"published.dataset: table {self.table} is of {table(self.table).dataset}, found {self.dataset!r}: change one"
            )
        _known("published.setting", self.table, self.setting)
        for network in self.rows:
            if not self.places(network):
                raise MultidenseError(f"published.rows.{network}: expected a method, found an empty list")
            for place in self.places(network):
                _known(f"published.rows.{network}", *place)
        if self.epochs is not None and self.epochs < 1:
            raise MultidenseError(f"published.epochs must be at least 1, found {self.epochs}")

    def check_networks(self, networks: Iterable[str]) -> None:
        """Refuse rows of networks that there are not."""
        known = list(networks)
        for network in self.rows:
            if network not in known:
                raise MultidenseError(
                    f"published.rows: there is no network {network!r}{nearest(network, known)}; there are {', '.join(known)}"
                )

    def places(self, network: str) -> list[tuple[int, str, str]]:
        """The (table, setting, method) that a network is said to make."""
        said = self.rows[network]
        if isinstance(said, str):
            return [(self.table, self.setting, said)]
        try:
            return [(int(number), str(setting), str(method)) for number, setting, method in said]
        except (TypeError, ValueError) as error:
            raise MultidenseError(
                f"published.rows.{network}: expected a method or a list of [table, setting, method], found {said!r}"
            ) from error

    def serves(self, number: int) -> list[tuple[str, str, str]]:
        """The (setting, method, network) of a table that this recipe makes."""
        wanted, found = table(number), []
        for network in self.rows:
            for other, setting, method in self.places(network):
                if table(other).dataset != wanted.dataset:
                    continue
                for exact in table(other).settings_of(setting):
                    costs = [name for name in wanted.settings if name.startswith("cost")]
                    alike = [exact] if other == number else [*wanted.settings_of(exact), *costs]
                    found += [(name, method, network) for name in alike if method in wanted.rows[name]]
        return list(dict.fromkeys(found))


def _known(key: str, number: int, setting: str, method: str | None = None) -> None:
    """Refuse a table, setting or method that is not published."""
    known = table(number)
    settings = known.settings_of(setting)
    if not settings:
        raise MultidenseError(
            f"{key}: table {number} has no setting {setting!r}{nearest(setting, known.settings)}; "
            f"it has {'; '.join(known.settings)}"
        )
    methods = list(dict.fromkeys(name for each in settings for name in known.rows[each]))
    if method is not None and method not in methods:
        raise MultidenseError(
            f"{key}: table {number}, {setting}, has no method {method!r}{nearest(method, methods)}; it has {', '.join(methods)}"
        )
