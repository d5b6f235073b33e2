"""Recipes: the typed settings of a whole run, each with its meaning, and what of them makes no sense."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from multidense.balancing import Balancing
from multidense.files import plain, write_text
from multidense.joining import Collection, check_collections
from multidense.models.backbones import BACKBONES
from multidense.models.backbones.external import PREFIX as ZOO
from multidense.models.decoders import DECODERS
from multidense.objective import Objective
from multidense.published import Published
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
        reader: "rooms" renders its own; "folder" reads what a description says; "joined" several such; the others are
            benchmarks.
        description: of the folder reader: a YAML file, relative to the recipe or to where the command is run.
        root: where a benchmark lies; or the described files, if not where the description says; of "joined" the folder that
            has one for each collection, by its name.
        collections: of the reader "joined": the data sets by name.
        sampling: of the reader "joined": how an epoch is shared out between the collections: by their "size", "equal", by the
            root of their sizes ("sqrt"), or a share for each by name.
        layout: of a benchmark: which of the layouts that copies have; left out, it is found out.
        options: further settings of a benchmark's layout.
        size: height and width that everything is resized to; left out, images keep theirs.
        train: how many training images, evenly spread; left out, all (rooms: 400).
        val: how many validation images, evenly spread; left out, all (rooms: 100).
        seed: of the rooms.
        cache: folder in which rendered rooms are kept.
    """

    reader: Literal["rooms", "folder", "joined", "nyuv2", "cityscapes", "pascal-context"] = "rooms"
    description: str | None = None
    root: str | None = None
    collections: dict[str, Collection] = field(default_factory=dict)
    sampling: dict[str, float] | str = "size"
    layout: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
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
            task keeps `k` images); "published one-label" and "published random-labels" are the assignments that papers use.
        seed: of the assignment.
        file: a label assignment (CSV) made before; it takes the place of the setting.
        task: of "few-shot": the task that keeps few labels.
        k: of "few-shot": how many.
    """

    setting: Literal["full", "one-label", "random-labels", "few-shot", "published one-label", "published random-labels"] = (
        "full"
    )
    seed: int = 0
    file: str | None = None
    task: str | None = None
    k: int = 10


@dataclass(frozen=True)
class Discovery:
    """How labels are discovered.

    Args:
        mode: "offline" saves maps and features; "online" runs the frozen network beside the student.
        threshold: which pixels to trust, for all tasks, or per task and under "default": "fixed T", "share S", "balanced S" or
            "precision P".
        targets: "hard" labels, or "soft": the probabilities of all categories (online only).
        weighting: whether the pixels that are kept count "equal", or each by its "confidence".
        features: whether features are found too, for feature supervision.
        feature_stride: how much coarser than the network's own the saved features are.
        calibration: share of the labels that stage 1 does not see; the rule "precision" is measured on them.
        collections: of joined collections: the tasks that are discovered on each; on one that is not listed, none.
    """

    mode: Literal["offline", "online"] = "offline"
    threshold: dict[str, str | float] | str | float = field(default_factory=lambda: {"default": "share 0.6"})
    targets: Literal["hard", "soft"] = "hard"
    weighting: Literal["equal", "confidence"] = "equal"
    features: bool = True
    feature_stride: int = 4
    calibration: float = 0.1
    collections: dict[str, list[str]] | None = None

    def __post_init__(self):
        if not isinstance(self.threshold, dict):
            object.__setattr__(self, "threshold", {"default": self.threshold})

    @property
    def calibrates(self) -> bool:
        """Whether stage 1 must leave labels for calibration."""
        return any(str(rule).startswith("precision") for rule in self.threshold.values())


@dataclass(frozen=True)
class Network:
    """One network of a run.

    Args:
        decoder: name of the decoder.
        title: what tables call it.
        teacher: the network of this run whose discoveries it learns from; or several, each with tasks of its own.
        discovery: how its labels are discovered, in place of the recipe's settings.
        full_labels: whether it sees every label there is, hidden ones too: the reference for what labels could bring.
        tasks: names of its tasks; left out, all of the recipe's.
        collections: of joined collections: those it is trained on; left out, all. It is scored on all.
        options: settings of backbone and decoder.
        objective: weights of the loss terms, where they differ from the training's.
        balancing: how task losses are balanced, in place of the training's way.
        regularizers: training-only terms across tasks, in place of the training's.
    """

    decoder: str = "hitts"
    title: str | None = None
    teacher: str | list[str] | None = None
    discovery: Discovery | None = None
    full_labels: bool = False
    tasks: list[str] | None = None
    collections: list[str] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    objective: Objective | None = None
    balancing: Balancing | None = None
    regularizers: dict[str, dict[str, Any]] | None = None

    @property
    def teachers(self) -> list[str]:
        """Its teachers, be it none, one or several."""
        return [self.teacher] if isinstance(self.teacher, str) else list(self.teacher or ())


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
        backbone: name of the backbone of all networks; "timm/NAME" is any network of the package timm.
        backbone_options: settings of the backbone for all networks, such as weights: FILE (relative to the recipe or to where
            the command is run); those of a network come first.
        width: of the backbone; 1 is full size.
        training: how networks are trained.
        discovery: how labels are discovered.
        seed: of weights, order and augmentation; the label assignment has its own.
        processes: how many networks train side by side.
        pictures: how many images of each split the report shows.
        published: the rows of the HiTTs paper's tables that its networks are to reach.
        gpu_hours: how long it takes on one GPU of today, as estimated.
    """

    name: str
    tasks: dict[str, dict[str, Any]]
    networks: dict[str, Network]
    baseline: str | None = None
    data: Data = field(default_factory=Data)
    labels: Labels = field(default_factory=Labels)
    backbone: str = "segnet"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    width: float = 1.0
    training: Training = field(default_factory=Training)
    discovery: Discovery = field(default_factory=Discovery)
    seed: int = 0
    processes: int = 1
    pictures: int = 4
    published: Published | None = None
    gpu_hours: float | None = None

    def __post_init__(self):
        if not self.backbone.startswith(ZOO):
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
            for teacher in network.teachers:
                self._known(f"networks.{name}.teacher", teacher, self.networks)
            taught = [task for teacher in network.teachers for task in self.networks[teacher].tasks or self.tasks]
            if len(taught) > len(set(taught)):
                raise MultidenseError(
                    f"networks.{name}: several teachers need tasks of their own each, found '{_twice(taught)}' taught twice"
                )
            for task in network.tasks or ():
                self._known(f"networks.{name}.tasks", task, self.tasks)
            try:
                self.training_of(network)
            except ValueError as error:
                raise MultidenseError(f"networks.{name}: {error}") from error
        self._known("baseline", self.baseline, self.networks)
        self._known("labels.task", self.labels.task, self.tasks)
        for network in self.networks.values():
            rules_for(list(self.tasks), self.discovery_of(network).threshold)
        _ = self.stages
        if self.published:
            self.published.check_networks(self.networks)
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
        for found in map(self.discovery_of, self.networks.values()):
            if not 0 < found.calibration < 1:
                raise MultidenseError(f"discovery.calibration must lie between 0 and 1, found {found.calibration}")
            if found.targets == "soft" and found.mode == "offline":
                raise MultidenseError("discovery: soft targets are not stored: set mode to 'online', or targets to 'hard'")
        for name in ("train", "val"):
            if (getattr(self.data, name) or 1) < 1:
                raise MultidenseError(f"data.{name} must be at least 1, found {getattr(self.data, name)}")
        check_collections(self)
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

    def discovery_of(self, network: Network) -> Discovery:
        """How the labels of a network are discovered."""
        return network.discovery or self.discovery

    def options_of(self, network: Network) -> dict[str, Any]:
        """Settings of the backbone and the decoder of a network."""
        return self.backbone_options | network.options

    def training_of(self, network: Network) -> Training:
        """How a network is trained: as all of them, but for what it says itself."""
        own = {name: getattr(network, name) for name in ("objective", "balancing", "regularizers")}
        return replace(self.training, **{name: value for name, value in own.items() if value is not None})

    @property
    def stages(self) -> list[list[str]]:
        """The networks in the order of training: each stage needs only teachers of those before."""
        stages: list[list[str]] = []
        waiting, done = list(self.networks), set()
        while waiting:
            ready = [name for name in waiting if done.issuperset(self.networks[name].teachers)]
            if not ready:
                raise MultidenseError(f"networks: {', '.join(waiting)} wait for each other as teachers")
            stages.append(ready)
            done.update(ready)
            waiting = [name for name in waiting if name not in done]
        return stages

    def without_places(self) -> Recipe:
        """The recipe without where things lie on one machine: of descriptions the names remain, roots and cache go."""

        def nowhere(part):
            return replace(part, description=part.description and Path(part.description).name, root=None)

        collections = {name: nowhere(collection) for name, collection in self.data.collections.items()}
        return replace(self, data=replace(nowhere(self.data), collections=collections, cache=None))

    def to_yaml(self) -> str:
        """The recipe with every setting, as YAML that gives the same recipe again."""
        return yaml.safe_dump(plain(asdict(self)), sort_keys=False, allow_unicode=True, width=120)

    def save(self, path: Path) -> None:
        """Write `to_yaml`, whole or not at all."""
        write_text(path, self.to_yaml())


def _twice(names: list[str]) -> str:
    return next(name for name in names if names.count(name) > 1)


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
            raise MultidenseError(f"tasks.{name}: {readable(str(error))}") from error
        settings = {key: value for key, value in settings.items() if key != "codebook"}
    return from_spec({"task": name, **settings})


def readable(message: str) -> str:
    """The lines of a parser's error that say something."""
    if 'Parser key "data.size"' in message:
        return "data.size should be [HEIGHT, WIDTH], for instance [48, 64]"
    if "against any of the Union subtypes" in message:  # of a section that may be left out, only what is wrong with it
        wrong = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip().startswith("- ")]
        return " ".join(line for line in wrong if "NoneType" not in line)
    lines = [line.strip() for line in message.splitlines() if line.strip() and not line.startswith("usage:")]
    return " ".join(lines)
