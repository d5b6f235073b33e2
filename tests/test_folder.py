"""Folder: every set reads from its description alone, and every mistake is named with its file or key."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from multidense.data import Folder, partial
from multidense.tasks import Depth, Normals, SemanticSegmentation
from multidense.types import MultidenseError

SHARED = Path(__file__).parents[2] / "shared" / "data"
DESCRIPTIONS = Path(__file__).parents[1] / "examples" / "descriptions"
SIZE = (6, 8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)


@pytest.fixture
def root(tmp_path):
    """Three images; `a` has every label, `b` only classes, `deep/c` none."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "deep/c"):
        save(tmp_path / "rgb" / f"{name}.png", rng.integers(0, 256, (*SIZE, 3), np.uint8))
    classes = rng.integers(0, 3, SIZE, np.uint8)
    classes[0, 0] = 255
    save(tmp_path / "labels" / "a.png", classes)
    save(tmp_path / "labels" / "b.png", classes)
    depth = rng.integers(500, 4000, SIZE).astype(np.uint16)
    depth[0, 1] = 0
    save(tmp_path / "depth" / "a.png", depth)
    save(tmp_path / "normal" / "a.npy", rng.normal(size=(*SIZE, 3)).astype(np.float32))
    save(tmp_path / "edge" / "a.png", np.resize(np.array([0, 51, 128, 255], np.uint8), SIZE))
    return tmp_path


def described(root, **tasks):
    return {"root": str(root), "images": "rgb/{id}.png", "tasks": tasks}


CLASSES = {"files": "labels/{id}.png", "classes": 3, "void": 255}
DEPTH = {"files": "depth/{id}.png", "unit": "mm"}
NORMALS = {"files": "normal/{id}.npy", "axes": ["right", "up", "viewer"]}
EDGES = {"files": "edge/{id}.png", "positive": ">= 0.3", "ignore": "(0, 0.3)"}


def read(root, **tasks):
    return Folder(described(root, **tasks), "train")


# Every set we have ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in DESCRIPTIONS.glob("*.yaml")))
def test_every_real_set_reads_by_its_description_alone(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is not here")
    for split in ("train", "val"):
        reader = Folder(DESCRIPTIONS / f"{name}.yaml", split, root=SHARED / name)
        assert len(reader) == len(set(reader.ids)) >= 25
        for index in range(0, len(reader), 12):
            sample = reader[index]
            assert set(sample.targets) == reader.annotated(index) == {task.name for task in reader.tasks}
            assert sample.image.dtype == torch.float32
            assert 0 <= sample.image.min() < sample.image.max() <= 1
            for task in reader.tasks:
                value, valid = sample.targets[task.name].value, sample.targets[task.name].valid
                assert value.shape == (task.value_channels, *sample.image.shape[1:])
                assert valid.float().mean() > 0.2
                if task.name in ("semseg", "parts"):
                    assert value.min() >= 0
                    assert value.max() < task.channels == len(reader.class_names[task.name])
                elif task.name == "normals":
                    torch.testing.assert_close(value.norm(dim=0), torch.ones(value.shape[1:]))
                elif task.name == "depth":
                    assert 0.5 < value.min() < value.max() < 11
                else:
                    assert set(value.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared sets are not here")
def test_nyu_floors_point_up_and_its_depth_is_in_metres():
    reader = Folder(DESCRIPTIONS / "nyuv2.yaml", "val", root=SHARED / "nyuv2", size=(48, 64))
    floor = reader.class_names["semseg"].index("floor")
    up, depth = [], []
    for sample in (reader[index] for index in range(0, 84, 4)):
        where = (sample.targets["semseg"].value == floor) & sample.targets["semseg"].valid & sample.targets["normals"].valid
        up.append(sample.targets["normals"].value[1][where[0]])
        depth.append(sample.targets["depth"].value.mean())
    assert torch.cat(up).median() > 0.9
    assert 2 < torch.stack(depth).mean() < 4


# Values ---------------------------------------------------------------------------------------------------------------


def test_images_without_a_label_file_are_not_annotated(root):
    reader = read(root, semseg=CLASSES, depth=DEPTH)
    assert list(reader.ids) == ["a", "b", "deep/c"]
    assert [reader.annotated(i) for i in range(3)] == [{"semseg", "depth"}, {"semseg"}, set()]
    assert set(reader[1].targets) == {"semseg"}
    assert reader[2].targets == {}


def test_class_ids_and_void(root):
    target = read(root, semseg=CLASSES)[0].targets["semseg"]
    stored = torch.from_numpy(np.array(Image.open(root / "labels/a.png")))
    assert not target.valid[0, 0, 0]
    assert target.valid.sum() == target.valid.numel() - 1
    assert (target.value[0] == stored)[target.valid[0]].all()


def test_first_remap_and_several_void_ids(root):
    save(root / "labels/a.png", np.array([[0, 1, 2, 3, 40, 50]], np.uint8).repeat(SIZE[0], 0)[:, [0, 1, 2, 3, 4, 5, 0, 0]])
    settings = CLASSES | {"first": 1, "void": [0, 50], "remap": {40: 2, 3: "void"}}
    target = Folder(described(root, semseg=settings) | {"splits": {"train": ["a"]}}, "train")[0].targets["semseg"]
    assert target.valid[0, 0].tolist() == [False, True, True, False, True, False, False, False]
    assert target.value[0, 0, [1, 2, 4]].tolist() == [0, 1, 2]


def test_palette_pictures_count_by_their_indices(root):
    palette = Image.fromarray(np.ones(SIZE, np.uint8)).convert("P")
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(root / "labels/a.png")
    assert (read(root, semseg=CLASSES)[0].targets["semseg"].value == 1).all()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"unit": "mm"}, 2.0), ({"scale": 0.002}, 4.0), ({"scale": 0.0001, "inverse": True}, 5.0)],
    ids=["unit", "scale", "inverse"],
)
def test_depth_units(root, settings, expected):
    save(root / "depth/a.png", np.full(SIZE, 2000, np.uint16))
    target = read(root, depth={"files": "depth/{id}.png"} | settings)[0].targets["depth"]
    torch.testing.assert_close(target.value, torch.full((1, *SIZE), expected))
    assert target.valid.all()


def test_depth_beyond_max_and_invalid_numbers_is_not_valid(root):
    save(root / "depth/a.npy", np.resize(np.array([1.0, 0.0, -1.0, np.nan, np.inf, 30.0, 7.0, 9.0]), SIZE))
    settings = {"files": "depth/{id}.npy", "unit": "m", "max": 20, "invalid": [0, 7]}
    target = read(root, depth=settings)[0].targets["depth"]
    assert target.valid[0, 0].tolist() == [True, False, False, False, False, False, False, True]
    assert target.value.isfinite().all()


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_depth_in_floats(root, suffix):
    save(root / f"depth/a{suffix}", np.full(SIZE, 1.5, np.float32))
    settings = {"files": "depth/{id}" + suffix, "unit": "m"}
    assert (read(root, depth=settings)[0].targets["depth"].value == 1.5).all()


@pytest.mark.parametrize(
    ("axes", "house"),
    [
        (["right", "up", "viewer"], (0.6, 0.0, 0.8)),
        (["left", "down", "into"], (-0.6, 0.0, -0.8)),
        (["viewer", "right", "up"], (0.0, 0.8, 0.6)),
        (["down", "into", "left"], (-0.8, -0.6, 0.0)),
    ],
)
def test_normals_are_turned_into_the_house_frame(root, axes, house):
    stored = np.broadcast_to(np.array([0.6, 0.0, 0.8], np.float32), (*SIZE, 3))
    save(root / "normal/a.npy", stored)
    eight = ((stored + 1) * 127.5).round().astype(np.uint8)
    eight[0, 0] = 0
    save(root / "normal8/a.png", eight)
    for files, tolerance in (("normal/{id}.npy", 1e-6), ("normal8/{id}.png", 0.01)):
        target = read(root, normals={"files": files, "axes": axes})[0].targets["normals"]
        torch.testing.assert_close(target.value[:, 3, 3], torch.tensor(house), atol=tolerance, rtol=0)
    assert target.valid.sum() == target.valid.numel() - 1


@pytest.mark.parametrize(
    ("settings", "values", "valid"),
    [
        ({"positive": ">= 0.3", "ignore": "(0, 0.3)"}, [0, 0, 1, 1], [1, 0, 1, 1]),
        ({"positive": "> 0.2"}, [0, 0, 1, 1], [1, 1, 1, 1]),
        ({"positive": ">= 0.2", "ignore": [0.5, 1]}, [0, 1, 0, 0], [1, 1, 0, 0]),
        ({"ignore": "[0, 0.2)"}, [0, 0.2, 128 / 255, 1], [0, 1, 1, 1]),
        ({"ignore": "(0.2, 1]"}, [0, 0.2, 0, 0], [1, 1, 0, 0]),
    ],
)
def test_shares_become_yes_no_or_neither(root, settings, values, valid):
    settings = {"files": "edge/{id}.png"} | settings
    target = read(root, edges=settings)[0].targets["edges"]
    assert target.valid[0, 0, :4].tolist() == [bool(one) for one in valid]
    believed = target.valid[0, 0, :4]
    expected = torch.tensor(values, dtype=torch.float32)
    torch.testing.assert_close(target.value[0, 0, :4][believed], expected[believed])


def test_one_bit_pictures_are_yes_where_not_zero(root):
    save(root / "edge/a.png", np.eye(*SIZE, dtype=bool))
    value = read(root, edges={"files": "edge/{id}.png"})[0].targets["edges"].value
    assert value[0].tolist() == np.eye(*SIZE).tolist()


def test_images_are_upright_and_in_colour(root):
    wide = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(SIZE))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    wide.save(root / "rgb/a.png", exif=exif)
    Image.fromarray(np.full((*SIZE, 4), 51, np.uint8)).save(root / "rgb/b.png")
    reader = read(root)
    assert reader[0].image.shape == (3, 8, 6)
    assert (reader[1].image == 0.2).all()


def test_image_pixels_and_label_pixels_shrink_together(root):
    large = np.kron(np.arange(48).reshape(SIZE) % 3, np.ones((4, 4))).astype(np.uint8)
    save(root / "rgb/a.png", np.stack([large * 80] * 3, -1))
    save(root / "labels/a.png", large)
    reader = Folder(described(root, semseg=CLASSES) | {"splits": {"train": ["a"]}}, "train", size=SIZE)
    sample = reader[0]
    assert sample.image.shape == (3, *SIZE)
    assert (sample.targets["semseg"].value[0] == torch.arange(48).view(SIZE) % 3).all()
    flat = large.copy()
    flat[:] = 1
    save(root / "rgb/a.png", np.stack([flat * 80] * 3, -1))
    torch.testing.assert_close(
        Folder(described(root) | {"splits": {"train": ["a"]}}, "train", size=SIZE)[0].image, torch.full((3, *SIZE), 80 / 255)
    )


def test_memory_changes_nothing_and_is_not_shared_with_the_caller(root):
    description = described(root, semseg=CLASSES, depth=DEPTH, normals=NORMALS, edges=EDGES)
    plain, kept = Folder(description, "train", cache=False), Folder(description, "train")
    first = kept[0]
    first.image.zero_()
    for target in first.targets.values():
        target.value.zero_()
        target.valid.zero_()
    again, fresh = kept[0], plain[0]
    assert torch.equal(again.image, fresh.image)
    for name, target in fresh.targets.items():
        assert torch.equal(again.targets[name].value, target.value)
        assert torch.equal(again.targets[name].valid, target.valid)
    assert plain._memory.held == 0 < kept._memory.held


def test_files_of_tasks_not_asked_for_are_never_opened(root):
    (root / "depth/a.png").write_bytes(b"broken")
    reader = read(root, semseg=CLASSES, depth=DEPTH)
    assert set(reader.load(0, ["semseg"]).targets) == {"semseg"}
    with pytest.raises(MultidenseError, match=r"a\.png cannot be read"):
        reader.load(0, ["depth"])


def test_labels_that_a_setting_hides_are_never_opened(root):
    save(root / "depth/b.png", np.full(SIZE, 1000, np.uint16))
    reader = Folder(described(root, semseg=CLASSES, depth=DEPTH) | {"splits": {"train": ["a", "b"]}}, "train")
    shown = partial.one_label(reader, seed=0)
    for index, one in enumerate(shown.ids):
        for name in {"semseg", "depth"} - shown.annotated(index):
            (root / {"semseg": "labels", "depth": "depth"}[name] / f"{one}.png").write_bytes(b"broken")
    assert [set(sample.targets) for sample in shown] == [shown.annotated(index) for index in range(2)]


def test_a_reader_travels_to_a_worker(root):
    reader = read(root, semseg=CLASSES, depth=DEPTH, normals=NORMALS, edges=EDGES)
    first = reader[0]
    there = pickle.loads(pickle.dumps(reader))
    assert there._memory.held == 0
    assert all(torch.equal(there[0].targets[name].value, target.value) for name, target in first.targets.items())


def test_given_tasks_decide_what_is_read(root):
    reader = Folder(described(root, semseg=CLASSES, depth=DEPTH, normals=NORMALS), "train", [Normals(4), Depth(3)])
    assert [task.name for task in reader.tasks] == ["normals", "depth"]
    assert reader.tasks[1].bins == 3
    assert set(reader[0].targets) == {"normals", "depth"}


def test_yaml_and_mapping_say_the_same(root):
    description = described(root, semseg=CLASSES | {"classes": ["floor", "wall", "chair"]}) | {"name": "mine"}
    (root / "mine.yaml").write_text(yaml.safe_dump({key: value for key, value in description.items() if key != "root"}))
    reader = Folder(root / "mine.yaml", "train")
    assert reader.name == "mine"
    assert reader.class_names == {"semseg": ("floor", "wall", "chair")}
    assert reader.tasks[0].group_names == ("floor", "wall", "chair")
    assert torch.equal(reader[0].image, Folder(description, "train")[0].image)
    assert reader.provenance()["labelled"] == {"semseg": 2}
    assert Folder(root / "mine.yaml", "train", root=root).provenance() == reader.provenance()


# Splits ---------------------------------------------------------------------------------------------------------------


def test_splits_by_file_list_fraction_and_rest(root):
    for number in range(7):
        save(root / "rgb" / f"x{number}.png", np.zeros((*SIZE, 3), np.uint8))
    (root / "test.txt").write_text("# ids\nb\n\ndeep/c\n")
    splits = {"train": "rest", "val": {"fraction": 0.3, "seed": 1}, "test": "test.txt", "one": ["b"]}
    ids = {split: list(Folder(described(root) | {"splits": splits}, split).ids) for split in splits}
    assert ids["test"] == ["b", "deep/c"]
    assert len(ids["val"]) == 3
    assert sorted(ids["train"] + ids["val"] + ids["test"]) == sorted([f"x{i}" for i in range(7)] + ["a", "b", "deep/c"])
    assert ids["val"] == list(Folder(described(root) | {"splits": splits}, "val").ids)


@pytest.mark.parametrize(
    ("splits", "split", "message"),
    [
        ({"train": "gone.txt"}, "train", r"gone\.txt"),
        ({"train": ["a", "zz", "yy"]}, "train", "without an image.*zz, yy"),
        ({"train": ["a", "a"]}, "train", "'a' twice"),
        ({"train": [1, 2]}, "train", "Quote ids"),
        ({"train": []}, "train", "no image at all"),
        ({"train": ["a"]}, "val", "expected one of train, found 'val'"),
        ({"train": {"fraction": 2}}, "train", "fraction"),
        ({"train": {"share": 0.2}}, "train", "`share`"),
        ({"train": ["a"], 1: ["b"]}, "train", "Quote them"),
    ],
)
def test_mistakes_in_splits_are_named(root, splits, split, message):
    with pytest.raises(MultidenseError, match=message):
        Folder(described(root) | {"splits": splits}, split)


# Mistakes in descriptions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"semsg": CLASSES}, "tasks: .*`semsg`. Is it `semseg`?"),
        ({"semseg": CLASSES | {"voids": 3}}, "tasks, semseg: .*`voids`. Is it `void`?"),
        ({"semseg": CLASSES | {"classes": [1, 2]}}, "`classes` should be"),
        ({"semseg": {"files": "labels/{id}.png"}}, "`classes` should be .* found no such key"),
        ({"semseg": CLASSES | {"void": "none"}}, "`void` should be"),
        ({"semseg": CLASSES | {"remap": {7: 3}}}, "`remap` should lead"),
        ({"semseg": CLASSES | {"resize": "yes"}}, "`resize` should be true or false, found 'yes'"),
        ({"semseg": CLASSES | {"files": "labels/a.png"}}, "{id}"),
        ({"semseg": CLASSES | {"files": "label/{id}.png"}}, "`files` should be in a folder that is there"),
        ({"semseg": "labels/{id}.png"}, "`semseg` should be a mapping"),
        ({"depth": {"files": "depth/{id}.png"}}, "one of `unit`"),
        ({"depth": DEPTH | {"scale": 2}}, "one of `unit`"),
        ({"depth": DEPTH | {"unit": "feet"}}, "m, cm or mm"),
        ({"depth": {"files": "depth/{id}.png", "scale": -1}}, "above 0"),
        ({"normals": NORMALS | {"axes": ["right", "left", "up"]}}, "one each of"),
        ({"normals": {"files": "normal/{id}.npy"}}, "`axes` should be"),
        ({"normals": NORMALS | {"encoding": "u8"}}, "unit8 or float"),
        ({"edges": EDGES | {"positive": "much"}}, "`positive` should be a bound"),
        ({"edges": EDGES | {"ignore": "(0.3, 0)"}}, "`ignore` should be"),
    ],
)
def test_mistakes_in_tasks_are_named(root, tasks, message):
    with pytest.raises(MultidenseError, match=message):
        read(root, **tasks)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images: rgb/{id}.png\ntask: {}\n", "`task`. Is it `tasks`?"),
        ("images: rgb/{id}.png\n", "`tasks` should be a mapping"),
        ("images: [\n", "cannot be read as YAML"),
        ("images: rgb/{id}.png\nimages: x/{id}.png\ntasks: {}\n", "`images` stands there twice"),
        ("- 1\n", "expected a mapping"),
        ("root: gone\nimages: rgb/{id}.png\ntasks: {}\n", "gone is not there"),
        ("name: 3\nimages: rgb/{id}.png\ntasks: {}\n", "`name` should be text"),
    ],
)
def test_mistakes_in_the_file_are_named(root, text, message):
    (root / "mine.yaml").write_text(text)
    with pytest.raises(MultidenseError, match=message) as caught:
        Folder(root / "mine.yaml", "train")
    assert "mine.yaml" in str(caught.value)


def test_a_missing_description_is_named(root):
    with pytest.raises(MultidenseError, match=r"none\.yaml cannot be read"):
        Folder(root / "none.yaml", "train")


def test_given_tasks_must_be_described_and_agree(root):
    with pytest.raises(MultidenseError, match="no 'depth' is described, only semseg"):
        Folder(described(root, semseg=CLASSES), "train", [Depth()])
    with pytest.raises(MultidenseError, match=r"3 classes, found a task of 5. Use SemanticSegmentation\(3\)"):
        Folder(described(root, semseg=CLASSES), "train", [SemanticSegmentation(5)])


def test_a_task_that_no_image_is_labelled_for_warns(root):
    with pytest.warns(UserWarning, match="no image of the split 'train' has a label"):
        Folder(described(root, depth=DEPTH) | {"splits": {"train": ["b"]}}, "train")


# Bad files ------------------------------------------------------------------------------------------------------------


def test_truncated_images_are_named(root):
    path = root / "rgb/a.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(MultidenseError, match=r"rgb/a\.png cannot be read"):
        read(root)[0]


def test_truncated_jpegs_are_named(root):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    save(root / "jpg/a.jpg", noise)
    path = root / "jpg/a.jpg"
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(MultidenseError, match=r"jpg/a\.jpg cannot be read"):
        Folder(described(root) | {"images": "jpg/{id}.jpg"}, "train")[0]


def test_labels_of_another_size_are_refused_unless_resize_is_said(root):
    save(root / "labels/a.png", np.ones((12, 16), np.uint8))
    with pytest.raises(MultidenseError, match=r"labels/a\.png: .*6x8 .*found 12x16.*resize: true"):
        read(root, semseg=CLASSES)[0]
    assert read(root, semseg=CLASSES | {"resize": True})[0].targets["semseg"].value.shape == (1, *SIZE)


def test_the_size_check_does_not_depend_on_the_readers_size(root):
    save(root / "labels/a.png", np.ones((12, 16), np.uint8))
    with pytest.raises(MultidenseError, match="found 12x16"):
        Folder(described(root, semseg=CLASSES), "train", size=(12, 16))[0]


def test_strange_class_ids_are_listed(root):
    ids = np.zeros(SIZE, np.uint8)
    ids[0, :3] = 7, 7, 9
    save(root / "labels/a.png", ids)
    with pytest.raises(MultidenseError, match=r"labels/a\.png: .*3 announced, found 7 \(2 pixels\), 9 \(1 pixels\)"):
        read(root, semseg=CLASSES)[0]


def test_an_unannounced_void_is_recognised(root):
    with pytest.raises(MultidenseError, match=r"labels/a\.png: .*255 .*add `void: 255`"):
        read(root, semseg={"files": "labels/{id}.png", "classes": 3})[0]


@pytest.mark.parametrize(
    ("tasks", "file", "array", "message"),
    [
        ({"semseg": CLASSES}, "labels/a.png", np.zeros((*SIZE, 3), np.uint8), "found colours"),
        ({"depth": DEPTH}, "depth/a.png", np.zeros((*SIZE, 3), np.uint8), "one number a pixel"),
        ({"edges": EDGES}, "edge/a.png", np.arange(144).reshape(*SIZE, 3).astype(np.uint8), "one number a pixel"),
        ({"normals": NORMALS}, "normal/a.npy", np.zeros(SIZE), "three channels"),
        ({"normals": NORMALS}, "normal/a.npy", np.zeros((*SIZE, 3), np.int64), "expected float"),
        ({"semseg": CLASSES | {"files": "labels/{id}.npy"}}, "labels/a.npy", np.zeros(SIZE), "whole numbers"),
        ({"semseg": CLASSES | {"files": "labels/{id}.jpg"}}, "labels/a.jpg", np.zeros(SIZE, np.uint8), "found JPEG"),
        ({"edges": {"files": "edge/{id}.npy"}}, "edge/a.npy", np.full(SIZE, 2.0), "0 … 1"),
        ({"depth": DEPTH | {"files": "depth/{id}.npy"}}, "depth/a.npy", np.array([{}], object), "cannot be read as an array"),
    ],
)
def test_files_that_hold_something_else_are_named(root, tasks, file, array, message):
    save(root / file, array)
    with pytest.raises(MultidenseError, match=message) as caught:
        read(root, **tasks)[0]
    assert file in str(caught.value)


def test_sixteen_bit_images_are_refused(root):
    save(root / "rgb/a.png", np.zeros(SIZE, np.uint16))
    with pytest.raises(MultidenseError, match="8 bits a channel"):
        read(root)[0]


def test_depth_that_is_zero_everywhere_is_annotated_valid_nowhere_and_warns(root):
    save(root / "depth/a.png", np.zeros(SIZE, np.uint16))
    reader = read(root, depth=DEPTH)
    with pytest.warns(UserWarning, match=r"depth/a\.png: nothing in it is valid"):
        sample = reader[0]
    assert reader.annotated(0) == {"depth"}
    assert not sample.targets["depth"].valid.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reader[0].targets["depth"].value.isfinite().all()
