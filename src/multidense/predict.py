"""Prediction for anybody's image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError

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
    place = model / "model" if (model / "model").is_dir() else model
    network = load_model(place).eval()
    size = size or _trained_at(place)
    paths = [path for name in images for path in _files(Path(name))]
    stems = [path.stem for path in paths]
    for path in paths:
        image = _read(path)
        seen = image if size is None else F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        with torch.no_grad():
            outputs = network(seen[None])
        name = path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}_{path.stem}"
        for task in network.tasks:
            logits = resize(outputs.logits[task.name], tuple(image.shape[-2:]))
            save_prediction(task, task.decode(logits)[0], task.confidence(logits)[0], out, name)
        yield f"{path} -> {out}/*/{name}.*"


def _trained_at(model: Path) -> tuple[int, int] | None:
    """The size of the training images, from the record that a training leaves beside its model."""
    record = model.parent / "training.json"
    size = read_json(record).get("data", {}).get("size") if record.exists() else None
    return (size[0], size[1]) if size else None


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(inner for inner in path.iterdir() if inner.suffix.lower() in SUFFIXES)
        if not found:
            raise MultidenseError(f"{path} has no images in it; expected files ending in {', '.join(sorted(SUFFIXES))}")
        return found
    if not path.is_file():
        raise MultidenseError(f"{path} is not there")
    return [path]


def _read(path: Path) -> torch.Tensor:
    try:
        with Image.open(path) as image:
            array = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise MultidenseError(f"{path} cannot be read as an image ({error}); is it damaged or cut short?") from error
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255
