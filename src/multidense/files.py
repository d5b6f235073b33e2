"""Files that are whole or not there: everything is written beside its place and then renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multidense.types import MultidenseError


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path to write to; it takes the place of `path` when the block ends well, and vanishes when it does not."""
    path = Path(path)
    beside = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise MultidenseError(
            f"cannot write {path}: {error.strerror or error}. What was there before is untouched; "
            "free some space or choose a folder that can be written to, then run the same command again."
        ) from error
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MultidenseError(f"cannot make the folder {Path(path).parent}: {error.strerror or error}") from error
    with written_aside(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, data: object) -> None:
    """Write readable JSON, whole or not at all; a NaN is refused, for JSON has none."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict:
    """Read a JSON object; a file that is unreadable, or holds something else, is named."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MultidenseError(f"{path} is not there") from error
    except (OSError, ValueError) as error:
        raise MultidenseError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise MultidenseError(f"{path} should hold a JSON object, found {type(data).__name__}")
    return data


def fingerprint(path: Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()[:16]


def plain(data: object) -> object:
    """Nested settings as JSON and YAML give them back: mappings with text keys, and lists for tuples."""
    if isinstance(data, dict):
        return {str(key): plain(value) for key, value in data.items()}
    return [plain(value) for value in data] if isinstance(data, list | tuple) else data
