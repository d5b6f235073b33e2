"""Checksums: the SHA-256 of every file of a copy as a text file, in the format that `sha256sum --check` reads too."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from multidense.data.spread import spread
from multidense.files import write_text
from multidense.progress import Reporter, silent
from multidense.types import MultidenseError


def sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits; MultidenseError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MultidenseError(f"{path} cannot be read: {error.strerror or error}. Copy it again.") from error


def sums_of(root: Path, names: Sequence[str], processes: int | None = None, reporter: Reporter = silent) -> dict[str, str]:
    """The SHA-256 of files, named below the root; empty text for one that cannot be read."""
    sums = reporter.track(spread(_sum, root, names, processes), "checksums", len(names))
    return dict(zip(names, sums, strict=True))


def _sum(root: Path, name: str) -> str:
    try:
        return sha256(root / name)
    except MultidenseError:
        return ""


def write_checksums(path: Path, sums: Mapping[str, str]) -> None:
    """Write a line "sum  name" for every file, whole or not at all."""
    write_text(path, "".join(f"{each}  {name}\n" for name, each in sorted(sums.items())))


def read_checksums(path: Path) -> dict[str, str]:
    """What `write_checksums` or `sha256sum` wrote: sums by name. A line that is none is named."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MultidenseError(f"{path} cannot be read as a list of checksums: {error}") from error
    sums = {}
    for number, line in enumerate(lines, 1):
        found = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line)
        if line.strip() and not found:
            raise MultidenseError(
                f"{path}, line {number}: expected a SHA-256, two blanks and a file's name, found '{line[:90]}'"
            )
        if found:
            sums[found[2]] = found[1].lower()
    return sums
