"""Rooms: procedural indoor scenes with exact labels for six tasks, rendered as they are asked for. Nothing to download.

>>> reader = Rooms([SemanticSegmentation(13), Depth(), Normals()], "train", size=(48, 64), length=400)
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from multidense.data.reader import Memory, Reader
from multidense.files import written_aside
from multidense.task import Task
from multidense.types import MultidenseError, Sample

FIELDS = {
    "semseg": "classes",
    "parts": "parts",
    "depth": "depth",
    "normals": "normals",
    "edges": "edges",
    "saliency": "saliency",
}
"""Which of a scene's arrays a task reads."""

LENGTHS = {"train": 400, "val": 100, "test": 100}
"""Default number of scenes of each split."""

APART = 1_000_000
PLACES = {"train": 0, "val": 3, "test": 4}  # 1 was looked at while the rooms were laid out: val and test nobody looked at
"""Scene number i of a split is scene APART · its place + i of the world, so no two splits share one."""


class Rooms(Reader):
    """The scenes of one world (`seed`) and split at one `size` (height, width).

    Scenes are kept in memory, up to 2 GiB: image, classes and parts in 8 bits, depth in float32 (exact) and normals in float16
    (off by at most 0.03°); only the tasks asked for are kept or turned into targets. `cache` is a folder that keeps whole
    scenes between runs, one file each; a file in it that cannot be read is rendered again.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        split: str,
        size: tuple[int, int] = (48, 64),
        length: int | None = None,
        seed: int = 0,
        cache: str | Path | None = None,
    ):
        from multidense.data import scenes  # the renderer is only needed by who renders

        if split not in LENGTHS:
            raise MultidenseError(f"Rooms: split should be one of {', '.join(LENGTHS)}, found '{split}'")
        length = LENGTHS[split] if length is None else length
        if not 0 < length <= APART:
            raise MultidenseError(f"Rooms: length should lie in 1 … {APART}, found {length}")
        if len(size) != 2 or min(size) < 1:
            raise MultidenseError(f"Rooms: size should be (height, width) in pixels, found {size}")
        names = {"semseg": tuple(scenes.CLASSES), "parts": tuple(scenes.PARTS)}
        for task in tasks:
            if task.name not in FIELDS:
                raise MultidenseError(f"Rooms: has {', '.join(FIELDS)}, but no '{task.name}'. Leave that task out.")
            if task.name in names and task.channels != len(names[task.name]):
                raise MultidenseError(
                    f"Rooms: '{task.name}' has {len(names[task.name])} classes, found a task of {task.channels}. "
                    f"Use {type(task).__name__}({len(names[task.name])})."
                )
        self.name, self.split, self.tasks = "rooms", split, tuple(tasks)
        self.size, self.seed, self.cache = (int(size[0]), int(size[1])), seed, Path(cache) if cache else None
        self.ids = [f"{split}-{number:06d}" for number in range(length)]
        self.class_names = {task.name: names[task.name] for task in tasks if task.name in names}
        self._scenes, self._memory = scenes, Memory()
        self._first = APART * PLACES[split]
        self._annotated = frozenset(task.name for task in tasks)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_scenes"}

    def __setstate__(self, state: dict) -> None:
        from multidense.data import scenes

        self.__dict__.update(state, _scenes=scenes)

    def annotated(self, index: int) -> frozenset[str]:
        return self._annotated

    def load(self, index: int, tasks: Iterable[str]) -> Sample:
        arrays = self._memory.recall(index, lambda: self._compact(self._scene(self._first + index)))
        wanted = set(tasks)
        return Sample(
            image=torch.from_numpy(arrays["image"]).float().div_(255),
            targets={task.name: task.encode(arrays[task.name]) for task in self.tasks if task.name in wanted},
            id=self.ids[index],
        )

    def provenance(self) -> dict:
        return {
            "reader": "Rooms",
            "name": self.name,
            "split": self.split,
            "length": len(self),
            "size": list(self.size),
            "tasks": [task.name for task in self.tasks],
            "seed": self.seed,
            "version": self._scenes.VERSION,
        }

    def _compact(self, scene: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The image `[3 h w]` and the arrays of the tasks asked for, small."""
        kept = {"image": np.ascontiguousarray(scene["image"].transpose(2, 0, 1))}
        for task in self.tasks:
            array = scene[FIELDS[task.name]]
            kept[task.name] = array.astype(np.float16) if array.ndim == 3 else array
        return kept

    def _scene(self, number: int) -> Mapping[str, np.ndarray]:
        """The arrays of scene `number` of the world, from the cache if they are there and whole."""
        if self.cache is None:
            return self._render(number)
        height, width = self.size
        folder = self.cache / f"rooms-version{self._scenes.VERSION}-seed{self.seed}-{height}x{width}"
        path = folder / f"{number:07d}.npz"
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                scene = {name: stored[name] for name in ("image", *FIELDS.values())}
            if all(array.shape[:2] == self.size for array in scene.values()):
                return scene
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zipfile.zlib.error):
            pass
        scene = self._render(number)
        folder.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as beside:
            np.savez_compressed(beside, **scene)
        return scene

    def _render(self, number: int) -> dict[str, np.ndarray]:
        scene = self._scenes.render(self.seed, number, self.size)
        return {name: getattr(scene, name) for name in ("image", *FIELDS.values())}
