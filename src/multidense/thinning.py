"""Lines one pixel wide: thinning to convergence, oriented non-maximum suppression, the boundaries of regions.

>>> thin(probability >= 0.5)                               # one map
>>> thin_stack(stack(probability, thresholds))             # the maps of all thresholds at once

A *stack* holds up to 64 binary maps in the bits of one `uint64` image, `[words h w]`: map k is bit k % 64 of word k // 64. The
conditions of thinning are then a few dozen bitwise operations for 64 maps together, and are evaluated only at pixels whose
surroundings have just changed.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt64
from scipy import ndimage

from multidense.types import MultidenseError

WORD = 64
BLOCK = 4096
"""Pixels whose conditions are evaluated together: what fits a core's nearest cache."""


def thin(lines: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """A binary map thinned until nothing changes, as MATLAB's `bwmorph(lines, 'thin', Inf)` does.

    Guo and Hall's parallel thinning with two sub-iterations (Communications of the ACM 32(3), 1989, first algorithm); pixels
    outside the map count as background. Connected parts and holes keep their number; single pixels and line ends stay.
    """
    return plane(thin_stack(lines.astype(np.uint64)[None]), 0)


def stack(
    values: Float[np.ndarray, "h w"], thresholds: Float[np.ndarray, " k"], strict: bool = False
) -> UInt64[np.ndarray, "words h w"]:
    """The maps `values >= threshold` (`>` if `strict`) of all thresholds, which ascend, as a stack."""
    reached = np.searchsorted(thresholds, values.ravel(), side="left" if strict else "right")
    bits = np.zeros((-(-len(thresholds) // WORD), len(thresholds) + 1), np.uint64)
    for k in range(len(thresholds)):
        bits[k // WORD, k + 1 :] |= np.uint64(1 << k % WORD)
    return bits[:, reached].reshape(-1, *values.shape)


def plane(maps: UInt64[np.ndarray, "words ..."], k: int) -> Bool[np.ndarray, "*shape"]:
    """Map k of a stack."""
    return (maps[k // WORD] & np.uint64(1 << k % WORD)) != 0


def totals(maps: UInt64[np.ndarray, "words ..."], count: int) -> Integer[np.ndarray, " count"]:
    """How many pixels each of the first `count` maps of a stack has."""
    words = [word[word != 0] for word in maps]
    return np.array([np.count_nonzero(words[k // WORD] & np.uint64(1 << k % WORD)) for k in range(count)], np.int64)


def thin_stack(maps: UInt64[np.ndarray, "words h w"]) -> UInt64[np.ndarray, "words h w"]:
    """Every map of a stack thinned until nothing changes; see `thin`."""
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)))
    width = padded.shape[2]
    around = (1, 1 - width, -width, -width - 1, -1, width - 1, width, width + 1)  # east, then counter-clockwise
    flat = padded.reshape(-1)
    border = (padded & ~_surrounded(padded)) != 0
    changed = [border, border]  # near what the last two sub-iterations removed; at first, all that touches background
    second = False
    while changed[0].any() or changed[1].any():
        places = np.flatnonzero(changed[0] | changed[1])
        places = places[flat[places] != 0]
        gone = np.zeros(padded.shape, bool)
        removed = [
            flat[block] & _deletable(*(flat[block + step] for step in around), second)
            for block in (places[start : start + BLOCK] for start in range(0, len(places), BLOCK))
        ]
        if removed:
            bits = np.concatenate(removed)
            flat[places] ^= bits
            gone.reshape(-1)[places[bits != 0]] = True
        changed = [changed[1], _grown(gone)]
        second = not second
    return padded[:, 1:-1, 1:-1]


def _deletable(x1, x2, x3, x4, x5, x6, x7, x8, second: bool):
    """Bits of the pixels a sub-iteration deletes, from their eight neighbours (east, then counter-clockwise).

    Guo and Hall's conditions: one run of foreground around the pixel (G1), between 2 and 3 pairs of neighbours that hold
    foreground, paired in the way that gives fewer (G2), and nothing across the side that is being peeled (G3, G3').
    Given G1 the pairs that hold foreground follow each other, so that two of them exist where both alternations are met.
    """
    p12, p34, p56, p78 = x1 | x2, x3 | x4, x5 | x6, x7 | x8
    p23, p45, p67, p81 = x2 | x3, x4 | x5, x6 | x7, x8 | x1
    b1, b2, b3, b4 = p23 & ~x1, p45 & ~x3, p67 & ~x5, p81 & ~x7
    deletable = (b1 ^ b2 ^ b3 ^ b4) & ~((b1 & b2) | (b3 & b4))
    deletable &= (p12 | p56) & (p34 | p78) & (p23 | p67) & (p45 | p81)
    deletable &= ~(p12 & p34 & p56 & p78 & p23 & p45 & p67 & p81)
    return deletable & ~((p67 | ~x4) & x5 if second else (p23 | ~x8) & x1)


def _surrounded(padded: UInt64[np.ndarray, "words h w"]) -> UInt64[np.ndarray, "words h w"]:
    """Bits of the pixels whose 3×3 surroundings are all foreground."""
    rows = padded.copy()
    rows[:, 1:-1] &= padded[:, :-2] & padded[:, 2:]
    both = rows.copy()
    both[:, :, 1:-1] &= rows[:, :, :-2] & rows[:, :, 2:]
    return both


def _grown(places: Bool[np.ndarray, "words h w"]) -> Bool[np.ndarray, "words h w"]:
    """The places and their eight neighbours."""
    if not places.any():
        return places
    rows = places.copy()
    rows[:, 1:] |= places[:, :-1]
    rows[:, :-1] |= places[:, 1:]
    both = rows.copy()
    both[:, :, 1:] |= rows[:, :, :-1]
    both[:, :, :-1] |= rows[:, :, 1:]
    return both


def suppress(
    strength: Float[np.ndarray, "h w"], blur: int = 4, multiplier: float = 1.01, border: int = 5
) -> Float[np.ndarray, "h w"]:
    """Oriented non-maximum suppression, radius 1, as in Dollár and Zitnick's structured-edge toolbox (PAMI 2015).

    A pixel becomes zero if, one pixel along the normal of its edge to either side, the strength (bilinearly interpolated, the
    map clamped) exceeds its own times `multiplier`. The normal's direction comes from the second derivatives of the map blurred
    by a triangle of radius `blur`. Strengths within `border` pixels of the map's rim fade linearly to zero.
    """
    height, width = strength.shape
    if min(height, width) < 2:
        raise MultidenseError(
            f"non-maximum suppression needs a map of at least 2×2 pixels, found {height}×{width}; score it without suppression"
        )
    strength = strength.astype(np.float64)
    triangle = np.concatenate([np.arange(1, blur + 2), np.arange(blur, 0, -1)]) / (blur + 1) ** 2
    smooth = ndimage.correlate1d(ndimage.correlate1d(strength, triangle, 0, mode="reflect"), triangle, 1, mode="reflect")
    down, right = np.gradient(smooth)
    across = np.gradient(right, axis=1)
    vertical, mixed = np.gradient(down)
    direction = np.arctan(vertical * np.sign(-mixed) / (across + 1e-5))
    y, x = np.mgrid[:height, :width]
    keep = np.ones(strength.shape, bool)
    for side in (-1, 1):
        keep &= strength * multiplier >= _bilinear(strength, y + side * np.sin(direction), x + side * np.cos(direction))
    reach = min(border, height // 2, width // 2)
    fade = [np.minimum(1.0, np.minimum(np.arange(n), np.arange(n)[::-1]) / max(reach, 1)) for n in (height, width)]
    return np.where(keep, strength, 0.0) * fade[0][:, None] * fade[1]


def _bilinear(
    values: Float[np.ndarray, "h w"], y: Float[np.ndarray, "h w"], x: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w"]:
    """Values between pixels; places outside the map are moved to its rim."""
    y, x = (np.clip(at, 0, size - 1.001) for at, size in ((y, values.shape[0]), (x, values.shape[1])))
    top, left = y.astype(np.int64), x.astype(np.int64)
    dy, dx = y - top, x - left
    upper = values[top, left] * (1 - dx) + values[top, left + 1] * dx
    lower = values[top + 1, left] * (1 - dx) + values[top + 1, left + 1] * dx
    return upper * (1 - dy) + lower * dy


def region_boundaries(labels: Integer[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The boundaries of a label map as PASCAL-Context's edge evaluation takes them: between regions, thinned.

    A pixel is boundary if its label is not that of the pixel to its right, below or diagonally below to the right (in the last
    row and column, of those that exist). The published code first makes every 4-connected part of a label a region of its own;
    that changes nothing, for where two parts touch at a corner another label lies beside them.
    """
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:-1, :-1] |= labels[:-1, :-1] != labels[1:, 1:]
    return thin(edge)
