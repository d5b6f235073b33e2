"""The lines of the cost tables: which networks make each, what they count, what is fitted before they train.

A method is a line of `ROWS`, which are of the catalogue, or of `SYSTEMS`, on ResNet-18. The first is what the others are over.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from multidense import train
from multidense.comparison import choose
from multidense.data import Rooms, collate
from multidense.models import MultiTask, build_model
from multidense.models.cost import count_parameters, multiply_adds
from multidense.progress import silent
from multidense.recipe import Network, Recipe
from multidense.regularizers import REGULARIZERS
from multidense.train import Training

PAPER_SIZE = (288, 384)
REGRESSED = {"semseg": {"classes": 13}, "depth": {}, "normals": {}}
CLASSIFIED = {"semseg": {"classes": 13}, "depth": {"bins": 30}, "normals": {"centers": 20}}
QUICK = {"x-task": {"epochs": 1}}
"""Settings for what is fitted before a training: a step costs the same however well it was."""


@dataclass(frozen=True)
class Row:
    """A line of the table: a method of the catalogue, and in what its network differs.

    Args:
        method: its name in the catalogue.
        name: of the line; left out, the method's.
        title: in the table; left out, the method's.
        backbone: of its network.
        decoder: of its network; left out, the method's.
        options: settings of both.
        classified: whether depth and normals are classified, by codebooks.
        full_labels: whether every image has all labels, whatever the table's label setting is.
    """

    method: str
    name: str = ""
    title: str = ""
    backbone: str = "segnet"
    decoder: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    classified: bool = False
    full_labels: bool = False

    @property
    def key(self) -> str:
        return self.name or self.method


ROWS = (
    Row("mtl"),  # the first is what the others are compared with
    Row("stl"),
    Row("mtan"),
    Row("mtl", "mtl-codebooks", "MTL, codebooks", classified=True),
    Row("hitts", classified=True),
    Row("hitts", "hitts-lean", "HiTTs, lean", options={"lean": True}, classified=True),
    Row("hitts+lp+lf", classified=True),
    Row("uncertainty"),
    Row("dwa"),
    Row("gradnorm"),
    Row("mgda"),
    Row("pcgrad"),
    Row("upgrad"),
    Row("log-sum"),
    Row("lps"),
    Row("xtc"),
    Row("xtc+uncertainty"),
    Row("x-task", full_labels=True),
    Row("ssl"),
    Row("ccr"),
)

SYSTEMS = (
    Row("mtl", "mtl", "MTL", "resnet18", "aspp", classified=True),
    Row("hitts", "hitts-single", "HiTTs, one scale", "resnet18", "hitts-ms", {"multi_scale": False}, classified=True),
    *(
        Row(method, f"{method}, scales", f"{title}, four scales", "resnet18", "hitts-ms", classified=True)
        for method, title in (
            ("hitts", "HiTTs"),
            ("hitts+ccr", "HiTTs + CCR"),
            ("hitts+lps", "HiTTs + LPS"),
            ("hitts+lp+lf", "HiTTs + L_p + L_f"),
            ("hitts+lp+lf+ccr", "HiTTs + L_p + L_f + CCR"),
        )
    ),
    Row("ccr", "mtl+ccr", "MTL + CCR", "resnet18", "aspp", classified=True),
    Row("mtcp", backbone="resnet18", classified=True),
    Row("mtcp+lps", backbone="resnet18", classified=True),
    Row("mtcp+lps+lp", backbone="resnet18", classified=True),
)


def networks_of(row: Row) -> tuple[Recipe, dict[str, Network]]:
    """The recipe of a row and the networks that make it, by name; what there is not is a `MultidenseError`."""
    recipe = Recipe("cost", tasks=CLASSIFIED if row.classified else REGRESSED, networks={})
    recipe, chosen = choose(recipe, [row.method])
    names = next(method.networks for method in chosen if method.name == row.method)
    found = {name: recipe.networks[name] for name in names}
    changed = {"decoder": row.decoder} if row.decoder else {}
    return replace(recipe, backbone=row.backbone), {
        name: replace(network, options=dict(network.options) | dict(row.options), **changed) for name, network in found.items()
    }


def counted(row: Row) -> dict[str, float]:
    """Parameters and multiply–adds of a row's networks together, at full width."""
    recipe, networks = networks_of(row)
    found = {"parameters": 0, "parameters_in_training_only": 0, "multiply_adds": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        for name, network in networks.items():
            model = build_model(row.backbone, network.decoder, recipe.task_objects(name), seed=0, **network.options)
            beside = train._beside(model, prepared(recipe.training_of(network), model, Path(folder)))
            found["parameters"] += count_parameters(model)
            found["parameters_in_training_only"] += count_parameters(beside)
            found["multiply_adds"] += multiply_adds(model, PAPER_SIZE)
    return found


def prepared(settings: Training, model: MultiTask, folder: Path) -> Training:
    """The settings with what regularisers fit before a training, here on one small image."""
    small = Rooms(model.tasks, "train", size=(32, 48), length=1)
    told = {"seed": 0, "data": {}, "reporter": silent}
    made = {
        name: REGULARIZERS[name].prepared(
            dict(given or {}) | QUICK.get(name, {}), model.tasks, lambda _: [collate([small[0]], model.tasks)], folder, **told
        )
        for name, given in settings.regularizers.items()
    }
    return replace(settings, regularizers=made)
