"""NYUv2: both layouts against rooms known in closed form, the class tables, the axes of normals, normals from depth."""

import json
import pickle
import shutil
from itertools import permutations, product

import h5py
import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter, minimum_filter
from torch.utils.data import DataLoader

from multidense.data import Augment, Augmented, collate
from multidense.data._nyuv2_classes import CLASSES_13, CLASSES_40, TRAIN, class_names, class_table
from multidense.data._nyuv2_normals import Camera, from_depth, measured_axes
from multidense.data.matlab import Stack, read_variables
from multidense.data.nyuv2 import BORDER, KINECT, NYUv2
from multidense.data.transforms import draw
from multidense.tasks import Depth, HumanParts, Normals, SemanticSegmentation
from multidense.types import MultidenseError
from trees_nyuv2 import CLASSES, SIZE, STORED, camera_of, room, stored_normals, write_official, write_preprocessed, write_splits

SMALL = (32, 48)
SEMSEG = SemanticSegmentation(13)


@pytest.fixture
def preprocessed(tmp_path):
    write_preprocessed(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Three training and two test images, splits.mat, no archive of normals; not to be changed."""
    root = tmp_path_factory.mktemp("official")
    write_official(root)
    return root


@pytest.fixture(scope="module")
def archived(tmp_path_factory):
    """The same with the archive of normals; not to be changed."""
    root = tmp_path_factory.mktemp("archived")
    write_official(root, train=1, val=2, normals=True)
    return root


def values(sample, name):
    """A target's value as `[h w c]`, and where it is valid `[h w]`."""
    target = sample.targets[name]
    return target.value.permute(1, 2, 0).numpy(), target.valid[0].numpy()


def resized(size=(288, 384)):
    """Rows and columns of the full image in which the middles of the resized one's pixels lie."""
    spans = ((part.start, part.stop - part.start) for part in BORDER)
    both = zip(size, spans, strict=True)
    return np.ix_(*(start + np.floor((np.arange(new) + 0.5) * old / new).astype(int) for new, (start, old) in both))


def change(path, array):
    np.save(path, array)
    return path


# Classes and split ----------------------------------------------------------------------------------------------------


def test_the_split_is_disjoint_and_whole():
    assert len(TRAIN) == 795
    assert TRAIN.issubset(range(1, 1450))
    assert {1, 2, 9, 21, 1449}.isdisjoint(TRAIN)
    assert {3, 8, 22, 1440} <= TRAIN


def test_all_894_labels_have_their_class():
    forty, thirteen = class_table(40), class_table(13)
    assert len(forty) == len(thirteen) == 895
    assert forty[0] == thirteen[0] == 255
    counts = np.bincount(forty[1:], minlength=40)
    assert (counts[:37] == 1).all()
    assert counts[37:].tolist() == [68, 82, 894 - 37 - 68 - 82]
    assert np.bincount(thirteen[1:]).sum() == 894
    assert set(thirteen[1:]) == set(range(13))


@pytest.mark.parametrize(
    ("label", "forty", "thirteen"),
    [
        (21, "wall", "wall"),
        (11, "floor", "floor"),
        (4, "ceiling", "ceiling"),
        (3, "cabinet", "furniture"),
        (157, "bed", "bed"),
        (5, "chair", "chair"),
        (28, "door", "wall"),
        (80, "blinds", "window"),
        (36, "desk", "table"),
        (143, "floor mat", "floor"),
        (172, "television", "tv"),
        (85, "books", "books"),
        (64, "picture", "picture"),
        (83, "sofa", "sofa"),
        (55, "bag", "objects"),
        (874, "otherstructure", "objects"),
        (892, "otherfurniture", "furniture"),
        (1, "otherprop", "objects"),
        (894, "otherprop", "objects"),
    ],
)
def test_a_label_becomes_its_class(label, forty, thirteen):
    assert CLASSES_40[class_table(40)[label]] == forty
    assert CLASSES_13[class_table(13)[label]] == thirteen


def test_there_are_names_for_13_and_40_classes_only():
    assert len(class_names(13)) == 13 == len(set(CLASSES_13))
    assert len(class_names(40)) == 40 == len(set(CLASSES_40))
    with pytest.raises(MultidenseError, match="13 or 40 classes, found a task of 19"):
        class_names(19)


# The preprocessed layout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "label_dtype", "void"),
    [(np.float32, np.int64, -1), (np.float64, np.float32, -1), (np.float16, np.int8, -1), (np.float32, np.uint8, 255)],
)
def test_preprocessed_arrays_of_any_type_are_the_rooms(tmp_path, dtype, label_dtype, void):
    write_preprocessed(tmp_path, 2, 2, dtype=dtype, label_dtype=label_dtype, void=void)
    close = 1e-3 if dtype == np.float16 else 1e-6
    for split, first in (("train", 0), ("val", 1000)):
        reader = NYUv2(tmp_path, split)
        for index, sample in enumerate(reader):
            made = room(first + index, SMALL, camera_of(SMALL))
            assert sample.image.dtype == torch.float32
            np.testing.assert_allclose(sample.image.permute(1, 2, 0), made.image, atol=close)
            for name, hidden, expected in (
                ("semseg", slice(0, 2), CLASSES[made.face][..., None]),
                ("depth", slice(2, 4), made.depth[..., None]),
                ("normals", slice(4, 6), made.normal),
            ):
                value, valid = values(sample, name)
                rows = np.ones(SMALL[0], bool)
                rows[hidden] = False
                assert (valid == rows[:, None]).all()
                np.testing.assert_allclose(value[valid], expected[valid], rtol=close, atol=close)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_whole_numbers_are_colours_up_to_255(preprocessed, dtype):
    levels = np.arange(SMALL[0] * SMALL[1] * 3).reshape(*SMALL, 3) % 256
    change(preprocessed / "train/image/0.npy", levels.astype(dtype))
    image = NYUv2(preprocessed, "train", [SEMSEG])[0].image
    assert torch.equal(image, torch.from_numpy(levels).permute(2, 0, 1).float() / 255)


def test_ids_are_in_numeric_order(tmp_path):
    write_preprocessed(tmp_path, 11, 1, size=(4, 6))
    (tmp_path / "train/image/._3.npy").write_bytes(b"")
    (tmp_path / "train/image/03.npy").write_bytes(b"")
    reader = NYUv2(tmp_path, "train")
    assert reader.ids == [str(number) for number in range(11)]
    assert reader.layout.file(10, "normals") == tmp_path / "train/normal/10.npy"
    assert reader.layout.indexed


def test_construction_and_annotated_open_no_label_and_load_only_what_it_is_asked_for(preprocessed):
    for kind in ("label", "depth", "normal"):
        for path in (preprocessed / "train" / kind).iterdir():
            path.write_bytes(b"not an array")
    reader = NYUv2(preprocessed, "train")
    assert reader.annotated(0) == {"semseg", "depth", "normals"}
    change(preprocessed / "train/depth/0.npy", np.ones(SMALL))
    assert set(reader.load(0, ["depth"]).targets) == {"depth"}
    assert not reader.load(1, []).targets


def test_an_image_without_a_file_of_a_task_is_not_annotated_for_it(preprocessed):
    (preprocessed / "train/label/1.npy").unlink()
    reader = NYUv2(preprocessed, "train")
    assert [sorted(reader.annotated(index)) for index in (0, 1)] == [["depth", "normals", "semseg"], ["depth", "normals"]]
    assert set(reader[1].targets) == {"depth", "normals"}


def test_numbers_that_are_not_finite_are_not_valid(preprocessed):
    depth = np.full((*SMALL, 1), 2.0)
    depth[0, 0], depth[0, 1], depth[0, 2] = np.nan, np.inf, -1
    normal = np.tile([0.0, 1.0, 0.0], (*SMALL, 1))
    normal[0, 0], normal[0, 1, 2], normal[0, 2] = np.nan, np.inf, 0
    label = np.full(SMALL, 3.0)
    label[0, :3] = np.nan
    for kind, array in (("depth", depth), ("normal", normal), ("label", label)):
        change(preprocessed / f"train/{kind}/0.npy", array)
    sample = NYUv2(preprocessed, "train")[0]
    for target in sample.targets.values():
        assert (~target.valid).sum() == 3
        assert not target.valid[0, 0, :3].any()
        assert target.value.isfinite().all()


def test_nothing_labelled_and_an_absent_class_give_scores_without_nan(preprocessed):
    change(preprocessed / "train/label/0.npy", np.full(SMALL, -1))
    reader = NYUv2(preprocessed, "train", [SEMSEG])
    batch = collate([reader[0], reader[1]], reader.tasks)
    assert batch.annotated["semseg"].all()
    assert not batch.targets["semseg"].valid[0].any()
    assert (batch.targets["semseg"].value[1] != CLASSES_13.index("tv")).all()
    meter = SEMSEG.meter()
    logits = torch.nn.functional.one_hot(batch.targets["semseg"].value[:, 0], 13).permute(0, 3, 1, 2).float()
    meter.update(logits, batch.targets["semseg"])
    assert meter.compute() == {"mIoU": 100, "pixAcc": 100}
    assert SEMSEG.loss(logits, batch.targets["semseg"])[0] == 0


def test_size_resizes_everything(preprocessed):
    sample = NYUv2(preprocessed, "train", size=(16, 24))[0]
    assert sample.image.shape == (3, 16, 24)
    made, whole = room(0, SMALL, camera_of(SMALL)), NYUv2(preprocessed, "train")[0]
    value, valid = values(sample, "semseg")
    assert np.array_equal(value[valid][:, 0], CLASSES[made.face][1::2, 1::2][valid])
    assert sample.image.mean() == pytest.approx(whole.image.mean().item(), abs=1e-3)


# What is wrong with preprocessed files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "array", "said"),
    [
        ("label", np.full(SMALL, 13), r"class ids should be 0 … 12, or −1 or 255 where not valid, found 13\."),
        ("label", np.full(SMALL, -2), "found -2"),
        ("label", np.full(SMALL, 0.5), "found 0.5"),
        ("label", np.zeros((16, 24)), r"as large as its image, 32x48 \(height x width\), found 16x24"),
        ("label", np.zeros((*SMALL, 3)), r"semseg labels should be real numbers \[h w\], found float64 \[32, 48, 3\]"),
        ("label", np.zeros(SMALL, complex), "found complex128"),
        ("depth", np.full(SMALL, 2500.0), "in metres, found up to 2500. If it is in millimetres, divide by 1000"),
        ("depth", np.zeros(3), r"found float64 \[3\]"),
        ("normal", np.full((*SMALL, 3), 255), r"unit vectors in −1 … 1, found numbers up to 255\."),
        ("normal", np.zeros((3, *SMALL)), r"\[h w 3\], found float64 \[3, 32, 48\]"),
        ("image", np.full((*SMALL, 3), 200.0), "colours should lie in 0 … 1 .* found float64 from 200 to 200"),
        ("image", np.full((*SMALL, 3), -1), "found int64 from -1"),
        ("image", np.full((*SMALL, 3), np.nan), "from nan to nan"),
        ("image", np.zeros(SMALL), r"\[h w 3\], found float64 \[32, 48\]"),
    ],
)
def test_an_array_that_holds_something_else_is_named(preprocessed, kind, array, said):
    path = change(preprocessed / f"train/{kind}/2.npy", array)
    reader = NYUv2(preprocessed, "train", normals_axes=STORED)
    reader[1]
    with pytest.raises(MultidenseError, match=f"{path}: .*{said}"):
        reader[2]


@pytest.mark.parametrize("kind", ["image", "label", "depth", "normal"])
def test_a_damaged_file_is_named(preprocessed, kind):
    path = preprocessed / f"train/{kind}/1.npy"
    whole = path.read_bytes()
    for content in (whole[:-50], whole[:40], b""):
        path.write_bytes(content)
        with pytest.raises(MultidenseError, match=f"{path} cannot be read as an array"):
            NYUv2(preprocessed, "train")[1]


def test_a_pickled_array_is_refused(preprocessed):
    path = preprocessed / "train/label/0.npy"
    np.save(path, np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(MultidenseError, match=f"{path} cannot be read as an array: .*allow_pickle"):
        NYUv2(preprocessed, "train")[0]


def test_what_is_missing_is_said_with_where_it_comes_from(preprocessed):
    shutil.rmtree(preprocessed / "train/normal")
    with pytest.raises(MultidenseError, match=r"train/normal/0.npy .*no such folder.*lorenmt/mtan.*leave normals out"):
        NYUv2(preprocessed, "train")
    assert len(NYUv2(preprocessed, "train", [SEMSEG, Depth()])) == 4
    shutil.rmtree(preprocessed / "train/image")
    with pytest.raises(MultidenseError, match=r"train/image/0\.npy and so on, found no such folder"):
        NYUv2(preprocessed, "train", [SEMSEG])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tasks": [SemanticSegmentation(40)]}, r"13 classes, found a task of 40; use SemanticSegmentation\(13\)"),
        ({"tasks": [SemanticSegmentation(19)]}, "13 or 40 classes, found a task of 19"),
        ({"raw_depth": True}, "has the options normals_axes, found 'raw_depth'"),
        ({"normals_axes": ("right", "up", "down")}, "three words, one each of right/left"),
        ({"normals_axes": "xyz"}, "three words.*found 'xyz'"),
        ({"layout": "voc"}, "preprocessed, official, packed, found 'voc'"),
        ({"split": "test"}, "train, val, found 'test'"),
    ],
)
def test_impossible_settings_are_named(preprocessed, settings, said):
    with pytest.raises(MultidenseError, match=said):
        NYUv2(preprocessed, **{"split": "train"} | settings)


# The axes of stored normals -------------------------------------------------------------------------------------------

EVERY_AXES = [
    words
    for order in permutations((("right", "left"), ("up", "down"), ("viewer", "into")))
    for words in product(*order)
]  # fmt: skip


def test_all_48_readings_of_axes_are_told_apart():
    assert len(EVERY_AXES) == 48
    rooms = [room(number, SMALL, camera_of(SMALL)).normal for number in range(4)]
    valid = np.ones(SMALL, bool)
    for axes in EVERY_AXES:
        assert measured_axes((stored_normals(normal, axes), valid) for normal in rooms) == axes


@pytest.mark.parametrize("axes", [("right", "up", "viewer"), ("left", "into", "down"), ("viewer", "right", "up")])
def test_whatever_the_axes_normals_come_in_the_frame_of_the_house(tmp_path, axes):
    write_preprocessed(tmp_path, 1, 2, axes=axes)
    measured, said = NYUv2(tmp_path, "train"), NYUv2(tmp_path, "train", normals_axes=list(axes))
    for reader, how in ((measured, "measured"), (said, "as said")):
        value, valid = values(reader[0], "normals")
        assert np.allclose(value[valid], room(0, SMALL, camera_of(SMALL)).normal[valid])
        assert reader.layout.axes == axes
        assert reader.provenance()["notes"]["normals"] == f"as its authors made them, axes {', '.join(axes)} ({how})"


def test_axes_are_measured_on_val_so_that_hidden_labels_stay_unread(preprocessed):
    for path in list((preprocessed / "train/normal").iterdir())[1:]:
        path.write_bytes(b"not to be read")
    assert NYUv2(preprocessed, "train").layout.axes == STORED
    shutil.rmtree(preprocessed / "val")
    write_preprocessed(preprocessed, 4, 0)
    assert NYUv2(preprocessed, "train").layout.axes == STORED


def test_axes_that_cannot_be_told_are_asked_for(preprocessed):
    for path in (preprocessed / "val/normal").iterdir():
        change(path, np.tile([0.0, 0.0, 1.0], (*SMALL, 1)))
    reader = NYUv2(preprocessed, "train")
    assert reader.load(0, ["depth"]).targets
    with pytest.raises(MultidenseError, match=r"axes of the normals below .* cannot be told .*normals_axes="):
        reader[0]
    assert NYUv2(preprocessed, "train", normals_axes=STORED)[0].targets["normals"].valid.any()
    assert measured_axes([(np.ones((2, 2, 3)), np.zeros((2, 2), bool))]) is None


# Normals from depth ---------------------------------------------------------------------------------------------------

ROWS, COLUMNS = np.arange(0, SIZE[0], 3), np.arange(1, SIZE[1], 3)
SEEN = np.ix_(ROWS, COLUMNS)
PLANES = {"toward": (0, 0, 1), "floor": (0, 0.995, 0.1), "wall": (0.9, 0, 0.436), "any": (-0.36, 0.48, 0.8)}


def plane(normal, distance, size=SIZE, camera=KINECT):
    """Depth of the plane n·P = −distance where it is seen, else 0; the frame is the house's."""
    row, column = np.indices(size, float)
    facing = -(normal[0] * (column - camera.cx) / camera.fx + normal[1] * (camera.cy - row) / camera.fy - normal[2])
    return np.where(facing > 0.02, distance / np.maximum(facing, 0.02), 0)


@pytest.mark.parametrize("normal", PLANES.values(), ids=PLANES)
def test_the_normals_of_a_plane_are_the_planes(normal):
    normal = np.array(normal) / np.linalg.norm(normal)
    depth = plane(normal, 1.5).astype(np.float32)
    found, valid = from_depth(depth, KINECT, ROWS, COLUMNS)
    known = depth[SEEN] > 0
    assert valid[known].mean() > 0.97
    assert not valid[~known].any()
    assert np.abs(found[valid] - normal).max() < 2e-3
    assert np.median(np.abs(found[valid] - normal)) < 1e-5
    assert not found[~valid].any()


def test_nothing_is_averaged_across_a_jump_of_depth():
    near, far = np.array([-0.36, 0.48, 0.8]), np.array([0.6, 0.0, 0.8])
    depth = plane(far, 4.0)
    here = np.zeros(SIZE, bool)
    here[150:300, 200:400] = True
    depth[here] = plane(near, 1.0)[here]
    depth[200:220, 300:320] = 0
    found, valid = from_depth(depth, KINECT, ROWS, COLUMNS)
    here, known = here[SEEN], depth[SEEN] > 0
    assert np.abs(found[valid & here] - near).max() < 1e-3
    assert np.abs(found[valid & ~here] - far).max() < 1e-3
    assert not valid[~known].any()
    assert valid[known].mean() > 0.99


def test_a_few_lonely_pixels_and_lines_have_no_normal():
    depth = np.zeros(SIZE)
    depth[99:101], depth[200:205, 200:205], depth[300:330, 300:330] = 2, 2, 2
    found, valid = from_depth(depth, KINECT, ROWS, COLUMNS)
    assert not valid[:100].any()
    assert valid[102:108, 102:108].all()
    assert np.isfinite(found).all()


# The official layout --------------------------------------------------------------------------------------------------


def test_official_files_inside_the_border_are_the_rooms(official):
    reader = NYUv2(official, "train", [SEMSEG, Depth()], resolution=None)
    assert reader.ids == ["0003", "0004", "0005"]
    for index, sample in enumerate(reader):
        made = room(3 + index)
        assert sample.image.shape == (3, 427, 561)
        assert torch.equal(sample.image, torch.from_numpy((made.image * 255).round()[BORDER]).permute(2, 0, 1).float() / 255)
        label, labelled = values(sample, "semseg")
        assert np.flatnonzero(~labelled.any(1)).tolist() == list(range(100 - 44, 110 - 44))
        assert np.array_equal(label[labelled][:, 0], CLASSES[made.face][BORDER][labelled])
        depth, valid = values(sample, "depth")
        assert valid.all()
        assert np.array_equal(depth[..., 0], made.depth[BORDER].astype(np.float32))


def test_axes_of_the_mat_file_are_turned_back(official):
    image = NYUv2(official, "val", [SEMSEG])[0].image
    red, green, _ = image
    assert (red.diff(dim=0) >= 0).all()
    assert red[-1, 0] - red[0, 0] > 0.3
    assert (green.diff(dim=1) >= 0).all()
    assert green[0, -1] - green[0, 0] > 0.3


def test_official_files_come_at_the_size_of_everybody(official):
    sample = NYUv2(official, "train", [SEMSEG, Depth()])[0]
    made, grid = room(3), resized()
    assert sample.image.shape == (3, 288, 384)
    label, labelled = values(sample, "semseg")
    assert np.array_equal(label[labelled][:, 0], CLASSES[made.face][grid][labelled])
    assert np.array_equal(values(sample, "depth")[0][..., 0], made.depth[grid].astype(np.float32))
    middle = made.image[BORDER].mean((0, 1))
    assert np.abs(sample.image.mean((1, 2)).numpy() - middle).max() < 2e-3


def test_size_is_reached_from_the_full_pictures(official):
    reader = NYUv2(official, "val", [Depth()], size=(60, 80))
    sample = reader[0]
    assert sample.image.shape == (3, 60, 80)
    assert np.array_equal(values(sample, "depth")[0][..., 0], room(1).depth[resized((60, 80))].astype(np.float32))
    assert "60x80" in reader.provenance()["notes"]["depth"]


def test_forty_classes(official):
    reader = NYUv2(official, "val", [SemanticSegmentation(40)])
    label, labelled = values(reader[0], "semseg")
    names = np.array(["wall", "window", "floor", "ceiling", "cabinet"])[room(1).face][resized()]
    assert reader.class_names["semseg"] == CLASSES_40
    assert (np.array(CLASSES_40)[label[..., 0]] == names)[labelled].all()


def test_raw_depth_has_holes(official):
    raw, painted = (NYUv2(official, "val", [Depth()], resolution=None, raw_depth=yes) for yes in (True, False))
    depth, valid = values(raw[0], "depth")
    assert np.flatnonzero(~valid.any(1)).tolist() == list(range(200 - 44, 210 - 44))
    assert np.array_equal(depth[valid], values(painted[0], "depth")[0][valid])
    assert raw.provenance()["notes"] == {"depth": "raw depth (`rawDepths`), nearest pixel at 427x561"}


def test_without_the_archive_normals_are_those_of_the_depth_and_it_is_said(official):
    reader = NYUv2(official, "val", [Normals()])
    assert reader.provenance()["notes"]["normals"].startswith("derived from depth")
    assert reader.layout.file(0, "normals") == official / "nyu_depth_v2_labeled.mat"
    found, valid = values(reader[0], "normals")
    made = room(1)
    flat = (maximum_filter(made.face, 11) == minimum_filter(made.face, 11))[resized()]  # nothing but one face nearby
    assert flat.mean() > 0.8
    assert valid[flat].mean() > 0.99
    assert np.abs(found - made.normal[resized()])[flat & valid].max() < 2e-3
    again = NYUv2(official, "val", [Normals()], raw_depth=True, resolution=None)
    assert not values(again[0], "normals")[1][200 - 44 : 210 - 44].any()


def test_depth_in_the_border_does_not_reach_the_normals(official, tmp_path):
    path = shutil.copy(official / "nyu_depth_v2_labeled.mat", tmp_path)
    with h5py.File(path, "r+") as file:
        file["depths"][0, :40] *= 1.01
        file["depths"][0, :, 471:] *= 1.01
    whole, changed = (NYUv2(root, "val", [Normals()]).layout.label(0, "normals") for root in (official, tmp_path))
    assert np.array_equal(whole[0], changed[0])


def test_the_archive_of_normals_is_read_where_it_is_valid(archived):
    reader = NYUv2(archived, "val", [Normals()], resolution=None)
    assert reader.provenance()["notes"] == {
        "normals": "normals_gt, axes right, viewer, up (measured), nearest pixel at 427x561"
    }
    assert reader.layout.file(1, "normals") == archived / "normals_gt/normals/0001.png"
    for index in range(2):
        found, valid = values(reader[index], "normals")
        assert np.flatnonzero(~valid.any(1)).tolist() == list(range(300 - 44, 310 - 44))
        assert np.abs(found - room(1 + index).normal[BORDER])[valid].max() < 0.01


def test_an_image_without_a_picture_in_the_archive_is_not_annotated(archived, tmp_path):
    root = shutil.copytree(archived, tmp_path / "copy")
    (root / "normals_gt/normals/0001.png").unlink()
    reader = NYUv2(root, "val")
    assert "normals" in reader.annotated(0)
    assert reader.annotated(1) == {"semseg", "depth"}
    mask = root / "normals_gt/masks/0000.png"
    mask.write_bytes(mask.read_bytes()[:100])
    with pytest.raises(MultidenseError, match=f"{mask} cannot be read as a picture"):
        reader[0]
    shutil.copy(root / "normals_gt/normals/0000.png", mask)
    with pytest.raises(MultidenseError, match=rf"{mask}: expected 8 bits \[480, 640\], found mode 'RGB'"):
        reader[0]
    shutil.rmtree(root / "normals_gt/normals")
    with pytest.raises(MultidenseError, match=r"normals: expected 0000.png … 1448.png, found none of 'val'"):
        NYUv2(root, "val")
    assert len(NYUv2(root, "val", [Depth()])) == 2


# Splits of the official layout ----------------------------------------------------------------------------------------


def test_the_split_is_known_without_its_file(official, tmp_path):
    shutil.copy(official / "nyu_depth_v2_labeled.mat", tmp_path)
    assert NYUv2(tmp_path, "train", [SEMSEG]).ids == ["0003", "0004", "0005"]
    assert NYUv2(tmp_path, "val", [SEMSEG]).ids == ["0001", "0002"]
    shutil.copy(official / "splits.mat", tmp_path)
    ids = {"trainNdxs": np.array([[2], [5], [900]]), "testNdxs": np.array([[1], [4]])}
    for version in ("v5", "v7.3"):
        write_splits(tmp_path / "splits.mat", ids, version)
        assert NYUv2(tmp_path, "train", [SEMSEG]).ids == ["0002", "0005"]
        assert NYUv2(tmp_path, "val", [SEMSEG]).ids == ["0001", "0004"]


def test_a_tree_without_splits_holds_as_many_images_as_are_wanted(tmp_path):
    assert write_official(tmp_path, 1, 1, splits=None) == 3
    assert NYUv2(tmp_path, "train", [SEMSEG]).ids == ["0003"]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ({"trainNdxs": [1, 2, 3], "testNdxs": [3, 4]}, "share the numbers 1 … 1449 between them, found 1 in both"),
        ({"trainNdxs": [0, 1], "testNdxs": [2]}, "found 0 … 2"),
        ({"trainNdxs": [1, 1450], "testNdxs": [2]}, "found 1 … 1450"),
        ({"trainNdxs": [1, 2, 3]}, "expected an array `testNdxs`, found none"),
    ],
)
def test_a_wrong_split_is_named(official, tmp_path, ids, said):
    shutil.copy(official / "nyu_depth_v2_labeled.mat", tmp_path)
    write_splits(tmp_path / "splits.mat", {name: np.array(column)[:, None] for name, column in ids.items()})
    with pytest.raises(MultidenseError, match=f"{tmp_path / 'splits.mat'}: .*{said}"):
        NYUv2(tmp_path, "train", [SEMSEG])


def test_no_image_of_a_split_is_an_error(tmp_path):
    write_official(tmp_path, 1, 1)
    write_splits(tmp_path / "splits.mat", {"trainNdxs": np.array([[700]]), "testNdxs": np.array([[1]])})
    with pytest.raises(MultidenseError, match="expected the 1449 images, found 2, none of them of 'train'"):
        NYUv2(tmp_path, "train")


# What is wrong with official files ------------------------------------------------------------------------------------


def test_a_damaged_mat_file_is_named(official, tmp_path):
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    whole = (official / path.name).read_bytes()
    for content in (whole[: len(whole) // 2], b"version https://git-lfs.github.com/spec/v1", b""):
        path.write_bytes(content)
        with pytest.raises(MultidenseError, match=rf"{path}: `images` cannot be read as MATLAB 7.3 \(HDF5\): "):
            NYUv2(tmp_path, "train")
    path.unlink()
    with pytest.raises(MultidenseError, match=f"{path} is not there"):
        NYUv2(tmp_path, "train", layout="official")
    (tmp_path / "splits.mat").write_bytes(b"nothing of MATLAB's at all, " * 10)
    with pytest.raises(MultidenseError, match=r"splits\.mat cannot be read as a MATLAB file"):
        read_variables(tmp_path / "splits.mat", "trainNdxs")
    with pytest.raises(MultidenseError, match=r"other\.mat is not there"):
        read_variables(tmp_path / "other.mat", "trainNdxs")


def test_a_variable_that_is_missing_or_has_another_size_is_named(official, tmp_path):
    path = shutil.copy(official / "nyu_depth_v2_labeled.mat", tmp_path)
    with h5py.File(path, "r+") as file:
        del file["rawDepths"]
        file["rawDepths"] = np.zeros((5, 320, 240), np.float32)
        file["labels"][0, 600, 400] = 895
    with pytest.raises(
        MultidenseError, match=r"`rawDepths` should be \[480, 640\] for each of 5 images, found \[240, 320, 5\]"
    ):
        NYUv2(tmp_path, "val", raw_depth=True)
    with pytest.raises(MultidenseError, match="`labels` of image 0001 should be 0 … 894, found 895"):
        NYUv2(tmp_path, "val", [SEMSEG], resolution=None)[0]
    with h5py.File(path, "r+") as file:
        del file["labels"]
    with pytest.raises(MultidenseError, match=f"{path}: expected an array `labels`, found depths, images, rawDepths"):
        NYUv2(tmp_path, "val")
    with pytest.raises(MultidenseError, match="expected an array `#refs#`"):
        Stack(tmp_path / path.rpartition("/")[2] if isinstance(path, str) else path).whole("#refs#")


def test_a_resolution_that_is_none_is_named(official):
    for wrong in ((0, 10), (10,)):
        with pytest.raises(MultidenseError, match=r"resolution should be \(height, width\)"):
            NYUv2(official, "train", resolution=wrong)


# Any layout -----------------------------------------------------------------------------------------------------------


def test_the_layout_is_found_out(preprocessed, official, tmp_path):
    assert NYUv2(preprocessed, "train").provenance()["layout"] == "preprocessed"
    assert NYUv2(official, "train").provenance()["layout"] == "official"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(MultidenseError, match=r"none of the layouts .*nyu_depth_v2_labeled.mat"):
        NYUv2(empty, "train")
    with pytest.raises(MultidenseError, match="is not there"):
        NYUv2(tmp_path / "nowhere", "train")


@pytest.mark.parametrize("kind", NYUv2.layouts[:2], ids=lambda kind: kind.name)
def test_parts_are_found_in_a_whole_tree_and_say_where_they_come_from(kind, preprocessed, archived):
    root = preprocessed if kind.name == "preprocessed" else archived
    assert kind.lengths == {"train": 795, "val": 654}
    assert kind.present(root) == len(kind.parts())
    for part in kind.parts():
        assert part.found(root)
        assert part.count in (1, 654, 795, 1449)
        assert len(part.source) > 30
        assert set(part.tasks) <= {"semseg", "depth", "normals"}
    assert len({part.files for part in kind.parts()}) == len(kind.parts())


@pytest.mark.parametrize("name", ["preprocessed", "official", "archived"])
def test_readers_travel_to_workers(request, name):
    reader = NYUv2(request.getfixturevalue(name), "val", size=(60, 80))
    here = [reader[index] for index in range(len(reader))]  # files have been opened before the fork
    again = pickle.loads(pickle.dumps(reader))
    loader = DataLoader(reader, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert json.loads(json.dumps(again.provenance())) == reader.provenance()
    for others in ([again[index] for index in range(len(again))], list(loader)):
        for one, other in zip(here, others, strict=True):
            assert one.id == other.id
            assert torch.equal(one.image, other.image)
            for task in one.targets:
                assert torch.equal(one.targets[task].value, other.targets[task].value)
                assert torch.equal(one.targets[task].valid, other.targets[task].valid)


def test_default_tasks_have_names_and_read_a_shortened_copy(official):
    reader = NYUv2(official, "train")
    assert [task.name for task in reader.tasks] == ["semseg", "depth", "normals"]
    assert reader.class_names == {"semseg": CLASSES_13}
    assert reader.provenance()["whole"] is False
    with pytest.raises(MultidenseError, match="no labels for 'parts'"):
        NYUv2(official, "train", [HumanParts()])


# Augmentation ---------------------------------------------------------------------------------------------------------


def test_a_plane_stays_a_plane_through_reader_and_augmentation(tmp_path):
    """Turned and mirrored normals, depth over zoom: the plane as the turned, mirrored and zooming camera sees it."""
    size, normal = (96, 128), np.array([-0.36, 0.48, 0.8])
    camera = Camera(110.0, 110.0, 63.5, 47.5)
    write_preprocessed(tmp_path, 1, 2, size)
    depth = plane(normal, 2.0, size, camera)
    change(tmp_path / "train/depth/0.npy", depth[..., None])
    change(tmp_path / "train/normal/0.npy", stored_normals(np.broadcast_to(normal, (*size, 3))))
    augment = Augment(scale_range=(0.8, 1.6), rotation=30.0, flip=0.5)
    reader = Augmented(NYUv2(tmp_path, "train", [Depth(), Normals()]), augment, seed=3)
    flips = set()
    for epoch in range(6):
        reader.set_epoch(epoch)
        geometry = draw(augment, np.random.default_rng(np.random.SeedSequence((3, epoch, 0))), size).geometry
        sample = reader[0]
        flips.add(geometry.flip)

        turn = np.radians(geometry.degrees)
        x, y, z = normal
        x, y = np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y
        seen = np.array([-x if geometry.flip else x, y, z])
        found, valid = values(sample, "normals")
        assert valid.mean() > 0.5
        assert np.abs(found[valid] - seen).max() < 1e-5

        moved, valid = values(sample, "depth")
        rise = 1 / np.where(valid, moved[..., 0], 1)
        row, column = np.indices(size, float)
        design = np.stack([column[valid], row[valid], np.ones(valid.sum())], 1)
        slopes, *_ = np.linalg.lstsq(design, rise[valid], rcond=None)
        # The slopes of 1 / depth are those of the plane with normal `seen` at distance 2 / zoom and focal length zoom · f.
        expected = -seen[0] / camera.fx / 2.0, seen[1] / camera.fy / 2.0
        assert slopes[:2] == pytest.approx(expected, rel=0.03)
        assert np.abs(design @ slopes * moved[valid][:, 0] - 1).max() < 0.03
    assert flips == {True, False}
