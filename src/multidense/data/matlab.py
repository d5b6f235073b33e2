"""MATLAB files: variables of version 5 (scipy) and 7.3 (HDF5) as plain arrays, with MATLAB's order of axes in both.

>>> read_variables(Path("splits.mat"), "trainNdxs")["trainNdxs"].shape
(795, 1)
>>> Stack(Path("nyu_depth_v2_labeled.mat")).read("images", 0).shape
(480, 640, 3)
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import scipy.io

from multidense.types import MultidenseError

_DAMAGED = (OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, NotImplementedError, zlib.error)
"""What scipy and h5py raise on files that are cut off, are something else, or hold damaged data."""


def read_variables(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Whole variables of a file of either version, by name; MultidenseError naming file and variable."""
    if not path.is_file():
        raise MultidenseError(f"{path} is not there")
    if h5py.is_hdf5(path):
        stack = Stack(path)
        return {name: stack.whole(name) for name in names}
    try:
        found = scipy.io.loadmat(path, variable_names=list(names))
    except _DAMAGED as error:
        raise MultidenseError(f"{path} cannot be read as a MATLAB file: {error}. Get it anew.") from error
    for name in names:
        if name not in found or not isinstance(found[name], np.ndarray) or found[name].dtype.kind not in "buif":
            what = "something else" if name in found else "none"
            raise MultidenseError(f"{path}: expected an array `{name}`, found {what}. Is this the file of the data set?")
    return {name: found[name] for name in names}


@dataclass(frozen=True)
class Stack:
    """A file of version 7.3 whose variables hold one thing an image, along their last axis.

    Every read opens and closes the file: it costs a millisecond, and nothing is shared with processes that are forked or
    spawned.
    """

    path: Path

    def shape(self, name: str) -> tuple[int, ...]:
        """The size of a variable, in MATLAB's order."""
        with self._variable(name) as variable:
            return variable.shape[::-1]

    def whole(self, name: str) -> np.ndarray:
        with self._variable(name) as variable:
            return variable[()].T

    def read(self, name: str, index: int) -> np.ndarray:
        """The part of a variable that belongs to one image, counted from 0: `[h w]` or `[h w c]`."""
        with self._variable(name) as variable:
            return variable[index].T

    @contextmanager
    def _variable(self, name: str) -> Iterator[h5py.Dataset]:
        try:
            with h5py.File(self.path, "r") as file:
                if not isinstance(file.get(name), h5py.Dataset) or file[name].dtype.kind not in "buif":
                    some = ", ".join(sorted(key for key in file if not key.startswith("#"))[:12]) or "nothing"
                    raise MultidenseError(
                        f"{self.path}: expected an array `{name}`, found {some}. Is this the file of the data set?"
                    )
                yield file[name]
        except FileNotFoundError as error:
            raise MultidenseError(f"{self.path} is not there") from error
        except _DAMAGED as error:
            raise MultidenseError(
                f"{self.path}: `{name}` cannot be read as MATLAB 7.3 (HDF5): {error}. It is damaged or cut off; get it anew."
            ) from error
