"""Prediction for anybody's image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ImageOps

from multidense.data.encodings import read_picture
from multidense.evaluation import save_prediction
from multidense.files import read_json
from multidense.models.multitask import load_model
from multidense.ops import resize
from multidense.types import MultidenseError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def predict_files(images: Sequence[str], model: Path, out: Path, size: tuple[int, int] | None = None) -> Iterator[str]:
    """Predict every task for image files (or folders of them) into `out/TASK/`; yields a line for each image.

    Images are brought to `size` (height, width), by default the training's where it is known (`training.json` stands beside the
    model), else left as they are; logits are brought back to the image's own size before they are decoded.
    """
    if (model / "recipe.yaml").exists():
        networks = ", ".join(str(place.parent) for place in sorted(model.glob("*/model")))
        raise MultidenseError(f"{model} is a whole run: name one of its networks, {networks or 'once one is trained'}")
    place = model / "model" if (model / "model").is_dir() else model
    network = load_model(place).eval()
    size = size or _trained_at(place)
    if size and min(size) < 1:
        raise MultidenseError(f"the size to predict at must be positive, found {size[0]} × {size[1]}")
    paths = [path for name in images for path in _files(Path(name))]
    names = _names(paths)
    for path, name in zip(paths, names, strict=True):
        image = _read(path)
        seen = image if size is None else F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        with torch.no_grad():
            outputs = network(seen[None])
        for task in network.tasks:
            logits = resize(outputs.logits[task.name], tuple(image.shape[-2:]))
            save_prediction(task, task.decode(logits)[0], task.confidence(logits)[0], out, name)
        yield f"{path} -> {out}/*/{name}.*"


def _names(paths: Sequence[Path]) -> list[str]:
    """A name for each image's predictions: its stem, with as much of its path before it as tells it from the others."""
    for parts in range(1, 1 + max(len(path.parts) for path in paths)):
        names = ["_".join((*path.with_suffix("").parts[-parts:],)) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path.stem}_{path.suffix[1:]}_{number}" for number, path in enumerate(paths)]


def _trained_at(model: Path) -> tuple[int, int] | None:
    """The size of the training images, from the record that a training leaves beside its model."""
    record = model.parent / "training.json"
    size = read_json(record).get("data", {}).get("size") if record.exists() else None
    return (size[0], size[1]) if size else None


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(inner for inner in path.rglob("*") if inner.suffix.lower() in SUFFIXES)
        if not found:
            raise MultidenseError(f"{path} has no images in it; expected files ending in {', '.join(sorted(SUFFIXES))}")
        return found
    if not path.is_file():
        raise MultidenseError(f"{path} is not there")
    return [path]


def _read(path: Path) -> torch.Tensor:
    array = np.array(ImageOps.exif_transpose(read_picture(path)).convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255
