"""Check: whatever is wrong with a folder of images and labels is found, named and given a remedy; what is right passes."""

import io
import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from multidense import check_page, pictures
from multidense.cli import main
from multidense.data import Rooms
from multidense.data.check import check
from multidense.data.duplicates import NEAR, near_pairs, sketch
from multidense.data.encodings import ClassMap
from multidense.tasks import Depth, Edges, Normals, SemanticSegmentation
from multidense.types import MultidenseError

SIZE = (48, 64)
TASKS = {
    "semseg": {"files": "labels/{id}.png", "classes": 13, "void": 255},
    "depth": {"files": "depth/{id}.png", "unit": "mm"},
    "normals": {"files": "normals/{id}.png", "axes": ["right", "up", "viewer"]},
    "edges": {"files": "edges/{id}.png", "positive": "> 0.5"},
}
SPLITS = {"train": 5, "val": 2}


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Rooms as files: five images to train on, two to validate on, every label."""
    root = tmp_path_factory.mktemp("rooms")
    for split, length in SPLITS.items():
        reader = Rooms([SemanticSegmentation(13), Depth(), Normals(), Edges()], split, size=SIZE, length=length)
        for sample in reader:
            save(root / f"rgb/{sample.id}.png", pictures.from_image(sample.image.numpy()))
            for task in reader.tasks:
                target = sample.targets[task.name]
                task.write(file(root, task.name, sample.id), target.value, target.valid)
        (root / f"{split}.txt").write_text("\n".join(reader.ids) + "\n")
    write(root, TASKS)
    return root


@pytest.fixture
def root(rooms, tmp_path):
    return shutil.copytree(rooms, tmp_path / "set")


def write(root, tasks, **top):
    said = {"name": "mine", "images": "rgb/{id}.png", "splits": {name: f"{name}.txt" for name in SPLITS}, "tasks": tasks}
    (root / "mine.yaml").write_text(yaml.safe_dump(said | top, sort_keys=False))


def save(path, array, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array) if path.suffix == ".npy" else Image.fromarray(array).save(path, **how)


def load(path):
    return np.asarray(Image.open(path))


def file(root, task, one):
    return root / TASKS[task]["files"].replace("{id}", one)


def found_in(root, **how):
    return check(root / "mine.yaml", processes=1, **how)


def through_jpeg(array, quality):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


ONE = "train-000003"


# What is right --------------------------------------------------------------------------------------------------------


def test_an_undamaged_set_passes(root, capsys):
    found = found_in(root)
    assert found.errors == 0
    assert [(split.name, split.images, split.sizes) for split in found.splits] == [
        ("train", 5, {"48×64": 5}),
        ("val", 2, {"48×64": 2}),
    ]
    main(["data", "check", str(root / "mine.yaml"), "--processes", "1"])
    assert "in 7 images" in capsys.readouterr().out


def test_the_summary_counts_what_is_there(root):
    ids = load(file(root, "semseg", ONE)).copy()
    ids[:24] = 255
    save(file(root, "semseg", ONE), ids)
    file(root, "depth", "train-000000").unlink()
    by_place = {(each.split, each.task): each for each in found_in(root).summaries}
    assert list(by_place) == [(split, task) for split in SPLITS for task in TASKS]
    semseg, depth = by_place["train", "semseg"], by_place["train", "depth"]
    maps = np.stack([load(path) for path in sorted((root / "labels").glob("train*"))])
    np.testing.assert_allclose(semseg.valid, (maps != 255).mean())
    np.testing.assert_allclose(semseg.shares, np.bincount(maps[maps != 255], minlength=13) / (maps != 255).sum())
    metres = np.stack([load(path) for path in sorted((root / "depth").glob("train*"))]) / 1000
    assert (depth.labelled, depth.images) == (4, 5)
    np.testing.assert_allclose(depth.range, (metres[metres > 0].min(), metres.max()), rtol=1e-6)
    near = dict(zip(depth.kinds, depth.shares, strict=True))["2–4 m"]
    np.testing.assert_allclose(near, ((metres >= 2) & (metres < 4)).sum() / (metres > 0).sum(), atol=2e-3)
    normals = by_place["val", "normals"]
    np.testing.assert_allclose(normals.range, (1, 1), atol=0.02)
    assert normals.measure == "length"


def test_numbers_announced_as_unknown_are_no_problem(root):
    for path in (root / "depth").glob("*.png"):
        metres = load(path).astype(np.float32)
        metres[0, :4] = np.nan, -1, np.inf, 0
        save(path.with_suffix(".npy"), metres)
    depth = {"files": "depth/{id}.npy", "unit": "mm", "invalid": [0, -1, float("nan")]}
    write(root, TASKS | {"depth": depth})
    assert found_in(root).errors == 0


# What is wrong --------------------------------------------------------------------------------------------------------


def truncated_image(root):
    path = root / f"rgb/{ONE}.png"
    path.write_bytes(path.read_bytes()[:-400])


def missing_image(root):
    (root / f"rgb/{ONE}.png").unlink()


def no_picture(root):
    file(root, "depth", ONE).write_text("nothing")


def another_size(root):
    save(file(root, "semseg", ONE), load(file(root, "semseg", ONE))[:-1])


def id_out_of_range(root):
    save(file(root, "semseg", ONE), load(file(root, "semseg", ONE)) + 7)


def colours(root):
    save(file(root, "semseg", ONE), pictures.palette(13)[load(file(root, "semseg", ONE))])


def smoothly_resized(root):
    ids = Image.fromarray(load(file(root, "semseg", ONE)))
    save(file(root, "semseg", ONE), np.asarray(ids.resize((48, 36), Image.Resampling.BILINEAR).resize((64, 48), 0)))


def jpeg_ids(root):
    save(file(root, "semseg", ONE), through_jpeg(load(file(root, "semseg", ONE)), 92).clip(0, 12))


def palette_by_itself(root):
    """All maps are palette pictures with one palette but this one, whose colours were numbered anew."""
    palette = pictures.palette(13)
    for path in (root / "labels").glob("*.png"):
        ids = load(path) % 13
        order = np.arange(13) if ONE not in path.name else np.roll(np.arange(13), 1)
        picture = Image.fromarray(order[ids].astype(np.uint8))
        picture.putpalette(palette[np.argsort(order)].ravel().tolist())
        picture.save(path)


def quantised_colours(root):
    """Colours reduced to a palette of its own, numbered by nobody, among grey maps."""
    for path in (root / "labels").glob("*.png"):
        save(path, load(path))
    coloured = Image.fromarray(pictures.palette(13)[load(file(root, "semseg", ONE))])
    coloured.convert("P", palette=Image.Palette.ADAPTIVE, colors=13).save(file(root, "semseg", ONE))


def doubled_after_smoothing(root):
    ids = Image.fromarray(load(file(root, "semseg", ONE)))
    save(file(root, "semseg", ONE), np.asarray(ids.resize((32, 24), Image.Resampling.BILINEAR).resize((64, 48), 0)))


def as_npy(root, change, unit="mm"):
    for path in (root / "depth").glob("*.png"):
        save(path.with_suffix(".npy"), change(load(path).astype(np.float32), path.stem == ONE))
    write(root, TASKS | {"depth": {"files": "depth/{id}.npy", "unit": unit}})


def not_finite(root):
    as_npy(root, lambda values, here: np.where(here & (values > 2000), np.nan, values))


def negative(root):
    as_npy(root, lambda values, here: np.where(here & (values > 2000), -1, values))


def one_file_in_metres(root):
    as_npy(root, lambda values, here: values / 1000 if here else values)


def one_file_in_millimetres(root):
    as_npy(root, lambda values, here: values if here else values / 1000, unit="m")


def millimetres_called_metres(root):
    write(root, TASKS | {"depth": TASKS["depth"] | {"unit": "m"}})


def all_zero_depth(root):
    save(file(root, "depth", ONE), np.zeros(SIZE, np.uint16))


def half_long_normals(root):
    vectors = load(file(root, "normals", ONE)) / 127.5 - 1
    save(file(root, "normals", ONE), ((vectors / 2 + 1) * 127.5).round().astype(np.uint8))


def all_zero_normals(root):
    save(file(root, "normals", ONE), np.zeros((*SIZE, 3), np.uint8))


def other_axes(root):
    write(root, TASKS | {"normals": TASKS["normals"] | {"axes": ["right", "up", "into"]}})


def one_for_white(root):
    save(file(root, "edges", ONE), (load(file(root, "edges", ONE)) > 0).astype(np.uint8))


def id_in_two_splits(root):
    with open(root / "val.txt", "a") as ids:
        ids.write(f"{ONE}\n")


def id_twice(root):
    with open(root / "train.txt", "a") as ids:
        ids.write(f"{ONE}\n")


def empty_split(root):
    (root / "val.txt").write_text("# nobody\n")


def no_split_file(root):
    (root / "val.txt").unlink()


def nowhere_in_a_split(root):
    for path in (root / "edges").glob("val*"):
        path.unlink()


def nowhere_at_all(root):
    for path in (root / "edges").glob("*"):
        path.unlink()


def near_duplicate(root):
    image = Image.fromarray(load(root / f"rgb/{ONE}.png")).crop((1, 1, 64, 48)).resize((64, 48), Image.Resampling.BILINEAR)
    save(root / "rgb/val-000001.png", through_jpeg(np.asarray(image), 60))


@pytest.mark.parametrize(
    ("damage", "task", "named", "found", "remedy"),
    [
        (truncated_image, "", f"rgb/{ONE}.png", "cannot be read as a picture", "Replace it"),
        (missing_image, "", f"rgb/{ONE}.png", "'train' lists ids without an image", "add the images"),
        (no_picture, "depth", f"depth/{ONE}.png", "cannot be read as a picture", "Replace it"),
        (another_size, "semseg", f"labels/{ONE}.png", "48x64 .*found 47x64", "resize: true"),
        (id_out_of_range, "semseg", f"labels/{ONE}.png", r"one of the 13 announced, found 1\d", "`classes`"),
        (colours, "semseg", f"labels/{ONE}.png", "one channel, found colours", "table of colours"),
        (smoothly_resized, "semseg", f"labels/{ONE}.png", "look mixed at [2-9].% of the borders", "nearest pixel"),
        (jpeg_ids, "semseg", f"labels/{ONE}.png", "look mixed at [2-9].% of the borders", "without loss"),
        (doubled_after_smoothing, "semseg", f"labels/{ONE}.png", "look mixed at [2-9].% of the borders", "nearest pixel"),
        (quantised_colours, "semseg", f"labels/{ONE}.png", "a palette picture stands among grey ones", "one colour"),
        (palette_by_itself, "semseg", f"labels/{ONE}.png", r"colour of its palette .*#\w{6} is \d+ here, \d+", "one id"),
        (not_finite, "depth", f"depth/{ONE}.npy", r"finite, found \d+ pixels", r"add \.nan"),
        (negative, "depth", f"depth/{ONE}.npy", "negative pixels, the least -1", "add -1"),
        (one_file_in_metres, "depth", f"depth/{ONE}.npy", "called millimetres looks like another", "in m it would be [1-9]"),
        (one_file_in_millimetres, "depth", f"depth/{ONE}.npy", "called metres looks like", "in mm it would be [1-9]"),
        (millimetres_called_metres, "depth", f"depth/{ONE}.png", "called metres looks like another unit", "in mm it"),
        (all_zero_depth, "depth", f"depth/{ONE}.png", "nothing in it is valid", "delete it"),
        (half_long_normals, "normals", f"normals/{ONE}.png", "unit length, found 100%", "normalise"),
        (all_zero_normals, "normals", f"normals/{ONE}.png", "nothing in it is valid", "delete it"),
        (other_axes, "normals", f"normals/{ONE}.png", "face the viewer", "`axes`"),
        (one_for_white, "edges", f"edges/{ONE}.png", "white should be 255, found nothing above 1", "Multiply by 255"),
        (id_in_two_splits, "", f"rgb/{ONE}.png", "in two splits", "out of 'train' or 'val'"),
        (id_twice, "", f"rgb/{ONE}.png", f"lists '{ONE}' twice", "Leave one"),
        (empty_split, "", "val.txt", "'val' has no image at all", "Look at `images`"),
        (no_split_file, "", "val.txt", "cannot be read", "Correct it"),
        (nowhere_in_a_split, "edges", "edges/{id}.png", "no image of the split", "Add files"),
        (nowhere_at_all, "edges", "edges/{id}.png", "no image of any split", "leave the task out"),
        (near_duplicate, "", f"rgb/{ONE}.png", "nearly the same.*rgb/val-000001.png in val", "one split"),
    ],
    ids=lambda each: each.__name__ if callable(each) else "",
)
def test_a_damage_is_found_named_and_given_a_remedy(root, damage, task, named, found, remedy, capsys, monkeypatch):
    damage(root)
    findings = []
    monkeypatch.setattr("multidense.data.check.check", lambda *given: findings.append(check(*given)) or findings[0])
    with pytest.raises(SystemExit) as stopped:
        main(["data", "check", str(root / "mine.yaml"), "--processes", "1"])
    assert stopped.value.code == 1
    problems = [each for each in findings[0].problems if each.level == "error"]
    match = [one for one in problems if one.task == task and one.file == named and re.search(found, one.found)]
    assert match, problems
    assert all(re.search(remedy, each.remedy) for each in match)
    if "millimetres_called" not in damage.__name__ and damage is not other_axes:
        others = {one.file for one in problems} - {named}
        assert not others, "the others are whole"
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert named in said or "and 4 more" in said
    assert str(root) not in said.replace(str(root / "mine.yaml"), "")


def test_a_surprise_of_a_decoder_stops_nothing(root, monkeypatch):
    monkeypatch.setattr(ClassMap, "stored", lambda *_: [][1])
    problems = [one for one in found_in(root).problems if one.level == "error"]
    assert len(problems) == 7
    assert problems[3].file == f"labels/{ONE}.png"
    assert "IndexError" in problems[3].found
    assert "Replace it" in problems[3].remedy


def test_labels_of_a_broken_image_are_still_read(root):
    truncated_image(root)
    all_zero_depth(root)
    assert [(one.file, one.task) for one in found_in(root).problems if one.level == "error"] == [
        (f"rgb/{ONE}.png", ""),
        (f"depth/{ONE}.png", "depth"),
    ]


def test_one_fault_is_told_once(root):
    missing_image(root)
    assert not any("belongs to no image" in one.found for one in found_in(root).problems)
    (root / "train.txt").write_text("train-000001\ntrain-000002\n")
    with open(root / "val.txt", "a") as ids:
        ids.write("train-000001\n")
    assert [one.found for one in found_in(root).problems if one.level == "error"] == ["the image is in two splits"]


def test_warnings_are_said_and_pass(root, capsys):
    save(root / "labels/nobody.png", np.zeros(SIZE, np.uint8))
    (root / "val.txt").write_text("val-000001\n")
    main(["data", "check", str(root / "mine.yaml"), "--processes", "1"])
    problems = {(one.file, one.found) for one in found_in(root).problems}
    assert ("labels/nobody.png", "the label belongs to no image") in problems
    assert ("rgb/val-000000.png", "the image is in no split") in problems
    assert not any("labels/val-000000" in named for named, _ in problems)
    rare = [one for one in found_in(root).problems if "never occur" in one.found]
    assert {(one.level, one.task) for one in rare} == {("warning", "semseg")}
    assert "error" not in capsys.readouterr().out


def test_labels_beside_their_images_belong_to_them(root):
    """One folder for everything: `{id}.png` also fits the names of labels."""
    for path in (root / "rgb").glob("*.png"):
        shutil.copy(file(root, "edges", path.stem), root / "rgb" / f"{path.stem}_edges.png")
    write(root, {"edges": TASKS["edges"] | {"files": "rgb/{id}_edges.png"}})
    assert not found_in(root).problems


# Near-duplicates ------------------------------------------------------------------------------------------------------


def copies(image):
    half = Image.fromarray(image).resize((32, 24), Image.Resampling.LANCZOS)
    noise = np.random.default_rng(0).normal(0, 10, image.shape)
    return {
        "the same": image,
        "jpeg": through_jpeg(image, 30),
        "half as large": np.asarray(half),
        "brighter": (image * 1.2).clip(0, 255).astype(np.uint8),
        "noisy": (image + noise).clip(0, 255).astype(np.uint8),
        "cut": image[1:, 1:],
    }


@pytest.mark.parametrize("how", copies(np.zeros((*SIZE, 3), np.uint8)))
def test_copies_are_near(how):
    reader = Rooms([], "train", size=SIZE, length=8)
    images = [pictures.from_image(sample.image.numpy()) for sample in reader]
    altered = [sketch(copies(image)[how].transpose(2, 0, 1)) for image in images]
    pairs = near_pairs([sketch(image.transpose(2, 0, 1)) for image in images], altered)
    assert [(i, j) for i, j, _ in pairs] == [(i, i) for i in range(8)]


def test_innocent_rooms_are_not_near():
    """All rooms have a floor, walls and much the same furniture."""
    ours, theirs = (
        [sketch((sample.image.numpy() * 255).astype(np.uint8)) for sample in Rooms([], split, size=SIZE, length=40)]
        for split in SPLITS
    )
    assert near_pairs(ours, theirs) == []
    assert near_pairs(ours, theirs, near=0.3), "they are alike, but not that much"


def test_flat_images_say_nothing():
    flat = [sketch(np.full((3, *SIZE), grey, np.uint8)) for grey in (0, 7, 255)]
    assert flat == [None] * 3
    assert near_pairs(flat, flat) == []


def test_only_equal_images_at_near_one(root):
    near_duplicate(root)
    assert found_in(root, near=1).errors == 0
    shutil.copy(root / f"rgb/{ONE}.png", root / "rgb/val-000000.png")
    found = found_in(root, near=1)
    assert ["rgb/val-000000.png" in one.found for one in found.problems if one.level == "error"] == [True]
    assert [title for title, _ in found.pairs[0].pictures] == [f"train {ONE}", "val val-000000"]


def test_each_image_of_the_shorter_list_has_its_nearest():
    rng = np.random.default_rng(0)
    few = [None, *(row / np.linalg.norm(row) for row in rng.normal(size=(3, 20)))]
    many = [few[2], few[3], None, few[1], few[2], few[3]]
    assert [pair[:2] for pair in near_pairs(few, many, NEAR)] == [(1, 3), (2, 0), (3, 1)]
    assert [pair[:2] for pair in near_pairs(many, few, NEAR)] == [(0, 2), (1, 3), (3, 1)]


# How it is told -------------------------------------------------------------------------------------------------------


def test_equal_problems_are_folded(root):
    for number in range(5):
        ids = load(file(root, "semseg", f"train-{number:06d}")).copy()
        ids[0, : number + 1] = 77
        save(file(root, "semseg", f"train-{number:06d}"), ids)
    all_zero_depth(root)
    found = found_in(root)
    folds = [each for each in check_page.fold(found.problems) if each.level == "error"]
    assert [(each.where, each.count) for each in folds] == [("semseg · train", 5), ("depth · train", 1)]
    said = re.sub(r"\s+", " ", check_page.text(found))
    assert "labels/train-000000.png, labels/train-000001.png, labels/train-000002.png and 2 more" in said
    assert "found 77 (1 pixels) (in labels/train-000000.png)" in said
    assert "labels/train-000003.png" not in said
    assert "6 errors" in said


def test_two_processes_say_what_one_says(root):
    id_out_of_range(root)
    near_duplicate(root)
    palette_by_itself(root)
    one, two = (check(root / "mine.yaml", processes=number) for number in (1, 2))
    assert one.errors == two.errors > 1
    assert one.problems == two.problems
    assert one.summaries == two.summaries
    assert check_page.text(one) == check_page.text(two)
    shown = [[picture.tobytes() for each in found.samples for _, picture in each.pictures] for found in (one, two)]
    assert shown[0] == shown[1]


def test_the_page_is_whole_and_needs_nothing_else(root, tmp_path, capsys):
    near_duplicate(root)
    save(file(root, "depth", "train-000002"), np.zeros(SIZE, np.uint16))
    write(root, TASKS, name="<mine>")
    with pytest.raises(SystemExit):
        main(["data", "check", str(root / "mine.yaml"), "--processes", "1", "--out", str(tmp_path / "deep/check.html")])
    page = (tmp_path / "deep/check.html").read_text()
    assert page.strip().endswith("</html>")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["check.html"]
    assert "&lt;mine&gt;" in page
    assert "<mine>" not in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "depth/train-000002.png" in page
    assert page.count("<img") == (3 + 2) * 5 + 2
    for task in TASKS:
        assert f"<h3>{task}</h3>" in page
    assert capsys.readouterr().out.strip().endswith("check.html")


def test_only_the_splits_asked_for(root, capsys):
    truncated_image(root)
    id_twice(root)
    found = found_in(root, splits=["val"])
    assert [split.name for split in found.splits] == ["val"]
    assert found.errors == 0
    assert not any("no split" in one.found for one in found.problems), "those of other splits are known"
    with pytest.raises(MultidenseError, match="train, val, found 'test'"):
        found_in(root, splits=["test"])


def test_a_recipe_says_description_and_tasks(root, capsys):
    half_long_normals(root)
    recipe = {
        "name": "mine",
        "data": {"reader": "folder", "description": str(root / "mine.yaml")},
        "tasks": {"depth": {}},
        "networks": {"mtl": {"decoder": "shared"}},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    main(["data", "check", str(root / "recipe.yaml"), "--processes", "1"])
    assert "normals" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rooms"], "has no files to check"),
        (["gone.yaml"], r"gone\.yaml cannot be read"),
        (["mine.yaml", "--out", "check.pdf"], r"should end in \.html"),
        (["mine.yaml", "--processes", "0"], "processes should be at least 1"),
        (["mine.yaml", "--near", "85"], "near should be a likeness"),
        (["mine.yaml", "--root", "gone"], "gone is not there"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(root, monkeypatch, arguments, message):
    monkeypatch.chdir(root)
    with pytest.raises(SystemExit) as stopped:
        main(["data", "check", *arguments])
    assert re.search(rf"^multidense: .*{message}", stopped.value.code)
