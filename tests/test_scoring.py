"""`multidense score`: real folders of files, scored by the command, held against numpy and what can be counted by hand."""

import json
import math

import numpy as np
import pytest
import scipy.io
from PIL import Image

from multidense.boundaries import Protocol, count
from multidense.data import Rooms
from multidense.evaluation import measure
from multidense.models import build_model
from multidense.scoring import found_in, score_files
from multidense.scoring_command import KINDS, score
from multidense.share_scorers import EdgeScorer, bsds_boundaries
from multidense.tasks import Edges, HumanParts, Saliency
from multidense.types import MultidenseError

SIZE = (12, 17)
MILLIMETRES = ["--unit", "mm"]
OPTIONS = {"semseg": ["--classes", "4"], "depth": MILLIMETRES}
each_task = pytest.mark.parametrize("task", KINDS)


@pytest.fixture
def place(tmp_path, capsys):
    return Place(tmp_path, capsys)


class Place:
    """Two folders, and the command run on them."""

    def __init__(self, root, capsys):
        self.mine, self.truth, self.json, self.capsys = root / "mine", root / "truth", root / "out" / "scores.json", capsys
        self.mine.mkdir()
        self.truth.mkdir()

    def pair(self, name, predicted, true):
        save(self.mine / name, predicted)
        save(self.truth / name, true)

    def score(self, task, *options):
        folders = ["--predictions", str(self.mine), "--truth", str(self.truth), "--json", str(self.json)]
        score([task, *folders, "--processes", "1", *OPTIONS.get(task, []), *map(str, options)])
        self.printed = self.capsys.readouterr().out
        return json.loads(self.json.read_text())


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array) if path.suffix == ".npy" else Image.fromarray(array).save(path)


def bsds(path, *annotators):
    """A file as MATLAB writes those of BSDS500: a cell of structs."""
    cells = np.empty((1, len(annotators)), object)
    for number, drawn in enumerate(annotators):
        cells[0, number] = {"Segmentation": np.ones(drawn.shape, np.uint16), "Boundaries": drawn.astype(np.uint8)}
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"groundTruth": cells}, do_compression=True)


def truth_of(task, rng):
    """A random truth as its files hold it."""
    if task in ("semseg", "parts"):
        return rng.integers(0, 4, SIZE).astype(np.uint8)
    if task == "depth":
        return rng.integers(0, 3, SIZE).astype(np.uint16) * 700
    if task == "normals":
        return rng.integers(0, 255, (*SIZE, 3)).astype(np.uint8)
    drawn = np.zeros(SIZE, np.uint8)
    drawn[:, rng.integers(3, 14)] = 255
    return drawn


def grid(height=24, width=30):
    """Boundaries of four rectangles, one pixel wide."""
    drawn = np.zeros((height, width), bool)
    drawn[height // 2], drawn[:, width // 2] = True, True
    return drawn


# Every task


PERFECT = {"%": 100.0, "0 … 1": 1.0}


@each_task
def test_the_truth_scores_perfectly(place, rng, task):
    for name in ("a.png", "b/c.png"):
        true = truth_of(task, rng)
        place.pair(name, true, true)
    told = place.score(task)
    assert (told["task"], told["images"]) == (task, 2)
    assert told["units"].keys() == told["pooling"].keys()
    for name, unit in told["units"].items():
        lower = name in ("MAE", "absErr", "absRel", "rmse", "logErr", "mErr")
        if name not in ("odsThreshold", "AP"):  # of a yes and no there is one recall, and no area under it
            assert told[name] == pytest.approx(0.0 if lower else PERFECT[unit], abs=1e-3), name
        assert name in place.printed


@each_task
def test_files_without_a_partner_are_named_and_not_scored(place, rng, task):
    true = truth_of(task, rng)
    place.pair("both.png", true, true)
    alone = place.score(task)
    save(place.mine / "extra.png", truth_of(task, rng))
    save(place.mine / "both.confidence.png", true)
    save(place.truth / "deep" / "more.png", truth_of(task, rng))
    (place.truth / "notes.txt").write_text("not a label")
    told = place.score(task)
    assert told["without_truth"] == ["both.confidence.png", "extra.png"]
    assert told["without_prediction"] == ["deep/more.png"]
    assert "not scored, for there is no prediction: 1\n  deep/more.png" in place.printed
    assert "not scored, for there is no truth: 2\n  both.confidence.png\n  extra.png" in place.printed
    differing = {"without_truth", "without_prediction"}
    assert {key: told[key] for key in told.keys() - differing} == {key: alone[key] for key in alone.keys() - differing}


@each_task
def test_the_order_of_files_changes_no_score(place, rng, task):
    pairs = [(truth_of(task, rng), truth_of(task, rng)) for _ in range(4)]
    scores = []
    for names in ("abcd", "dcba"):
        for name, pair in zip(names, pairs, strict=True):
            place.pair(f"{name}.png", *pair)
        told = place.score(task)
        scores.append({name: told[name] for name in told["units"]})
    assert scores[0] == pytest.approx(scores[1], rel=1e-9)


@each_task
def test_another_size_is_refused_unless_it_may_be_resized(place, rng, task):
    true = truth_of(task, rng)
    place.pair("one.png", true.repeat(2, 0).repeat(2, 1), true)
    with pytest.raises(MultidenseError, match=r"mine/one.png: expected 12 × 17 pixels .* found 24 × 34. .* pass --resize"):
        place.score(task)
    told = place.score(task, "--resize")
    assert told["protocol"]["resize"] is True
    if task in ("semseg", "parts"):
        assert told["mIoU"] == 100.0


@each_task
def test_a_file_that_is_no_picture_is_named(place, rng, task):
    true = truth_of(task, rng)
    place.pair("one.png", true, true)
    (place.mine / "one.png").write_bytes((place.mine / "one.png").read_bytes()[:40])
    with pytest.raises(MultidenseError, match=r"mine/one.png cannot be read as a picture"):
        place.score(task)


@each_task
def test_a_prediction_has_to_say_something_wherever_it_is_asked(place, rng, task):
    channels = {"normals": (3,)}.get(task, ())
    place.pair("one.png", truth_of(task, rng), np.maximum(truth_of(task, rng), 1) if task == "depth" else truth_of(task, rng))
    (place.mine / "one.png").unlink()
    save(place.mine / "one.npy", np.full((*SIZE, *channels), np.nan))
    with pytest.raises(MultidenseError, match=r"mine/one.npy: .*(finite|whole)"):
        place.score(task)


def test_processes_change_no_digit(place, rng):
    for name in "abc":
        place.pair(f"{name}.png", rng.integers(0, 256, SIZE).astype(np.uint8), truth_of("saliency", rng))
    one = place.score("saliency")
    assert place.score("saliency", "--processes", 2) == one


# Against numpy, from the files


def test_classes_agree_with_numpy(place, rng):
    maps = [(rng.integers(0, 4, SIZE).astype(np.uint8), rng.integers(0, 6, SIZE).astype(np.uint8)) for _ in range(3)]
    for number, (predicted, true) in enumerate(maps):
        place.pair(f"{number}.png", predicted, true)
    told = place.score("semseg", "--void", 4, 5)
    predicted, true = (np.concatenate([pair[i].ravel() for pair in maps]) for i in (0, 1))
    valid = true < 4
    matrix = np.zeros((4, 4), int)
    np.add.at(matrix, (true[valid], predicted[valid]), 1)
    ious = 100 * np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
    assert told["confusion"] == matrix.tolist()
    assert list(told["per_class"].values()) == pytest.approx(ious, rel=1e-12)
    assert told["mIoU"] == pytest.approx(ious.mean(), rel=1e-12)
    assert told["pixAcc"] == pytest.approx(100 * np.diag(matrix).sum() / matrix.sum(), rel=1e-12)


def test_permuting_the_classes_permutes_their_scores(place, rng):
    order = np.array([2, 0, 3, 1], np.uint8)
    predicted, true = truth_of("semseg", rng), truth_of("semseg", rng)
    place.pair("one.png", predicted, true)
    before = place.score("semseg")["per_class"]
    place.pair("one.png", order[predicted], order[true])
    after = place.score("semseg")["per_class"]
    assert [after[str(order[k])] for k in range(4)] == [before[str(k)] for k in range(4)]


def test_ids_may_be_a_palette_picture_and_numbers_of_any_kind(place, rng):
    true = truth_of("semseg", rng)
    picture = Image.fromarray(true).convert("P")
    picture.putpalette([7, 7, 7] * 256)
    picture.save(place.truth / "one.png")
    save(place.mine / "one.npy", true.astype(np.float32))
    assert place.score("semseg")["mIoU"] == 100.0
    save(place.truth / "two.npy", np.where(true == 0, -1.0, true))
    save(place.mine / "two.npy", np.where(true == 0, 3, true)[None])
    assert place.score("semseg")["mIoU"] == 100.0, "−1 is void too"


def test_images_without_people_are_skipped(place, rng):
    true = truth_of("parts", rng)
    place.pair("somebody.png", true, true)
    place.pair("nobody.png", truth_of("parts", rng), np.zeros(SIZE, np.uint8))
    told = place.score("parts")
    assert (told["mIoU"], told["images"], told["images_without_parts"]) == (100.0, 2, 1)
    assert told["protocol"]["classes"] == 7
    assert told["per_class"]["6"] is None, "a class that is nowhere has no IoU"
    assert "images without any part, skipped: 1" in place.printed


def test_depths_agree_with_numpy(place, rng):
    true = rng.integers(0, 9000, SIZE) * (rng.random(SIZE) < 0.8)
    predicted = rng.uniform(0.5, 9, SIZE)
    save(place.truth / "one.png", true.astype(np.uint16))
    save(place.mine / "one.npy", predicted.astype(np.float32))
    told = place.score("depth")
    p, g = predicted[true > 0].astype(np.float32).astype(float), true[true > 0] / 1000
    ratio = np.maximum(p / g, g / p)
    expected = {"absErr": abs(p - g).mean(), "rmse": np.sqrt(((p - g) ** 2).mean()), "absRel": (abs(p - g) / g).mean()}
    expected |= {"logErr": abs(np.log(p) - np.log(g)).mean()}
    expected |= {f"within_1.25^{n}": 100 * (ratio < 1.25**n).mean() for n in (1, 2, 3)}
    assert {name: told[name] for name in told["units"]} == pytest.approx(expected, rel=1e-6)
    assert told["rmse"] >= told["absErr"]


def test_a_scale_is_what_a_picture_stores_for_a_metre(place):
    place.pair("one.png", np.full(SIZE, 512, np.uint16), np.full(SIZE, 256, np.uint16))
    folders = ["--predictions", str(place.mine), "--truth", str(place.truth), "--json", str(place.json)]
    score(["depth", *folders, "--scale", "256"])
    told = json.loads(place.json.read_text())
    assert (told["absErr"], told["absRel"], told["logErr"]) == pytest.approx((1.0, 1.0, math.log(2)))
    with pytest.raises(MultidenseError, match=r"one.png: a picture does not say what its numbers mean. Pass --unit"):
        score(["depth", *folders])


def test_normals_agree_with_numpy(place, rng):
    stored = [rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8) for _ in range(2)]
    stored[1][:3] = 0
    place.pair("one.png", *stored)
    told = place.score("normals")
    p, g = (array[3:].reshape(-1, 3) / 127.5 - 1 for array in stored)
    cosine = (p * g).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(g, axis=1)
    degrees = np.degrees(np.arccos(cosine.clip(-1, 1)))
    expected = {"mErr": degrees.mean(), "rmse": np.sqrt((degrees**2).mean())}
    expected |= {f"within_{limit:g}": 100 * (degrees < limit).mean() for limit in (11.25, 22.5, 30)}
    assert {name: told[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    save(place.mine / "one.npy", p.reshape(-1, SIZE[1], 3).transpose(2, 0, 1))
    (place.mine / "one.png").unlink()
    save(place.truth / "one.png", stored[1][3:])
    assert place.score("normals")["mErr"] == pytest.approx(degrees.mean(), rel=1e-6), "also as vectors [3 h w]"


def test_saliency_agrees_with_numpy(place, rng):
    maps = [
        (rng.integers(40, 220, size).astype(np.uint8), rng.integers(0, 256, size).astype(np.uint8)) for size in (SIZE, (9, 9))
    ]
    for number, (predicted, true) in enumerate(maps):
        place.pair(f"{number}.png", predicted, true)
    told = place.score("saliency")
    images = [(predicted.astype(int), true > 127) for predicted, true in maps]

    def f(found, true):
        right, found, true = (found & true).sum(), found.sum(), true.sum()
        return 1.3 * right / (found + 0.3 * true)

    def overlap(found, true):
        return (found & true).sum() / (found | true).sum()

    single = [np.mean([f(255 * (p - p.min()) >= k * (p.max() - p.min()), true) for p, true in images]) for k in range(1, 256)]
    levels, yes = (np.concatenate([image[i].ravel() for image in images]) for i in (0, 1))
    expected = {
        "MAE": np.mean([abs(p / 255 - true).mean() for p, true in images]),
        "maxF": max(single),
        "maxF_pooled": max(f(20 * levels >= 255 * k, yes) for k in range(1, 20)),
        "max_mIoU": max(np.mean([overlap(20 * p > 255 * k, true) for p, true in images]) for k in range(4, 19)),
    }
    assert {name: told[name] for name in told["units"]} == pytest.approx(expected, rel=1e-12)
    assert set(told["units"].values()) == {"0 … 1"}
    assert told["pooling"]["maxF"] == "images" != told["pooling"]["maxF_pooled"]


@pytest.mark.parametrize(
    "stored",
    [
        lambda yes: ("one.png", np.where(yes, 255, 0).astype(np.uint8)),
        lambda yes: ("one.png", np.where(yes, 128, 127).astype(np.uint8)),
        lambda yes: ("one.png", yes),
        lambda yes: ("one.png", yes.astype(np.uint8)),
        lambda yes: ("one.png", np.where(yes, 65535, 0).astype(np.uint16)),
        lambda yes: ("one.png", np.repeat(np.where(yes, 255, 0).astype(np.uint8)[..., None], 3, 2)),
        lambda yes: ("one.npy", yes),
        lambda yes: ("one.npy", yes.astype(np.int64)),
        lambda yes: ("one.npy", yes.astype(np.float32)[..., None]),
    ],
    ids=["8 bits", "around the middle", "1 bit", "ones", "16 bits", "grey in colours", "booleans", "integers", "floats"],
)
@pytest.mark.parametrize("task", ["edges", "saliency"])
def test_yes_and_no_are_understood_as_people_store_them(place, rng, task, stored):
    yes = truth_of(task, rng) > 0
    name, array = stored(yes)
    save(place.truth / name, array)
    save(place.mine / "one.png", np.where(yes, 255, 0).astype(np.uint8))
    told = place.score(task)
    assert told["odsF" if task == "edges" else "max_mIoU"] == 1.0


# Edges


def test_a_shifted_edge_is_found_within_the_distance_and_lost_beyond(place):
    drawn = np.zeros((60, 80), bool)
    drawn[:, 40] = True
    bsds(place.truth / "one.mat", drawn)
    for shift, far, expected in ((2, 0.03, 1.0), (4, 0.03, 0.0), (4, 0.05, 1.0)):  # the diagonal is 100 pixels
        save(place.mine / "one.png", np.where(np.roll(drawn, shift, 1), 255, 0).astype(np.uint8))
        told = place.score("edges", "--max-dist", far)
        assert (told["odsF"], told["oisF"]) == (expected, expected)
        assert told["protocol"] == {"name": "plain-99", "max_dist": far, "nms": False, "thresholds": 99, "resize": False}


def test_a_line_that_is_there_and_one_that_crosses_another_can_be_counted_by_hand(place):
    drawn = grid()  # row 12 and column 15: 53 pixels
    bsds(place.truth / "one.mat", drawn)
    found = np.zeros(drawn.shape)
    found[2], found[12] = 1, 1
    save(place.mine / "one.npy", found)
    told = place.score("edges")
    assert told["odsPrecision"] == pytest.approx(31 / 60)
    assert told["odsRecall"] == pytest.approx(31 / 53)
    assert told["odsF"] == told["oisF"] == pytest.approx(62 / 113)


def test_edges_are_told_as_the_counts_of_each_image_say(place, rng):
    protocol = Protocol.plain(7, 0.02)
    counts = []
    for name in "abc":
        annotators = [grid(), np.roll(grid(), 2, 1)]
        bsds(place.truth / f"{name}.mat", *annotators)
        levels = (255 * np.clip(grid() * 0.6 + 0.4 * rng.random(grid().shape) ** 3, 0, 1)).astype(np.uint8)
        save(place.mine / f"{name}.png", levels)
        counts.append(count(levels / 255, annotators, protocol))
    told = place.score("edges", "--thresholds", 7, "--max-dist", 0.02)
    found = total_f(counts)
    assert told["odsF"] == pytest.approx(max(found), rel=1e-12)
    assert told["odsThreshold"] == pytest.approx((1 + int(np.argmax(found))) / 8)
    assert told["odsF"] <= told["oisF"] <= 1


def test_an_edge_is_where_the_value_is_at_least_the_threshold(place):
    drawn = grid()
    bsds(place.truth / "one.mat", drawn)
    save(place.mine / "one.png", np.where(drawn, 51, 0).astype(np.uint8))  # 51 / 255 is one fifth
    assert place.score("edges", "--thresholds", 4)["odsThreshold"] == pytest.approx(0.2)
    assert place.score("edges", "--thresholds", 4)["odsF"] == 1.0
    save(place.mine / "one.png", np.where(drawn, 50, 0).astype(np.uint8))
    assert place.score("edges", "--thresholds", 4)["odsF"] == 0.0


def test_suppression_is_another_protocol_and_says_so(place):
    drawn = np.zeros((40, 50), bool)
    drawn[:, 25] = True
    bsds(place.truth / "one.mat", drawn)
    ridge = np.exp(-((np.arange(50) - 25) ** 2) / 8.0)
    save(place.mine / "one.npy", np.tile(ridge, (40, 1)))
    told = place.score("edges", "--nms", "--max-dist", 0.02)
    assert told["protocol"] == {"name": "nms-101", "max_dist": 0.02, "nms": True, "thresholds": 101, "resize": False}
    assert told["odsPrecision"] == 1.0


def test_boundaries_of_every_annotator_are_read(tmp_path):
    drawn = [grid(), np.roll(grid(), 1, 0), np.zeros((24, 30), bool)]
    bsds(tmp_path / "one.mat", *drawn)
    assert np.array_equal(bsds_boundaries(tmp_path / "one.mat"), np.stack(drawn))
    bsds(tmp_path / "alone.mat", drawn[0])
    assert np.array_equal(bsds_boundaries(tmp_path / "alone.mat"), drawn[0][None])


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"groundtruth": np.ones((2, 2))}, "expected a variable `groundTruth`, found none"),
        ({"groundTruth": np.ones((2, 2))}, "expected `Boundaries` of every annotator, found annotator 1 without"),
        ({"groundTruth": np.empty((1, 0), object)}, "found no annotator"),
        ({"groundTruth": {"Segmentation": np.ones((2, 2))}}, "found annotator 1 without"),
    ],
    ids=["none", "an array", "empty", "segmentation only"],
)
def test_a_mat_file_without_boundaries_is_refused(tmp_path, written, message):
    scipy.io.savemat(tmp_path / "one.mat", written)
    with pytest.raises(MultidenseError, match=f"one.mat: .*{message}"):
        bsds_boundaries(tmp_path / "one.mat")


def test_a_mat_file_that_is_damaged_or_disagrees_is_refused(tmp_path):
    bsds(tmp_path / "two.mat", np.ones((2, 3), bool), np.ones((3, 2), bool))
    with pytest.raises(MultidenseError, match="annotators disagree on the size: 2 × 3, 3 × 2 pixels"):
        bsds_boundaries(tmp_path / "two.mat")
    (tmp_path / "cut.mat").write_bytes((tmp_path / "two.mat").read_bytes()[:150])
    with pytest.raises(MultidenseError, match=r"cut.mat cannot be read as a MATLAB file"):
        bsds_boundaries(tmp_path / "cut.mat")


def total_f(counts) -> list[float]:
    """F at every threshold over the counts of all images."""
    matched_truth, truth, matched, predicted = sum(one.table for one in counts).astype(float)
    recall, precision = matched_truth / truth, matched / np.maximum(predicted, 1)
    return list(2 * precision * recall / np.maximum(precision + recall, 1e-12))


# Networks


def test_a_network_is_told_matched_boundaries_and_its_curves_a_quick_score():
    tasks = [Edges(thresholds=9), Saliency(), HumanParts(7)]
    data = Rooms(tasks, "val", size=(32, 48), length=3)
    model = build_model("segnet", "shared", tasks, width=0.125, seed=0)
    whole, quick = measure(model, data, batch_size=1), measure(model, data, quick=True)
    assert list(whole.scores) == ["edges.odsF", "saliency.mIoU", "parts.mIoU", "parts.pixAcc"]
    assert list(quick.scores) == ["edges.bestF", "saliency.mIoU", "parts.mIoU", "parts.pixAcc"]
    assert {"edges.oisF", "edges.AP", "edges.bestF", "saliency.maxF", "saliency.maxF_pooled"} <= set(whole.further)
    assert whole.further["edges.bestF"] == pytest.approx(quick.scores["edges.bestF"], rel=1e-9)
    together = measure(model, data, batch_size=3)
    assert whole.scores == pytest.approx(together.scores, rel=1e-9)
    assert whole.further == pytest.approx(together.further, rel=1e-6)


# The command


def test_help_explains_files_protocol_and_units(capsys):
    with pytest.raises(SystemExit) as end:
        score(["--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0
    for word in (
        "--max-dist",
        "--thresholds",
        "--nms",
        "0.0075",
        "k / (N + 1)",
        "groundTruth",
        "fractions",
        "--void",
        "maxF_pooled",
    ):
        assert word in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["semseg"], "semseg needs --classes N"),
        (["semseg", "--classes", "1"], r"semseg: .*classes must lie in 2 … 254, found 1"),
        (["saliency", "--nms"], "--nms belongs to edges, found it with saliency"),
        (["depth", "--max-dist", "0.1"], "--max-dist belongs to edges, found it with depth"),
        (["edges", "--classes", "3"], "--classes belongs to semseg and parts, found it with edges"),
        (["depth", "--unit", "mm", "--scale", "5"], "--unit and --scale say the same"),
        (["depth", "--scale", "0"], "--scale should be above 0, found 0"),
        (["edges", "--nms", "--thresholds", "9"], "--nms has 101 thresholds of its own"),
        (["edges", "--thresholds", "0"], "edges: .*thresholds must be at least 1, found 0"),
        (["edges", "--max-dist", "0"], "edges: .*max_dist must lie above 0, at most at 1, found 0"),
        (["normals", "--processes", "0"], "processes should be at least 1, found 0"),
    ],
    ids=" ".join,
)
def test_a_mistaken_option_is_refused(place, rng, arguments, message):
    place.pair("one.png", truth_of(arguments[0], rng), truth_of(arguments[0], rng))
    with pytest.raises(MultidenseError, match=message):
        score([*arguments, "--predictions", str(place.mine), "--truth", str(place.truth)])


@pytest.mark.parametrize(
    ("task", "predicted", "true", "message"),
    [
        ("semseg", np.full(SIZE, 4, np.uint8), np.zeros(SIZE, np.uint8), r"mine/.*ids should lie in 0 … 3, found 4"),
        ("semseg", np.zeros(SIZE, np.uint8), np.full(SIZE, 9, np.uint8), r"truth/.*found 9. Correct --classes"),
        ("semseg", np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.uint8), r"mine/.*one channel, found \[12, 17, 3\]"),
        ("normals", np.zeros(SIZE, np.uint8), np.zeros((*SIZE, 3), np.uint8), "mine/.*normals should have three channels"),
        ("saliency", np.full((*SIZE, 3), [1, 2, 3], np.uint8), np.zeros(SIZE, np.uint8), "mine/.*expected shares, one number"),
        (
            "depth",
            np.full((*SIZE, 3), [1, 2, 3], np.uint8),
            np.ones(SIZE, np.uint8),
            "mine/.*expected depths, one number a pixel",
        ),
    ],
)
def test_a_file_that_holds_something_else_is_named(place, task, predicted, true, message):
    save(place.mine / "one.png", predicted)
    save(place.truth / "one.png", true)
    with pytest.raises(MultidenseError, match=message):
        place.score(task)


def test_shares_beyond_one_are_refused(place, rng):
    save(place.truth / "one.png", truth_of("saliency", rng))
    save(place.mine / "one.npy", 200 * rng.random(SIZE))
    with pytest.raises(MultidenseError, match=r"one.npy: expected numbers in 0 … 1.* Divide by what means 1"):
        place.score("saliency")


def test_what_is_void_in_the_truth_may_be_predicted_to_be_anything(place):
    place.pair("one.png", np.array([[77, 1]], np.uint8), np.array([[255, 1]], np.uint8))
    assert place.score("semseg")["pixAcc"] == 100.0


def test_scores_of_nothing_are_null(place):
    place.pair("one.png", np.ones(SIZE, np.uint16), np.zeros(SIZE, np.uint16))
    assert place.score("depth")["rmse"] is None


def test_folders_without_a_pair_are_refused(place, rng):
    with pytest.raises(MultidenseError, match=r"mine holds no file to score: expected files that end in .png"):
        place.score("saliency")
    save(place.mine / "a.png", truth_of("saliency", rng))
    save(place.truth / "b.png", truth_of("saliency", rng))
    with pytest.raises(MultidenseError, match=r"no prediction has a truth: .*mine holds 'a', .*truth holds 'b'"):
        place.score("saliency")
    assert not place.json.exists()


def test_two_files_of_one_name_and_folders_that_are_none_are_refused(tmp_path, rng):
    for name in ("a.png", "a.npy", ".hidden.png"):
        save(tmp_path / name, truth_of("saliency", rng))
    with pytest.raises(MultidenseError, match=r"a.png and .*a.npy are both 'a'"):
        found_in(tmp_path, (".npy", ".png"))
    assert list(found_in(tmp_path, (".png",))) == ["a"]
    with pytest.raises(MultidenseError, match="nowhere is not a folder"):
        found_in(tmp_path / "nowhere", (".png",))


def test_files_are_scored_from_python_too(place, rng):
    true = truth_of("edges", rng)
    place.pair("one.png", true, true)
    scored = score_files(EdgeScorer(Edges(thresholds=5)), place.mine, place.truth)
    assert (scored.scores["odsF"], scored.images) == (1.0, 1)
