"""Recipes: typed settings of a whole run, written in YAML, overridden on the command line, refused where they make no sense."""

from __future__ import annotations

import copy
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from multidense.files import write_text
from multidense.models.backbones import BACKBONES
from multidense.models.decoders import DECODERS
from multidense.models.multitask import build_model
from multidense.objective import Objective
from multidense.suggest import nearest
from multidense.task import Task
from multidense.tasks import TASKS, from_spec
from multidense.thresholds import rules_for
from multidense.train import Training
from multidense.types import MultidenseError


@dataclass(frozen=True)
class Data:
    """Where images and labels come from.

    Args:
        reader: "rooms" renders its own; "folder" reads what a description says.
        description: of the folder reader: a YAML file, relative to the recipe or to where the command is run.
        root: where the described files lie, if not where the description says.
        size: height and width that everything is resized to; left out, images keep theirs.
        train: how many training images, evenly spread; left out, all (rooms: 400).
        val: how many validation images, evenly spread; left out, all (rooms: 100).
        seed: of the rooms.
        cache: folder in which rendered rooms are kept.
    """

    reader: Literal["rooms", "folder"] = "rooms"
    description: str | None = None
    root: str | None = None
    size: tuple[int, int] | None = None
    train: int | None = None
    val: int | None = None
    seed: int = 0
    cache: str | None = None


@dataclass(frozen=True)
class Labels:
    """Which labels training may use.

    Args:
        setting: "full" (all there are), "one-label" (one task an image), "random-labels" (1 … T − 1 tasks), "few-shot" (one
            task keeps `k` images).
        seed: of the assignment.
        file: a label assignment (CSV) made before; it takes the place of the setting.
        task: of "few-shot": the task that keeps few labels.
        k: of "few-shot": how many.
    """

    setting: Literal["full", "one-label", "random-labels", "few-shot"] = "full"
    seed: int = 0
    file: str | None = None
    task: str | None = None
    k: int = 10


@dataclass(frozen=True)
class Discovery:
    """How labels are discovered.

    Args:
        mode: "offline" saves maps and features; "online" runs the frozen network beside the student.
        threshold: which pixels to trust, for all tasks, or per task and under "default": "fixed T", "share S" or "precision P".
        features: whether features are found too, for feature supervision.
        feature_stride: how much coarser than the network's own the saved features are.
        calibration: share of the labels that stage 1 does not see; the rule "precision" is measured on them.
    """

    mode: Literal["offline", "online"] = "offline"
    threshold: dict[str, str | float] | str | float = field(default_factory=lambda: {"default": "share 0.6"})
    features: bool = True
    feature_stride: int = 4
    calibration: float = 0.1

    def __post_init__(self):
        if not isinstance(self.threshold, dict):
            object.__setattr__(self, "threshold", {"default": self.threshold})


@dataclass(frozen=True)
class Network:
    """One network of a run.

    Args:
        decoder: name of the decoder.
        title: what tables call it.
        teacher: the network of this run whose discoveries it learns from.
        tasks: names of its tasks; left out, all of the recipe's.
        options: settings of backbone and decoder.
        objective: weights of the loss terms, where they differ from the training's.
    """

    decoder: str = "hitts"
    title: str | None = None
    teacher: str | None = None
    tasks: list[str] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    objective: Objective | None = None


@dataclass(frozen=True)
class Recipe:
    """A whole run: stage 1, discovery, stage 2, evaluation and report.

    Args:
        name: of the run; its folder is runs/NAME.
        tasks: settings of each task by name.
        networks: the networks to train, by name.
        baseline: the network that `delta_mtl` compares with.
        data: images and labels.
        labels: which labels training may use.
        backbone: name of the backbone of all networks.
        width: of the backbone; 1 is full size.
        training: how networks are trained.
        discovery: how labels are discovered.
        seed: of weights, order and augmentation; the label assignment has its own.
        processes: how many networks train side by side.
        pictures: how many images of each split the report shows.
    """

    name: str
    tasks: dict[str, dict[str, Any]]
    networks: dict[str, Network]
    baseline: str | None = None
    data: Data = field(default_factory=Data)
    labels: Labels = field(default_factory=Labels)
    backbone: str = "segnet"
    width: float = 1.0
    training: Training = field(default_factory=Training)
    discovery: Discovery = field(default_factory=Discovery)
    seed: int = 0
    processes: int = 1
    pictures: int = 4

    def __post_init__(self):
        self._known("backbone", self.backbone, BACKBONES)
        for name in self.tasks:
            self._known("tasks", name, TASKS)
        for name, network in self.networks.items():
            self._known(f"networks.{name}.decoder", network.decoder, DECODERS)
            if not re.fullmatch(r"\w[\w.+-]*", name) or name.startswith("discovered") or name == "pictures":
                raise MultidenseError(
                    f"networks: {name!r} becomes a folder: begin with a letter or digit, use letters, digits, '.', '_', '+' "
                    "and '-' only, and not 'discovered' or 'pictures'"
                )
            self._known(f"networks.{name}.teacher", network.teacher, self.networks)
            if network.teacher and self.networks[network.teacher].teacher:
                raise MultidenseError(
                    f"networks.{name}: its teacher '{network.teacher}' is a student itself; two stages are supported"
                )
            for task in network.tasks or ():
                self._known(f"networks.{name}.tasks", task, self.tasks)
        self._known("baseline", self.baseline, self.networks)
        self._known("labels.task", self.labels.task, self.tasks)
        rules_for(list(self.tasks), self.discovery.threshold)
        if self.labels.setting == "few-shot" and not (self.labels.task or self.labels.file):
            raise MultidenseError("labels: the setting few-shot needs labels.task, the task that keeps few labels")
        for key, value, least in (
            ("processes", self.processes, 1),
            ("pictures", self.pictures, 0),
            ("seed", self.seed, 0),
            ("labels.seed", self.labels.seed, 0),
            ("labels.k", self.labels.k, 1),
            ("data.seed", self.data.seed, 0),
            ("discovery.feature_stride", self.discovery.feature_stride, 1),
            *(("data.size", side, 32) for side in self.data.size or ()),
        ):
            if value < least:
                raise MultidenseError(f"{key} must be at least {least}, found {value}")
        if not self.width > 0:
            raise MultidenseError(f"width must be positive, found {self.width}")
        if not 0 < self.discovery.calibration < 1:
            raise MultidenseError(f"discovery.calibration must lie between 0 and 1, found {self.discovery.calibration}")
        for name in ("train", "val"):
            if (getattr(self.data, name) or 1) < 1:
                raise MultidenseError(f"data.{name} must be at least 1, found {getattr(self.data, name)}")
        if self.data.reader == "folder" and not self.data.description:
            raise MultidenseError("data: the folder reader needs data.description, a YAML file that says where things are")

    @staticmethod
    def _known(key: str, name: str | None, known) -> None:
        if name is not None and name not in known:
            raise MultidenseError(f"{key}: there is no {name!r}{nearest(name, known)}; there are {', '.join(known)}")

    def task_objects(self, network: str | None = None) -> tuple[Task, ...]:
        """The tasks of the recipe, or of one of its networks."""
        wanted = (self.networks[network].tasks if network else None) or list(self.tasks)
        return tuple(_task(name, settings) for name, settings in self.tasks.items() if name in wanted)

    def title(self, network: str) -> str:
        """What tables call a network."""
        return self.networks[network].title or network

    @property
    def calibrates(self) -> bool:
        """Whether stage 1 must leave labels for calibration."""
        return any(str(rule).startswith("precision") for rule in self.discovery.threshold.values())

    def to_yaml(self) -> str:
        """The recipe with every setting, as YAML that gives the same recipe again."""
        return yaml.safe_dump(_plain(asdict(self)), sort_keys=False, allow_unicode=True, width=120)

    def save(self, path: Path) -> None:
        """Write `to_yaml`, whole or not at all."""
        write_text(path, self.to_yaml())


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(files("multidense") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_path(name: str) -> Path:
    """The file of a recipe: a path, or the name of one that is shipped."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise MultidenseError(f"the recipe {path} is not there; shipped ones are {', '.join(shipped())}")
    if name not in shipped():
        raise MultidenseError(
            f"there is no recipe {name!r}{nearest(name, shipped())}; there are {', '.join(shipped())}, or give a .yaml file"
        )
    return shipped()[name]


def is_recipe(path: Path) -> bool:
    """Whether a file looks like a recipe, not like a description of data."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(given, dict) and "networks" in given


def load_recipe(path: Path, overrides: list[str] = ()) -> Recipe:
    """The recipe of a file, with command-line overrides such as `["--training.epochs", "5"]`; mistakes are named by file
    and key.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    path = Path(path)
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}," if mark else str(path)
        what = getattr(error, "problem", None) or getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise MultidenseError(f"{where} cannot be read as YAML: {what}") from error
    if not isinstance(given, dict):
        raise MultidenseError(f"{path}: expected settings such as 'name: …', found {type(given).__name__}")
    given, overrides = _with_task_settings(given, list(overrides))
    _check_keys(given, Recipe, str(path), "")
    parser = ArgumentParser(exit_on_error=False, prog="multidense run")
    parser.add_class_arguments(Recipe)
    where = str(path)
    try:
        settings = parser.parse_object(given)
        if overrides:
            where = "the command line"
            settings = parser.parse_args(overrides, namespace=settings)
        recipe = Recipe(**vars(parser.instantiate(settings)))
        _check_networks(recipe)
        recipe = replace(
            recipe,
            data=replace(recipe.data, description=_found(recipe.data.description, path), root=_found(recipe.data.root, path)),
            labels=replace(recipe.labels, file=_found(recipe.labels.file, path)),
        )
    except ArgumentError as error:
        raise MultidenseError(f"{where}: {_readable(str(error))}{_meant(str(error), parser)}") from error
    except (MultidenseError, ValueError, TypeError) as error:
        raise MultidenseError(f"{where}: {error}") from error
    return recipe


def settings_help() -> str:
    """Every setting of a recipe, with its type, default and meaning."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="multidense run", add_help=False)
    parser.add_class_arguments(Recipe)
    return parser.format_help().partition("\n\n")[2]


def _task(name: str, settings: dict[str, Any]) -> Task:
    """A task from its name and settings, each of the right name and type."""
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    if name in TASKS:
        parser.add_class_arguments(TASKS[name], skip={"codebook"})
        known = [f.name for f in fields(TASKS[name])]
        for key in settings or {}:
            if key not in known:
                raise MultidenseError(f"tasks.{name}: unknown key {key!r}{nearest(key, known)}; there are {', '.join(known)}")
        try:
            settings = vars(parser.instantiate(parser.parse_object(settings or {})))
        except ArgumentError as error:
            raise MultidenseError(f"tasks.{name}: {_readable(str(error))}") from error
        settings = {key: value for key, value in settings.items() if key != "codebook"}
    return from_spec({"task": name, **settings})


def _with_task_settings(given: dict, overrides: list[str]) -> tuple[dict, list[str]]:
    """The file's settings with those of single tasks (`--tasks.depth.bins 40`) put in, and the overrides that are left.

    Tasks are free mappings, which the parser would replace as a whole.
    """
    given, left = copy.deepcopy(given), []
    while overrides:
        option, found, value = overrides.pop(0).partition("=")
        parts = option.split(".")
        if parts[0] == "--tasks" and len(parts) == 3 and isinstance(given.get("tasks"), dict):
            value = value if found or not overrides else overrides.pop(0)
            given["tasks"][parts[1]] = (given["tasks"].get(parts[1]) or {}) | {parts[2]: yaml.safe_load(value)}
        else:
            left.append(option + found + value)
    return given, left


def _check_keys(given: dict, kind: type, file: str, path: str) -> None:
    """Refuse keys that a section does not have, naming the nearest that it has."""
    sections = {f.name: f for f in fields(kind)}
    for key, value in given.items():
        if key not in sections:
            raise MultidenseError(
                f"{file}: unknown key {path + str(key)!r}{nearest(str(key), sections)}; "
                f"{'here' if path else 'at the top'} there are {', '.join(sections)}"
            )
        inner = _section(kind, key)
        if inner and isinstance(value, dict):
            _check_keys(value, inner, file, f"{path}{key}.")
        elif kind is Recipe and key == "networks" and isinstance(value, dict):
            for name, network in value.items():
                if isinstance(network, dict):
                    _check_keys(network, Network, file, f"networks.{name}.")


def _check_networks(recipe: Recipe) -> None:
    """Build every network without memory, and look whether teachers can teach: mistakes show before anything is trained."""
    for name, network in recipe.networks.items():
        with torch.device("meta"):
            model = build_model(recipe.backbone, network.decoder, recipe.task_objects(name), recipe.width, **network.options)
        if name in {other.teacher for other in recipe.networks.values()}:
            rules_for(list(model.task_names), recipe.discovery.threshold, others=list(recipe.tasks))
            unsure = [task.name for task in model.tasks if not task.has_confidence]
            if unsure:
                raise MultidenseError(
                    f"networks.{name} is a teacher, but {', '.join(unsure)} only regress(es) and has no confidence: "
                    "give depth bins and normals centers"
                )


def _section(kind: type, key: str) -> type | None:
    """The dataclass behind a key, if it is a section of its own."""
    factory = next(f.default_factory for f in fields(kind) if f.name == key)
    if isinstance(factory, type) and is_dataclass(factory):
        return factory
    return Objective if (kind, key) == (Network, "objective") else None


def _found(name: str | None, recipe: Path) -> str | None:
    """A file or folder that a recipe names, beside the recipe or from where the command is run, as a path good from
    anywhere.
    """
    if name is None:
        return None
    beside, here = recipe.parent / name, Path(name)
    return str((beside if beside.exists() and not here.exists() else here).resolve())


def _meant(message: str, parser) -> str:
    """The option that an unrecognised one was probably meant to be."""
    unknown = re.search(r"unrecognized arguments: (--\S+)", message)
    options = [option for action in parser._actions for option in action.option_strings]
    return nearest(unknown[1].partition("=")[0], options) if unknown else ""


def _readable(message: str) -> str:
    """The lines of a parser's error that say something."""
    if 'Parser key "data.size"' in message:
        return "data.size should be [HEIGHT, WIDTH], for instance [48, 64]"
    lines = [line.strip() for line in message.splitlines() if line.strip() and not line.startswith("usage:")]
    return " ".join(lines)


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    return [_plain(value) for value in data] if isinstance(data, list | tuple) else data
