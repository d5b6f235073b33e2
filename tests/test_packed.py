"""The packed layout: what it keeps, how it is written, killed and gone on with."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from multidense.data import partial
from multidense.data.cityscapes import Cityscapes
from multidense.data.convert import convert, tasks_of
from multidense.data.packed import FORMS, STEPS, meaning, stored_image, stored_label
from multidense.data.pascal_context import PascalContext
from multidense.tasks import Depth, SemanticSegmentation
from multidense.types import MultidenseError
from trees_toy import Arrays, PackedToy, Toy, write_arrays, write_pictures


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    root = tmp_path_factory.mktemp("arrays")
    write_arrays(root)
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root)
    return root


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def same(packed, source):
    """Everything that training sees; unit vectors within what the layout promises."""
    assert packed.ids == source.ids
    for index in range(len(source)):
        ours, theirs = packed[index], source[index]
        assert torch.equal(ours.image, theirs.image)
        assert ours.targets.keys() == theirs.targets.keys()
        for name, target in theirs.targets.items():
            assert torch.equal(ours.targets[name].valid, target.valid), name
            assert (ours.targets[name].value - target.value).abs().max() <= (2.7e-5 if len(target.value) == 3 else 0), name


# What is kept


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("layout", ["arrays", "pictures"])
def test_a_packed_copy_reads_like_its_source(layout, split, request, tmp_path):
    root = request.getfixturevalue(layout)
    convert(Toy, root, tmp_path / "out", processes=1)
    packed = Toy(tmp_path / "out", split)
    assert isinstance(packed.layout, PackedToy)
    same(packed, Toy(root, split))


def test_images_of_floating_point_numbers_are_kept_bit_for_bit(arrays, tmp_path):
    convert(Toy, arrays, tmp_path / "out", ["train"], processes=1)
    packed = Toy(tmp_path / "out", "train").layout
    for index in range(5):
        image = packed.image(index)
        assert image.dtype == np.float32
        assert image.tobytes() == np.load(arrays / f"train/image/{index}.npy").tobytes()


def test_a_size_is_what_the_benchmark_makes_of_it(pictures, tmp_path):
    convert(Toy, pictures, tmp_path / "out", ["train"], size=(8, 11), processes=1)
    packed = Toy(tmp_path / "out", "train")
    assert packed.layout.size == (8, 11)
    same(packed, Toy(pictures, "train", size=(8, 11)))


def test_some_tasks_may_be_packed_and_fewer_read(arrays, tmp_path):
    convert(Toy, arrays, tmp_path / "out", tasks=[Depth(), SemanticSegmentation(5)], processes=1)
    assert sorted(path.name for path in (tmp_path / "out" / "val").glob("*.npy")) == [
        f"{item}{end}.npy" for item in ("depth", "image", "semseg") for end in (".index", "")
    ]
    only = Toy(tmp_path / "out", "val", tasks=[Depth()])
    assert only.annotated(0) == {"depth"}
    same(only, Toy(arrays, "val", tasks=[Depth()]))


def test_numpy_alone_reads_it_as_documented(pictures, tmp_path):
    convert(Toy, pictures, tmp_path / "out", processes=1)
    start, height, width, form = np.load(tmp_path / "out/train/image.index.npy")[4]
    flat = np.load(tmp_path / "out/train/image.npy", mmap_mode="r")
    image = flat[start : start + height * width * 3].reshape(height, width, 3)
    assert FORMS[form].name == "pixels"
    assert np.array_equal(image, Toy(pictures, "train").layout.image(4))


maps = st.tuples(st.integers(1, 6), st.integers(1, 6))


@given(maps.flatmap(lambda size: hnp.arrays(np.int64, size, elements=st.integers(0, 254))), st.randoms())
def test_classes_are_exact_and_so_is_their_validity(value, random):
    valid = np.array([random.random() < 0.5 for _ in range(value.size)]).reshape(value.shape)
    form, stored = stored_label(value, valid)
    found, there = meaning(form, stored)
    assert form == "classes"
    assert np.array_equal(there, valid)
    assert np.array_equal(found[valid], value[valid])


@given(maps.flatmap(lambda size: hnp.arrays(np.float32, size)), st.randoms())
def test_numbers_are_exact_and_so_is_their_validity(value, random):
    valid = np.array([random.random() < 0.5 for _ in range(value.size)]).reshape(value.shape) & ~np.isnan(value)
    found, there = meaning(*stored_label(value, valid))
    assert found.dtype == np.float32
    assert np.array_equal(there, valid)
    assert np.array_equal(found[valid], value[valid])


@given(maps.flatmap(lambda size: hnp.arrays(np.float64, (*size, 3), elements=st.floats(-1, 1, width=32))), st.randoms())
def test_directions_are_as_close_as_promised_and_their_validity_is_exact(value, random):
    length = np.linalg.norm(value, axis=-1, keepdims=True)
    valid = np.array([random.random() < 0.5 for _ in range(length.size)]).reshape(length.shape[:2]) & (length[..., 0] > 0.01)
    value = value / np.maximum(length, 0.01)
    form, stored = stored_label(value, valid)
    found, there = meaning(form, stored)
    assert form == "directions"
    assert np.array_equal(there, valid)
    if valid.any():
        assert np.abs(found - value)[valid].max() <= 0.5 / STEPS + 1e-7
        cross = np.linalg.norm(np.cross(found[valid].astype(np.float64), value[valid]), axis=-1)
        assert np.degrees(np.arcsin(cross)).max() <= 0.0016


def test_vectors_that_are_no_directions_keep_their_length(rng):
    value = rng.normal(size=(4, 5, 3)).astype(np.float32) * 9
    valid = rng.random((4, 5)) < 0.5
    form, stored = stored_label(value, valid)
    found, there = meaning(form, stored)
    assert form == "vectors"
    assert np.array_equal(there, valid)
    assert np.array_equal(found[valid], value[valid])


def test_yes_and_no_take_a_byte():
    value, valid = np.array([[0.0, 1.0, 0.0]], np.float32), np.array([[True, True, False]])
    form, stored = stored_label(value, valid)
    assert (form, stored.dtype, stored.tolist()) == ("whole", np.uint8, [[0, 1, 255]])
    assert stored_label(value > 0, valid)[0] == "classes"


def test_what_no_form_holds_is_refused_with_its_file(arrays, tmp_path):
    shutil.copytree(arrays, tmp_path / "in")
    np.save(tmp_path / "in/train/label/3.npy", np.full((12, 16), 300))
    with pytest.raises(MultidenseError, match=r"train/label/3\.npy: whole numbers should lie in 0 … 254, found 300"):
        convert(Toy, tmp_path / "in", tmp_path / "out", processes=1)
    np.save(tmp_path / "in/train/label/3.npy", np.full((12, 16), 3))
    convert(Toy, tmp_path / "in", tmp_path / "out", processes=1)
    assert (Toy(tmp_path / "out", "train")[3].targets["semseg"].value == 3).all(), "mended, the same call goes on"


def test_images_are_pixels_or_colours(rng):
    assert stored_image(rng.integers(0, 256, (2, 3, 3), dtype=np.uint8))[0] == "pixels"
    assert stored_image(rng.random((2, 3, 3)))[1].dtype == np.float32


# What it says


def test_the_manifest_says_where_it_came_from(arrays, tmp_path):
    manifest = json.loads(convert(Toy, arrays, tmp_path / "out", processes=1, upside_down=True).read_text())
    assert (manifest["benchmark"], manifest["layout"], manifest["options"]) == ("toy", "arrays", {"upside_down": True})
    assert manifest["tasks"]["semseg"] == {"classes": 5}
    told = {"images": 5, "whole": True, "indexed": True, "notes": {"depth": "in made-up metres"}}
    assert manifest["splits"]["train"] == told
    assert set(manifest["files"]) | {"packed.json"} == set(files(tmp_path / "out"))
    assert str(arrays) not in json.dumps(manifest)


def test_published_assignments_hold_for_a_packed_copy_of_an_indexed_layout(arrays, pictures, tmp_path):
    for root in (arrays, pictures):
        convert(Toy, root, tmp_path / root.name, processes=1)
    packed = Toy(tmp_path / arrays.name, "train", [SemanticSegmentation(5), Depth()])
    assert packed.layout.indexed
    assert not Toy(tmp_path / pictures.name, "train").layout.indexed
    (tmp_path / "labels.csv").write_text("index,semseg,depth\n" + "".join(f"{i},{i % 2},{1 - i % 2}\n" for i in range(5)))
    assert partial.from_csv(packed, tmp_path / "labels.csv").annotated(1) == {"semseg"}
    assert packed.provenance()["notes"] == {"depth": "in made-up metres"}


def test_options_are_those_it_was_packed_with(arrays, tmp_path):
    convert(Toy, arrays, tmp_path / "out", processes=1, upside_down=True)
    same(Toy(tmp_path / "out", "val", upside_down=True), Toy(arrays, "val", upside_down=True))
    with pytest.raises(MultidenseError, match="upside_down should be True, as it was packed, found False"):
        Toy(tmp_path / "out", "val", upside_down=False)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"split": "val"}, "packed without the split 'val', it has train"),
        ({"tasks": [SemanticSegmentation(7)]}, "5 classes of 'semseg', but the task has 7"),
        ({"tasks": [Depth()]}, "packed without labels for 'depth', it has semseg"),
    ],
    ids=str,
)
def test_what_was_not_packed_is_named(arrays, tmp_path, wanted, said):
    convert(Toy, arrays, tmp_path / "out", ["train"], [SemanticSegmentation(5)], processes=1)
    with pytest.raises(MultidenseError, match=said):
        Toy(tmp_path / "out", **({"split": "train"} | wanted))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda out: os.truncate(out / "train/depth.npy", 999), r"depth\.npy should have \d+ bytes, found 999"),
        (lambda out: (out / "train/ids.json").unlink(), r"ids\.json is not there"),
        (lambda out: (out / "packed.json").write_text("{"), r"packed\.json cannot be read as JSON"),
        (lambda out: (out / "packed.json").write_text('{"format": 99}'), r"packed\.json: expected format 1, found 99"),
    ],
    ids=["truncated", "gone", "torn", "other"],
)
def test_a_damaged_copy_is_named(arrays, tmp_path, damage, said):
    convert(Toy, arrays, tmp_path / "out", processes=1)
    damage(tmp_path / "out")
    with pytest.raises(MultidenseError, match=said):
        Toy(tmp_path / "out", "train")


def test_a_copy_of_another_benchmark_is_refused(arrays, tmp_path):
    manifest = convert(Toy, arrays, tmp_path / "out", processes=1)
    manifest.write_text(manifest.read_text().replace('"toy"', '"cityscapes"'))
    with pytest.raises(MultidenseError, match="is a packed copy of cityscapes, not of toy"):
        Toy(tmp_path / "out", "train")


def test_tasks_are_chosen_by_name_and_number_of_classes():
    assert [task.name for task in tasks_of(Toy)] == ["semseg", "depth", "normals", "edges"]
    assert tasks_of(Toy, ["depth"]) == (Depth(),)
    semseg, parts, *_ = tasks_of(PascalContext, classes=7)
    assert (semseg.classes, parts.classes, len(parts.names)) == (21, 7, 7)
    assert tasks_of(Cityscapes, classes=19)[0].names[0] == "road"
    with pytest.raises(MultidenseError, match="toy: expected tasks out of semseg, depth, normals, edges, found 'parts'"):
        tasks_of(Toy, ["parts"])
    with pytest.raises(MultidenseError, match="cityscapes, 8 classes: cityscapes has 7 categories or 19 classes"):
        tasks_of(Cityscapes, classes=8)
    with pytest.raises(MultidenseError, match="none of the tasks has classes"):
        tasks_of(Toy, ["depth"], 5)


# Processes


def test_a_reader_survives_pickling_without_the_arrays(pictures, tmp_path):
    convert(Toy, pictures, tmp_path / "out", processes=1)
    reader = Toy(tmp_path / "out", "train", cache=False)
    before = len(pickle.dumps(reader))
    samples = [reader[index] for index in range(len(reader))]
    assert len(pickle.dumps(reader)) == before < (tmp_path / "out/train/image.npy").stat().st_size
    again = pickle.loads(pickle.dumps(reader))
    assert all(torch.equal(again[index].image, sample.image) for index, sample in enumerate(samples))


def test_several_processes_write_the_same_bytes(arrays, tmp_path):
    convert(Toy, arrays, tmp_path / "one", ["val"], processes=1)
    convert(Toy, arrays, tmp_path / "two", ["val"], processes=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


# Where it is written, and kills


def test_a_folder_with_something_else_is_refused(arrays, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(MultidenseError, match=r"should be empty or not there, found mine\.txt"):
        convert(Toy, arrays, tmp_path, processes=1)
    assert files(tmp_path) == {"mine.txt": b"mine"}
    with pytest.raises(MultidenseError, match="should be empty or not there, found train, val"):
        convert(Toy, arrays, arrays, processes=1)


def test_the_same_call_leaves_a_finished_copy_alone_and_another_is_refused(arrays, tmp_path):
    convert(Toy, arrays, tmp_path / "out", processes=1)
    before = files(tmp_path / "out")
    convert(Toy, arrays, tmp_path / "out", processes=1)
    with pytest.raises(MultidenseError, match=r"written with other settings \(size null there, \[6, 8\] here\)"):
        convert(Toy, arrays, tmp_path / "out", size=(6, 8), processes=1)
    with pytest.raises(MultidenseError, match="is a packed copy already"):
        convert(Toy, tmp_path / "out", tmp_path / "again", processes=1)
    assert files(tmp_path / "out") == before


class Killed(BaseException):
    pass


KILLABLE = ("os.replace", "numpy.save", "os.unlink", "multidense.data.convert._write", "multidense.data.convert.sums_of")


@pytest.mark.parametrize("where", KILLABLE)
def test_cut_short_at_every_step_it_ends_with_the_same_bytes(pictures, tmp_path, monkeypatch, where):
    """Every call of each function that changes files is in turn the last one, before or half way through it."""
    convert(Toy, pictures, tmp_path / "whole", ["val"], processes=1)
    cuts, finished = 0, False
    while not finished:
        out, calls = tmp_path / f"cut{cuts}", 0
        with monkeypatch.context() as patch:
            module, name = where.rsplit(".", 1)
            real = getattr(sys.modules[module], name)

            def cut(*arguments, name=name, real=real, last=cuts, **named):
                nonlocal calls
                calls += 1
                if calls > last:
                    if name == "_write":
                        real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    raise Killed
                return real(*arguments, **named)

            patch.setattr(f"{module}.{name}", cut)
            try:
                convert(Toy, pictures, out, ["val"], processes=1)
                finished = True
            except Killed:
                cuts += 1
        convert(Toy, pictures, out, ["val"], processes=1)
        assert files(out) == files(tmp_path / "whole")
        shutil.rmtree(out)
    assert cuts >= 1 or where == "os.unlink"


class Slow(Arrays):
    def image(self, index):
        time.sleep(0.01)
        return super().image(index)


class SlowToy(Toy):
    layouts = (Slow,)


def test_killed_and_begun_again_it_ends_with_the_same_bytes(tmp_path):
    write_arrays(tmp_path / "in", train=40, val=20)
    convert(Toy, tmp_path / "in", tmp_path / "whole", processes=1)
    journals = [tmp_path / "cut" / split / "journal.jsonl" for split in ("train", "val")]
    for journal, lines in zip(journals, (7, 3), strict=True):
        settings = {"target": convert, "args": (SlowToy, tmp_path / "in", tmp_path / "cut"), "kwargs": {"processes": 1}}
        process = multiprocessing.get_context("fork").Process(**settings)
        process.start()
        while not (journal.exists() and journal.read_bytes().count(b"\n") >= lines):
            assert process.is_alive()
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "cut/packed.json").exists()
    assert 3 <= journals[1].read_bytes().count(b"\n") < 20
    convert(Toy, tmp_path / "in", tmp_path / "cut", processes=1)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_what_a_kill_left_half_written_is_taken_away(arrays, tmp_path):
    convert(Toy, arrays, tmp_path / "whole", processes=1)
    begun = tmp_path / "cut"
    (begun / "train").mkdir(parents=True)
    for torn in (".converting.1.tmp.json", ".packed.1.tmp.json", "train/.ids.1.tmp.json", "train/.image.index.1.tmp.npy"):
        (begun / torn).write_text("{")
    with pytest.raises(MultidenseError, match="should be empty or not there, found train"):
        convert(Toy, arrays, begun, processes=1)
    manifest = json.loads((tmp_path / "whole/packed.json").read_text())
    (begun / "converting.json").write_text(json.dumps(manifest))
    convert(Toy, arrays, begun, processes=1)
    assert files(begun) == files(tmp_path / "whole")


def test_two_at_once_are_refused(arrays, tmp_path):
    from multidense.data.convert import _held

    with _held(tmp_path / "out"), pytest.raises(MultidenseError, match="another process is converting"):
        convert(Toy, arrays, tmp_path / "out", processes=1)


def test_the_command_checks_converts_and_checks_again(tmp_path, capsys):
    from multidense.cli import main
    from trees_cityscapes import write_official

    write_official(tmp_path / "city")
    main(["data", "check", "cityscapes", "--root", str(tmp_path / "city"), "--processes", "1"])
    assert "not the whole benchmark, found train 4 of 2975 images" in capsys.readouterr().out
    command = ["data", "convert", "cityscapes", "--root", str(tmp_path / "city"), "--out", str(tmp_path / "fast")]
    main([*command, "--size", "32", "64", "--tasks", "depth", "--processes", "1"])
    main(["data", "check", "cityscapes", "--root", str(tmp_path / "fast"), "--processes", "1"])
    told = capsys.readouterr().out
    assert "height×width 32×64 (4)" in told
    assert "semseg" not in told
    (tmp_path / "city" / "disparity" / "val").rename(tmp_path / "elsewhere")
    with pytest.raises(SystemExit):
        main(["data", "check", "cityscapes", "--root", str(tmp_path / "city"), "--processes", "1"])
    assert "disparity_trainvaltest.zip" in capsys.readouterr().out
