"""Cross-task and two-view consistency: their size, their closed forms, and whom they move."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import multidense as md
from multidense import regularizers
from multidense.consistency import XTC, MappingNetwork, TwoViews, film_row, ordered_pairs, unchanged_statistics, unlike
from multidense.data import Rooms, collate, partial
from multidense.models.multitask import weights_hash
from multidense.tasks import Edges, HumanParts, Saliency
from multidense.train import Training, fit
from multidense.types import Batch, Features, MultidenseError, Outputs, Target

SIZE = (32, 48)
TASKS = [md.SemanticSegmentation(13), md.Depth(), md.Normals()]
NAMES = [task.name for task in TASKS]
SMALL = {"width": 0.125, "ramp_up": 0}
POISON = 12345  # no class


@pytest.fixture(scope="module")
def rooms() -> Rooms:
    return Rooms(TASKS, "train", size=SIZE, length=6)


@pytest.fixture
def full(rooms) -> Batch:
    return collate([rooms[0], rooms[1], rooms[2]], TASKS)


@pytest.fixture
def network():
    return md.build_model("segnet", "shared", TASKS, width=0.125, seed=0).train()


def showing(batch: Batch, *labelled: set[str], poison: bool = False) -> Batch:
    """The batch, each image labelled for its set of tasks alone; hidden values may be NaN or nonsense."""

    def hide(name: str, target: Target) -> Target:
        hidden = torch.tensor([name not in those for those in labelled])[:, None, None, None]
        wrong = math.nan if target.value.is_floating_point() else POISON
        value = torch.where(hidden, torch.full_like(target.value, wrong), target.value) if poison else target.value
        return Target(value, target.valid & ~hidden)

    return replace(
        batch,
        targets={name: hide(name, target) for name, target in batch.targets.items()},
        annotated={name: torch.tensor([name in those for those in labelled]) for name in batch.annotated},
    )


ONE_LABEL = ({"semseg"}, {"depth"}, {"normals"})


def terms(regularizer, network, batch: Batch, outputs: Outputs | None = None) -> dict[str, torch.Tensor]:
    outputs = network(batch.image) if outputs is None else outputs
    return regularizer(network, [batch] * regularizer.views, [outputs] * regularizer.views)


def xtc(**settings) -> XTC:
    torch.manual_seed(3)
    return XTC(TASKS, **(SMALL | settings))


# Embeddings


@pytest.mark.parametrize(
    "task", [*TASKS, md.Depth(bins=8), md.Normals(centers=6), HumanParts(), Edges(), Saliency(2)], ids=repr
)
def test_an_embedding_of_logits_looks_like_one_of_values_and_is_differentiable(task):
    if task.codebook_size:
        task = task.with_codebook(torch.rand(task.codebook_size, task.value_channels) + 0.5)
    logits = torch.randn(2, task.channels, *SIZE, requires_grad=True)
    said = task.embed_logits(logits)
    value = task.decode(logits.detach())
    meant = task.embed(value, torch.ones(2, 1, *SIZE, dtype=torch.bool))
    assert said.shape == meant.shape == (2, task.embedding_channels, *SIZE)
    assert meant.min() >= 0
    assert meant.max() <= 1 + 1e-6
    (said * torch.randn_like(said)).sum().backward()
    assert (logits.grad.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("task", [*TASKS, Edges()], ids=repr)
def test_what_is_not_valid_is_not_embedded(task):
    value = task.fill(SIZE).expand(2, -1, -1, -1).clone()
    valid = torch.rand(2, 1, *SIZE) < 0.5
    wrong = math.nan if value.is_floating_point() else POISON
    assert torch.equal(task.embed(value, valid), task.embed(torch.where(valid, value, wrong), valid))


def test_embeddings_are_those_of_the_paper():
    semseg, depth, normals = TASKS
    valid = torch.tensor([True, True, False, False])[None, None, None]
    classes = semseg.embed(torch.tensor([0, 2, 5, 7])[None, None, None], valid)
    assert classes.sum(1).flatten().tolist() == [1, 1, 0, 0]
    assert classes.argmax(1).flatten().tolist() == [0, 2, 0, 0]
    assert depth.embed(torch.tensor([1.0, 4.0, 9.0, 9.0])[None, None, None], valid).flatten().tolist() == [0.25, 1, 0, 0]
    up = torch.tensor([0.0, 1.0, 0.0])[None, :, None, None].expand(1, 3, 1, 4)
    assert torch.allclose(normals.embed(up, valid)[0, :, 0].T, torch.tensor([[0.5, 1, 0.5]] * 2 + [[0.5] * 3] * 2))
    assert normals.embed_logits(up * 7)[0, :, 0, 0].tolist() == pytest.approx([0.5, 1, 0.5], abs=1e-6)


def test_classes_are_drawn_one_hot_by_their_probabilities_and_with_a_gradient():
    semseg = md.SemanticSegmentation(3)
    logits = torch.tensor([0.0, 1.0, 2.0])[None, :, None, None].expand(2, 3, 80, 80).clone().requires_grad_()

    def draw(*seeds: int) -> torch.Tensor:
        return semseg.embed_logits(logits, [torch.Generator().manual_seed(seed) for seed in seeds])

    drawn = draw(1, 2)
    assert set(drawn.unique().tolist()) == {0, 1}
    assert torch.equal(drawn.sum(1), torch.ones(2, 80, 80))
    shares = drawn.detach().mean((0, 2, 3))
    assert shares.tolist() == pytest.approx(torch.tensor([0.0, 1, 2]).softmax(0).tolist(), abs=0.02)
    assert torch.equal(draw(1, 2), drawn)
    assert torch.equal(draw(2, 1).flip(0), drawn), "an image's draw is its own"
    weight = torch.randn_like(drawn)
    (found,) = torch.autograd.grad((drawn * weight).sum(), logits)
    assert found.abs().sum(1).min() > 0, "straight through"
    assert found.sum(1).abs().max() < 1e-5, "as of a softmax"


# XTC


def test_the_mapping_network_has_the_published_size():
    mapping = MappingNetwork(TASKS)
    film = sum(p.numel() for name, p in mapping.named_parameters() if name.endswith(("gamma", "beta")))
    assert sum(p.numel() for p in mapping.parameters()) == 14_819_328
    assert film == 2 * 4224 * 6
    assert sum(isinstance(layer, nn.Conv2d) for layer in mapping.modules()) == 13 + 3
    assert {tuple(p.shape[1:]) for name, p in mapping.named_parameters() if name.endswith("gamma")} == {(6,)}


def test_it_follows_the_width_of_the_model(network):
    made = XTC.for_model(network, weight=1.0)
    assert (made.weight, made.mapping.channels) == (1.0, 64)
    assert made.mapping.stems["depth"][0].out_channels == 8
    assert network.training
    wrong = XTC(TASKS, width=0.25)
    batch = collate([Rooms(TASKS, "train", size=SIZE, length=1)[0]], TASKS)
    with pytest.raises(
        MultidenseError, match="maps into 128 channels, and the backbone's coarsest map has 64: set its channels"
    ):
        terms(wrong, network, batch)


def test_pairs_go_from_what_is_not_labelled_to_what_is(full):
    assert ordered_pairs(NAMES, showing(full, {"semseg"}, {"depth", "normals"}, set())) == [
        *((0, 1, 0), (0, 2, 0)),
        *((1, 0, 1), (1, 0, 2)),
    ]
    everything = ordered_pairs(NAMES, showing(full, set(NAMES), set(), set()))
    assert everything == [(0, s, t) for s in range(3) for t in range(3) if s != t]
    void = showing(full, {"semseg"}, {"depth"}, set())
    blind = Target(void.targets["semseg"].value, torch.zeros_like(void.targets["semseg"].valid))
    assert {image for image, _, _ in ordered_pairs(NAMES, replace(void, targets=void.targets | {"semseg": blind}))} == {1}


def test_every_ordered_pair_has_its_own_film():
    rows = [film_row(s, t, 4) for s in range(4) for t in range(4) if s != t]
    assert rows == list(range(12))


def test_film_scales_and_shifts_after_the_norm_and_before_the_relu():
    block = MappingNetwork(TASKS, 0.125).stages[0][0]
    maps, pairs = torch.randn(2, 8, 6, 6), torch.tensor([4, 1])
    normal = block.norm(block.conv(maps))
    assert torch.equal(block(maps, pairs), normal.relu())
    with torch.no_grad():
        block.gamma[:, 4], block.beta[:, 4] = 2.0, -0.5
    assert torch.allclose(block(maps, pairs)[0], (2 * normal[0] - 0.5).relu(), atol=1e-6)
    assert torch.equal(block(maps, pairs)[1], normal[1].relu()), "another pair"


def test_recomputing_saves_maps_and_changes_no_gradient():
    maps, pairs, found, kept = torch.randn(2, 8, 32, 48), torch.tensor([0, 5]), [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        mapping, saved = MappingNetwork(TASKS, 0.125, recompute=recompute), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            mapped = mapping(maps, pairs)
        parameters = [p for stage in mapping.stages for p in stage.parameters()]
        found.append(torch.autograd.grad(mapped.square().sum(), parameters))
        kept.append(sum(saved))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert kept[1] < 0.2 * kept[0]


class Constant(nn.Module):
    """In place of the mapping network: every map is the same, by what it was made of."""

    def __init__(self, channels: int, source: torch.Tensor, target: torch.Tensor):
        super().__init__()
        self.channels, self.source, self.target = channels, source, target
        self.stems = nn.ModuleDict({task.name: nn.Conv2d(task.embedding_channels, 1, 1) for task in TASKS})

    def forward(self, maps, pairs):
        half = len(maps) // 2
        spread = [vector[None, :, None, None].expand(half, -1, 2, 3) for vector in (self.source, self.target)]
        return torch.cat(spread)


class Flat(nn.Module):
    """A backbone whose bottleneck is the same vector everywhere."""

    minimum_size = 32

    def __init__(self, vector: torch.Tensor):
        super().__init__()
        self.vector = nn.Parameter(vector)

    def forward(self, image):
        bottleneck = self.vector[None, :, None, None].expand(len(image), -1, 2, 3)
        return Features((bottleneck,), bottleneck)


def test_the_loss_by_hand(full, network):
    """Three maps of known cosine: ½, 0 and ½·√3."""
    source, target, feature = (torch.tensor(v) for v in ([1.0, 0.0], [0.5, math.sqrt(0.75)], [0.0, 2.0]))
    outputs, batch = replace(network(full.image), bottleneck=None), showing(full, {"semseg"}, {"depth", "normals"}, set())
    network.backbone = Flat(feature)
    regularizer = xtc(second_view=False)
    regularizer.mapping = Constant(2, source, target)
    pair = (1 - 0.5) + 0.5 * ((1 - 0) + (1 - math.sqrt(0.75)))
    found = terms(regularizer, network, batch, outputs)["consistency"]
    assert found.tolist() == pytest.approx([2 * pair / 3, 2 * pair / 3, 0], abs=1e-6)
    regularizer.align = 0.0
    assert terms(regularizer, network, batch, outputs)["consistency"].tolist() == pytest.approx([1 / 3, 1 / 3, 0], abs=1e-6)
    network.backbone = Flat(source)
    regularizer.align, regularizer.mapping = 0.5, Constant(2, source, 3 * source)
    assert terms(regularizer, network, batch, outputs)["consistency"].abs().max() < 1e-6, "all agree"


def test_unlike_is_one_minus_the_mean_cosine():
    a = torch.randn(2, 5, 3, 4)
    assert torch.allclose(unlike(a, 7 * a), torch.zeros(2), atol=1e-6)
    assert torch.allclose(unlike(a, -a), torch.full((2,), 2.0))


def test_it_moves_the_sources_and_itself_but_neither_the_target_nor_the_feature(full, network):
    batch = showing(full, {"semseg"}, {"semseg"}, {"semseg"})
    outputs = network(full.image)
    regularizer = xtc()
    leaves = {name: logits.detach().requires_grad_() for name, logits in outputs.logits.items()}
    terms(regularizer, network, batch, replace(outputs, logits=leaves))["consistency"].sum().backward()
    assert leaves["semseg"].grad is None, "its label was mapped, not its prediction"
    assert all((leaves[name].grad.flatten(1).norm(dim=1) > 0).all() for name in ("depth", "normals"))
    assert all(parameter.grad is None for parameter in network.parameters()), "F has no gradient"


def test_every_parameter_gets_a_gradient(full, network):
    regularizer = xtc()
    terms(regularizer, network, showing(full, *ONE_LABEL))["consistency"].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for _, p in regularizer.named_parameters() if p.ndim > 1)
    for name, parameter in regularizer.named_parameters():
        if name.endswith(("gamma", "beta")):
            assert (parameter.grad.abs().sum(0) > 0).all(), f"{name}: all six pairs were there"
    for part in ("backbone", "decoder"):
        assert all(parameter.grad is not None for parameter in getattr(network, part).parameters())


def test_film_has_a_group_and_a_rate_of_its_own():
    regularizer = xtc(film_lr_scale=0.1)
    rest, film = regularizer.groups()
    assert "lr_scale" not in rest
    assert film["lr_scale"] == 0.1
    assert len(film["params"]) == 2 * 13
    assert {p.shape[1] for p in film["params"]} == {6}
    assert len(film["params"]) + len(rest["params"]) == len(list(regularizer.parameters()))


def test_hidden_labels_change_nothing(full, network):
    outputs, found = network(full.image), []
    for poison in (False, True):
        regularizer = xtc()
        loss = terms(regularizer, network, showing(full, *ONE_LABEL, poison=poison), outputs)["consistency"]
        gradients = torch.autograd.grad(loss.sum(), list(regularizer.parameters()), retain_graph=True)
        found.append((loss, *gradients))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert found[0][0].min() > 0


def test_without_pairs_it_is_zero_and_reaches_its_parameters(full, network):
    regularizer = xtc()
    found = terms(regularizer, network, showing(full, set(), set(), set()))["consistency"]
    assert found.tolist() == [0, 0, 0]
    found.sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in regularizer.parameters())


def test_one_task_alone_has_nothing_to_agree_with(full):
    task = TASKS[1]
    alone = md.build_model("segnet", "shared", [task], width=0.125, seed=0).train()
    regularizer = XTC([task])
    only = replace(full, targets={task.name: full.targets[task.name]}, annotated={task.name: full.annotated[task.name]})
    assert terms(regularizer, alone, only)["consistency"].tolist() == [0, 0, 0]
    assert regularizer.groups() == []


def test_an_image_does_not_depend_on_its_batch_mates(full, network):
    network.eval()  # or its BatchNorm would depend on them
    batch = showing(full, *ONE_LABEL)
    together = terms(xtc(), network, batch)["consistency"]
    for i, image in enumerate(full.ids):
        part = replace(
            batch,
            image=batch.image[i : i + 1],
            clean=batch.clean[i : i + 1],
            targets={n: Target(t.value[i : i + 1], t.valid[i : i + 1]) for n, t in batch.targets.items()},
            annotated={n: a[i : i + 1] for n, a in batch.annotated.items()},
            ids=[image],
        )
        assert terms(xtc(), network, part)["consistency"].item() == pytest.approx(together[i].item(), rel=1e-4)


def test_chance_is_a_function_of_seed_step_and_image(full, network):
    outputs, batch = network(full.image), showing(full, {"depth"}, {"depth"}, {"depth"})

    def found(regularizer) -> list[float]:
        return terms(regularizer, network, batch, outputs)["consistency"].tolist()

    first = xtc()
    zero, one = found(first), found(first)
    assert zero != one, "another step"
    assert found(xtc(seed=1)) != zero
    again = xtc()
    torch.rand(9)
    assert found(again) == zero
    resumed = xtc()
    resumed.load_state_dict(again.state_dict())
    assert found(resumed) == one


def test_the_weight_may_grow_from_nothing(full, network):
    outputs, batch = network(full.image), showing(full, {"semseg"}, {"semseg"}, {"semseg"})
    constant, growing = xtc(), xtc(ramp_up=4)
    shares = [
        (terms(growing, network, batch, outputs)["consistency"] / terms(constant, network, batch, outputs)["consistency"])
        for _ in range(6)
    ]
    assert torch.stack(shares).mean(1).tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])


def test_a_constant_weight_begins_far_above_the_labels_and_the_default_does_not(rooms):
    """What the default ramp is for: Adam would remember such a first step for all of a short training."""
    data, network = partial.one_label(rooms, seed=0), md.build_model("segnet", "shared", TASKS, width=0.125, seed=0)
    batch = collate([data[index] for index in range(4)], TASKS)
    outputs, shared = network(batch.image), list(network.backbone.parameters())

    def pull(*losses: torch.Tensor) -> float:
        found = torch.autograd.grad(sum(loss.mean() for loss in losses), shared, retain_graph=True)
        return torch.cat([each.flatten() for each in found]).norm().item()

    labels = pull(*(task.loss(outputs.logits[task.name], batch.targets[task.name]) / len(TASKS) for task in TASKS))
    constant = pull(terms(xtc(weight=2.0), network, batch, outputs)["consistency"] * 2)
    default = pull(terms(XTC(TASKS, width=0.125), network, batch, outputs)["consistency"] * 2)
    assert constant > 20 * labels
    assert default == 0


def test_the_feature_is_that_of_the_training_forward_and_leaves_no_trace(full, network):
    regularizer = xtc(second_view=False)
    kept, calls = [], []
    hook = network.backbone.register_forward_hook(lambda module, inputs, output: kept.append(output.bottleneck.detach()))
    outputs = network(full.image)
    before = copy.deepcopy(network.state_dict())
    hook.remove()
    network.backbone.register_forward_hook(lambda *_: calls.append(1))
    feature = regularizer._feature(network, full, outputs)
    assert torch.equal(feature, kept[0]), "BatchNorm took the batch's statistics"
    assert not calls, "who watches the training's forward does not see this one"
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(layer.track_running_stats for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
    with pytest.raises(ZeroDivisionError), unchanged_statistics(network):
        _ = 1 / 0
    assert all(layer.track_running_stats for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))


def test_consistency_is_asked_of_the_second_view(full, network):
    outputs, batch = network(full.image), showing(full, *ONE_LABEL)
    other = network(full.image.flip(-1))
    assert xtc().views == 2
    assert xtc(second_view=False).views == 1
    second = xtc()(network, [batch, batch], [other, outputs])
    same = xtc(second_view=False)(network, [batch], [outputs])
    assert torch.equal(second["consistency"], same["consistency"])


def test_settings_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match="align of at least 0 and film_lr_scale above 0, found -1"):
        XTC(TASKS, align=-1)
    with pytest.raises(ValueError, match="ramp_up must not be negative, found -1"):
        XTC(TASKS, ramp_up=-1)
    with pytest.raises(ValueError, match=r"none below 1, found \[0.5\]"):
        TwoViews(TASKS, scales=[0.5])


# ssl


class Says(nn.Module):
    """A model whose logits are given, in the first and in every later forward."""

    def __init__(self, tasks, logits):
        super().__init__()
        self.tasks, self.given = tasks, logits
        self.backbone, self.decoder = nn.Identity(), self.decode

    def decode(self, features, size):
        return Outputs(logits=self.given)


def two_views(tasks, first, second, **settings) -> dict[str, torch.Tensor]:
    batch = Batch(
        image=torch.rand(2, 3, *SIZE),
        clean=torch.rand(2, 3, *SIZE),
        targets={},
        annotated={task.name: torch.tensor([False, True]) for task in tasks},
        discovered={},
        features={},
        ids=["a", "b"],
    )
    return TwoViews(tasks, **settings)(Says(tasks, second), [batch], [Outputs(logits=first)])


def flat(*values: float) -> torch.Tensor:
    return torch.tensor(values)[None, :, None, None].expand(2, -1, *SIZE).clone().requires_grad_()


def test_sure_classes_of_the_first_view_teach_the_second():
    semseg = md.SemanticSegmentation(2)
    sure, unsure, second = {"semseg": flat(0.0, 4.0)}, {"semseg": flat(0.0, 2.0)}, {"semseg": flat(1.0, 0.0)}
    loss = two_views([semseg], sure, second)["semseg"]
    assert loss.tolist() == pytest.approx([math.log(1 + math.e), 0]), "the labelled image is left to its label"
    loss.sum().backward()
    assert sure["semseg"].grad is None
    assert second["semseg"].grad.abs().sum() > 0
    assert two_views([semseg], unsure, second)["semseg"].tolist() == [0, 0]
    assert two_views([semseg], unsure, second, threshold=0.8)["semseg"].tolist() == loss.tolist()


def test_regressed_values_are_compared_where_they_agree_nearly_and_move_with_the_zoom():
    depth = md.Depth()
    near = two_views([depth], {"depth": flat(2.0)}, {"depth": flat(2.1)}, scales=[1.0])["depth"]
    assert near.tolist() == pytest.approx([0.1, 0], abs=1e-6)
    assert two_views([depth], {"depth": flat(2.0)}, {"depth": flat(3.0)}, scales=[1.0])["depth"].tolist() == [0, 0]
    zoomed = two_views([depth], {"depth": flat(3.0)}, {"depth": flat(2.1)}, scales=[1.5])["depth"]
    assert zoomed.tolist() == pytest.approx([0.1, 0], abs=1e-6), "3 m, one and a half times as near"


def test_the_second_view_sees_the_same_places():
    """A network that copies what it sees agrees with itself under every zoom, and not with a shifted image."""
    depth = md.Depth(under_zoom="keep")
    coarse = torch.rand(2, 1, 4, 6) + 2
    image = nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")

    class Copies(nn.Module):
        tasks = (depth,)

        def __init__(self):
            super().__init__()
            self.backbone = nn.Identity()

        def decoder(self, features, size):
            return Outputs(logits={depth.name: features[:, :1]})

    def loss(first: torch.Tensor) -> float:
        colours, unlabelled = image.expand(-1, 3, -1, -1), {depth.name: torch.tensor([False, False])}
        batch = Batch(colours, colours, {}, unlabelled, {}, {}, ["a", "b"])
        regularizer = TwoViews([depth], scales=[1.3])
        return regularizer(Copies(), [batch], [Outputs(logits={depth.name: first})])[depth.name].max().item()

    assert loss(image) < 0.02
    assert loss(image.roll(8, -1)) > 0.04


def test_two_views_of_a_real_network(full, network):
    regularizer, outputs = TwoViews(TASKS, threshold=0.0), network(full.image)
    batch = showing(full, *ONE_LABEL, poison=True)
    found = terms(regularizer, network, batch, outputs)
    assert set(found) == set(NAMES)
    assert found["semseg"][0] == 0
    assert (found["semseg"][1:] > 0).all()
    found["semseg"].sum().backward()
    assert all(p.grad is not None for p in network.backbone.parameters())
    assert list(regularizer.parameters()) == []
    first, second = (terms(TwoViews(TASKS, seed=s), network.eval(), batch, outputs)["depth"].tolist() for s in (0, 0))
    assert first == second


# In a training


@pytest.mark.parametrize(("name", "kind", "given"), [("xtc", XTC, SMALL), ("ssl", TwoViews, {"threshold": 0.1})])
def test_it_trains_resumes_exactly_and_leaves_nothing_in_the_model(rooms, tmp_path, monkeypatch, name, kind, given):
    monkeypatch.setitem(regularizers.REGULARIZERS, name, kind)
    settings = Training(epochs=1, batch_size=2, checkpoint_every=2, regularizers={name: given}, precise_bn=False)
    data = partial.one_label(rooms, seed=0)

    def train(out, seed=0, **options):
        model = md.build_model("segnet", "shared", TASKS, width=0.125, seed=seed)
        return fit(model, data, settings=settings, out=out, **options)

    whole = train(tmp_path / "whole")
    assert not any(name in key for key in whole.state_dict())
    plain = replace(settings, regularizers={})
    other = fit(md.build_model("segnet", "shared", TASKS, width=0.125, seed=0), data, settings=plain)
    assert weights_hash(other) != weights_hash(whole)

    forward, made = kind.forward, []

    def stop_at_the_third(self, *arguments):
        made.append(1)
        if len(made) == 3:
            raise KeyboardInterrupt
        return forward(self, *arguments)

    monkeypatch.setattr(kind, "forward", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut")
    monkeypatch.setattr(kind, "forward", forward)
    resumed = train(tmp_path / "cut", seed=7, resume=True)
    assert weights_hash(resumed) == weights_hash(whole)


def test_the_steps_of_xtc_make_predictions_and_labels_agree(rooms, monkeypatch):
    monkeypatch.setitem(regularizers.REGULARIZERS, "xtc", XTC)
    told = []
    terms_of = regularizers.Regularizers.terms

    def watch(self, *arguments):
        found = terms_of(self, *arguments)
        told.append(float(found["xtc"]["consistency"].detach().mean()))
        return found

    monkeypatch.setattr(regularizers.Regularizers, "terms", watch)
    model = md.build_model("segnet", "shared", TASKS, width=0.125, seed=0)
    fit(model, partial.one_label(rooms, seed=0), epochs=6, batch_size=3, lr=3e-3, regularizers={"xtc": SMALL})
    assert np.mean(told[-4:]) < 0.7 * np.mean(told[:4])
