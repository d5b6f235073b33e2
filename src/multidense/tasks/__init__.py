"""The six tasks, one file each behind the contract of `multidense.task`. To add one, write its file and list it here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from multidense.suggest import nearest
from multidense.task import Task
from multidense.tasks.depth import Depth
from multidense.tasks.edges import Edges
from multidense.tasks.normals import Normals
from multidense.tasks.saliency import Saliency
from multidense.tasks.segmentation import HumanParts, SemanticSegmentation
from multidense.types import MultidenseError

TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (SemanticSegmentation, HumanParts, Depth, Normals, Edges, Saliency)}

__all__ = ["TASKS", "Depth", "Edges", "HumanParts", "Normals", "Saliency", "SemanticSegmentation", "from_spec"]


def from_spec(spec: Mapping) -> Task:
    """The task whose `spec()` this is: `{"task": name, setting: value, …}`; a mistake is named with the nearest valid word."""
    settings = dict(spec)
    name = settings.pop("task", None)
    if name not in TASKS:
        raise MultidenseError(f"unknown task {name!r}{nearest(str(name), TASKS)}; there are {', '.join(TASKS)}")
    kind = TASKS[name]
    known = [f.name for f in fields(kind) if f.name != "codebook"]
    for key in settings:
        if key not in known:
            raise MultidenseError(f"task {name}: unknown setting {key!r}{nearest(key, known)}; there are {', '.join(known)}")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})
    except (TypeError, ValueError) as error:
        raise MultidenseError(f"task {name}: {error}") from error
