"""Discovery: a trained network finds the labels, and the task features, that images lack.

HiTTs stage 2: the first-stage network is frozen and run over clean images; where an image is not annotated for a task, its
decoded value is believed where its confidence exceeds the task's threshold (equation 7). Two modes:

    offline   as the paper says: label maps, confidences and features are saved once, and follow the student's augmentation
    online    as the authors' code does: the frozen network runs on the very view the student sees; nothing is stored
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from multidense.data.reader import Reader, Wrapped, batches
from multidense.files import read_json, write_json, written_aside
from multidense.models.multitask import MultiTask, load_model, weights_hash
from multidense.ops import pool
from multidense.progress import Reporter, silent
from multidense.tasks import from_spec
from multidense.thresholds import Confidences, rules_for
from multidense.types import Batch, FeatureTarget, MultidenseError, Outputs, Sample, Target
from multidense.version import __version__

MANIFEST = "manifest.json"


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
            "features": self.manifest["features"],
        }

    def attach(self, reader: Reader) -> Reader:
        """The reader with what was found beside each sample, before any augmentation."""
        return _Attached(reader, self)

    def complete(self, batch: Batch) -> Batch:
        """The batch with what the teacher sees in its clean view; offline, everything is there already."""
        if self.manifest["mode"] == "offline":
            return batch
        outputs = _run(self.teacher.to(batch.clean.device), batch.clean)
        discovered, features = {}, {}
        for task in self.teacher.tasks:
            value, confidence = _found(task, outputs)
            # What lies outside the image after augmentation is not valid: `attach` marked the inside.
            valid = (confidence > self.thresholds[task.name]) & batch.discovered[task.name].valid
            discovered[task.name] = Target(torch.where(valid, value, batch.discovered[task.name].value), valid)
            if self.manifest["features"] and task.name in outputs.features:
                features[task.name] = FeatureTarget(outputs.features[task.name], _feature_confidence(task.name, outputs))
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
        if not path.exists():
            return {}
        stored = load_file(path)
        stride = self.manifest["feature_stride"]
        return {
            name: FeatureTarget(stored[name].float(), stored[f"{name}.confidence"].float(), stride)
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
        missing = [task for task in self.found.tasks if task.name not in self.annotated(index)]
        if self.found.manifest["mode"] == "online":
            everywhere = torch.ones(1, *size, dtype=torch.bool)
            inside = {task.name: Target(task.fill(size).contiguous(), everywhere) for task in missing}
            return replace(sample, discovered=inside)
        labels = {task.name: self.found.label(task.name, sample.id) for task in missing}
        for name, label in labels.items():
            if label is not None and tuple(label.value.shape[-2:]) != size:
                raise MultidenseError(
                    f"{self.found.folder}: the discovered '{name}' of image {sample.id} has size "
                    f"{tuple(label.value.shape[-2:])}, the image has {size}; discover again at this size"
                )
        return replace(
            sample,
            discovered={name: label for name, label in labels.items() if label is not None},
            features=self.found.features(sample.id) if self.found.manifest["features"] else {},
        )


def discover(
    teacher: MultiTask,
    data: Reader,
    out: Path | str | None = None,
    *,
    threshold: str | float | Mapping[str, str | float] = "share 0.6",
    mode: Literal["offline", "online"] = "offline",
    features: bool = True,
    feature_stride: int = 4,
    calibration: Reader | None = None,
    network_folder: Path | None = None,
    reporter: Reporter = silent,
) -> Discovered:
    """Run a trained network over the clean images of `data`; keep the labels and features it is sure of.

    Args:
        teacher: the first-stage network. All its tasks must have a confidence (continuous ones need a codebook).
        data: the training data as stage 1 saw it, unaugmented; what it is annotated for is never discovered.
        out: folder for label maps, confidences, features and manifest. None keeps them in a temporary one, as long as the
            result lives.
        threshold: a rule for all tasks or one per task, see `multidense.thresholds`.
        mode: "offline" stores everything; "online" stores thresholds only, and the teacher runs beside the student.
        features: whether to save task features and their confidence (float16) for feature supervision.
        feature_stride: how much coarser than the network's own features the saved ones are.
        calibration: labels that stage 1 was not shown; the rule "precision" needs them.
        network_folder: where the teacher is saved, noted in the manifest.

    A discovery that was interrupted goes on where it stopped; a folder that holds another network's is refused.
    """
    names = [task.name for task in teacher.tasks]
    unsure = [task.name for task in teacher.tasks if not task.has_confidence]
    if unsure:
        raise MultidenseError(
            f"discovery needs a confidence, and {', '.join(unsure)} only regress(es): train the first stage with a codebook, "
            "for instance Depth(bins=30) and Normals(centers=20)"
        )
    rules = rules_for(names, threshold)
    if calibration is None and any(rule.rule == "precision" for rule in rules.values()):
        raise MultidenseError("the rule 'precision' needs calibration labels that stage 1 was not shown: pass calibration=")

    folder = Path(tempfile.mkdtemp(prefix="multidense-") if out is None else out)
    request = {
        "version": 1,
        "multidense": __version__,
        "mode": mode,
        "features": features,
        "feature_stride": feature_stride,
        "network": {
            "hash": weights_hash(teacher),
            "spec": teacher.spec,
            "folder": str(network_folder) if network_folder else None,
        },
        "data": data.provenance(),
        "rules": {name: str(rule) for name, rule in rules.items()},
        "calibration": calibration.provenance() if calibration else None,
    }
    if _already_there(folder, request):
        return Discovered.open(folder, teacher)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "request.json", request)
    with written_aside(folder / "codebooks.safetensors") as beside:
        save_file({name: book.cpu() for name, book in teacher.codebooks.items()}, beside)

    thresholds = _thresholds(teacher, data, rules, calibration, reporter)
    counted = _store(teacher, data, folder, thresholds, request, reporter)
    manifest = request | {
        "tasks": {
            task.name: {"spec": task.spec(), "threshold": thresholds[task.name], "rule": str(rules[task.name])}
            | _shares(task, counted[task.name], data)
            for task in teacher.tasks
        }
    }
    write_json(folder / MANIFEST, manifest)
    found = Discovered(folder, manifest, teacher)
    if out is None:
        weakref.finalize(found, shutil.rmtree, folder, ignore_errors=True)
    return found


def judge(found: Discovered, truth: Reader) -> dict[str, dict[str, float]]:
    """How right the stored labels are where the truth is known: `precision` of the kept pixels and their share, `coverage`, per
    task.

    For reports on benchmarks, where the hidden labels exist; nothing that trains may call this.
    """
    told = {}
    for task in found.tasks:
        right = kept = pixels = 0
        for index, image_id in enumerate(truth.ids):
            label = found.label(task.name, image_id)
            if label is None or task.name not in truth.annotated(index):
                continue
            target = truth.load(index, [task.name]).targets[task.name]
            both = label.valid & target.valid
            close = task.distance(label.value[None], target.value[None])[0] <= task.tolerance
            right, kept = right + int((close & both).sum()), kept + int(both.sum())
            pixels += int(target.valid.sum())
        if pixels:
            told[task.name] = {
                "precision": right / kept if kept else None,
                "coverage": kept / pixels,
                "tolerance": task.tolerance,
            }
    return told


def _run(network: MultiTask, image: Tensor) -> Outputs:
    """Outputs of the frozen network, evaluation mode, no gradient."""
    network.eval()
    with torch.no_grad():
        return network(image)


def _found(task, outputs: Outputs) -> tuple[Tensor, Tensor]:
    """What a network says of a task: the value as a label would state it, and the confidence."""
    logits = outputs.logits[task.name]
    return task.harden(task.decode(logits)), task.confidence(logits)


def _feature_confidence(name: str, outputs: Outputs) -> Tensor:
    """M^f, or one everywhere for decoders without tokens."""
    return outputs.confidence.get(name, torch.ones_like(outputs.features[name][:, :1]))


def _already_there(folder: Path, request: dict) -> bool:
    """Whether this very discovery is finished; an error where the folder holds another."""
    if not (folder / "request.json").exists():
        return False
    before = read_json(folder / "request.json")
    wanted = json.loads(json.dumps(request))
    different = [key for key in wanted if before.get(key) != wanted[key] and key != "multidense"]
    if different:
        raise MultidenseError(
            f"{folder} holds labels that were discovered differently: {' and '.join(different)} changed. "
            "Choose another folder, or delete this one"
        )
    return (folder / MANIFEST).exists()


def _thresholds(teacher, data: Reader, rules: Mapping, calibration: Reader | None, reporter: Reporter) -> dict[str, float]:
    """The threshold of each task, from the confidences of the images that lack its label, or of the calibration labels."""
    spread = {name: Confidences() for name in rules}
    by_precision = [name for name, rule in rules.items() if rule.rule == "precision"]
    by_share = [name for name, rule in rules.items() if rule.rule == "share"]
    device = next(teacher.parameters()).device
    tasks = {task.name: task for task in teacher.tasks}
    if by_precision:
        for indices, samples in reporter.track(batches(calibration, 8), "calibrating", len(calibration), size=_images):
            outputs = _run(teacher, torch.stack([sample.image for sample in samples]).to(device))
            for name in by_precision:
                value, confidence = _found(tasks[name], outputs)
                for row, sample in enumerate(samples):
                    if name in calibration.annotated(indices[row]) and name in sample.targets:
                        target = sample.targets[name].to(device)
                        right = tasks[name].distance(value[row][None], target.value[None])[0] <= tasks[name].tolerance
                        spread[name].add(confidence[row], target.valid, right)
    if by_share:
        for indices, samples in reporter.track(batches(data, 8, labels=False), "measuring confidence", len(data), size=_images):
            outputs = _run(teacher, torch.stack([sample.image for sample in samples]).to(device))
            for name in by_share:
                _, confidence = _found(tasks[name], outputs)
                lacking = [row for row, index in enumerate(indices) if name not in data.annotated(index)]
                spread[name].add(confidence[lacking], torch.ones_like(confidence[lacking], dtype=torch.bool))
    return {name: spread[name].threshold(rule) for name, rule in rules.items()}


def _store(teacher, data: Reader, folder: Path, thresholds: Mapping, request: dict, reporter: Reporter) -> dict[str, Tensor]:
    """Write what was found, image by image; return per task the pixels of each group, found and kept `[groups 2]`.

    `index.jsonl` gets a line when an image's files are in place, so an interrupted discovery knows what is done.
    """
    tasks = {task.name: task for task in teacher.tasks}
    counted = {name: torch.zeros(len(task.group_names), 2, dtype=torch.float64) for name, task in tasks.items()}
    done = _lines_of(folder / "index.jsonl")
    for entry in done.values():
        for name, rows in entry["groups"].items():
            counted[name] += torch.tensor(rows, dtype=torch.float64)
    device = next(teacher.parameters()).device
    offline = request["mode"] == "offline"
    with open(folder / "index.jsonl", "a", encoding="utf-8") as index_file:
        for indices, samples in reporter.track(batches(data, 8, labels=False), "discovering", len(data), size=_images):
            if all(sample.id in done for sample in samples):
                continue
            outputs = _run(teacher, torch.stack([sample.image for sample in samples]).to(device))
            found = {name: _found(task, outputs) for name, task in tasks.items()}
            for row, (index, sample) in enumerate(zip(indices, samples, strict=True)):
                if sample.id in done:
                    continue
                entry: dict = {"id": sample.id, "groups": {}}
                for name in sorted(set(tasks) - data.annotated(index)):
                    value, confidence = found[name][0][row], found[name][1][row]
                    valid = confidence > thresholds[name]
                    if offline:
                        tasks[name].write(folder / name / f"{sample.id}{tasks[name].file_suffix}", value, valid)
                        write_confidence(folder / "confidence" / name / f"{sample.id}.png", confidence)
                    groups = _group_counts(tasks[name], value, valid)
                    counted[name] += groups
                    entry["groups"][name] = groups.tolist()
                if offline and request["features"]:
                    _write_features(folder / "features" / f"{sample.id}.safetensors", outputs, row, request["feature_stride"])
                index_file.write(json.dumps(entry) + "\n")
                index_file.flush()
    return counted


def _lines_of(path: Path) -> dict[str, dict]:
    """The whole lines of an index by image; a line torn by a kill is dropped, also from the file."""
    if not path.exists():
        return {}
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    with written_aside(path) as beside:
        beside.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return {entry["id"]: entry for entry in entries}


def _group_counts(task, value: Tensor, valid: Tensor) -> Tensor:
    groups = task.groups(value[None])[0].cpu()
    many = len(task.group_names)
    kept = torch.bincount(groups[valid[0].cpu()], minlength=many)
    return torch.stack([torch.bincount(groups.flatten(), minlength=many), kept], dim=1).double()


def write_confidence(path: Path, confidence: Tensor) -> None:
    """A confidence map `[1 h w]` as an 8-bit grey PNG, 255 for 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as beside:
        Image.fromarray((confidence[0] * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()).save(beside)


def _write_features(path: Path, outputs: Outputs, row: int, stride: int) -> None:
    tensors = {}
    for name, features in outputs.features.items():
        tensors[name] = pool(features[row : row + 1], stride)[0].half().cpu().contiguous()
        trust = _feature_confidence(name, outputs)[row : row + 1]
        tensors[f"{name}.confidence"] = pool(trust, stride)[0].half().cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as beside:
        save_file(tensors, beside)


def _shares(task, counted: Tensor, data: Reader) -> dict:
    """The manifest's numbers for one task: images it was found for, share of pixels kept, in all and per class."""
    names = data.class_names.get(task.name) or task.group_names
    images = sum(task.name not in data.annotated(index) for index in range(len(data)))
    pixels, kept = counted.sum(0).tolist()
    return {
        "images": images,
        "kept_share": kept / pixels if pixels else 0.0,
        "classes": {
            name: {"pixels": int(row[0]), "kept": (row[1] / row[0]).item() if row[0] else 0.0}
            for name, row in zip(names, counted, strict=True)
        },
    }


def _images(item: tuple[list[int], list[Sample]]) -> int:
    return len(item[0])
