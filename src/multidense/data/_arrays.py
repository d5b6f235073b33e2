"""Arrays of preprocessed copies of benchmarks (.npy), checked and in the house's meaning: colours, classes, metres, vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from multidense.data.encodings import VOID, read_array
from multidense.types import MultidenseError


def real_numbers(path: Path, channels: int, what: str) -> np.ndarray:
    """Real numbers `[h w 3]`, or `[h w]` where there is one channel."""
    array, _ = read_array(path)
    if channels == 1 and array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    fits = array.ndim == 2 if channels == 1 else array.ndim == 3 and array.shape[2] == channels
    if not fits or array.dtype.kind not in "uif" or not array.size:
        shape = "[h w]" if channels == 1 else f"[h w {channels}]"
        raise MultidenseError(
            f"{path}: {what} should be real numbers {shape}, found {array.dtype} {list(array.shape)}. "
            "Put the file of the data set in its place."
        )
    return array


def colours(path: Path) -> np.ndarray:
    """RGB `[h w 3]`: uint8 where the file holds whole numbers, 0 … 255, else float32 in 0 … 1."""
    array = real_numbers(path, 3, "an image")
    whole, slack = (255, 0) if array.dtype.kind in "ui" else (1, 1e-3)
    low, high = array.min(), array.max()
    if not (low >= -slack and high <= whole + slack):
        raise MultidenseError(
            f"{path}: colours should lie in 0 … 1 (or 0 … 255 as whole numbers), found {array.dtype} from {low:g} to {high:g}. "
            "Save them as they are in the data set, without mean and deviation."
        )
    return array.astype(np.uint8) if whole == 255 else array.astype(np.float32).clip(0, 1)


def array_size(path: Path) -> tuple[int, int]:
    """Height and width of an array, of which only the beginning is read."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).shape[:2]
    except (OSError, ValueError, EOFError, AttributeError):
        return read_array(path)[0].shape[:2]  # an error that says what is wrong with it


def class_ids(path: Path, array: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Class ids, uint8, and where they are valid: not −1, 255 or not finite. Any other number is refused."""
    void = (array == -1) | (array == VOID) | ~np.isfinite(array)
    valid = (array >= 0) & (array < classes) & (np.floor(array) == array)
    if not (void | valid).all():
        strange = ", ".join(f"{one:g}" for one in np.unique(array[~(void | valid)])[:8])
        raise MultidenseError(
            f"{path}: class ids should be 0 … {classes - 1}, or −1 or 255 where not valid, found {strange}. "
            "Put the file of the data set in its place."
        )
    return np.where(valid, array, 0).astype(np.uint8), valid


def metres(path: Path, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth, float32, and where it is valid: finite and above 0. What can only be another unit is refused."""
    depth = array.astype(np.float32)
    valid = np.isfinite(depth) & (depth > 0)
    if valid.any() and depth[valid].max() > 100:
        raise MultidenseError(
            f"{path}: depth should be in metres, found up to {depth[valid].max():g}. If it is in millimetres, divide by 1000."
        )
    return np.where(valid, depth, np.float32(0)), valid


def unit_vectors(path: Path, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors with the axes of the file, and where they are valid."""
    vectors = array.astype(np.float32)
    valid = np.isfinite(vectors).all(-1) & vectors.any(-1)
    if valid.any() and np.abs(vectors[valid]).max() > 1.5:
        raise MultidenseError(
            f"{path}: normals should be unit vectors in −1 … 1, found numbers up to {np.abs(vectors[valid]).max():g}. "
            "Put the file of the data set in its place."
        )
    return np.where(valid[..., None], vectors, np.float32(0)), valid
