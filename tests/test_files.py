"""Files are whole or not there."""

import errno
import hashlib
import os
import subprocess
import sys

import pytest
import torch

from multidense.files import fingerprint, read_json, write_json, write_text, written_aside
from multidense.tasks import Depth
from multidense.types import MultidenseError


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    return path


def alone(path) -> bool:
    """Whether nothing else lies in the folder."""
    return [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_what_was_written_takes_the_place_of_what_was_there(old):
    with written_aside(old) as beside:
        assert beside.parent == old.parent
        assert beside.suffix == old.suffix
        beside.write_text("new")
        assert old.read_text() == "old", "not before the block has ended"
    assert old.read_text() == "new"
    assert alone(old)


def interrupted(path, error: BaseException) -> None:
    with written_aside(path) as beside:
        beside.write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()], ids=repr)
def test_an_error_leaves_what_was_there_and_goes_on(old, error):
    with pytest.raises(type(error)):
        interrupted(old, error)
    assert old.read_text() == "old"
    assert alone(old)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
def test_a_disk_that_does_not_take_it_is_told_with_the_remedy(old, number):
    said = rf"cannot write .*file\.txt: {os.strerror(number)}\. What was there before is untouched; free some space"
    with pytest.raises(MultidenseError, match=said):
        interrupted(old, OSError(number, os.strerror(number)))
    assert old.read_text() == "old"
    assert alone(old)


def test_a_rename_that_fails_leaves_what_was_there(old, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(MultidenseError, match="cannot write"):
        write_text(old, "new")
    assert old.read_text() == "old"
    assert alone(old)


def test_a_process_killed_in_between_leaves_what_was_there(old):
    code = f"""
import os
from pathlib import Path
from multidense.files import written_aside
with written_aside(Path({str(old)!r})) as beside:
    beside.write_text("half")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 9
    assert old.read_text() == "old"
    write_text(old, "new")
    assert old.read_text() == "new"


def test_what_is_left_of_a_killed_process_is_hidden(tmp_path):
    with written_aside(tmp_path / "a.png") as beside:
        assert beside.name.startswith(".")
        beside.touch()
    assert list(tmp_path.glob("*.png")) == [tmp_path / "a.png"]


def test_a_task_writes_aside_too(tmp_path, monkeypatch):
    path = tmp_path / "depth.png"
    Depth().write(path, torch.full((1, 2, 2), 3.0))
    before = path.read_bytes()

    def half(self, beside, value, valid):
        beside.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Depth, "to_file", half)
    with pytest.raises(MultidenseError, match=r"cannot write .*depth\.png"):
        Depth().write(path, torch.full((1, 2, 2), 4.0))
    assert path.read_bytes() == before
    assert alone(path)


def test_folders_are_made_on_the_way(tmp_path):
    write_text(tmp_path / "a" / "b" / "file.txt", "täxt\n")
    assert (tmp_path / "a" / "b" / "file.txt").read_text(encoding="utf-8") == "täxt\n"


def test_a_folder_that_cannot_be_made_is_named(old):
    with pytest.raises(MultidenseError, match=r"cannot make the folder .*file\.txt/deep"):
        write_text(old / "deep" / "file.txt", "new")


# JSON


def test_json_comes_back(tmp_path):
    data = {"scores": {"a": 1.5, "b": None}, "names": ["x", "ÿ"]}
    write_json(tmp_path / "data.json", data)
    assert read_json(tmp_path / "data.json") == data


def test_json_has_no_nan(old):
    with pytest.raises(ValueError, match="JSON"):
        write_json(old, {"score": float("nan")})
    assert old.read_text() == "old"


def test_json_that_is_not_there_or_not_whole_is_named(tmp_path, old):
    with pytest.raises(MultidenseError, match=r"none\.json is not there"):
        read_json(tmp_path / "none.json")
    old.write_text('{"half": ')
    with pytest.raises(MultidenseError, match=r"file\.txt cannot be read as JSON: Expecting value"):
        read_json(old)
    old.write_bytes(b"\xff\xfe")
    with pytest.raises(MultidenseError, match=r"file\.txt cannot be read as JSON"):
        read_json(old)
    with pytest.raises(MultidenseError, match="cannot be read as JSON"):
        read_json(tmp_path)


@pytest.mark.parametrize(("text", "found"), [("[1]", "list"), ("3", "int"), ("null", "NoneType")])
def test_json_that_is_no_object_is_named(old, text, found):
    old.write_text(text)
    with pytest.raises(MultidenseError, match=rf"file\.txt should hold a JSON object, found {found}"):
        read_json(old)


def test_a_fingerprint_is_the_beginning_of_the_sha256(old):
    old.write_bytes(bytes(range(256)) * 8200)
    assert fingerprint(old) == hashlib.sha256(old.read_bytes()).hexdigest()[:16]
