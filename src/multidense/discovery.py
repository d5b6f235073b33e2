"""Discovery: a trained network finds the labels, and the task features, that images lack.

HiTTs stage 2: the first-stage network is frozen and run over clean images; where an image is not annotated for a task, its
decoded value is believed where its confidence exceeds the task's threshold (equation 7). Two modes:

    offline   as the paper says: label maps, confidences and features are saved once, and follow the student's augmentation
    online    as the authors' code does: the frozen network runs on the very view the student sees; nothing is stored

Where collections were joined, a task is looked for only on those it is listed for: no other image is even run through it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor

from multidense.data.reader import Reader, batches
from multidense.data.subset import Subset
from multidense.files import read_json, write_json, written_aside
from multidense.models.multitask import MultiTask, weights_hash
from multidense.progress import Reporter, silent
from multidense.store import INDEX, MANIFEST, Discovered, found_by, lines, seen_by, write_confidence, write_features
from multidense.suggest import nearest
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
    collections: Mapping[str, Sequence[str]] | None = None,
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
        collections: where `data` is joined of several: the tasks that are discovered on each, and of which features are saved;
            on a collection that is not listed, none.
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

    _check_listed(collections, data)
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
        "collections": None if collections is None else {name: sorted(tasks) for name, tasks in collections.items()},
    }
    if _already_there(folder, request):
        return Discovered.open(folder, teacher)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "request.json", request)
    with written_aside(folder / "codebooks.safetensors") as beside:
        beside.write_bytes(save({name: book.cpu() for name, book in teacher.codebooks.items()}))

    data = _looked_at(data, names, collections, features)
    if not (folder / "thresholds.json").exists():  # kept, so that both halves of an interrupted discovery have the same ones
        write_json(folder / "thresholds.json", _thresholds(teacher, data, rules, calibration, collections, reporter))
    thresholds = read_json(folder / "thresholds.json")
    entries = _store(teacher, data, folder, thresholds, request, reporter)
    manifest = request | {
        "tasks": {
            task.name: {"spec": task.spec(), "threshold": thresholds[task.name], "rule": str(rules[task.name])}
            | _shares(task, entries, data.class_names.get(task.name) or task.group_names)
            | ({} if collections is None else {"collections": _by_collection(task, entries, collections)})
            for task in teacher.tasks
        }
    }
    write_json(folder / MANIFEST, manifest)
    found = Discovered(folder, manifest, teacher)
    if out is None:
        weakref.finalize(found, shutil.rmtree, folder, ignore_errors=True)
    return found


def _check_listed(listed: Mapping[str, Sequence[str]] | None, data: Reader) -> None:
    """Refuse a list that does not fit the data: needed for joined collections, and for nothing else."""
    if not data.collections:
        if listed is not None:
            raise MultidenseError(f"collections: '{data.name}' is not joined of collections; leave the argument out")
        return
    if not listed or not any(listed.values()):
        raise MultidenseError(
            f"'{data.name}' is joined of {', '.join(data.collections)}: list with collections which tasks to discover on "
            f"which, such as {{{data.collections[0]!r}: [{data.tasks[0].name!r}]}}; elsewhere nothing is discovered"
        )
    known = [task.name for task in data.tasks]
    for name, tasks in listed.items():
        if name not in data.collections:
            raise MultidenseError(
                f"collections: there is no {name!r}{nearest(name, data.collections)}; there are {', '.join(data.collections)}"
            )
        for task in tasks:
            if task not in known:
                raise MultidenseError(
                    f"collections.{name}: there is no {task!r}{nearest(task, known)}; there are {', '.join(known)}"
                )


def _wanted(data: Reader, index: int, tasks: Iterable[str], listed: Mapping[str, Sequence[str]] | None) -> set[str]:
    """Those of the tasks that may be looked for on an image."""
    return set(tasks) if listed is None else set(tasks).intersection(listed.get(data.collection_of(index), ()))


def _looked_at(data: Reader, tasks: Sequence[str], listed: Mapping[str, Sequence[str]] | None, features: bool) -> Reader:
    """The images on which there is something to discover: all, or those of collections with a listed task (for labels alone,
    one that the image lacks).
    """
    if listed is None:
        return data
    known = (frozenset() if features else data.annotated(index) for index in range(len(data)))
    return Subset(data, [index for index, has in enumerate(known) if _wanted(data, index, tasks, listed) - has])


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
    teacher,
    data: Reader,
    rules: Mapping,
    calibration: Reader | None,
    listed: Mapping[str, Sequence[str]] | None,
    reporter: Reporter,
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
                lacking = [
                    row
                    for row, index in enumerate(indices)
                    if name in _wanted(data, index, [name], listed) - data.annotated(index)
                ]
                value, confidence = (found[lacking] for found in found_by(tasks[name], outputs))
                everywhere = torch.zeros_like(confidence, dtype=torch.long)
                category = tasks[name].category(value)[:, None] if rules[name].rule == "balanced" else everywhere
                for number, part in enumerate(spread[name]):
                    part.add(confidence, category == number)
    found = {name: [part.threshold(rules[name]) for part in spread[name]] for name in rules}
    return {name: levels if rules[name].rule == "balanced" else levels[0] for name, levels in found.items()}


def _store(teacher, data: Reader, folder: Path, thresholds: Mapping, request: dict, reporter: Reporter) -> list[dict]:
    """Write what was found, image by image; return the index: per image and task the pixels of each group, found and kept
    `[groups 2]`; where collections are joined also its collection and the mean confidence.

    `index.jsonl` gets a line when an image's files are in place, so an interrupted discovery knows what is done.
    """
    tasks, listed = {task.name: task for task in teacher.tasks}, request["collections"]
    done = _lines_of(folder / INDEX)
    entries = list(done.values())
    device = next(teacher.parameters()).device
    offline = request["mode"] == "offline"
    with open(folder / INDEX, "a", encoding="utf-8") as index_file:
        for indices, samples in reporter.track(batches(data, 8, labels=False), "discovering", len(data), size=_images):
            if all(sample.id in done for sample in samples):
                continue
            outputs = seen_by(teacher, torch.stack([sample.image for sample in samples]).to(device))
            found = {name: found_by(task, outputs) for name, task in tasks.items()}
            for row, (index, sample) in enumerate(zip(indices, samples, strict=True)):
                if sample.id in done:
                    continue
                entry: dict = {"id": sample.id, "groups": {}}
                if listed is not None:
                    entry |= {"collection": data.collection_of(index), "confidence": {}}
                wanted = _wanted(data, index, tasks, listed)
                for name in sorted(wanted - data.annotated(index)):
                    value, confidence = found[name][0][row], found[name][1][row]
                    valid = keep(tasks[name], value, confidence, thresholds[name])
                    if offline:
                        tasks[name].write(folder / name / f"{sample.id}{tasks[name].file_suffix}", value, valid)
                        write_confidence(folder / "confidence" / name / f"{sample.id}.png", confidence)
                    entry["groups"][name] = _group_counts(tasks[name], value, valid).tolist()
                    if listed is not None:
                        entry["confidence"][name] = confidence.double().mean().item()
                if offline and request["features"]:
                    path = folder / "features" / f"{sample.id}.safetensors"
                    write_features(path, outputs, row, request["feature_stride"], wanted)
                entries.append(entry)
                index_file.write(json.dumps(entry) + "\n")
                index_file.flush()
    return entries


def _lines_of(path: Path) -> dict[str, dict]:
    """The whole lines of an index by image; a line torn by a kill is dropped, also from the file."""
    if not path.exists():
        return {}
    entries = list(lines(path))
    with written_aside(path) as beside:
        beside.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return {entry["id"]: entry for entry in entries}


def _group_counts(task, value: Tensor, valid: Tensor) -> Tensor:
    groups = task.groups(value[None])[0].cpu()
    many = len(task.group_names)
    kept = torch.bincount(groups[valid[0].cpu()], minlength=many)
    return torch.stack([torch.bincount(groups.flatten(), minlength=many), kept], dim=1).double()


def _counted(task, entries: Sequence[Mapping]) -> Tensor:
    """The pixels of each group that were found and kept `[groups 2]`, over these images."""
    found = [torch.tensor(entry["groups"][task.name], dtype=torch.float64) for entry in entries if task.name in entry["groups"]]
    return sum(found, torch.zeros(len(task.group_names), 2, dtype=torch.float64))


def _shares(task, entries: Sequence[Mapping], names: Sequence[str]) -> dict:
    """The manifest's numbers for one task: images it was found for, share of pixels kept, in all and per class by name."""
    counted = _counted(task, entries)
    pixels, kept = counted.sum(0).tolist()
    return {
        "images": sum(task.name in entry["groups"] for entry in entries),
        "kept_share": kept / pixels if pixels else 0.0,
        "classes": {
            name: {"pixels": int(row[0]), "kept": (row[1] / row[0]).item() if row[0] else 0.0}
            for name, row in zip(names, counted, strict=True)
        },
    }


def _by_collection(task, entries: Sequence[Mapping], listed: Mapping[str, Sequence[str]]) -> dict[str, dict]:
    """For each collection that the task is listed for: images it was found for, share of their pixels kept, and the mean
    confidence before anything was kept (None where nothing was found).
    """
    told = {}
    for name in (name for name, tasks in listed.items() if task.name in tasks):
        own = [entry for entry in entries if entry["collection"] == name and task.name in entry["groups"]]
        shares = _shares(task, own, task.group_names)
        sure = [entry["confidence"][task.name] for entry in own]
        mean = sum(sure) / len(sure) if sure else None
        told[name] = {"images": len(own), "kept_share": shares["kept_share"], "confidence": mean}
    return told


def _images(item: tuple[list[int], list[Sample]]) -> int:
    return len(item[0])
