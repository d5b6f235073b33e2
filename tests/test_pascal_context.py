"""PASCAL-Context: every rule of its five tasks on files in the very same formats, and every mistake named with its file."""

import json
import pickle
from itertools import product

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from multidense.data import partial
from multidense.data._pascal_classes import CLASSES, NORMALS_VALID, PART_OF, PARTS
from multidense.data.pascal_context import FOLDERS, PascalContext, PascalMT, thin
from multidense.tasks import Depth, Edges, HumanParts, Normals, Saliency, SemanticSegmentation
from multidense.types import MultidenseError
from trees_pascal import AEROPLANE, PERSON, SKY, SOFA, WALL, body_parts, published, save, thing, write_anno, write_tree

SIZE = (24, 32)
FIVE = {"semseg", "parts", "normals", "saliency", "edges"}
FIRST, NOBODY = "2008_000008", "2008_000015"
EVERYWHERE = np.ones(SIZE, bool)


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "PASCAL_MT")


def first(root, name, **settings):
    """Value `[c h w]` and validity `[h w]` of the first image's label."""
    target = PascalContext(root, "train", **settings).load(0, [name]).targets[name]
    return target.value.numpy(), target.valid[0].numpy()


# What there is --------------------------------------------------------------------------------------------------------


def test_a_split_has_its_images_with_five_tasks(root):
    reader = PascalContext(root, "train")
    assert reader.ids == list(published("one-label").ids[:4])
    assert [task.name for task in reader.tasks] == ["semseg", "parts", "normals", "saliency", "edges"]
    sample = reader[0]
    assert sample.image.shape == (3, *SIZE)
    assert 0 <= sample.image.min() < sample.image.max() <= 1
    assert set(sample.targets) == FIVE
    assert all(target.value.shape[1:] == SIZE for target in sample.targets.values())
    assert PascalContext(root, "val").ids == ["2011_000000", "2011_000001"]
    assert reader.class_names == {"semseg": CLASSES, "parts": PARTS}


def test_an_image_without_people_has_no_parts(root):
    reader = PascalContext(root, "train")
    assert [FIVE - reader.annotated(index) for index in range(4)] == [set(), {"parts"}, set(), set()]
    assert set(reader[1].targets) == FIVE - {"parts"}


@pytest.mark.parametrize(
    ("folder", "lost"),
    [
        ("semseg", {"semseg"}),
        ("human_parts", {"parts"}),
        ("normals_distill", {"normals"}),
        ("sal_distill", {"saliency"}),
        ("pascal-context", {"normals", "edges"}),
    ],
)
@pytest.mark.parametrize("index", [False, True])
def test_a_task_whose_files_are_missing_is_not_annotated(tmp_path, folder, lost, index):
    reader = PascalContext(write_tree(tmp_path, without=[folder], index=index), "train")
    assert reader.annotated(0) == FIVE - lost
    assert set(reader[0].targets) == FIVE - lost


def test_one_missing_file_takes_one_label_from_one_image(root):
    (root / f"sal_distill/{FIRST}.png").unlink()
    reader = PascalContext(root, "train", [Saliency(), Edges()])
    assert [reader.annotated(index) for index in range(2)] == [{"edges"}, {"saliency", "edges"}]
    with pytest.raises(MultidenseError, match=rf"sal_distill/{FIRST}\.png is not there"):
        reader.layout.label(0, "saliency")


@pytest.mark.parametrize("inside", ["PASCAL_MT", "PASCALContext"])
def test_the_folder_around_the_data_will_do_as_root(tmp_path, inside):
    reader = PascalContext(write_tree(tmp_path / inside).parent, "train")
    assert reader.root == reader.layout.root == tmp_path / inside
    assert len(reader) == 4


def test_the_parts_of_the_layout_find_the_files_of_a_tree(tmp_path):
    root = write_tree(tmp_path / "PASCAL_MT", index=True)
    parts = PascalMT.parts()
    assert PascalMT.present(root) == PascalMT.present(tmp_path) == len(parts)
    assert {len(part.found(root)) for part in parts} == {1, 2, 6}
    assert {task for part in parts for task in part.tasks} == FIVE
    assert all(part.count in (1, 2, 4998 + 5105) and part.source.endswith(".") for part in parts)


def test_files_are_where_the_reader_says(root):
    reader = PascalContext(root, "train")
    for index, task in product(range(len(reader)), [None, *FOLDERS]):
        assert reader.layout.file(index, task).is_file()


def test_provenance_is_plain_data_and_tells_the_rules(root):
    reader = PascalContext(root, "train", [Normals(), Saliency()], normals_frame=["right", "up", "viewer"])
    told = json.loads(json.dumps(reader.provenance()))
    assert told["name"] == "pascal-context"
    assert (told["layout"], told["length"], told["whole"]) == ("PASCAL_MT", 4, False)
    assert set(told["notes"]) == {"normals", "saliency"}
    assert "distilled" in told["notes"]["saliency"]
    assert "right, up, viewer" in told["notes"]["normals"]


def test_a_reader_travels_to_a_worker(root):
    reader = PascalContext(root, "train")
    here = reader[0]
    there = pickle.loads(pickle.dumps(reader))[0]
    assert all(torch.equal(there.targets[name].value, target.value) for name, target in here.targets.items())


def test_a_size_is_the_size_of_everything(root):
    sample = PascalContext(root, "train", size=(12, 20))[0]
    assert sample.image.shape == (3, 12, 20)
    assert all(target.value.shape[1:] == (12, 20) for target in sample.targets.values())


def test_the_published_assignments_fit(tmp_path):
    reader = PascalContext(write_tree(tmp_path, train=12), "train")
    for setting in ("one-label", "random-labels"):
        given = published(setting)
        assert len(given.ids) == PascalMT.lengths["train"]
        shown = partial.published(reader, setting)
        for index in range(12):
            row = given.table[index]
            assert shown.annotated(index) == {task for task, here in zip(given.tasks, row, strict=True) if here}
            assert set(shown[index].targets) == shown.annotated(index)


# Semantic classes -----------------------------------------------------------------------------------------------------


def test_void_is_not_valid_and_classes_are_those_of_voc(root):
    value, valid = first(root, "semseg")
    assert not valid[:2, :2].any()
    assert valid.sum() == valid.size - 4
    assert set(np.unique(value[0][valid])) == {0, CLASSES.index("aeroplane"), CLASSES.index("person")}


def test_the_file_of_voc12_is_preferred(root):
    save(root / f"semseg/pascal-context/{FIRST}.png", np.full(SIZE, 7, np.uint8))
    assert 7 not in first(root, "semseg")[0]
    (root / f"semseg/VOC12/{FIRST}.png").unlink()
    assert (first(root, "semseg")[0] == 7).all()


def test_a_label_with_nothing_valid_stays_annotated(root):
    save(root / f"semseg/VOC12/{FIRST}.png", np.full(SIZE, 255, np.uint8))
    reader = PascalContext(root, "train")
    assert "semseg" in reader.annotated(0)
    target = reader[0].targets["semseg"]
    assert not target.valid.any()
    assert (target.value == 0).all()


# Parts ----------------------------------------------------------------------------------------------------------------


def test_the_parts_are_merged_to_six(root):
    value, valid = first(root, "parts")
    labels = scipy.io.loadmat(root / f"pascal-context/trainval/{FIRST}.mat")["LabelMap"]
    expected = np.zeros(SIZE, int)
    for number, band in enumerate(body_parts(labels == PERSON).values(), 1):
        expected[band] = number
    np.testing.assert_array_equal(value[0], expected)
    assert set(np.unique(expected)) == set(range(7))
    assert valid.all()


def test_every_part_of_pascal_part_has_its_place():
    assert len(PART_OF) == 24
    assert set(PART_OF.values()) == set(range(1, 7))
    assert [PART_OF[name] for name in ("reye", "neck", "luarm", "lhand", "ruleg", "rfoot")] == [1, 2, 3, 4, 5, 6]


def test_later_persons_cover_earlier_ones_and_animals_do_not_count(root):
    left = EVERYWHERE.copy()
    left[:, 16:] = False
    things = [
        thing(15, EVERYWHERE, {"head": EVERYWHERE}),
        thing(15, left, {"lfoot": left}),
        thing(15, left),
        thing(8, EVERYWHERE, {"head": EVERYWHERE, "tail": left}),
    ]
    write_anno(root / f"human_parts/{FIRST}.mat", things)
    value, _ = first(root, "parts")
    assert (value[0, :, :16] == 6).all()
    assert (value[0, :, 16:] == 1).all()


@pytest.mark.parametrize("things", [[thing(15, EVERYWHERE)], [thing(15, EVERYWHERE, {"head": ~EVERYWHERE})]])
def test_a_person_without_parts_is_annotated_and_valid_nowhere(root, things):
    write_anno(root / f"human_parts/{FIRST}.mat", things)
    value, valid = first(root, "parts")
    assert not valid.any()
    assert value.shape == (1, *SIZE)


@pytest.mark.parametrize("things", [[], [thing(8, EVERYWHERE, {"head": EVERYWHERE})], [thing(15, ~EVERYWHERE)]])
def test_without_a_person_that_is_seen_there_is_no_label(root, things):
    write_anno(root / f"human_parts/{FIRST}.mat", things)
    assert PascalContext(root, "train").annotated(0) == FIVE - {"parts"}


def test_structs_inside_cells_are_read_too(root):
    mask = EVERYWHERE.astype(np.uint8)
    parts = [{"part_name": "head", "mask": mask}]
    objects = [{"class": "person", "class_ind": 15, "mask": mask, "parts": parts}]
    save(root / f"human_parts/{FIRST}.mat", {"anno": {"imname": FIRST, "objects": objects}})
    assert (first(root, "parts")[0] == 1).all()


def test_the_list_of_objects_is_used_where_it_is(tmp_path):
    root = write_tree(tmp_path, index=True)
    for path in (root / "human_parts").iterdir():
        path.write_bytes(b"broken")
    reader = PascalContext(root, "train")
    assert ["parts" in reader.annotated(index) for index in range(4)] == [True, False, True, True]


def test_images_that_the_list_leaves_out_are_looked_up(root):
    save(root / "ImageSets/Parts/train.txt", json.dumps({NOBODY: [15]}))
    reader = PascalContext(root, "train")
    assert ["parts" in reader.annotated(index) for index in range(2)] == [True, True]


def test_the_list_of_objects_is_written_when_asked_and_only_then(root):
    before = {path for path in root.rglob("*") if path.is_file()}
    reader = PascalContext(root, "train")
    there = [reader.annotated(index) for index in range(4)]
    assert {path for path in root.rglob("*") if path.is_file()} == before
    path = reader.layout.write_parts_index()
    assert {path for path in root.rglob("*") if path.is_file()} - before == {path}
    listed = json.loads(path.read_text())
    assert list(listed) == reader.ids
    assert (listed[FIRST], listed[NOBODY]) == ([15, 1], [])
    for file in (root / "human_parts").iterdir():
        file.write_bytes(b"broken")
    again = PascalContext(root, "train")
    assert [again.annotated(index) for index in range(4)] == there
    assert again.provenance() == reader.provenance()


def test_the_list_of_objects_is_not_written_where_files_are_missing(root):
    (root / f"human_parts/{FIRST}.mat").unlink()
    with pytest.raises(MultidenseError, match=rf"{FIRST}\.mat is not there"):
        PascalContext(root, "train").layout.write_parts_index()


def test_human_parts_are_not_opened_for_other_tasks(root):
    (root / f"human_parts/{FIRST}.mat").write_bytes(b"broken")
    save(root / "ImageSets/Parts/train.txt", "broken")
    reader = PascalContext(root, "train", [SemanticSegmentation(21), Edges()])
    assert set(reader[0].targets) == {"semseg", "edges"}


# Normals --------------------------------------------------------------------------------------------------------------


def normals(root, colour, size=SIZE, **settings):
    save(root / f"normals_distill/{FIRST}.png", np.broadcast_to(np.uint8(colour), (*size, 3)).copy())
    return first(root, "normals", **settings)


def test_normals_are_valid_on_the_classes_that_nyuv2_has(root):
    labels = np.zeros(SIZE, np.uint16)
    labels[:, 5:15], labels[:, 15:20], labels[:, 20:25], labels[:, 25:] = WALL, SKY, SOFA, AEROPLANE
    save(root / f"pascal-context/trainval/{FIRST}.mat", {"LabelMap": labels})
    _, valid = first(root, "normals")
    np.testing.assert_array_equal(valid, (labels == WALL) | (labels == SOFA))
    assert NORMALS_VALID.sum() == 170
    assert NORMALS_VALID[[3, 284, 397, 427, 457]].all()
    assert not NORMALS_VALID[[0, 1, 2, 308, 431, 459]].any()


@pytest.mark.parametrize(
    ("colour", "expected"), [((255, 127, 127), (-1, 0, 0)), ((128, 255, 128), (0, 1, 0)), ((127, 128, 255), (0, 0, 1))]
)
def test_red_is_left_green_is_up_blue_is_toward_the_viewer(root, colour, expected):
    value, valid = normals(root, colour)
    assert valid.any()
    np.testing.assert_allclose(value[:, valid], np.broadcast_to(np.array(expected)[:, None], (3, valid.sum())), atol=0.01)


def test_another_frame_can_be_said(root):
    value, valid = normals(root, (255, 0, 128), normals_frame=["down", "right", "into"])
    np.testing.assert_allclose(value[:, valid][:, 0], np.array([-1, -1, 0]) / np.sqrt(2), atol=0.01)
    with pytest.raises(MultidenseError, match=r"normals_frame: `axes` should be three words.*'up', 'up', 'viewer'"):
        PascalContext(root, "train", normals_frame=["up", "up", "viewer"])
    with pytest.raises(MultidenseError, match="'PASCAL_MT' has the options normals_frame, found 'frame'"):
        PascalContext(root, "train", frame=["right", "up", "viewer"])


@pytest.mark.parametrize("colour", [(0, 0, 0), (127, 127, 127), (128, 127, 128)])
def test_what_is_no_direction_is_not_valid(root, colour):
    assert not normals(root, colour)[1].any()


def test_normals_are_twice_the_colour_less_one_and_of_unit_length(root):
    value, valid = normals(root, (200, 100, 220))
    expected = (2 * np.array([200, 100, 220]) / 255 - 1) * [-1, 1, 1]
    np.testing.assert_allclose(value[:, valid][:, 0], expected / np.linalg.norm(expected), atol=1e-6)
    vectors, _ = PascalContext(root, "train").layout.label(0, "normals")
    np.testing.assert_allclose(vectors[valid], value[:, valid].T, atol=1e-6)


def test_normals_of_another_size_are_resized_smoothly_and_normalised(root):
    save(root / f"pascal-context/trainval/{FIRST}.mat", {"LabelMap": np.full(SIZE, WALL, np.uint16)})
    half = (SIZE[0] // 2, SIZE[1] // 2)
    angle = np.broadcast_to(np.linspace(-1, 1, half[1]), half)
    vectors = np.stack([np.sin(angle), np.zeros(half), np.cos(angle)], -1)
    save(root / f"normals_distill/{FIRST}.png", np.round((vectors + 1) * 127.5).astype(np.uint8))
    value, valid = first(root, "normals")
    assert value.shape == (3, *SIZE)
    assert valid.all()
    np.testing.assert_allclose(np.linalg.norm(value, axis=0), 1, atol=1e-5)
    turned = np.degrees(np.arctan2(-value[0], value[2]))[0]
    step = np.degrees(2 / (half[1] - 1))
    expected = np.degrees(-1) + (np.arange(SIZE[1]) + 0.5) * step / 2 - step / 2
    assert np.abs(turned - expected)[2:-2].max() < 1  # nearest pixels would be off by a quarter of a step, 1.9°
    assert (np.diff(turned)[2:-2] > 0).all()


# Saliency -------------------------------------------------------------------------------------------------------------


def test_saliency_above_one_half_is_yes(root):
    levels = np.tile(np.array([0, 127, 128, 255], np.uint8), (SIZE[0], SIZE[1] // 4))
    save(root / f"sal_distill/{FIRST}.png", levels)
    value, valid = first(root, "saliency")
    np.testing.assert_array_equal(value[0], levels >= 128)
    assert valid.all()


# Edges ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_edges_are_where_classes_change_one_pixel_wide(root, dtype):
    labels = np.full(SIZE, 2, dtype)
    labels[:, 10:] = 255 if dtype == np.uint8 else 459
    save(root / f"pascal-context/trainval/{FIRST}.mat", {"LabelMap": labels})
    value, valid = first(root, "edges")
    assert (value[0, 1:-1].sum(1) == 1).all()
    assert len(np.flatnonzero(value[0].any(0))) == 1
    assert value[0, :, 9:11].sum() == value.sum()
    assert valid.all()


def test_edges_are_the_thinned_laplacian(root):
    labels = np.random.default_rng(3).integers(0, 460, (6, 8)).repeat(4, 0).repeat(4, 1).astype(np.uint16)
    save(root / f"pascal-context/trainval/{FIRST}.mat", {"LabelMap": labels})
    mirrored = np.pad(labels.astype(int), 1, mode="reflect")
    around = mirrored[:-2, 1:-1] + mirrored[2:, 1:-1] + mirrored[1:-1, :-2] + mirrored[1:-1, 2:]
    np.testing.assert_array_equal(first(root, "edges")[0][0] > 0, thin(around != 4 * labels.astype(int)))


def test_one_class_everywhere_has_no_edges(root):
    save(root / f"pascal-context/trainval/{FIRST}.mat", {"LabelMap": np.full(SIZE, 459, np.uint16)})
    assert not first(root, "edges")[0].any()


@pytest.mark.parametrize("task", sorted(FIVE))
@pytest.mark.parametrize("size", [(12, 16), (36, 48)])
def test_maps_of_another_size_become_as_large_as_their_image(tmp_path, task, size):
    root, other = write_tree(tmp_path / "a", train=1), write_tree(tmp_path / "b", train=1, size=size)
    for folder in ("semseg/VOC12", "human_parts", "normals_distill", "sal_distill", "pascal-context/trainval"):
        for path in (other / folder).glob(f"{FIRST}.*"):
            path.replace(root / folder / path.name)
    value, valid = first(root, task)
    own, own_valid = first(write_tree(tmp_path / "c", train=1, size=size), task)
    assert value.shape[1:] == valid.shape == SIZE
    assert own.shape[1:] == own_valid.shape == size
    assert abs(valid.mean() - own_valid.mean()) < 0.05
    if task != "normals":
        assert set(np.unique(value)) == set(np.unique(own))


# Thinning -------------------------------------------------------------------------------------------------------------


def drawn(*rows):
    return np.array([[letter == "#" for letter in row] for row in rows])


@pytest.mark.parametrize("mask", [np.eye(7, dtype=bool), drawn("#######"), drawn(*"####"), drawn("..#..", ".#.#.", "..#..")])
def test_lines_of_one_pixel_stay(mask):
    np.testing.assert_array_equal(thin(mask), mask)


def test_a_bar_of_three_becomes_one():
    bar = np.zeros((9, 30), bool)
    bar[3:6, 2:28] = True
    line = thin(bar)
    assert set(np.flatnonzero(line.any(1))) == {4}
    assert line.sum() >= 22
    np.testing.assert_array_equal(thin(bar.T).sum(1).max(), 1)


def test_a_block_with_a_handle_thins_as_bwmorph_does():
    block = drawn(".#.....", "..###..", "..###..", "..###..", "..###..", "..###..", ".......")
    expected = drawn(".#.....", "..#....", "...#...", "...#...", "...#...", ".......", ".......")
    np.testing.assert_array_equal(thin(block), expected)


def may_go(around, half):
    """The definition, written out for one pixel: x₁ … x₈ from the east, counter-clockwise."""
    x = [*around, around[0]]
    crossings = sum(not x[i] and (x[i + 1] or x[i + 2]) for i in (0, 2, 4, 6))
    pairs = min(sum(x[i] or x[i + 1] for i in (0, 2, 4, 6)), sum(x[i + 1] or x[i + 2] for i in (0, 2, 4, 6)))
    side = (x[1] or x[2] or not x[7]) and x[0] if half == 0 else (x[5] or x[6] or not x[3]) and x[4]
    return crossings == 1 and 2 <= pairs <= 3 and not side


def thinned_slowly(mask):
    now = np.pad(mask, 1)
    while True:
        before = now.copy()
        for half in (0, 1):
            then = now.copy()
            for r, c in zip(*np.nonzero(then), strict=True):
                places = [
                    (r, c + 1),
                    (r - 1, c + 1),
                    (r - 1, c),
                    (r - 1, c - 1),
                    (r, c - 1),
                    (r + 1, c - 1),
                    (r + 1, c),
                    (r + 1, c + 1),
                ]
                now[r, c] = not may_go([bool(then[place]) for place in places], half)
        if (now == before).all():
            return now[1:-1, 1:-1]


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.booleans()))
def test_thinning_follows_its_definition(mask):
    line = thin(mask)
    np.testing.assert_array_equal(line, thinned_slowly(mask))
    np.testing.assert_array_equal(thin(line), line)


@pytest.mark.parametrize("seed", range(4))
def test_thinning_keeps_pieces_and_holes(seed):
    mask = ndimage.gaussian_filter(np.random.default_rng(seed).random((60, 80)), 2) > 0.5
    line = thin(mask)
    assert not (line & ~mask).any()
    assert line.sum() < mask.sum() / 2
    assert ndimage.label(line, np.ones((3, 3)))[1] == ndimage.label(mask, np.ones((3, 3)))[1]
    assert ndimage.label(np.pad(~line, 1, constant_values=True))[1] == ndimage.label(np.pad(~mask, 1, constant_values=True))[1]
    assert not ndimage.binary_erosion(line, np.ones((2, 2))).any(), "a block of 2×2 is left"


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.3, 0.6])
@pytest.mark.parametrize("task", [None, "semseg", "parts", "normals", "saliency", "edges"])
def test_a_file_cut_short_is_named(tmp_path, share, task):
    root = write_tree(tmp_path, train=1, index=True)
    path = PascalContext(root, "train").layout.file(0, task)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(MultidenseError, match=rf"{path.name} cannot be read as a "):
        PascalContext(root, "train").load(0, [task] if task else [])


@pytest.mark.parametrize(
    ("file", "content", "task", "message"),
    [
        ("pascal-context/trainval/ID.mat", {"map": np.zeros(SIZE)}, "edges", "expected 'LabelMap', found map"),
        ("pascal-context/trainval/ID.mat", {"map": np.zeros(SIZE)}, "normals", "expected 'LabelMap', found map"),
        ("pascal-context/trainval/ID.mat", {"LabelMap": "x"}, "edges", "'LabelMap' should be whole numbers"),
        ("pascal-context/trainval/ID.mat", {"LabelMap": np.full(SIZE, 0.5)}, "edges", "0 … 65535, found 0.5"),
        ("pascal-context/trainval/ID.mat", {"LabelMap": np.full(SIZE, -1)}, "edges", "0 … 65535, found -1"),
        ("pascal-context/trainval/ID.mat", {"LabelMap": np.full(SIZE, np.nan)}, "normals", "0 … 65535, found nan"),
        ("human_parts/ID.mat", {"annotation": 3}, "parts", "expected 'anno', found annotation"),
        ("human_parts/ID.mat", {"anno": 3}, "parts", "'anno' should be a struct"),
        ("human_parts/ID.mat", {"anno": {"imname": "x"}}, "parts", "'anno' should be a struct.*objects"),
        ("human_parts/ID.mat", {"anno": {"objects": {"mask": np.ones(SIZE)}}}, "parts", "'anno' should be a struct.*class_ind"),
        ("semseg/VOC12/ID.png", np.full(SIZE, 21, np.uint8), "semseg", "0 … 20, or be 255 .* found 21"),
        ("semseg/VOC12/ID.png", np.zeros((*SIZE, 3), np.uint8), "semseg", "8-bit grey or palette PNG, found mode 'RGB'"),
        ("normals_distill/ID.png", np.zeros(SIZE, np.uint8), "normals", "normals should have three channels"),
        ("sal_distill/ID.png", np.zeros((*SIZE, 4), np.uint8) + np.uint8([0, 1, 2, 3]), "saliency", "one number a pixel"),
    ],
)
def test_a_file_that_holds_something_else_is_named(tmp_path, file, content, task, message):
    root = write_tree(tmp_path, train=1, index=True)
    file = file.replace("ID", FIRST)
    save(root / file, content)
    with pytest.raises(MultidenseError, match=rf"{file}: .*{message}"):
        first(root, task)


def test_strange_parts_and_masks_are_named(root):
    path = root / f"human_parts/{FIRST}.mat"
    write_anno(path, [thing(15, EVERYWHERE, {"tail": EVERYWHERE})])
    with pytest.raises(MultidenseError, match=rf"{FIRST}\.mat: expected parts of a person .* found 'tail'"):
        first(root, "parts")
    write_anno(path, [thing(15, EVERYWHERE, {"head": EVERYWHERE[1:]})])
    with pytest.raises(
        MultidenseError, match=rf"{FIRST}\.mat: the masks in 'anno' should be of one size .*\(23, 32\), \(24, 32\)"
    ):
        first(root, "parts")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("ImageSets/Context/train.txt", "", "found none"),
        ("ImageSets/Context/train.txt", f"{FIRST}\n{FIRST}\n", f"every id once, found {FIRST}"),
        ("ImageSets/Context/train.txt", f"{FIRST}\n2008_999999\n", "1 of them are not in .*JPEGImages: 2008_999999"),
        ("ImageSets/Parts/train.txt", "{", "cannot be read as JSON"),
        (
            "ImageSets/Parts/train.txt",
            json.dumps({FIRST: "person"}),
            f"'{FIRST}' should have a list of VOC ids, found 'person'",
        ),
    ],
)
def test_a_list_that_is_wrong_is_named(root, file, text, message):
    save(root / file, text)
    with pytest.raises(MultidenseError, match=f"{file}.*{message}"):
        PascalContext(root, "train")


def test_a_missing_list_a_strange_folder_and_strange_settings_are_named(root, tmp_path):
    (root / "ImageSets/Context/val.txt").unlink()
    with pytest.raises(MultidenseError, match=r"Context/val\.txt should list an id a line, but cannot be read"):
        PascalContext(root, "val")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MultidenseError, match=r"none of the layouts that are known \(PASCAL_MT: "):
        PascalContext(tmp_path / "empty", "train")
    with pytest.raises(MultidenseError, match="a split out of train, val, found 'test'"):
        PascalContext(root, "test")
    with pytest.raises(MultidenseError, match="no labels for 'depth'"):
        PascalContext(root, "train", [Depth()])
    with pytest.raises(MultidenseError, match=r"'semseg' has 21 classes, found a task of 40\. Use SemanticSegmentation\(21\)"):
        PascalContext(root, "train", [SemanticSegmentation(40)])
    with pytest.raises(MultidenseError, match="'parts' has 7 classes, found a task of 15"):
        PascalContext(root, "train", [HumanParts(15)])
