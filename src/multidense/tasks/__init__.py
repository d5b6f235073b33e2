"""The six tasks, one file each behind the contract of `multidense.task`. To add one, write its file and list it here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from multidense.task import Task
from multidense.tasks.depth import Depth
from multidense.tasks.edges import Edges
from multidense.tasks.normals import Normals
from multidense.tasks.saliency import Saliency
from multidense.tasks.segmentation import HumanParts, SemanticSegmentation
from multidense.types import MultidenseError

TASKS: dict[str, type[Task]] = {
    kind.name: kind for kind in (SemanticSegmentation, HumanParts, Depth, Normals, Edges, Saliency)
}

__all__ = ["TASKS", "Depth", "Edges", "HumanParts", "Normals", "Saliency", "SemanticSegmentation", "from_spec"]


def from_spec(spec: Mapping) -> Task:
    """The task whose `spec()` this is: `{"task": name, setting: value, …}`; a mistake is named with the nearest valid word."""
    settings = dict(spec)
    name = settings.pop("task", None)
    if name not in TASKS:
        raise MultidenseError(f"unknown task {name!r}{_nearest(str(name), TASKS)}; there are {', '.join(TASKS)}")
    kind = TASKS[name]
    known = [key for key in kind.__dataclass_fields__ if key != "codebook"]
    for key in settings:
        if key not in known:
            raise MultidenseError(f"task {name}: unknown setting {key!r}{_nearest(key, known)}; there are {', '.join(known)}")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})
    except (TypeError, ValueError) as error:
        raise MultidenseError(f"task {name}: {error}") from error


def _nearest(word: str, known) -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""
