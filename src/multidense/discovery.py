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
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor

from multidense.data.reader import Reader, batches
from multidense.files import read_json, write_json, written_aside
from multidense.models.multitask import MultiTask, weights_hash
from multidense.progress import Reporter, silent
from multidense.store import MANIFEST, Discovered, found_by, seen_by, write_confidence, write_features
from multidense.thresholds import Confidences, keep, rules_for
from multidense.types import MultidenseError, Sample
from multidense.version import __version__


def discover(
    teacher: MultiTask,
    data: Reader,
    out: Path | str | None = None,
    *,
    threshold: str | float | Mapping[str, str | float] = "share 0.6",
    mode: Literal["offline", "online"] = "offline",
    targets: Literal["hard", "soft"] = "hard",
    weighting: Literal["equal", "confidence"] = "equal",
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
        targets: "hard" teaches the decoded value, as the paper does; "soft" the teacher's probabilities of all categories,
            which needs mode "online" (probabilities of directions do not follow a flip).
        weighting: whether the pixels that are kept count alike, or each as much as the teacher is confident.
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
    if mode not in ("offline", "online"):
        raise MultidenseError(f"mode must be 'offline' or 'online', found {mode!r}")
    if targets not in ("hard", "soft") or weighting not in ("equal", "confidence"):
        raise MultidenseError(
            f"targets must be 'hard' or 'soft' and weighting 'equal' or 'confidence', found {targets!r} and {weighting!r}"
        )
    if targets == "soft" and mode == "offline":
        raise MultidenseError(
            "soft targets are not stored, for probabilities of directions do not follow a flip: set mode to 'online'"
        )
    if feature_stride < 1:
        raise MultidenseError(f"feature_stride must be at least 1, found {feature_stride}")
    rules = rules_for(names, threshold, others=[task.name for task in data.tasks])
    if calibration is None and any(rule.rule == "precision" for rule in rules.values()):
        raise MultidenseError(
            "the rule 'precision' needs calibration labels that stage 1 was not shown: in a recipe, give the rule under "
            "discovery.threshold before stage 1 is trained; in the library, pass calibration="
        )

    folder = Path(tempfile.mkdtemp(prefix="multidense-") if out is None else out)
    request = {
        "version": 1,
        "multidense": __version__,
        "mode": mode,
        "targets": targets,
        "weighting": weighting,
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
        beside.write_bytes(save({name: book.cpu() for name, book in teacher.codebooks.items()}))

    if not (folder / "thresholds.json").exists():  # kept, so that both halves of an interrupted discovery have the same ones
        write_json(folder / "thresholds.json", _thresholds(teacher, data, rules, calibration, reporter))
    thresholds = read_json(folder / "thresholds.json")
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


def _thresholds(
    teacher, data: Reader, rules: Mapping, calibration: Reader | None, reporter: Reporter
) -> dict[str, float | list[float]]:
    """The threshold of each task, from the confidences of the images that lack its label, or of the calibration labels."""
    tasks = {task.name: task for task in teacher.tasks}
    parts = {name: tasks[name].categories if rule.rule == "balanced" else 1 for name, rule in rules.items()}
    spread = {name: [Confidences() for _ in range(count)] for name, count in parts.items()}
    by_precision = [name for name, rule in rules.items() if rule.rule == "precision"]
    by_share = [name for name, rule in rules.items() if rule.rule in ("share", "balanced")]
    device = next(teacher.parameters()).device
    if by_precision:
        for indices, samples in reporter.track(batches(calibration, 8), "calibrating", len(calibration), size=_images):
            outputs = seen_by(teacher, torch.stack([sample.image for sample in samples]).to(device))
            for name in by_precision:
                value, confidence = found_by(tasks[name], outputs)
                for row, sample in enumerate(samples):
                    if name in calibration.annotated(indices[row]) and name in sample.targets:
                        target = sample.targets[name].to(device)
                        right = tasks[name].distance(value[row][None], target.value[None])[0] <= tasks[name].tolerance
                        spread[name][0].add(confidence[row], target.valid, right)
    if by_share:
        for indices, samples in reporter.track(batches(data, 8, labels=False), "measuring confidence", len(data), size=_images):
            outputs = seen_by(teacher, torch.stack([sample.image for sample in samples]).to(device))
            for name in by_share:
                lacking = [row for row, index in enumerate(indices) if name not in data.annotated(index)]
                value, confidence = (found[lacking] for found in found_by(tasks[name], outputs))
                everywhere = torch.zeros_like(confidence, dtype=torch.long)
                category = tasks[name].category(value)[:, None] if rules[name].rule == "balanced" else everywhere
                for number, part in enumerate(spread[name]):
                    part.add(confidence, category == number)
    found = {name: [part.threshold(rules[name]) for part in spread[name]] for name in rules}
    return {name: levels if rules[name].rule == "balanced" else levels[0] for name, levels in found.items()}


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
            outputs = seen_by(teacher, torch.stack([sample.image for sample in samples]).to(device))
            found = {name: found_by(task, outputs) for name, task in tasks.items()}
            for row, (index, sample) in enumerate(zip(indices, samples, strict=True)):
                if sample.id in done:
                    continue
                entry: dict = {"id": sample.id, "groups": {}}
                for name in sorted(set(tasks) - data.annotated(index)):
                    value, confidence = found[name][0][row], found[name][1][row]
                    valid = keep(tasks[name], value, confidence, thresholds[name])
                    if offline:
                        tasks[name].write(folder / name / f"{sample.id}{tasks[name].file_suffix}", value, valid)
                        write_confidence(folder / "confidence" / name / f"{sample.id}.png", confidence)
                    groups = _group_counts(tasks[name], value, valid)
                    counted[name] += groups
                    entry["groups"][name] = groups.tolist()
                if offline and request["features"]:
                    write_features(folder / "features" / f"{sample.id}.safetensors", outputs, row, request["feature_stride"])
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
