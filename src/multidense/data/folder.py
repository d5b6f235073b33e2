"""Folder: anybody's data set, described by one small YAML file and no code.

    name: my-rooms
    root: /data/my-rooms               # default: the folder this file lies in
    images: rgb/{id}.jpg               # an id may hold slashes
    splits:
      val: {fraction: 0.2, seed: 0}    # that share of the images; or a text file with an id a line; or a list of ids
      train: rest                      # what no other split has. Without `splits` all images are `train`
    tasks:
      semseg:
        files: labels/{id}.png         # an image without this file is simply not labelled for the task
        classes: [floor, wall, chair]  # names, or their number
        void: 255
      depth: {files: "depth/{id}.png", unit: mm}

A task may also say `resize: true`, where labels have another size than their images. What else it says depends on what its
numbers mean: see `ClassMap` (semseg, parts), `Metres` (depth), `Directions` (normals) and `Shares` (edges, saliency) in
`multidense.data.encodings`.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from multidense.data.description import read_description, read_ids
from multidense.data.encodings import ENCODINGS, nearest, read_array, read_picture
from multidense.data.reader import Memory, Reader
from multidense.task import Task
from multidense.types import MultidenseError, Sample


class Folder(Reader):
    """One split of the data set that `description` (a YAML file, or the same as a mapping) describes.

    `tasks`: those to read; by default all that are described, without codebooks. `size` (height, width): images are resized
    with antialiasing, labels to the nearest pixel, both whole (another aspect is stretched); by default everything keeps its
    own size. `root` overrides where the files are. `cache` keeps what was read in memory, up to 2 GiB. `ids`: read these images
    instead of those that the split names. A label in which nothing is valid (all depth zero) leaves its image annotated, and
    warns.
    """

    def __init__(
        self,
        description: str | Path | Mapping[str, Any],
        split: str,
        tasks: Sequence[Task] | None = None,
        size: tuple[int, int] | None = None,
        root: str | Path | None = None,
        cache: bool = True,
        ids: Sequence[str] | None = None,
    ):
        top, beside, name = read_description(description)
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise MultidenseError(f"Folder: size should be (height, width) in pixels, found {size}")
        self.name, self.split = top.text("name", name), split
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.root = Path(root if root is not None else beside / top.text("root", "")).expanduser()
        if not self.root.is_dir():
            raise MultidenseError(f"{top.where}: the folder {self.root} is not there. Correct `root`, or pass root=.")
        self.images = top.pattern("images", self.root)

        described = top.section("tasks", tuple(ENCODINGS))
        encodings = {
            name: encoding.described(name, described.section(name, encoding.keys), self.root)
            for name, encoding in ENCODINGS.items()
            if name in described.data
        }
        self.tasks = tuple(one.task() for one in encodings.values()) if tasks is None else tuple(tasks)
        for task in self.tasks:
            if task.name not in encodings:
                some = ", ".join(encodings) or "nothing"
                described.refuse(f"no '{task.name}' is described, only {some}. Describe it or leave it out.")
            encodings[task.name].agree(task)
        self.encodings = {task.name: encodings[task.name] for task in self.tasks}
        self.class_names = {name: names for name, one in self.encodings.items() if (names := one.names)}

        self.ids = read_ids(top, split, self.root, self.images) if ids is None else list(ids)
        self._annotated = [frozenset(name for name in self.encodings if self.file(one, name).is_file()) for one in self.ids]
        for name, encoding in self.encodings.items():
            if not any(name in labelled for labelled in self._annotated):
                warnings.warn(f"{encoding.where}: no image of the split '{split}' has a label", stacklevel=2)
        self._memory = Memory() if cache else Memory(limit=0)
        said = {key: value for key, value in top.data.items() if key not in ("root", "source", "licence")}
        self._fingerprint = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]

    def annotated(self, index: int) -> frozenset[str]:
        return self._annotated[index]

    def load(self, index: int, tasks: Iterable[str]) -> Sample:
        kept = self._memory.recall((index, None), lambda: self.read_image(index))
        wanted = self._annotated[index].intersection(tasks)
        return Sample(
            image=torch.from_numpy(kept["image"]).float().div_(255),
            targets={
                task.name: task.encode(*self._label(index, task.name, kept["native"]))
                for task in self.tasks
                if task.name in wanted
            },
            id=self.ids[index],
        )

    def provenance(self) -> dict:
        return {
            "reader": "Folder",
            "name": self.name,
            "split": self.split,
            "length": len(self),
            "size": None if self.size is None else list(self.size),
            "tasks": [task.name for task in self.tasks],
            "labelled": {name: sum(name in has for has in self._annotated) for name in self.encodings},
            "description": self._fingerprint,
        }

    def file(self, one: str, task: str | None = None) -> Path:
        """Where the image with the id `one`, or its label for a task, lies or would lie."""
        pattern = self.images if task is None else self.encodings[task].files
        return self.root / pattern.replace("{id}", one)

    def read_image(self, index: int) -> dict[str, np.ndarray]:
        """`image` uint8 `[3 h w]`, and its `native` (height, width) before it was resized. MultidenseError if it is broken."""
        path = self.file(self.ids[index])
        picture = read_picture(path)
        if picture.mode.startswith(("I", "F")):
            raise MultidenseError(f"{path}: an image should have 8 bits a channel, found mode '{picture.mode}'. Convert it.")
        picture = ImageOps.exif_transpose(picture).convert("RGB")
        native = np.array(picture.size[::-1])
        if self.size is not None and self.size != picture.size[::-1]:
            picture = picture.resize(self.size[::-1], Image.Resampling.LANCZOS, reducing_gap=3.0)
        return {"image": np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)), "native": native}

    def _label(self, index: int, name: str, native: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values in the task's units and where they are valid; kept in memory as stored, interpreted on every use."""
        kept = self._memory.recall((index, name), lambda: {"stored": self.read_label(index, name, native)})
        return self.encodings[name].meaning(kept["stored"])

    def read_label(self, index: int, name: str, native: np.ndarray | None) -> np.ndarray:
        """A label as stored, `[h w]` or `[h w 3]`, at the reader's size, else at the `native` (height, width) of its image,
        else (None) at its own. MultidenseError if it is broken, means something else or has another size than its image.
        """
        encoding = self.encodings[name]
        path = self.file(self.ids[index], name)
        stored = encoding.stored(path, *read_array(path))
        h, w = stored.shape[:2]
        height, width = (h, w) if native is None else native.tolist()
        if (height, width) != (h, w) and not encoding.resize:
            raise MultidenseError(
                f"{path}: the label should be as large as its image, {height}x{width} (height x width), found {h}x{w}. "
                f"If it shows the same view, say `resize: true` in {encoding.where}."
            )
        stored = nearest(stored, self.size or (height, width))
        if not encoding.meaning(stored)[1].any():
            warnings.warn(f"{path}: nothing in it is valid; its image still counts as labelled for {name}", stacklevel=2)
        return stored
