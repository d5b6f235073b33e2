"""What was discovered, as files: label maps, confidences, features and a manifest; and how a training reads them back."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from multidense.data.reader import Reader, Wrapped
from multidense.files import read_json, written_aside
from multidense.models.multitask import MultiTask, load_model
from multidense.ops import pool
from multidense.tasks import from_spec
from multidense.thresholds import keep
from multidense.types import Batch, FeatureTarget, MultidenseError, Outputs, Sample, Target

MANIFEST = "manifest.json"
INDEX = "index.jsonl"
"""A line for each image that was looked at: its id, what was found of each task, and the collection it belongs to."""


class Discovered:
    """What a network found: a manifest, the teacher's codebooks, and either stored maps (offline) or the teacher itself
    (online).
    """

    def __init__(self, folder: Path, manifest: dict, teacher: MultiTask | None):
        self.folder, self.manifest, self.teacher = Path(folder), manifest, teacher
        self.codebooks: dict[str, Tensor] = load_file(self.folder / "codebooks.safetensors")
        self.tasks = tuple(
            from_spec(entry["spec"]).with_codebook(self.codebooks.get(name)) for name, entry in manifest["tasks"].items()
        )
        self.thresholds = {name: entry["threshold"] for name, entry in manifest["tasks"].items()}
        self._collection_of = {}
        if manifest.get("collections") is not None:
            self._collection_of = {entry["id"]: entry["collection"] for entry in lines(self.folder / INDEX)}

    @classmethod
    def open(cls, folder: Path, teacher: MultiTask | None = None) -> Discovered:
        """A finished discovery folder. Online ones need their `teacher`; left out, it is loaded from where the manifest
        says.
        """
        manifest = read_json(Path(folder) / MANIFEST)
        if manifest["mode"] == "online" and teacher is None:
            if not manifest["network"]["folder"]:
                raise MultidenseError(f"{folder} was discovered online by a network that was not saved: pass it as teacher")
            teacher = load_model(Path(folder) / manifest["network"]["folder"])
        return cls(Path(folder), manifest, teacher)

    @property
    def identity(self) -> dict:
        """What makes two discoveries the same, for the settings that a training remembers."""
        return {
            "network": self.manifest["network"]["hash"],
            "mode": self.manifest["mode"],
            "thresholds": self.thresholds,
            "targets": self.manifest["targets"],
            "weighting": self.manifest["weighting"],
            "features": self.manifest["features"],
            "feature_stride": self.manifest["feature_stride"],
            "collections": self.manifest.get("collections"),
        }

    def wanted(self, image_id: str) -> frozenset[str]:
        """The tasks that an image may be taught: all, or where collections were joined those listed for its collection."""
        listed = self.manifest.get("collections")
        if listed is None:
            return frozenset(task.name for task in self.tasks)
        return frozenset(listed.get(self._collection_of.get(image_id), ()))

    def attach(self, reader: Reader) -> Reader:
        """The reader with what was found beside each sample, before any augmentation."""
        return _Attached(reader, self)

    def complete(self, batch: Batch) -> Batch:
        """The batch with what the teacher sees in its clean view; offline, everything is there already."""
        if self.manifest["mode"] == "offline":
            return batch
        outputs = seen_by(self.teacher.to(batch.clean.device), batch.clean)
        discovered, features = dict(batch.discovered), dict(batch.features)
        for task in (task for task in self.teacher.tasks if task.name in batch.discovered):
            value, confidence = found_by(task, outputs)
            soft = None
            # What lies outside the image after augmentation is not valid: `attach` marked the inside.
            inside = batch.discovered[task.name]
            valid = keep(task, value, confidence, self.thresholds[task.name]) & inside.valid
            if self.manifest["targets"] == "soft":
                logits = outputs.logits[task.name]
                value, soft = task.decode(logits), task.probabilities(logits)
            weight = confidence if self.manifest["weighting"] == "confidence" else None
            discovered[task.name] = Target(torch.where(valid, value, inside.value), valid, weight, soft)
            if self.manifest["features"] and task.name in outputs.features:
                taught = torch.tensor([task.name in self.wanted(one) for one in batch.ids], device=batch.clean.device)
                trust = feature_confidence(task.name, outputs) * taught[:, None, None, None]
                features[task.name] = FeatureTarget(outputs.features[task.name], trust)
        return replace(batch, discovered=discovered, features=features)

    def label(self, task: str, image_id: str) -> Target | None:
        """The stored label map of one image, or None where nothing was stored."""
        kind = next(t for t in self.tasks if t.name == task)
        path = self.folder / task / f"{image_id}{kind.file_suffix}"
        return kind.read(path) if path.exists() else None

    def confidence(self, task: str, image_id: str) -> Tensor | None:
        """The stored confidence map `[1 h w]`, in 255 steps."""
        path = self.folder / "confidence" / task / f"{image_id}.png"
        return torch.from_numpy(np.asarray(Image.open(path)).astype(np.float32) / 255)[None] if path.exists() else None

    def features(self, image_id: str) -> dict[str, FeatureTarget]:
        """The stored task features of one image by task; empty where none were stored."""
        path = self.folder / "features" / f"{image_id}.safetensors"
        if not self.manifest["features"] or not path.exists():
            return {}
        with safe_open(path, "pt") as file:
            own = int(file.metadata()["stride"])
            stored = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no mapping)
        return {
            name: FeatureTarget(stored[name], stored[f"{name}.confidence"], own * self.manifest["feature_stride"], own)
            for name in (task.name for task in self.tasks)
            if name in stored
        }


class _Attached(Wrapped):
    """A reader whose samples carry what was found for them."""

    def __init__(self, reader: Reader, found: Discovered):
        super().__init__(reader)
        self.found = found

    def load(self, index: int, tasks: Iterable[str]) -> Sample:
        sample = self.reader.load(index, tasks)
        size = tuple(sample.image.shape[-2:])
        known = {task.name for task in self.tasks}
        known &= self.found.wanted(sample.id)
        missing = [task for task in self.found.tasks if task.name in known - self.annotated(index)]
        if self.found.manifest["mode"] == "online":
            everywhere = torch.ones(1, *size, dtype=torch.bool)
            inside = {task.name: Target(task.fill(size).contiguous(), everywhere) for task in missing}
            return replace(sample, discovered=dict(sample.discovered) | inside)
        labels = {task.name: self.found.label(task.name, sample.id) for task in missing}
        if self.found.manifest["weighting"] == "confidence":
            labels = {
                name: label and replace(label, weight=self.found.confidence(name, sample.id)) for name, label in labels.items()
            }
        for name, label in labels.items():
            if label is not None and tuple(label.value.shape[-2:]) != size:
                raise MultidenseError(
                    f"{self.found.folder}: the discovered '{name}' of image {sample.id} has size "
                    f"{tuple(label.value.shape[-2:])}, the image has {size}; discover again at this size"
                )
        return replace(
            sample,
            discovered=dict(sample.discovered) | {name: label for name, label in labels.items() if label is not None},
            features=dict(sample.features)
            | {name: saved for name, saved in self.found.features(sample.id).items() if name in known},
        )


def seen_by(network: MultiTask, image: Tensor) -> Outputs:
    """Outputs of the frozen network, evaluation mode, no gradient."""
    network.eval()
    with torch.no_grad():
        return network(image)


def found_by(task, outputs: Outputs) -> tuple[Tensor, Tensor]:
    """What a network says of a task: the value as a label would state it, and the confidence."""
    logits = outputs.logits[task.name]
    return task.harden(task.decode(logits)), task.confidence(logits)


def feature_confidence(name: str, outputs: Outputs) -> Tensor:
    """M^f, or one everywhere for decoders without tokens."""
    return outputs.confidence.get(name, torch.ones_like(outputs.features[name][:, :1]))


def write_confidence(path: Path, confidence: Tensor) -> None:
    """A confidence map `[1 h w]` as an 8-bit grey PNG, 255 for 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as beside:
        Image.fromarray((confidence[0] * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()).save(beside)


def lines(path: Path) -> Iterator[dict]:
    """The whole lines of an index; one that a kill tore off, and what follows it, is left out."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            return


def write_features(path: Path, outputs: Outputs, row: int, stride: int, tasks: Container[str]) -> None:
    """The features of these tasks for one image of a batch, and the trust in them, pooled by `stride`.

    The file says how much coarser than the image they were before.
    """
    tensors, own = {}, 1
    for name, features in ((name, features) for name, features in outputs.features.items() if name in tasks):
        own = stride_of(features, tuple(outputs.logits[name].shape[-2:]))
        tensors[name] = pool(features[row : row + 1], stride)[0].half().cpu().contiguous()
        trust = feature_confidence(name, outputs)[row : row + 1]
        tensors[f"{name}.confidence"] = pool(trust, stride)[0].half().cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as beside:
        beside.write_bytes(save(tensors, {"stride": str(own)}))


def stride_of(maps: Tensor, size: tuple[int, int]) -> int:
    """How much coarser than an image of `size` maps `[b c h w]` are: a power of two, as of every backbone here."""
    found = tuple(maps.shape[-2:])
    for stride in (1, 2, 4, 8, 16, 32, 64):
        if found == tuple(-(-side // stride) for side in size):
            return stride
    raise MultidenseError(
        f"features are saved at 1, 2, 4 … 64 times the stride of an image, found maps of {found[0]} × {found[1]} for an image "
        f"of {size[0]} × {size[1]}: set discovery.features to false, or discovery.mode to online"
    )
