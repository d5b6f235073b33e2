"""Normals of a depth map, and which way the axes of stored normals point."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from jaxtyping import Bool, Float, Num, Shaped

from multidense.data.encodings import Directions
from multidense.types import MultidenseError

AXES = Directions.axes
"""House axis and sign of right, left, up, down, viewer, into."""

_HALF_VIEW = 0.41, 0.54
"""Tangents of half the angle of view, down and right, of the Kinect's picture without its border."""
_CLEAR = 0.02
"""By how much the best reading of axes must beat the second; eight real images reach 0.07."""


@dataclass(frozen=True)
class Camera:
    """Focal lengths and principal point in pixels, whose middles are counted from 0."""

    fx: float
    fy: float
    cx: float
    cy: float


def from_depth(
    depth: Float[np.ndarray, "H W"],
    camera: Camera,
    rows: Shaped[np.ndarray, " h"],
    columns: Shaped[np.ndarray, " w"],
    reach: int = 5,
) -> tuple[Float[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """Unit normals in the house's frame at some rows and columns of a depth map (metres along the optical axis; 0: unknown).

    1 / depth of a plane is linear in the pixels, so it is fitted by least squares to the neighbours, up to `reach` pixels away,
    that lie on the same surface: those whose 1 / depth differs by less than 2 % and two steps of a Kinect (0.006 / m). Nothing
    is averaged across a jump of depth. Zero and not valid where the depth is unknown or fewer than a quarter of the
    neighbours belong.
    """
    known = np.isfinite(depth) & (depth > 0)
    unknown = -1e3  # far from everything, and `near` nothing, being negative
    inverse = np.where(known, 1 / np.where(known, depth, 1).astype(np.float64), unknown).astype(np.float32)
    inverse = np.pad(inverse, reach, constant_values=unknown)
    here = inverse[(rows + reach)[:, None], columns + reach]
    near = 0.02 * here + 0.006
    right = np.arange(-reach, reach + 1, dtype=np.float32)
    powers = np.stack([right * 0 + 1, right, right * right])
    belongs = np.empty((len(right), *here.shape), np.float32)
    sums = np.zeros((9, here.size))
    for down in range(-reach, reach + 1):  # a row of neighbours at a time, all pixels at once
        lines = inverse[rows + reach + down]
        rise = np.stack([lines[:, columns + reach + one] for one in range(-reach, reach + 1)]) - here
        np.less_equal(np.abs(rise), near, out=belongs, casting="unsafe")
        rise *= belongs
        count, x, xx = powers @ belongs.reshape(len(right), -1)
        w, xw = powers[:2] @ rise.reshape(len(right), -1)
        sums += count, x, down * count, xx, down * x, down * down * count, w, xw, down * w
    count, x, y, xx, xy, yy, w, xw, yw = sums.reshape(9, *here.shape)
    n = np.maximum(count, 1)
    xx, xy, yy, xw, yw = xx - x * x / n, xy - x * y / n, yy - y * y / n, xw - x * w / n, yw - y * w / n
    area = xx * yy - xy * xy
    valid = (here > 0) & (count >= (2 * reach + 1) ** 2 / 4)  # so many do not lie on one line, and span an area
    area = np.where(valid, area, 1)
    slope_x, slope_y = (yy * xw - xy * yw) / area, (xx * yw - xy * xw) / area
    level = here + (w - slope_x * x - slope_y * y) / n
    a, b = slope_x * camera.fx, slope_y * camera.fy
    c = level - slope_x * (columns - camera.cx) - slope_y * (rows[:, None] - camera.cy)
    vectors = np.stack([-a, b, c], axis=-1)  # down and into become up and viewer
    length = np.linalg.norm(vectors, axis=-1)
    valid &= length > 0
    vectors = np.where(valid[..., None], vectors / np.where(valid, length, 1)[..., None], 0)
    return vectors.astype(np.float32), valid


def measured_axes(maps: Iterable[tuple[Num[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]]) -> tuple[str, str, str] | None:
    """What the three channels of stored normals grow toward, such as ("right", "up", "viewer"); None if that is not clear.

    What is seen faces the viewer: of the 48 ways to read the channels, the right one makes normals, on the average, point most
    against the rays of their pixels. Left walls face right, floors face up, and both lie where they lie in the picture.
    """
    seen = []
    for vectors, valid in maps:
        if valid.any():
            height, width = valid.shape
            down = np.broadcast_to(((np.arange(height) + 0.5) / height * 2 - 1)[:, None], valid.shape)[valid]
            right = np.broadcast_to((np.arange(width) + 0.5) / width * 2 - 1, valid.shape)[valid]
            against = np.stack([-_HALF_VIEW[1] * right, _HALF_VIEW[0] * down, np.ones(len(right))])
            seen.append(against @ vectors[valid].astype(np.float64) / len(right))
    if not seen:
        return None
    table = np.mean(seen, axis=0)  # [house axis, channel]
    scores = {
        words: sum(AXES[word][1] * table[AXES[word][0], channel] for channel, word in enumerate(words))
        for order in permutations((("right", "left"), ("up", "down"), ("viewer", "into")))
        for words in product(*order)
    }
    best, second = sorted(scores, key=scores.get, reverse=True)[:2]
    return best if scores[best] - scores[second] > _CLEAR else None


def checked_axes(words: Sequence[str]) -> tuple[str, str, str]:
    """The same three words; MultidenseError unless they are one each of right or left, up or down, viewer or into."""
    if isinstance(words, str) or sorted(AXES[word][0] if word in AXES else -1 for word in words) != [0, 1, 2]:
        raise MultidenseError(
            f"nyuv2: normals_axes should be three words, one each of right/left, up/down, viewer/into, found {words!r}; "
            "the house's frame is right, up, viewer"
        )
    return tuple(words)


def to_house(vectors: Num[np.ndarray, "h w 3"], axes: Sequence[str]) -> Float[np.ndarray, "h w 3"]:
    """Vectors whose channels grow toward `axes` in the house's frame."""
    house = np.empty(vectors.shape, np.float32)
    for channel, word in enumerate(axes):
        axis, sign = AXES[word]
        house[..., axis] = sign * vectors[..., channel].astype(np.float32)
    return house
