"""How values look: palettes, depth and normal colouring, confidence, grids. Arrays `[h w 3]` of uint8 throughout."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

Picture = UInt8[np.ndarray, "h w 3"]


def palette(classes: int) -> UInt8[np.ndarray, "k 3"]:
    """Colours that differ well from their neighbours: hues by the golden angle, three lightnesses in turn."""
    hues = (np.arange(classes) * 0.618034 + 0.08) % 1.0
    lightness = np.take([0.55, 0.72, 0.40], np.arange(classes) % 3)
    # A cheap hue wheel: three cosines a third of a turn apart, around the lightness.
    wheel = np.cos(2 * np.pi * (hues[:, None] - np.array([0, 1 / 3, 2 / 3])))
    return (255 * np.clip(lightness[:, None] + 0.30 * wheel, 0, 1)).astype(np.uint8)


_MAGMA = np.array(
    [[0, 0, 4], [40, 17, 89], [101, 26, 128], [160, 47, 127], [216, 69, 107], [249, 116, 93], [254, 178, 122], [252, 253, 191]],
    dtype=np.float64,
)
_VIRIDIS = np.array(
    [[68, 1, 84], [70, 50, 127], [54, 92, 141], [39, 127, 142], [31, 161, 135], [74, 194, 109], [159, 218, 58], [253, 231, 37]],
    dtype=np.float64,
)


def _ramp(values: Float[np.ndarray, "h w"], stops: Float[np.ndarray, "n 3"]) -> Picture:
    place = np.clip(np.nan_to_num(values), 0, 1) * (len(stops) - 1)
    channels = [np.interp(place, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def colour_classes(ids: Int[np.ndarray, "h w"], classes: int) -> Picture:
    """Class ids by the palette."""
    return palette(classes)[ids]


def colour_positive(values: Float[np.ndarray, "h w"], low: float, high: float) -> Picture:
    """Positive quantities on a log scale from `low` (bright) to `high` (dark)."""
    logs = np.log(np.clip(values, 1e-6, None) / low) / np.log(max(high, low * 1.001) / low)
    return _ramp(1 - logs, _MAGMA)


def colour_directions(vectors: Float[np.ndarray, "3 h w"]) -> Picture:
    """Unit vectors as colours: right is red, up is green, toward the viewer is blue."""
    return np.clip((vectors + 1) * 127.5, 0, 255).round().astype(np.uint8).transpose(1, 2, 0)


def colour_share(values: Float[np.ndarray, "h w"]) -> Picture:
    """Probabilities or confidences, dark (0) to bright (1)."""
    return _ramp(values, _VIRIDIS)


def grey(values: Float[np.ndarray, "h w"]) -> Picture:
    """Probabilities as grey levels, 0 black."""
    return np.repeat((np.clip(values, 0, 1) * 255).round().astype(np.uint8)[..., None], 3, axis=-1)


def hatch(picture: Picture, valid: Bool[np.ndarray, "h w"] | None) -> Picture:
    """The picture with everything that is not valid hatched in grey."""
    if valid is None or valid.all():
        return picture
    rows, columns = np.indices(valid.shape)
    stripes = np.where((rows + columns) % 6 < 2, 150, 205).astype(np.uint8)[..., None]
    return np.where(valid[..., None], picture, stripes)


def from_image(image: Float[np.ndarray, "3 h w"]) -> Picture:
    """A float RGB image `[3 h w]` in 0 … 1 as a picture."""
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)


def grid(rows: Sequence[Sequence[Picture]], gap: int = 2) -> UInt8[np.ndarray, "sheet_h sheet_w 3"]:
    """Pictures of one size side by side, rows below each other, on white."""
    height, width = rows[0][0].shape[:2]
    most = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + gap) - gap, most * (width + gap) - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            sheet[top : top + height, left : left + width] = picture
    return sheet


def data_url(picture: Picture) -> str:
    """The picture as a PNG inside a `data:` address, for pages that carry everything with them."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def file_url(path: Path, largest: int) -> tuple[str, int]:
    """A picture file as a `data:` address, reduced where a side is longer than `largest`; and its width in pixels."""
    with Image.open(path) as image:
        image = image.convert("RGB")
        image.thumbnail((largest, largest))
        return data_url(np.asarray(image)), image.width
