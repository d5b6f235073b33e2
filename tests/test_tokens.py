"""What tokens say: affinities, axes, ranks, maps that are those of the forward pass, and a report with and without them."""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import multidense as md
from multidense.cli import main
from multidense.config import load_recipe
from multidense.data import Rooms, collate
from multidense.ops import pool
from multidense.report import write_report
from multidense.run import Run
from multidense.thresholds import Confidences
from multidense.token_figures import HEIGHT, LETTER, LINE, SIDE, WIDTH, cloud, matrix, placed
from multidense.tokens import agreement, categories, cosines, finding, look, principal, separation, write_tokens

SIZE = (32, 48)
THREE = [md.SemanticSegmentation(13), md.Depth(bins=8, low=1.0, high=8.0), md.Normals(centers=6, spread="sphere")]


def network(tasks=THREE, decoder="hitts", **options):
    """Untrained, with codebooks and with statistics of some noise, without which features would be all but zero."""
    model = md.build_model("segnet", decoder, tasks, width=0.125, seed=0, **options)
    for task in tasks:
        if task.codebook_size:
            model.set_codebook(task.name, task.fit_codebook((), seed=0))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad(), torch.random.fork_rng():
        model.train()(torch.rand(4, 3, *SIZE))
    return model.eval()


@pytest.fixture(scope="module")
def rooms():
    return Rooms(THREE, "val", size=SIZE, length=5)


@pytest.fixture(scope="module")
def batch(rooms):
    return collate([rooms[0], rooms[1]], THREE)


# Affinities and axes


def test_identical_tokens_have_affinity_one_and_opposite_ones_minus_one():
    token = torch.randn(5)
    table = cosines(torch.stack([token, 3 * token, -token]))
    assert torch.allclose(table, torch.tensor([[1.0, 1, -1], [1, 1, -1], [-1, -1, 1]]))


def test_tokens_at_right_angles_have_no_affinity():
    assert torch.equal(cosines(torch.eye(4)), torch.eye(4))


def test_principal_axes_do_not_depend_on_the_order_of_tokens():
    tokens, order = torch.randn(9, 4), torch.randperm(9)
    (places, shares), (moved, again) = principal(tokens), principal(tokens[order])
    assert torch.allclose(moved, places[order], atol=1e-5)
    assert torch.allclose(shares, again)


def test_principal_axes_point_to_where_their_largest_loading_is_positive():
    line = torch.tensor([[0.0, 0.0, 1.0], [0.1, -3.0, 1.0], [0.0, 2.0, 1.0]])
    places, shares = principal(line)
    assert places[:, 0].argsort().tolist() == [1, 0, 2]
    assert shares[0] > 0.99
    assert torch.allclose(principal(-line)[0], -places, atol=1e-5)


def test_a_plane_keeps_its_distances():
    tokens = torch.cat([torch.randn(7, 2), torch.full((7, 3), 4.0)], dim=1)
    places, shares = principal(tokens)
    assert torch.allclose(torch.cdist(places, places), torch.cdist(tokens, tokens), atol=1e-4)
    assert shares.sum() == pytest.approx(1)


def test_a_single_token_lies_in_the_middle():
    places, shares = principal(torch.randn(1, 4))
    assert torch.equal(places, torch.zeros(1, 2))
    assert torch.equal(shares, torch.zeros(2))


def test_tokens_in_the_order_of_their_bins_agree_with_them():
    depth = THREE[1].with_codebook(THREE[1].fit_codebook((), seed=0))
    angles = depth.codebook[:, 0].log()
    along = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert agreement(depth, along) > 0.98  # ranks: of distances that are equal but for rounding, either may come first
    assert agreement(depth, along[[3, 6, 0, 5, 1, 7, 2, 4]]) < 0.5
    assert agreement(depth, torch.ones(8, 2)) is None
    assert agreement(THREE[0], torch.randn(13, 4)) is None


# Ranks


def counted(confidence: list[float], right: list[bool]) -> Confidences:
    seen = Confidences()
    shape = (1, 1, 1, len(right))
    seen.add(torch.tensor(confidence).view(shape), torch.ones(shape, dtype=torch.bool), torch.tensor(right).view(shape))
    return seen


def test_separation_is_one_where_right_pixels_are_surer_and_zero_where_wrong_ones_are():
    assert separation(counted([0.9, 0.8, 0.3, 0.1], [True, True, False, False])) == 1
    assert separation(counted([0.9, 0.8, 0.3, 0.1], [False, False, True, True])) == 0
    assert separation(counted([0.9, 0.8, 0.3, 0.1], [True, False, True, False])) == 0.75


def test_equal_confidence_separates_nothing_and_unknown_is_not_a_number():
    assert separation(counted([0.5] * 4, [True, False, True, False])) == 0.5
    assert separation(counted([0.9, 0.1], [True, True])) is None
    assert separation(Confidences()) is None


def test_tokens_find_their_categories_or_avoid_them():
    category = torch.tensor([0, 0, 1, 1, 1])
    own = F.one_hot(category, 3).float()
    assert finding(own, category) == 1
    assert finding(-own, category) == 0
    assert finding(torch.zeros(5, 3), category) == 0.5
    assert finding(own, torch.full((5,), 2)) is None


# What is looked at is what the network does


@pytest.mark.parametrize("stride", [1, 2])
def test_the_gate_pictured_is_the_gate_of_the_forward_pass(batch, stride):
    model, given = network(gate_stride=stride), []
    model.decoder.inter_task.register_forward_pre_hook(lambda module, inputs: given.append(inputs[1]))
    gates = look(model, batch.image).gates
    assert list(gates) == list(model.task_names)
    for index, (gate,) in enumerate(gates.values()):
        assert torch.equal(gate, given[0][:, index : index + 1])
    assert not torch.allclose(gates["semseg"][0], gates["depth"][0])


def test_looking_leaves_no_hook_behind(batch):
    model = network()
    look(model, batch.image)
    assert not model.decoder.query._forward_hooks


def test_logits_before_are_those_that_the_tokens_refine(batch):
    model, made = network(), {}
    for name, head in model.decoder.fine_grained.items():
        head.to_maps.register_forward_hook(lambda module, inputs, output, name=name: made.setdefault(name, output))
    seen = look(model, batch.image)
    assert list(seen.before) == list(seen.even) == list(model.task_names)
    for name, before in seen.before.items():
        assert torch.equal(before, made[name])
        assert not torch.allclose(seen.even[name], seen.outputs.logits[name])


def test_tokens_that_look_nowhere_in_particular_lose_nothing_by_being_held_even(batch):
    model = network()
    for head in model.decoder.fine_grained.values():
        torch.nn.init.zeros_(head.mlp[-1].weight)
        torch.nn.init.zeros_(head.mlp[-1].bias)
    seen = look(model, batch.image)
    for name, even in seen.even.items():
        assert torch.allclose(even, seen.outputs.logits[name], atol=1e-5)


def test_the_numbers_are_those_of_the_images(rooms, tmp_path):
    model = network()
    told = write_tokens(model, rooms, tmp_path, pictured=1, batch_size=2)
    seen, targets = (
        look(model, torch.stack([rooms[i].image for i in range(5)])),
        collate(list(map(rooms.__getitem__, range(5))), THREE),
    )
    for task in model.tasks:
        logits, target = seen.outputs.logits[task.name], targets.targets[task.name]
        confidence, value = task.confidence(logits), task.decode(logits)
        right = (task.distance(value, target.value) <= task.tolerance)[target.valid].float().mean()
        assert told["tasks"][task.name]["after"]["confidence"] == pytest.approx(confidence.mean().item(), abs=1e-5)
        assert told["tasks"][task.name]["after"]["right"] == pytest.approx(right.item(), abs=1e-3)
        mean = seen.outputs.fine_tokens[task.name].mean(0)
        assert np.allclose(told["tasks"][task.name]["cosines"], cosines(mean), atol=1e-3)
    assert told["affinity"] == [
        pytest.approx(row, abs=1e-4) for row in model.decoder.inter_task.affinity(model.decoder.global_tokens()).tolist()
    ]
    assert np.allclose(np.sum(told["affinity"], axis=1), 1, atol=1e-3)


# Decoders with less


def test_a_decoder_without_tokens_says_nothing(rooms, tmp_path):
    assert write_tokens(network(decoder="shared"), rooms, tmp_path / "a") is None
    assert write_tokens(network(global_tokens=False, fine_tokens=False), rooms, tmp_path / "b") is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("off", "maps", "affinity"),
    [
        ("fine_tokens", {"gate", "trust"}, True),
        ("global_tokens", {"before", "even", "after", "score"}, False),
        ("inter_task", {"before", "even", "after", "score", "gate", "trust"}, False),
        ("intra_task", {"before", "even", "after", "score", "gate", "trust"}, True),
        ("orthogonal_embeddings", {"before", "even", "after", "score", "gate", "trust"}, True),
    ],
)
def test_an_ablated_decoder_says_what_is_left(rooms, tmp_path, off, maps, affinity):
    told = write_tokens(network(**{off: False}), rooms, tmp_path, images=2, pictured=1)
    for each in told["pictures"][0]["tasks"].values():
        assert {kind.partition("-")[0] for kind in each["ranges"]} == maps
    assert bool(told["affinity"]) == affinity
    assert bool(told["plane"]) == ("before" in maps)
    assert all(("cosines" in each) == ("before" in maps) for each in told["tasks"].values())


def test_every_kind_of_task_can_be_looked_at(tmp_path):
    tasks = [md.SemanticSegmentation(13), md.HumanParts(), md.Depth(), md.Normals(), md.Edges(), md.Saliency(channels=2)]
    told = write_tokens(network(tasks), Rooms(tasks, "val", size=SIZE, length=2), tmp_path, pictured=1)
    assert [len(each["categories"]) for each in told["tasks"].values()] == [13, 7, 1, 3, 1, 2]
    assert "after" not in told["tasks"]["depth"], "what only regresses has no confidence"
    assert "after" in told["tasks"]["edges"]
    assert told["tasks"]["edges"]["categories"] == ["edges"]
    assert {name for name, each in told["tasks"].items() if "finding" in each} == {"semseg", "parts", "edges", "saliency"}


def test_categories_have_the_names_and_colours_of_pictures():
    names, colours = categories(THREE[0], [f"class {index}" for index in range(13)])
    assert names[12] == "class 12"
    picture = THREE[0].picture(torch.full((1, 1, 1), 12))
    assert colours[12] == "#" + picture[0, 0].tobytes().hex()
    normals = THREE[2].with_codebook(torch.tensor([[0.0, 0.0, 1.0], [-1.0, -0.0, 0.0]]))
    assert categories(md.Normals(centers=2, codebook=normals.codebook))[0] == ["0.0, 0.0, 1.0", "−1.0, 0.0, 0.0"]


def test_maps_are_of_the_images_size_whatever_the_decoder_computes_at(rooms, tmp_path):
    model = network()
    forward = model.decoder.forward

    def coarser(*given):
        outputs = forward(*given)
        halved = {
            key: {name: pool(maps, 2) for name, maps in getattr(outputs, key).items()} for key in ("score_maps", "confidence")
        }
        return md.types.Outputs(**{**vars(outputs), **halved})

    model.decoder.forward = coarser
    told = write_tokens(model, rooms, tmp_path, images=2, pictured=1)
    for path in (tmp_path / told["pictures"][0]["folder"]).glob("*.png"):
        with Image.open(path) as image:
            assert image.size == SIZE[::-1], path.name


def test_a_second_look_is_taken_only_where_weights_have_changed(rooms, tmp_path):
    model = network()
    first = write_tokens(model, rooms, tmp_path, images=2, pictured=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert write_tokens(model, rooms, tmp_path, images=2, pictured=1) == json.loads(json.dumps(first))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before
    with torch.no_grad():
        model.decoder.tokens["depth"].add_(1)
    again = write_tokens(model, rooms, tmp_path, images=2, pictured=1)
    assert again["affinity"] != first["affinity"]
    assert again["request"]["weights"] != first["request"]["weights"]


def test_looking_leaves_the_networks_mode_alone(rooms, tmp_path):
    model = network().train()
    write_tokens(model, rooms, tmp_path, images=2, pictured=1)
    assert model.training


# Figures


def test_names_of_tokens_cover_neither_each_other_nor_tokens(rng):
    dots = [(float(x), float(y)) for x, y in rng.uniform((0, 0), (WIDTH, HEIGHT), (40, 2))]
    names = [f"class {index}" for index in range(40)]
    shown = placed(dots, names)
    assert 5 < len(shown) < 40
    boxes = []
    for x, y, anchor, name in shown:
        wide = LETTER * len(name)
        left = x - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
        boxes.append((left, y - LINE + 3, left + wide, y + 3))
    for index, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0
        assert right <= WIDTH
        assert not any(left < x < right and top < y < bottom for x, y in dots)
        assert not any(a < right and left < c and b < bottom and top < d for a, b, c, d in boxes[:index])


def test_both_axes_of_a_scatter_plot_have_one_scale():
    mark = {"shape": "", "task": 0, "colour": "#000000", "said": ""}
    a, b, c = cloud("", [(0, 0), (2, 0), (0, 1)], [mark] * 3).marks
    assert b.x - a.x == pytest.approx(2 * (a.y - c.y), abs=0.2)
    assert max(mark.x for mark in (a, b, c)) <= WIDTH


def test_a_matrix_names_as_many_rows_as_there_is_room_for():
    assert len(matrix("", np.eye(13), [str(i) for i in range(13)]).names) == 13
    crowded = matrix("", np.eye(100), [str(i) for i in range(100)]).names
    assert len(crowded) <= SIDE / LINE
    assert matrix("", np.eye(3), ["a"] * 3, low=0.0, written=True).numbers[0][2:] == ("1.00", True)


# A run and its report

TINY = """# a run that takes seconds
name: tiny
data: {reader: rooms, size: [32, 48], train: 6, val: 3}
labels: {setting: one-label, seed: 0}
tasks:
  semseg: {classes: 13}
  depth: {bins: 8}
  normals: {centers: 6}
width: 0.125
networks:
  mtl: {decoder: shared, title: MTL baseline}
  hitts: {decoder: hitts, title: HiTTs}
  student: {decoder: hitts, title: HiTTs + discovered labels, teacher: hitts}
baseline: mtl
training: {epochs: 2, batch_size: 3, validate_every: 1}
pictures: 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokens")
    (place / "tiny.yaml").write_text(TINY)
    Run(load_recipe(place / "tiny.yaml"), place / "run").run()
    return place / "run"


@pytest.fixture(scope="module")
def pages(folder):
    """The page without, then with tokens, then again as it is written from then on."""
    without = (folder / "report.html").read_text()
    main(["report", str(folder), "--tokens"])
    told = (folder / "report.html").read_text()
    return without, told, write_report([folder]).read_text()


def test_a_report_without_tokens_is_as_before(pages):
    assert "What the tokens say" not in pages[0]
    assert 'href="#tokens"' not in pages[0]


def test_a_report_with_tokens_tells_of_every_figure(pages, folder):
    page = pages[1][pages[1].index('<section id="tokens">') :]
    page = page[: page.index("</section>")]
    assert 'href="#tokens"' in pages[1]
    for figures in ("Figures 7 and 13", "Figure 8", "Figures 11 and 14", "Figure 9", "Figures 10 and 16"):
        assert figures in page
    assert "cannot be used" not in page
    assert page.count("HiTTs: depth") == page.count("HiTTs + discovered labels: depth") == 1
    assert "MTL baseline" not in page
    assert not (folder / "mtl" / "tokens").exists()
    for words in ("Score of wall", "Gate g, depth", "Trust Mᶠ, normals", "Confidence, G′, after the tokens, semseg"):
        assert f'alt="{words}' in page or words == "Score of wall"
    assert re.search(r'alt="Score of \w+, semseg, image val-000000"', page)
    for score in ("semseg mIoU", "depth absErr", "normals mErr"):
        assert page.count(f"<figcaption>{score}</figcaption>") == 1
    assert "pixAcc" not in page


def test_the_page_stays_self_contained(pages):
    assert not re.search(r"https?://|<script|<link|@import|url\(", pages[1])
    addresses = re.findall(r'(?:src|href)="([^"#]{22})', pages[1])
    assert addresses
    assert set(addresses) == {"data:image/png;base64,"}


def test_tokens_that_were_looked_at_stay_in_the_report(pages):
    assert pages[2] == pages[1]


def test_a_second_report_does_not_look_again(pages, folder, capsys):
    files = [path for path in folder.rglob("tokens/**/*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    main(["report", str(folder), "--tokens"])
    assert len(before) > 20
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_tokens_of_other_weights_are_noted_and_not_shown(pages, folder, tmp_path):
    file = folder / "hitts" / "tokens" / "tokens.json"
    kept = file.read_text()
    try:
        file.write_text(kept.replace(json.loads(kept)["request"]["weights"], "0" * 16))
        page = write_report([folder], tmp_path / "stale.html").read_text()
        assert "hitts/tokens/tokens.json is of other weights than were scored" in page
        assert "HiTTs: depth" not in page
        file.write_text("{}")
        page = write_report([folder], tmp_path / "broken.html").read_text()
        assert "hitts/tokens/tokens.json cannot be used" in page
        assert "HiTTs + discovered labels: depth" in page
    finally:
        file.write_text(kept)


def test_several_runs_are_looked_at_together(pages, folder, tmp_path):
    main(["report", str(folder), str(folder), "--tokens", "--out", str(tmp_path / "page.html")])
    assert 'id="tokens"' in (tmp_path / "page.html").read_text()


def test_a_run_of_shared_decoders_says_nothing_of_tokens(tmp_path):
    head, _, tail = TINY.partition("networks:")
    networks = "networks: {mtl: {decoder: shared}}\n"
    (tmp_path / "shared.yaml").write_text(head + networks + tail[tail.index("training:") :].replace("epochs: 2", "epochs: 1"))
    Run(load_recipe(tmp_path / "shared.yaml"), tmp_path / "run").run()
    main(["report", str(tmp_path / "run"), "--tokens"])
    assert "tokens say" not in (tmp_path / "run" / "report.html").read_text()
    assert not list((tmp_path / "run").rglob("tokens"))
