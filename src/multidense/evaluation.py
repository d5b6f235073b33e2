"""Evaluation: a network and labelled data give Results; and the pictures that a report shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multidense import pictures
from multidense.data import Reader, collate
from multidense.data.reader import batches
from multidense.files import write_json, written_aside
from multidense.meters import Meter
from multidense.models.cost import count_parameters, multiply_adds
from multidense.models.multitask import MultiTask, weights_hash
from multidense.progress import Reporter, silent
from multidense.results import Results, environment
from multidense.store import Discovered, write_confidence
from multidense.task import Task
from multidense.types import MultidenseError

LARGEST_PICTURE = 320
"""Pictures in reports are at most this wide; the files of a discovery have every pixel."""


def evaluate(model: MultiTask, data: Reader, *, batch_size: int = 8, reporter: Reporter = silent) -> Results:
    """Score every task that `data` is annotated for, at the size of its samples, without augmentation.

    All scores are pooled over pixels (or images, where a score says so) of the whole set, so they do not depend on
    `batch_size`; where `data` is joined of collections, `collections` has those of each alone. Results say nothing of training
    settings: whoever knows them adds them to `provenance`.
    """
    measured = measure(model, data, batch_size=batch_size, reporter=reporter)
    size = tuple(data.load(0, ()).image.shape[-2:])
    return replace(
        measured,
        provenance=dict(measured.provenance)
        | {"data": data.provenance() | {"image_size": list(size)}, "weights": weights_hash(model), "model": model.spec}
        | environment(),
        cost={"parameters": count_parameters(model), "multiply_adds": multiply_adds(model, size)},
    )


def measure(
    model: MultiTask, data: Reader, *, batch_size: int = 8, reporter: Reporter = silent, quick: bool = False
) -> Results:
    """The scores of `evaluate` without where they come from. The model's mode is left as it was.

    `quick`, for learning curves: a task whose scores take long to compute is told by a cheap one (see `Task.quick_meter`).
    """
    if not len(data):
        raise MultidenseError(f"there is nothing to evaluate on: '{data.name}' has no image in its split '{data.split}'")
    wanted = {task.name for task in data.tasks}
    tasks = [task for task in model.tasks if task.name in wanted]
    device = next(model.parameters()).device
    home = torch.device("cpu") if device.type == "mps" else device  # sums are in double precision, which MPS has not
    tasks = [task.with_codebook(task.codebook.to(home)) if task.codebook is not None else task for task in tasks]
    groups = list(data.collections) or [None]
    apart = {group: {task.name: task.quick_meter() if quick else task.meter() for task in tasks} for group in groups}
    images = {group: {task.name: 0 for task in tasks} for group in groups}
    training = model.training
    model.eval()
    for indices, samples in reporter.track(batches(data, batch_size), "evaluating", len(data), size=lambda item: len(item[0])):
        group = data.collection_of(indices[0])
        batch = collate(samples, tasks).to(device)
        with torch.no_grad():
            outputs = model(batch.image)
        for name, meter in apart[group].items():
            if batch.annotated[name].any():
                meter.update(outputs.logits[name].to(home), batch.targets[name].to(home))
                images[group][name] += int(batch.annotated[name].sum())
    model.train(training)

    scores, further, per_class = {}, {}, {}
    collections: dict[str, dict[str, float]] = {group: {} for group in data.collections}
    for task in tasks:
        having = [group for group in groups if images[group][task.name]]
        if not having:
            continue
        for group in having if data.collections else ():
            told, _ = _told(task, apart[group][task.name])
            collections[group] |= told
        meter, *others = (apart[group][task.name] for group in having)
        for other in others:
            meter.merge(other.sums)
        told, rest = _told(task, meter)
        scores, further = scores | told, further | rest
        if hasattr(meter, "per_class"):
            names = data.class_names.get(task.name) or task.group_names
            per_class[task.name] = dict(zip(names, meter.per_class(), strict=True))
    seen = {task.name: sum(images[group][task.name] for group in groups) for task in tasks}
    by_collection = {"images_of_collections": {group: images[group] for group in groups}} if data.collections else {}
    return Results(scores, further, per_class, {"images": seen} | by_collection, collections=collections)


def _told(task: Task, meter: Meter) -> tuple[dict[str, float], dict[str, float]]:
    """The scores that tables have, and the further ones, by `task.score`."""
    computed = meter.compute()
    headline = [score.name for score in task.scores if score.name in computed] or list(computed)[:1]
    named = {name: {f"{task.name}.{name}": value} for name, value in computed.items()}
    scores: dict[str, float] = {}
    for name in headline:
        scores |= named.pop(name)
    return scores, {name: value for each in named.values() for name, value in each.items()}


def prediction_pictures(model: MultiTask, data: Reader, indices: Sequence[int], folder: Path) -> None:
    """`folder/split/id/task.prediction.png` and `.confidence.png` for some images."""
    for index in indices:
        sample = data.load(index, ())
        place = _place(folder, data, index)
        for task in model.tasks:
            value, confidence = model.predict(sample.image)[task.name]
            _save(place / f"{task.name}.prediction.png", task.picture(value.reshape(value.shape[-3:]).cpu()))
            if task.has_confidence:
                shares = confidence.reshape(confidence.shape[-2:]).cpu().numpy()
                _save(place / f"{task.name}.confidence.png", pictures.colour_share(shares))


def truth_pictures(data: Reader, indices: Sequence[int], folder: Path, labelled: Reader | None = None) -> None:
    """`folder/split/id/input.png` and `task.truth.png`; `labels.json` says what `labelled` (the training's view) shows."""
    for index in indices:
        sample = data[index]
        place = _place(folder, data, index)
        _save(place / "input.png", pictures.from_image(sample.image.numpy()))
        for task in data.tasks:
            if task.name in sample.targets:
                target = sample.targets[task.name]
                _save(place / f"{task.name}.truth.png", task.picture(target.value, target.valid))
        if labelled is not None:
            write_json(place / "labels.json", {"labelled": sorted(labelled.annotated(index))})


def discovered_pictures(found: Discovered, data: Reader, indices: Sequence[int], folder: Path) -> None:
    """`folder/split/id/task.discovered.png` and `.confidence.png`, what was not kept hatched out."""
    for index in indices:
        place = _place(folder, data, index)
        for task in found.tasks:
            label = found.label(task.name, data.ids[index])
            if label is not None:
                _save(place / f"{task.name}.discovered.png", task.picture(label.value, label.valid))
                confidence = found.confidence(task.name, data.ids[index])
                _save(place / f"{task.name}.confidence.png", pictures.colour_share(confidence[0].numpy()))


def save_prediction(task: Task, value: Tensor, confidence: Tensor, folder: Path, name: str) -> None:
    """One prediction as people use it: the value in the task's file format, a picture of it, and the confidence."""
    task.write(folder / task.name / f"{name}{task.file_suffix}", value)
    _save(folder / task.name / f"{name}.picture.png", task.picture(value))
    if task.has_confidence:
        write_confidence(folder / task.name / f"{name}.confidence.png", confidence)


def contact_sheet(data: Reader, indices: Sequence[int], path: Path) -> None:
    """One picture: a row an image, then each task's target; what is not labelled stays white, what is not valid is hatched."""
    rows = []
    for index in indices:
        sample = data[index]
        image = pictures.from_image(sample.image.numpy())
        blank = np.full_like(image, 255)
        told = [
            task.picture(sample.targets[task.name].value, sample.targets[task.name].valid)
            if task.name in sample.targets
            else blank
            for task in data.tasks
        ]
        rows.append([image, *told])
    height, width = (max(row[0].shape[side] for row in rows) for side in (0, 1))
    padded = [[_padded(picture, height, width) for picture in row] for row in rows]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with written_aside(Path(path)) as beside:
        Image.fromarray(pictures.grid(padded)).save(beside)


def _padded(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    missing = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0))
    return np.pad(picture, missing, constant_values=255)


def _place(folder: Path, data: Reader, index: int) -> Path:
    return Path(folder) / data.split / data.ids[index].replace("/", "__")


def _save(path: Path, picture) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture)
    if image.width > LARGEST_PICTURE:
        image = image.resize((LARGEST_PICTURE, round(image.height * LARGEST_PICTURE / image.width)), Image.Resampling.NEAREST)
    with written_aside(path) as beside:
        image.save(beside)
