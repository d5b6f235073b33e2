"""What run folders hold for the rows of a published table: networks put together to rows, over tasks, folders and seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from multidense.files import read_json
from multidense.published import Published, Table
from multidense.results import Results
from multidense.types import MultidenseError

NOT_COMPARED = {
    "": ("name", "seed", "processes", "pictures", "baseline", "published", "gpu_hours", "networks"),
    "data": ("root", "cache"),
    "labels": ("seed", "task"),
    "training": ("workers", "threads", "accelerator", "devices", "checkpoint_every", "validate_every", "validate_last"),
}
"""Settings, by section, in which the runs of one row may differ."""


@dataclass(frozen=True, eq=False)
class Piece:
    """What one finished network says for one row: its scores there, and beside them those of other checkpoint rules.

    `settings` are those of its recipe, `epochs` how long the paper trained where the recipe says so.
    """

    folder: Path
    network: str
    results: Results
    settings: Mapping
    scores: Mapping[str, float]
    beside: Mapping[str, Mapping[str, float]]
    epochs: int | None

    @property
    def label(self) -> str:
        """How it is named to people."""
        return f"{self.folder.name}/{self.network}"

    @property
    def seed(self) -> tuple:
        """Seed of the training and of the label assignment: what runs of one row differ in."""
        return setting(self.settings, "seed"), setting(self.settings, "labels", "seed")


@dataclass(eq=False)
class Row:
    """One row of ours below a published one: its pieces by seed, and the labels of those that repeat a seed."""

    by_seed: dict[tuple, list[Piece]] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)

    @property
    def pieces(self) -> list[Piece]:
        """All that the row is made of."""
        return [piece for pieces in self.by_seed.values() for piece in pieces]

    @property
    def recipes(self) -> list[str]:
        """The names of its recipes."""
        return list(dict.fromkeys(str(setting(piece.settings, "name") or piece.folder.name) for piece in self.pieces))

    def add(self, piece: Piece) -> None:
        """Join a piece to those of its seed, unless they have its scores already."""
        there = self.by_seed.setdefault(piece.seed, [])
        for other in there:
            twice = sorted(set(other.scores) & set(piece.scores))
            if twice and other.folder == piece.folder:
                raise MultidenseError(
                    f"{piece.folder / 'recipe.yaml'}: the networks {other.network} and {piece.network} both make {twice[0]} of "
                    "one published row; under `published.rows`, keep one of them"
                )
            if twice:
                self.repeated.append(piece.label)
                return
        there.append(piece)

    def scores(self, rule: str | None = None) -> list[dict[str, float]]:
        """The scores of each seed: the headline's, or those of another checkpoint rule."""
        told = [
            {name: value for piece in pieces for name, value in (piece.beside.get(rule, {}) if rule else piece.scores).items()}
            for pieces in self.by_seed.values()
        ]
        return [each for each in told if each]

    def conditions(self) -> tuple:
        """What must be equal for one row to be the baseline of another."""
        first = self.pieces[0]
        keys = [("training", "epochs"), ("training", "batch_size"), ("width",), ("data", "size"), ("data", "train")]
        return tuple(str(setting(first.settings, *key)) for key in (*keys, ("labels", "setting"), ("labels", "file")))


def setting(settings: object, *keys: str) -> object:
    """A nested setting, None where it is not there."""
    for key in keys:
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    return settings


def rows_of(table: Table, folders: Sequence[Path]) -> tuple[dict[tuple[str, str], list[Row]], list[Path]]:
    """Our rows by (setting, method), and the folders whose recipes serve no row of this table.

    A network without results makes none: it is not run. Runs of the same settings but for the seed are one row; so are runs
    that differ in which task has few shots, each with the scores of that task alone.
    """
    rows: dict[tuple[str, str], dict[str, Row]] = {}
    strangers = []
    for folder in dict.fromkeys(Path(folder) for folder in folders):
        recipe = _recipe(folder)
        said = _said(recipe, folder)
        served = said.serves(table.number) if said else []
        strangers += [] if served else [folder]
        for name, method in dict.fromkeys((name, method) for name, method, _ in served):
            networks = [network for *place, network in served if place == [name, method]]
            pieces = [_piece(table, name, folder, network, recipe, said.epochs) for network in networks]
            for piece in pieces:
                if piece is not None and piece.scores:
                    alike = rows.setdefault((name, method), {})
                    alike.setdefault(_key(recipe, networks, name), Row()).add(piece)
    return {place: list(alike.values()) for place, alike in rows.items()}, strangers


def _recipe(folder: Path) -> Mapping:
    file = folder / "recipe.yaml"
    if not file.is_file():
        raise MultidenseError(f"{folder} holds no run: there is no recipe.yaml in it; give folders that `multidense run` wrote")
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise MultidenseError(f"{file} cannot be read as YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(recipe, Mapping):
        raise MultidenseError(f"{file}: expected settings such as 'name: …', found {type(recipe).__name__}")
    return recipe


def _said(recipe: Mapping, folder: Path) -> Published | None:
    told, file = recipe.get("published"), folder / "recipe.yaml"
    if told is None:
        return None
    known = [each.name for each in fields(Published)]
    if not isinstance(told, Mapping) or not set(known[:4]) <= set(told) <= set(known):
        raise MultidenseError(f"{file}: published should hold {', '.join(known[:4])} and may hold {known[4]}, found {told}")
    try:
        return Published(**told)
    except (TypeError, AttributeError, MultidenseError) as error:
        raise MultidenseError(f"{file}: {error}") from error


def _piece(table: Table, name: str, folder: Path, network: str, recipe: Mapping, epochs: int | None) -> Piece | None:
    place = folder / network
    if not (place / "results.json").exists():
        return None
    results = Results.load(place / "results.json")
    kept = results.provenance.get("settings")
    settings = kept if isinstance(kept, Mapping) else recipe
    beside: Mapping[str, Mapping[str, float]] = {}
    if name.startswith("cost"):
        told = _cost(results)
    elif ", train " in name:
        part = name.rpartition(" ")[2]
        file = place / "training_images.json"
        told = {key: math.nan if value is None else value for key, value in _part(file, part).items()}
    else:
        told, beside = {**results.further, **results.scores}, results.beside
    wanted = list(table.scores)
    if name.startswith("few-shot"):
        few = setting(settings, "labels", "task")
        if few is None:
            raise MultidenseError(f"{folder}: a run of table {table.number} should say in labels.task which task has few shots")
        wanted = [column for column in wanted if column.startswith(f"{few}.")]
    scores = {column: told[column] for column in wanted if column in told}
    others = {rule: {column: row[column] for column in wanted if column in row} for rule, row in beside.items()}
    return Piece(folder, network, results, settings, scores, others, epochs)


def _part(file: Path, part: str) -> Mapping[str, float | None]:
    return (read_json(file).get(part) or {}) if file.exists() else {}


def _cost(results: Results) -> dict[str, float]:
    """A network's cost in the units of the paper's table: millions, 10⁹ multiply–adds an image, and GiB of a GPU."""
    units = {"params_M": ("parameters", 1e6), "flops_G": ("multiply_adds", 1e9)}
    if setting(results.provenance, "machine", "gpu"):
        units["train_memory_G"] = ("peak_memory_mb", 1024)
    return {column: results.cost[name] / unit for column, (name, unit) in units.items() if name in results.cost}


def _key(recipe: Mapping, networks: Iterable[str], name: str) -> str:
    """What runs have in common that are one row: all their settings but those that may differ."""
    if name.startswith("cost"):
        kept = {key: recipe.get(key) for key in ("backbone", "width", "tasks")}
        kept |= {"size": setting(recipe, "data", "size"), "batch_size": setting(recipe, "training", "batch_size")}
    else:
        kept = {key: value for key, value in recipe.items() if key not in NOT_COMPARED[""]}
        for section, left_out in NOT_COMPARED.items():
            if isinstance(kept.get(section), Mapping):
                kept[section] = {key: value for key, value in kept[section].items() if key not in left_out}
    own = (setting(recipe, "networks", network) or {} for network in networks)
    bare = ({key: value for key, value in one.items() if key not in ("title", "tasks", "teacher")} for one in own)
    return json.dumps(
        [kept, sorted({json.dumps(each, sort_keys=True, default=str) for each in bare})], sort_keys=True, default=str
    )
