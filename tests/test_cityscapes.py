"""Cityscapes: both layouts give the same meaning, and every broken file is named. Also Depth's `under_zoom`."""

import json
import pickle
import shutil
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from multidense.data import partial
from multidense.data.cityscapes import CATEGORIES, CLASSES, Cityscapes, CityscapesOfficial, CityscapesPreprocessed
from multidense.data.collate import collate
from multidense.data.transforms import Augment, Augmented
from multidense.tasks import Depth, Normals, SemanticSegmentation, from_spec
from multidense.types import MultidenseError
from trees_cityscapes import LABELS, classes, scene, write_official, write_preprocessed

SEVEN, NINETEEN, DEPTH = SemanticSegmentation(7), SemanticSegmentation(19), Depth(file_scale=65535.0)
AACHEN = "aachen/aachen_000001_000019"


@pytest.fixture
def preprocessed(tmp_path):
    write_preprocessed(tmp_path)
    return tmp_path


@pytest.fixture
def official(tmp_path):
    write_official(tmp_path)
    return tmp_path


@pytest.fixture(params=["preprocessed", "official"])
def root(request, tmp_path):
    {"preprocessed": write_preprocessed, "official": write_official}[request.param](tmp_path)
    return tmp_path


def picture(root, kind, name):
    return root / kind / "train" / f"{AACHEN}_{name}.png"


def save(path, array):
    Image.fromarray(array).save(path)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def ids_of(target):
    """Class ids with −1 where not valid."""
    return torch.where(target.valid, target.value, -1)[0].numpy()


# Both layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [None, [NINETEEN, DEPTH], [DEPTH], [NINETEEN], []], ids=str)
def test_every_sample_is_whole_and_legal(root, tasks):
    for split, length in (("train", 4), ("val", 2)):
        reader = Cityscapes(root, split, tasks)
        assert len(reader) == len(set(reader.ids)) == length
        for index in range(length):
            sample = reader[index]
            assert set(sample.targets) == reader.annotated(index) == {task.name for task in reader.tasks}
            assert sample.image.dtype == torch.float32
            assert 0 <= sample.image.min() < sample.image.max() <= 1
            for task in reader.tasks:
                target = sample.targets[task.name]
                assert target.value.shape == target.valid.shape == (1, *sample.image.shape[1:])
                assert 0.2 < target.valid.float().mean() < 1
                assert target.value.isfinite().all()
                if task.name == "semseg":
                    assert target.value.min() >= 0
                    assert target.value.max() < task.classes
                else:
                    assert target.value.min() > 0
                    assert target.value[target.valid].max() <= 32257 / 65535


def test_both_layouts_mean_the_same(tmp_path):
    write_preprocessed(tmp_path / "a", size=(32, 64))
    write_official(tmp_path / "b", size=(32, 64))
    for task in (SEVEN, NINETEEN):
        a = Cityscapes(tmp_path / "a", "train", [task, DEPTH])
        b = Cityscapes(tmp_path / "b", "train", [task, DEPTH], resolution=None)
        for index, name in enumerate(a.ids):
            other = b.ids.index(next(one for one in b.ids if f"_{int(name):06d}_" in one))
            one, two = a[index], b[other]
            torch.testing.assert_close(one.image, two.image)
            for kind in ("semseg", "depth"):
                assert one.targets[kind].valid.equal(two.targets[kind].valid)
                torch.testing.assert_close(one.targets[kind].value, two.targets[kind].value)


def test_the_layout_is_found_and_told(tmp_path):
    write_preprocessed(tmp_path / "a")
    write_official(tmp_path / "b")
    for root, kind in ((tmp_path / "a", CityscapesPreprocessed), (tmp_path / "b", CityscapesOfficial)):
        reader = Cityscapes(root, "val")
        told = json.loads(json.dumps(reader.provenance()))
        assert (told["name"], told["split"], told["layout"], told["length"]) == ("cityscapes", "val", kind.name, 2)
        assert told["whole"] is False
        assert set(told["notes"]) == {"semseg", "depth"}
        assert reader.layout.indexed == (kind is CityscapesPreprocessed)
    shutil.copytree(tmp_path / "a", tmp_path / "b", dirs_exist_ok=True)
    assert Cityscapes(tmp_path / "b", "val", layout="official").provenance()["layout"] == "official"
    (tmp_path / "empty").mkdir()
    with pytest.raises(MultidenseError, match="none of the layouts"):
        Cityscapes(tmp_path / "empty", "val")


def test_the_parts_of_a_tree_are_found_and_counted(root):
    layout = Cityscapes.layout_of(root)
    for part in layout.parts():
        split = "train" if "train" in part.files else "val"
        assert part.count == {"train": 2975, "val": 500}[split]
        assert len(part.found(root)) == {"train": 4, "val": 2}[split], part
        assert part.optional == ("label_19" in part.files)
        assert "{" not in part.files + part.source
    assert {task for part in layout.parts() for task in part.tasks} == {"semseg", "depth"}
    assert layout.present(root) == len(layout.parts())
    names = " ".join(part.source for part in CityscapesOfficial.parts())
    for archive in ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip", "disparity_trainvaltest.zip"):
        assert archive in names


@pytest.mark.parametrize(("task", "names"), [(SEVEN, tuple(CATEGORIES)), (NINETEEN, tuple(CLASSES))], ids=str)
def test_classes_have_their_names(root, task, names):
    assert Cityscapes(root, "val", [task]).class_names == {"semseg": names}
    assert len(names) == task.classes


def test_another_number_of_classes_or_another_task_is_refused(root):
    with pytest.raises(MultidenseError, match="7 categories or 19 classes, found a task of 13"):
        Cityscapes(root, "val", [SemanticSegmentation(13)])
    with pytest.raises(MultidenseError, match="no labels for 'normals'"):
        Cityscapes(root, "val", [Normals()])
    with pytest.raises(MultidenseError, match="expected a split out of train, val, found 'test'"):
        Cityscapes(root, "test")


def test_a_size_resizes_everything(root):
    sample = Cityscapes(root, "val", size=(16, 24))[0]
    assert sample.image.shape == (3, 16, 24)
    assert {target.value.shape for target in sample.targets.values()} == {(1, 16, 24)}


def test_a_reader_is_pickled_and_reads_the_same(root):
    reader = Cityscapes(root, "train")
    first = reader[1]
    again = pickle.loads(pickle.dumps(reader))
    assert again.provenance() == reader.provenance()
    assert again[1].image.equal(first.image)
    assert all(again[1].targets[name].value.equal(first.targets[name].value) for name in first.targets)


def test_only_the_files_of_the_wanted_tasks_are_opened(root):
    reader = Cityscapes(root, "train")
    reader.layout.file(0, "depth").write_bytes(b"broken")
    assert set(reader.load(0, ["semseg"]).targets) == {"semseg"}
    with pytest.raises(MultidenseError, match=str(reader.layout.file(0, "depth"))):
        reader.load(0, ["depth"])


def test_an_image_without_a_label_is_not_annotated(root):
    Cityscapes(root, "train").layout.file(1, "depth").unlink()
    Cityscapes(root, "train").layout.file(2, "semseg").unlink()
    reader = Cityscapes(root, "train")
    assert [sorted(reader.annotated(index)) for index in range(4)] == [
        ["depth", "semseg"], ["semseg"], ["depth"], ["depth", "semseg"]
    ]  # fmt: skip
    assert set(reader[1].targets) == {"semseg"}


def test_a_class_that_occurs_nowhere_leaves_the_score_finite(root):
    reader = Cityscapes(root, "val", [NINETEEN])
    batch = collate([reader[0], reader[1]], reader.tasks)
    target = batch.targets["semseg"]
    assert len(target.value[target.valid].unique()) < 19
    logits = torch.nn.functional.one_hot(target.value[:, 0], 19).permute(0, 3, 1, 2).float()
    meter = NINETEEN.meter()
    meter.update(logits, target)
    assert meter.compute() == {"mIoU": 100.0, "pixAcc": 100.0}


@pytest.mark.parametrize("depth", [DEPTH, Depth(bins=5, low=0.01, high=0.4922)], ids=str)
def test_a_crop_with_nothing_valid_costs_nothing(preprocessed, depth):
    for name, void in (("label_7", -1), ("depth", 0)):
        array = np.load(preprocessed / "train" / name / "0.npy")
        array[:16, :32] = void
        np.save(preprocessed / "train" / name / "0.npy", array)
    reader = Cityscapes(preprocessed, "train", [SEVEN, depth])
    sample = reader[0]
    if depth.bins:
        depth = depth.with_codebook(depth.fit_codebook([sample.targets["depth"]], 0))
    for task in (SEVEN, depth):
        target = task.crop(sample.targets[task.name], 0, 0, (16, 32))
        assert not target.valid.any()
        batch = type(target)(target.value[None], target.valid[None])
        logits = torch.randn(1, task.channels, 16, 32, requires_grad=True)
        loss = task.loss(logits, batch)
        loss.sum().backward()
        assert loss.tolist() == [0.0]
        assert (logits.grad == 0).all()


@pytest.mark.parametrize("kind", ["image", "semseg", "depth"])
def test_a_truncated_file_is_named(root, kind):
    reader = Cityscapes(root, "train")
    path = reader.layout.file(0, None if kind == "image" else kind)
    cut(path)
    with pytest.raises(MultidenseError, match=f"{path} cannot be read"):
        reader[0]


@pytest.mark.parametrize("kind", ["image", "semseg", "depth"])
def test_a_file_that_went_away_is_named(root, kind):
    reader = Cityscapes(root, "train")
    path = reader.layout.file(0, None if kind == "image" else kind)
    path.unlink()
    with pytest.raises(MultidenseError, match=str(path)):
        reader[0]


# Preprocessed ---------------------------------------------------------------------------------------------------------


def test_numbers_name_the_images_in_numeric_order(tmp_path):
    write_preprocessed(tmp_path, train=12, size=(4, 8))
    for stray in ("._0.npy", "007.npy", "mean.npy", "²7.npy"):
        np.save(tmp_path / "train" / "image" / stray, np.zeros(1))
    (tmp_path / "train" / "image" / "5.npy").unlink()
    assert Cityscapes(tmp_path, "train").ids == [str(i) for i in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11)]


def test_the_published_assignment_fits_the_numbers_and_nothing_else(tmp_path):
    write_preprocessed(tmp_path / "a", train=4)
    write_official(tmp_path / "b")
    reader = partial.published(Cityscapes(tmp_path / "a", "train"), "one-label")
    rows = (files("multidense.data") / "assignments" / "cityscapes_one-label.csv").read_text().split()[1:5]
    for index, row in enumerate(rows):
        number, semseg, depth = row.split(",")
        assert reader.ids[index] == number
        assert reader.annotated(index) == {name for name, given in (("semseg", semseg), ("depth", depth)) if given == "1"}
    with pytest.raises(MultidenseError, match="layout 'official'"):
        partial.published(Cityscapes(tmp_path / "b", "train"), "one-label")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int64, np.uint8])
@pytest.mark.parametrize("task", [SEVEN, NINETEEN], ids=str)
def test_labels_of_any_dtype_mean_the_same(preprocessed, dtype, task):
    path = preprocessed / "train" / f"label_{task.classes}" / "0.npy"
    expected = np.load(path).astype(int)
    assert (expected == -1).any()
    np.save(path, expected.astype(dtype))  # −1 becomes 255 in uint8
    assert (ids_of(Cityscapes(preprocessed, "train", [task])[0].targets["semseg"]) == expected).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("flat", [False, True])
def test_depth_of_any_dtype_means_the_same(preprocessed, dtype, flat):
    path = preprocessed / "train" / "depth" / "0.npy"
    expected = np.load(path)[..., 0].astype(dtype)
    np.save(path, expected if flat else expected[..., None])
    target = Cityscapes(preprocessed, "train", [DEPTH])[0].targets["depth"]
    assert (target.valid[0].numpy() == (expected > 0)).all()
    assert (target.value[target.valid].numpy() == expected[expected > 0].astype(np.float32)).all()


def test_what_is_not_finite_or_not_positive_is_no_depth(preprocessed):
    path = preprocessed / "train" / "depth" / "0.npy"
    array = np.full((32, 64, 1), 0.25, np.float32)
    array[0, :4, 0] = np.nan, np.inf, -1, 0
    np.save(path, array)
    target = Cityscapes(preprocessed, "train", [DEPTH])[0].targets["depth"]
    assert (~target.valid).nonzero()[:, 1:].tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8, np.int64])
def test_images_of_any_dtype_mean_the_same(preprocessed, dtype):
    path = preprocessed / "train" / "image" / "0.npy"
    image = np.load(path)
    whole = np.dtype(dtype).kind in "ui"
    np.save(path, (image * 255).round().astype(dtype) if whole else image.astype(dtype))
    read = Cityscapes(preprocessed, "train")[0].image.permute(1, 2, 0).numpy()
    np.testing.assert_allclose(read, image, atol=1e-3 if dtype == np.float16 else 1e-6)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("image", np.zeros((3, 32, 64)), r"real numbers \[h w 3\], found float64 \[3, 32, 64\]"),
        ("image", np.full((32, 64, 3), 200.0), "colours should lie in 0 … 1 .*found float64 from 200 to 200"),
        ("image", np.full((32, 64, 3), -0.5), "colours should lie in 0 … 1"),
        ("image", np.full((32, 64, 3), np.nan), "colours should lie in 0 … 1"),
        ("image", np.zeros((0, 64, 3)), "found float64"),
        ("image", np.zeros((32, 64, 3), complex), "found complex128"),
        ("label_7", np.full((32, 64), 7), "class ids should be 0 … 6, or −1 or 255 where not valid, found 7"),
        ("label_7", np.full((32, 64), -2), "found -2"),
        ("label_7", np.full((32, 64), 1.5), "found 1.5"),
        ("label_7", np.full((32, 64), np.nan), "found nan"),
        ("label_7", np.zeros((32, 64, 3)), r"one number a pixel, found float64 \[32, 64, 3\]"),
        ("label_7", np.zeros((16, 32)), "as large as its image, 32x64 .height x width., found 16x32"),
        ("depth", np.full((32, 64), 32257, np.uint16), "inverse depth should lie in 0 … 1, found up to 32257"),
        ("depth", np.zeros((64, 32, 1)), "as large as its image, 32x64 .height x width., found 64x32"),
    ],
)
def test_a_wrong_array_is_named(preprocessed, name, array, message):
    path = preprocessed / "train" / name / "0.npy"
    np.save(path, array)
    with pytest.raises(MultidenseError, match=f"{path}: .*{message}"):
        Cityscapes(preprocessed, "train")[0]


@pytest.mark.parametrize("name", ["image", "label_7", "depth"])
def test_a_pickled_array_is_refused(preprocessed, name):
    path = preprocessed / "train" / name / "0.npy"
    np.save(path, np.array([{"no": "array"}], dtype=object), allow_pickle=True)
    with pytest.raises(MultidenseError, match=f"{path} cannot be read as an array: Object arrays cannot be loaded"):
        Cityscapes(preprocessed, "train")[0]


def test_a_missing_folder_is_named_with_where_it_comes_from(preprocessed):
    shutil.rmtree(preprocessed / "train" / "depth")
    with pytest.raises(MultidenseError, match=r"train/depth/\*.npy, found no such folder.*MTAN.*leave depth out"):
        Cityscapes(preprocessed, "train")
    assert len(Cityscapes(preprocessed, "train", [SEVEN])) == 4
    shutil.rmtree(preprocessed / "train" / "label_19")
    with pytest.raises(MultidenseError, match=r"train/label_19/\*.npy, found no such folder"):
        Cityscapes(preprocessed, "train", [NINETEEN])


def test_the_preprocessed_layout_leaves_nothing_to_choose(preprocessed):
    with pytest.raises(MultidenseError, match="leaves nothing to choose, found fold"):
        Cityscapes(preprocessed, "train", fold=True)


# Official -------------------------------------------------------------------------------------------------------------


def test_cities_and_names_are_the_ids(official):
    reader = Cityscapes(official, "train")
    assert reader.ids == [
        "aachen/aachen_000001_000019", "aachen/aachen_000003_000019", "ulm/ulm_000000_000019", "ulm/ulm_000002_000019"
    ]  # fmt: skip
    assert reader.layout.file(0) == picture(official, "leftImg8bit", "leftImg8bit")
    assert reader.layout.file(0, "semseg") == picture(official, "gtFine", "gtFine_labelIds")
    assert reader.layout.file(0, "depth") == picture(official, "disparity", "disparity")


def every_label(official):
    """One image whose pixels hold −1 (255 in 8 bits) and 0 … 33, one each."""
    ids = np.array([[one for one, _, _ in LABELS]]).astype(np.uint8)
    save(picture(official, "leftImg8bit", "leftImg8bit"), np.zeros((*ids.shape, 3), np.uint8))
    save(picture(official, "gtFine", "gtFine_labelIds"), ids)


@pytest.mark.parametrize("fold", [False, True])
def test_every_label_id_gets_its_category(official, fold):
    every_label(official)
    reader = Cityscapes(official, "train", [SEVEN], resolution=None, fold=fold)
    expected = [category if fold or train >= 0 else -1 for _, train, category in LABELS]
    assert ids_of(reader[0].targets["semseg"]).tolist() == [expected]
    assert ("(fold)" in reader.provenance()["notes"]["semseg"]) == fold


def test_every_label_id_gets_its_train_id(official):
    every_label(official)
    reader = Cityscapes(official, "train", [NINETEEN], resolution=None)
    assert ids_of(reader[0].targets["semseg"]).tolist() == [[train for _, train, _ in LABELS]]
    with pytest.raises(MultidenseError, match="fold concerns the 7 categories only"):
        Cityscapes(official, "train", [NINETEEN], fold=True)


def test_disparities_become_inverse_depth(official):
    steps = np.zeros((64, 128), np.uint16)
    steps[0, :4] = 0, 1, 257, 32257
    save(picture(official, "disparity", "disparity"), steps)
    target = Cityscapes(official, "train", [DEPTH], resolution=None)[0].targets["depth"]
    assert target.valid[0, 0, :5].tolist() == [False, True, True, True, False]
    assert target.value[0, 0, 1:4].tolist() == pytest.approx([1 / 65535, 257 / 65535, 32257 / 65535])


def test_the_default_task_writes_back_the_very_disparities(official, tmp_path):
    reader = Cityscapes(official, "train", resolution=None)
    target = reader[0].targets["depth"]
    reader.tasks[1].write(tmp_path / "again.png", target.value, target.valid)
    there = np.asarray(Image.open(picture(official, "disparity", "disparity")))
    assert (np.asarray(Image.open(tmp_path / "again.png")) == there).all()


def test_everything_is_made_at_128_by_256(tmp_path):
    write_official(tmp_path, train=1, val=0, size=(256, 512))
    sample = Cityscapes(tmp_path, "train")[0]
    labels, disparity, image = scene(np.random.default_rng(0), (256, 512))
    assert (ids_of(sample.targets["semseg"]) == classes(labels, 7)[1::2, 1::2]).all()
    expected = disparity[1::2, 1::2]
    assert (sample.targets["depth"].valid[0].numpy() == (expected > 0)).all()
    means = image.reshape(128, 2, 256, 2, 3).mean((1, 3)) / 255
    got = sample.image.permute(1, 2, 0).numpy()
    assert got.shape == (128, 256, 3)
    assert np.abs(got - means).mean() < 0.02, "antialiased: the noise of single pixels is averaged out"
    assert np.abs(got - image[1::2, 1::2] / 255).mean() > 0.04


def test_a_size_is_made_from_the_full_pictures(tmp_path):
    write_official(tmp_path, train=1, val=1, size=(256, 512))
    large = Cityscapes(tmp_path, "train", size=(256, 512))[0].image
    assert large.equal(Cityscapes(tmp_path, "train", resolution=None)[0].image)
    assert not large.equal(Cityscapes(tmp_path, "train", size=(256, 512), resolution=(128, 256))[0].image)


def test_other_resolutions(official):
    reader = Cityscapes(official, "train", resolution=[8, 20])
    assert reader[0].image.shape == (3, 8, 20)
    assert "8x20" in reader.provenance()["notes"]["depth"]
    assert json.loads(json.dumps(reader.provenance())) == reader.provenance()
    for wrong in ((0, 5), (5,), (1, 2, 3)):
        with pytest.raises(MultidenseError, match="resolution should be"):
            Cityscapes(official, "train", resolution=wrong)


@pytest.mark.parametrize(
    ("kind", "name", "array", "message"),
    [
        ("disparity", "disparity", np.ones((64, 128), np.uint8), "a disparity should have 16 bits, found mode 'L'"),
        ("disparity", "disparity", np.ones((64, 128, 3), np.uint8), "one number a pixel"),
        ("disparity", "disparity", np.ones((32, 64), np.uint16), "as large as its image, 64x128 .*found 32x64"),
        ("gtFine", "gtFine_labelIds", np.ones((32, 64), np.uint8), "as large as its image, 64x128 .*found 32x64"),
        ("gtFine", "gtFine_labelIds", np.ones((64, 128), np.uint16), "label ids should have 8 bits, found mode 'I;16'"),
        ("gtFine", "gtFine_labelIds", np.full((64, 128), 34, np.uint8), "label ids should be 0 … 33, .*found 34"),
        ("gtFine", "gtFine_labelIds", np.ones((64, 128, 4), np.uint8), "one number a pixel"),
        ("leftImg8bit", "leftImg8bit", np.ones((64, 128), np.uint16), "8 bits a channel, found mode 'I;16'"),
    ],
)
def test_a_wrong_picture_is_named(official, kind, name, array, message):
    path = picture(official, kind, name)
    save(path, array)
    with pytest.raises(MultidenseError, match=f"{path}: .*{message}"):
        Cityscapes(official, "train")[0]


def test_a_missing_archive_is_named(official):
    shutil.rmtree(official / "disparity")
    with pytest.raises(MultidenseError, match=r"disparity/train/\*/\*_disparity.png, .*disparity_trainvaltest.zip"):
        Cityscapes(official, "train")
    assert Cityscapes(official, "train", [SEVEN]).annotated(0) == {"semseg"}


# What a zoom does to depth --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zoom", [0.5, 1.2, 1.5, 2.0])
@pytest.mark.parametrize(("under_zoom", "power"), [("divide", -1), ("multiply", 1), ("keep", 0)])
def test_a_zoom_changes_depth_as_chosen(under_zoom, power, zoom):
    task = Depth(under_zoom=under_zoom)
    target = task.zoom(task.encode(np.full((12, 16), 0.3)), zoom)
    assert target.valid.any()
    torch.testing.assert_close(target.value[target.valid], torch.full((int(target.valid.sum()),), 0.3 * zoom**power))
    assert (target.value[~target.valid] == 1).all()


def test_distances_are_divided_by_default():
    assert Depth().under_zoom == "divide"
    assert Depth().moved_by_zoom(torch.full((1, 2, 2), 3.0), 1.5).unique().tolist() == [2.0]


@pytest.mark.parametrize("under_zoom", ["divide", "multiply", "keep"])
def test_the_choice_reaches_augmented_samples_and_moves_no_pixel(preprocessed, under_zoom):
    def depth_of(task):
        reader = Augmented(Cityscapes(preprocessed, "train", [task]), Augment(scales=(1.5,), flip=0.0), seed=3)
        return reader[0].targets["depth"]

    kept, chosen = depth_of(Depth(under_zoom="keep")), depth_of(Depth(under_zoom=under_zoom))
    assert kept.valid.equal(chosen.valid)
    factor = {"divide": 1 / 1.5, "multiply": 1.5, "keep": 1.0}[under_zoom]
    torch.testing.assert_close(chosen.value[chosen.valid], factor * kept.value[kept.valid])


def test_the_choice_survives_spec_and_repr():
    for under_zoom in ("divide", "multiply", "keep"):
        task = Depth(30, under_zoom=under_zoom)
        assert from_spec(json.loads(json.dumps(task.spec()))) == task == eval(repr(task))
        assert task.with_codebook(torch.ones(30, 1)).under_zoom == under_zoom
    assert Depth(under_zoom="multiply") != Depth()
    old = {key: value for key, value in Depth().spec().items() if key != "under_zoom"}
    assert from_spec(old) == Depth(), "specs written before there was a choice"


def test_an_unknown_choice_is_refused():
    with pytest.raises(MultidenseError, match=r"task depth: [\s\S]*under_zoom[\s\S]*'shrink'"):
        from_spec({"task": "depth", "under_zoom": "shrink"})
