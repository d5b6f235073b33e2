"""The check of benchmark copies: every fault is named once, and nothing else is complained of."""

import os
import pickle
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

import trees_cityscapes
import trees_nyuv2
import trees_pascal
from multidense import check_page
from multidense.data.benchmark_check import check_benchmark
from multidense.data.benchmark_look import see
from multidense.data.cityscapes import Cityscapes
from multidense.data.convert import convert
from multidense.data.nyuv2 import NYUv2
from multidense.data.pascal_context import PascalContext
from multidense.tasks import SemanticSegmentation
from multidense.types import MultidenseError
from trees_toy import Toy, write_arrays, write_pictures


@pytest.fixture
def root(tmp_path):
    write_arrays(tmp_path / "toy")
    return tmp_path / "toy"


def check(root, **settings):
    return check_benchmark(Toy, root, processes=1, **settings)


def told(findings):
    """(level, file, what was found) of every problem."""
    return sorted((one.level, one.file, one.found) for one in findings.problems)


def cut(path):
    """Leave half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def test_a_whole_copy_has_nothing_wrong(root):
    found = check(root)
    assert told(found) == []
    assert found.errors == 0
    assert [(split.name, split.images, dict(split.sizes)) for split in found.splits] == [
        ("train", 5, {"12×16": 5}),
        ("val", 3, {"12×16": 3}),
    ]


def test_what_there_is_is_counted(root):
    found = {(one.split, one.task): one for one in check(root).summaries}
    assert len(found) == 8
    labels = np.stack([np.load(root / f"val/label/{i}.npy") for i in range(3)])
    semseg = found["val", "semseg"]
    assert (semseg.images, semseg.labelled, semseg.kinds) == (3, 3, tuple("abcde"))
    assert semseg.valid == pytest.approx((labels >= 0).mean())
    assert semseg.shares == pytest.approx([(labels == one).sum() / (labels >= 0).sum() for one in range(5)])
    depth = np.stack([np.load(root / f"train/depth/{i}.npy") for i in range(5)])
    assert found["train", "depth"].range == pytest.approx((depth[depth > 0].min(), depth.max()))
    assert found["train", "depth"].valid == pytest.approx((depth > 0).mean())
    assert found["train", "normals"].kinds == ()
    edges = found["train", "edges"]
    assert (edges.kinds, sum(edges.shares)) == (("not edges", "edges"), pytest.approx(1))


def test_it_is_told_in_words_and_as_a_page(root, tmp_path):
    (root / "train/depth/3.npy").write_bytes(b"")
    found = check(root)
    words = check_page.text(found)
    assert "train/depth/3.npy" in words
    assert "1 error in 8 images" in words
    assert "train  depth    5 of 5" in words
    check_page.write_page(found, tmp_path / "page.html")
    assert "train/depth/3.npy" in (tmp_path / "page.html").read_text()
    assert [len(shown.pictures) for shown in found.samples] == [5, 5, 4, 5, 5, 5], "image and four labels, one of them torn"


def test_a_small_but_consistent_copy_gives_one_warning(tmp_path):
    write_arrays(tmp_path, train=3, val=2)
    (problem,) = check(tmp_path).problems
    assert problem.level == "warning"
    assert problem.found == "not the whole benchmark, found train 3 of 5 images, val 2 of 3 images"
    assert "The images of the toy." in problem.remedy


# Faults


def test_a_missing_folder_is_told_once_with_where_it_comes_from(root):
    shutil.rmtree(root / "val/depth")
    (problem,) = check(root).problems
    assert (problem.level, problem.task) == ("error", "depth")
    assert problem.found == "val/depth/*.npy is missing: expected 3 files, found none"
    assert problem.remedy == "The depths of the toy."


def test_missing_images_are_told_once(root):
    shutil.rmtree(root / "val/image")
    found = check(root)
    assert told(found) == [("error", "val/image/*.npy", "val/image/*.npy is missing: expected 3 files, found none")]
    assert [split.name for split in found.splits] == ["train"]


def test_every_fault_is_named_and_nothing_else(root):
    shutil.rmtree(root / "train/normal")
    for file in ("train/image/1.npy", "train/label/0.npy", "val/depth/2.npy"):
        cut(root / file)
    np.save(root / "train/edge/99.npy", np.zeros((12, 16), np.float32))
    np.save(root / "val/edge/1.npy", np.zeros((6, 16), np.float32))
    np.save(root / "train/depth/4.npy", np.zeros((12, 16), np.float32))
    np.save(root / "val/label/0.npy", np.full((12, 16), 7))
    (root / "val/normal/0.npy").unlink()
    (root / "train/image/3.npy").unlink()
    found = check(root)
    assert sorted((one.level, one.file) for one in found.problems) == [
        ("error", "train/image/1.npy"),
        ("error", "train/image/3.npy"),
        ("error", "train/label/0.npy"),
        ("error", "train/normal/*.npy"),
        ("error", "val/depth/2.npy"),
        ("error", "val/edge/1.npy"),
        ("error", "val/label/0.npy"),
        ("error", "val/normal/0.npy"),
        ("warning", "train/depth/4.npy"),
        ("warning", "train/edge/99.npy"),
    ]
    said = {one.file: one for one in found.problems}
    assert said["train/image/3.npy"].found == "the image is missing, its labels are there"
    assert said["train/image/1.npy"].found.startswith("cannot be read as an array")
    assert "12×16 (height × width), found 6×16" in said["val/edge/1.npy"].found
    assert said["train/depth/4.npy"].found == "the label is valid nowhere"
    assert "class ids must lie in 0 … 4, found 7" in said["val/label/0.npy"].found
    assert said["val/normal/0.npy"].remedy == "Copy it again. The normals of the toy."
    assert said["train/edge/99.npy"].found == "the file belongs to no image"
    assert all(one.remedy for one in found.problems)


def test_pictures_that_are_cut_off_or_of_another_size_are_named(tmp_path):
    write_pictures(tmp_path)
    for split, count in (("train", 5), ("val", 3)):
        for i in range(0, count, 3):
            size = (10 + i, 15 + 3 * i)
            np.save(tmp_path / split / "depth" / f"a{i}.npy", np.ones(size, np.float32))
    assert told(check(tmp_path)) == []
    cut(tmp_path / "train/photo/a2.png")
    Image.new("RGB", (5, 5)).save(tmp_path / "val/photo/a0.png")
    found = check(tmp_path)
    assert {one.file for one in found.problems} == {"train/photo/a2.png", *(f"val/{kind}/a0.npy" for kind in FOLDERS)}


FOLDERS = ("label", "depth", "normal", "edge")


def test_labels_that_some_images_lack_are_named(tmp_path):
    write_pictures(tmp_path)  # every third image has no depth
    assert [file for level, file, _ in told(check(tmp_path)) if level == "error"] == [
        "train/depth/a0.npy",
        "train/depth/a3.npy",
        "val/depth/a0.npy",
    ]


def test_tasks_that_are_not_asked_for_are_not_missed(root):
    shutil.rmtree(root / "val/depth")
    assert told(check(root, tasks=[SemanticSegmentation(5)])) == []


def test_no_layout_and_no_folder_are_refused(tmp_path):
    with pytest.raises(MultidenseError, match="has none of the layouts that are known"):
        check(tmp_path)
    with pytest.raises(MultidenseError, match="is not there; pass the folder"):
        check(tmp_path / "nowhere")


def test_what_is_seen_of_an_image_can_go_to_another_process(root):
    cut(root / "train/depth/1.npy")
    readers = {"train": Toy(root, "train", cache=False)}
    found, again = see(readers, ("train", 1, True)), see(pickle.loads(pickle.dumps(readers)), ("train", 1, True))
    again = pickle.loads(pickle.dumps(again))
    assert (again.labels, again.files, again.problems) == (found.labels, found.files, found.problems)
    assert len(again.problems) == 1


# Checksums


def test_checksums_are_written_then_compared(root, tmp_path):
    sums = tmp_path / "sums.txt"
    assert told(check(root, checksums=sums)) == []
    assert len(sums.read_text().splitlines()) == 5 * 8
    done = subprocess.run(["sha256sum", "--check", "--quiet", str(sums)], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert told(check(root, checksums=sums)) == []
    depth = np.load(root / "train/depth/0.npy")
    np.save(root / "train/depth/0.npy", depth + (depth > 0))
    for i in (3, 4, 5):
        shutil.copy(root / "val/label/0.npy", root / f"val/label/{i}.npy")
        shutil.copy(root / "val/image/0.npy", root / f"val/image/{i}.npy")
    (root / "train/edge/1.npy").unlink()
    errors = [one for one in told(check(root, checksums=sums)) if one[0] == "error" and "val" not in one[1]]
    assert errors == [
        ("error", "train/depth/0.npy", "the file differs from its checksum"),
        ("error", "train/edge/1.npy", "the file is missing, others of its kind are there"),
    ]
    added = [file for level, file, said in told(check(root, checksums=sums)) if said == "the file is not among the checksums"]
    assert added == [f"val/{kind}/{i}.npy" for kind in ("image", "label") for i in (3, 4, 5)]


def test_a_missing_folder_is_told_once_though_it_has_checksums(root, tmp_path):
    check(root, checksums=tmp_path / "sums.txt")
    shutil.rmtree(root / "val/depth")
    assert len(check(root, checksums=tmp_path / "sums.txt").problems) == 1


def test_checksums_of_a_damaged_copy_are_not_written(root, tmp_path):
    cut(root / "train/depth/0.npy")
    found = check(root, checksums=tmp_path / "sums.txt")
    assert [one.level for one in found.problems] == ["error", "warning"]
    assert "checksums were not written" in found.problems[1].found
    assert not (tmp_path / "sums.txt").exists()


def test_a_list_of_something_else_is_refused(root, tmp_path):
    (tmp_path / "sums.txt").write_text("hello\n")
    with pytest.raises(MultidenseError, match="line 1: expected a SHA-256"):
        check(root, checksums=tmp_path / "sums.txt")


# Packed copies


def test_a_packed_copy_is_checked_against_its_own_checksums(root, tmp_path):
    convert(Toy, root, tmp_path / "out", processes=1)
    assert told(check(tmp_path / "out")) == []
    path = tmp_path / "out/train/normals.npy"
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    assert told(check(tmp_path / "out")) == [("error", "train/normals.npy", "the file differs from its checksum")]
    cut(path)
    (problem,) = check(tmp_path / "out").problems
    assert (problem.level, problem.file) == ("error", "train/normals.npy")
    assert "bytes, found" in problem.found


# The benchmarks that papers compare on


COPIES = {
    "cityscapes, preprocessed": (
        Cityscapes,
        trees_cityscapes.write_preprocessed,
        "val/depth",
        ["train/image/0.npy", "train/label_7/1.npy", "val/label_7/0.npy"],
        ("train/depth/2.npy", "train/depth/77.npy"),
        ("train/depth/3.npy", np.zeros((8, 8, 1), np.float32)),
    ),
    "cityscapes, official": (
        Cityscapes,
        trees_cityscapes.write_official,
        "disparity/val",
        [
            "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png",
            "gtFine/train/ulm/ulm_000002_000019_gtFine_labelIds.png",
            "gtFine/val/munster/munster_000000_000019_gtFine_labelIds.png",
        ],
        (
            "disparity/train/ulm/ulm_000000_000019_disparity.png",
            "disparity/train/ulm/ulm_000077_000019_disparity.png",
        ),
        ("disparity/train/aachen/aachen_000001_000019_disparity.png", np.zeros((8, 8), np.uint16)),
    ),
    "nyuv2, preprocessed": (
        NYUv2,
        trees_nyuv2.write_preprocessed,
        "val/depth",
        ["train/image/0.npy", "train/normal/1.npy", "val/label/0.npy"],
        ("train/depth/2.npy", "train/depth/77.npy"),
        ("train/label/3.npy", np.zeros((8, 8), np.int64)),
    ),
    "pascal-context": (
        PascalContext,
        trees_pascal.write_tree,
        "sal_distill",
        ["JPEGImages/2011_000001.jpg", "semseg/VOC12/2011_000000.png", "human_parts/2011_000000.mat"],
        ("normals_distill/2011_000000.png", "normals_distill/2020_000000.png"),
        None,  # its layout resizes what has another size
    ),
}


@pytest.mark.parametrize("copy", COPIES)
def test_damaged_copies_of_the_benchmarks_have_every_fault_named_and_nothing_else(copy, tmp_path):
    benchmark, write, folder, torn, (there, extra), wrong = COPIES[copy]
    write(tmp_path)
    found = check_benchmark(benchmark, tmp_path, processes=1)
    assert told(found)[1:] == [], told(found)
    (problem,) = found.problems
    assert problem.found.startswith("not the whole benchmark, found train 4 of")
    shutil.rmtree(tmp_path / folder)
    for file in torn:
        cut(tmp_path / file)
    shutil.copy(tmp_path / there, tmp_path / extra)
    if wrong:
        np.save(tmp_path / wrong[0], wrong[1]) if wrong[0].endswith(".npy") else Image.fromarray(wrong[1]).save(
            tmp_path / wrong[0]
        )
    found = check_benchmark(benchmark, tmp_path, processes=1)
    parts = [one.file for one in found.problems if "is missing: expected" in one.found]
    assert len(parts) == 1
    assert parts[0].startswith(folder)
    assert sorted(one.file for one in found.problems if one.level == "error") == sorted(
        [*parts, *torn, *([wrong[0]] if wrong else [])]
    )
    warned = {one.file: one.found for one in found.problems if one.level == "warning"}
    assert warned.pop(extra) == "the file belongs to no image"
    assert [said.split(",")[0] for said in warned.values()] == ["not the whole benchmark"]


@pytest.mark.parametrize("normals", [False, True])
def test_a_file_that_holds_everything_is_told_once(normals, tmp_path):
    trees_nyuv2.write_official(tmp_path, train=1, val=1, normals=normals)
    assert [level for level, *_ in told(check_benchmark(NYUv2, tmp_path, processes=1))] == ["warning"], told(
        check_benchmark(NYUv2, tmp_path, processes=1)
    )
    cut(tmp_path / "nyu_depth_v2_labeled.mat")
    assert {one.file for one in check_benchmark(NYUv2, tmp_path, processes=1).problems} == {"nyu_depth_v2_labeled.mat"}
