"""Task tokens on a pyramid of maps: the family's promises, what equations (14)–(18) say, its size, tokens, two stages."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import multidense as md
from multidense.data import Augment, Rooms, partial
from multidense.models import DECODERS, build_model, count_parameters, load_model
from multidense.models.backbones.resnet import ResNet18
from multidense.models.decoders.hitts_pyramid import Fusion
from multidense.ops import resize
from multidense.token_figures import figures
from multidense.tokens import look, write_tokens
from multidense.types import Features, MultidenseError

SIZE = (33, 47)
FIVE = (md.SemanticSegmentation(13), md.HumanParts(), md.Normals(centers=6), md.Saliency(), md.Edges())
THREE = (md.SemanticSegmentation(5), md.Normals(), md.Edges())
TWO = (md.SemanticSegmentation(5), md.Edges())
SWITCHES = (
    {"orthogonal_embeddings": False},
    {"inter_task": False},
    {"intra_task": False},
    {"global_tokens": False},
    {"fine_tokens": False},
    {"inter_task": False, "intra_task": False, "global_tokens": False, "fine_tokens": False},
    {"identity_bias": True},
    {"aligned": False},
)
SMALL = {"width": 0.0625, "output_stride": 32, "head_channels": 6}
KINDS = ("logits", "features", "confidence", "tokens", "fine_tokens", "score_maps")

scales = pytest.mark.parametrize("multi_scale", [True, False], ids=["multi", "single"])


def network(tasks=TWO, **options):
    return build_model("resnet18", "hitts-ms", tasks, seed=0, **(SMALL | options))


def images(count=2, size=SIZE):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


def without_gradient(model, kinds):
    """Names of parameters that get none in evaluation mode: in training BatchNorm cancels the bias before it."""
    outputs = model.eval()(images())
    generator = torch.Generator().manual_seed(2)
    maps = [value for kind in kinds for value in getattr(outputs, kind).values()]
    sum((value * torch.rand(value.shape, generator=generator)).sum() for value in maps).backward()
    return {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}


# The family's promises


@scales
@pytest.mark.parametrize("output_stride", [8, 32])
def test_shapes_are_those_promised_at_an_odd_size(multi_scale, output_stride):
    model = network(FIVE, multi_scale=multi_scale, output_stride=output_stride, fine_stride=2)
    with torch.no_grad():
        outputs = model(images())
    for task in FIVE:
        name = task.name
        assert outputs.logits[name].shape == (2, task.channels, *SIZE)
        assert outputs.features[name].shape == (2, 6, 9, 12)
        assert outputs.confidence[name].shape == (2, 1, 9, 12)
        assert outputs.tokens[name].shape == (2, 6)
        assert outputs.fine_tokens[name].shape == (2, task.channels, 6)
        assert outputs.score_maps[name].shape == (2, task.channels, 5, 6)
        trust = torch.einsum("bc,bchw->bhw", outputs.tokens[name], outputs.features[name]).sigmoid()
        torch.testing.assert_close(outputs.confidence[name][:, 0], trust)


@scales
def test_every_parameter_gets_a_gradient_from_the_logits_alone(multi_scale):
    assert without_gradient(network(multi_scale=multi_scale), ["logits"]) == set()
    assert without_gradient(network(TWO[:1], multi_scale=multi_scale), ["logits"]) == set()


@scales
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: "+".join(switches))
def test_every_switch_leaves_no_parameter_without_a_gradient(multi_scale, switches):
    assert without_gradient(network(multi_scale=multi_scale, **switches), ["logits", "confidence"]) == set()


@scales
@pytest.mark.parametrize("switches", SWITCHES[:5], ids=lambda switches: "+".join(switches))
def test_a_switched_off_part_takes_its_parameters_with_it(multi_scale, switches):
    whole, part = (dict(network(multi_scale=multi_scale, **given).named_parameters()) for given in ({}, switches))
    assert part.keys() < whole.keys()


@scales
def test_a_batch_of_one_trains_and_its_tokens_learn(multi_scale):
    model = network(multi_scale=multi_scale).train()
    sum(logits.square().mean() for logits in model(images(1, (33, 33))).logits.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert all(token.grad.norm() > 1e-8 for token in model.decoder.tokens.values())


@scales
def test_a_prediction_depends_neither_on_batch_mates_nor_on_the_order_of_tasks(multi_scale):
    model, turned = network(THREE, multi_scale=multi_scale).eval(), network(THREE[::-1], multi_scale=multi_scale).eval()
    turned.load_state_dict(model.state_dict())
    with torch.no_grad():
        together, alone, other = model(images(3)), model(images(3)[1:2]), turned(images(3))
    for kind in KINDS:
        for task in THREE:
            there = getattr(together, kind)[task.name]
            torch.testing.assert_close(getattr(alone, kind)[task.name], there[1:2])
            torch.testing.assert_close(getattr(other, kind)[task.name], there)


@scales
def test_a_loaded_model_predicts_exactly_as_the_saved_one(multi_scale, tmp_path):
    model = network(multi_scale=multi_scale, identity_bias=True)
    model.train()(images())
    model.save_pretrained(tmp_path)
    before, after = model.predict(images()), load_model(tmp_path).predict(images())
    for name in before:
        assert torch.equal(before[name][0], after[name][0])
        assert torch.equal(before[name][1], after[name][1])


# Equations (14)–(18)


def as_printed(decoder, maps):
    """Features that the heads read and tokens that enter attention, in plain words: whole maps are mixed, enlarged, joined."""
    names, size, fused, tokens = list(decoder.intra_task), maps[0].shape[-2:], [], []
    for j, (scale, one) in enumerate(zip(decoder.scales, maps, strict=True)):
        before = sum(each.channels for each in decoder.scales[:j])
        own = torch.stack([decoder.to_scales[name](decoder.tokens[name])[before : before + scale.channels] for name in names])
        coarse = scale.query.coarsen(one)
        gates = torch.einsum("tc,bchw->bthw", own, coarse).sigmoid()
        gates = F.interpolate(gates, scale_factor=2.0, mode="bilinear")[..., : one.shape[-2], : one.shape[-1]]
        affinity = scale.inter_task.affinity(own)
        mixed = torch.einsum("ij,bjchw->bichw", affinity, gates[:, :, None] * one[:, None])
        fused.append([resize(scale.inter_task.convs[name](mixed[:, i]), size) for i, name in enumerate(names)])
        tokens.append(affinity @ own)
    features = {}
    for i, name in enumerate(names):
        weight = torch.cat([part.weight for part in decoder.fuse[name].parts], dim=1)
        features[name] = F.conv2d(torch.cat([each[i] for each in fused], dim=1), weight, decoder.fuse[name].parts[0].bias)
    return features, {name: decoder.from_scales[name](torch.cat(tokens, 1)[i]) for i, name in enumerate(names)}


def test_what_is_computed_is_what_is_printed():
    model = network(THREE).double().eval()
    given, entering = {}, {}
    for name in model.task_names:
        model.decoder.heads[name].register_forward_pre_hook(lambda _, inputs, name=name: given.update({name: inputs[0]}))
        model.decoder.intra_task[name].register_forward_pre_hook(
            lambda _, inputs, name=name: entering.update({name: inputs[1]})
        )
    with torch.no_grad():
        maps = model.backbone(images().double()).maps
        model.decoder(Features(maps, maps[-1]), SIZE)
        features, tokens = as_printed(model.decoder, maps)
    for name in model.task_names:
        torch.testing.assert_close(given[name], features[name])
        torch.testing.assert_close(entering[name], tokens[name])


def test_fusing_at_each_maps_own_size_is_fusing_the_enlarged_maps():
    fusion, maps = Fusion([3, 4], 5), [torch.rand(2, 3, 9, 7), torch.rand(2, 4, 5, 4)]
    weight = torch.cat([part.weight for part in fusion.parts], dim=1)
    joined = torch.cat([maps[0], resize(maps[1], (9, 7))], dim=1)
    torch.testing.assert_close(fusion(maps), F.conv2d(joined, weight, fusion.parts[0].bias))


def test_a_single_scale_reads_every_map_of_the_backbone():
    model = network(multi_scale=False).eval()
    maps = model.backbone(images()).maps
    with torch.no_grad():
        plain = model.decoder(Features(maps, maps[-1]), SIZE).logits["semseg"]
        for j in range(len(maps)):
            changed = tuple(each + 1 if i == j else each for i, each in enumerate(maps))
            assert not torch.allclose(model.decoder(Features(changed, maps[-1]), SIZE).logits["semseg"], plain)


def test_affinities_of_every_scale_sum_to_one_and_a_bias_keeps_half_of_every_task():
    for bias in (False, True):
        affinities = network(THREE, identity_bias=bias).decoder.affinities()
        assert list(affinities) == [f"scale {j}, stride {stride}" for j, stride in enumerate((4, 8, 16, 32))]
        for affinity in affinities.values():
            torch.testing.assert_close(affinity.sum(1), torch.ones(3))
            assert bool((affinity.diagonal() >= 0.5).all()) == bias
    assert list(network(multi_scale=False).decoder.affinities()) == [""]
    assert network(inter_task=False).decoder.affinities() == network(TWO[:1]).decoder.affinities() == {}


# Size


@pytest.mark.parametrize(
    ("multi_scale", "published", "exact"),
    [
        (True, (62.1e6, 22.5e6, 28.4e6), (62_100_510, 22_538_880, 28_385_118)),
        (False, None, (53_042_846, 13_481_216, 28_385_118)),
    ],
    ids=["multi", "single"],
)
def test_its_size_on_pascal_context_is_the_published_one(multi_scale, published, exact):
    tasks = (md.SemanticSegmentation(21), md.HumanParts(7), md.Normals(centers=40), md.Saliency(), md.Edges())
    with torch.device("meta"):
        backbone = ResNet18(output_stride=32)
        decoder = DECODERS["hitts-ms"](tasks, backbone.channels, backbone.strides, multi_scale=multi_scale)
    heads = sum(count_parameters(part) for part in (decoder.heads, decoder.intra_task, decoder.fine_grained))
    found = (count_parameters(backbone) + count_parameters(decoder), count_parameters(decoder) - heads, heads)
    assert count_parameters(backbone) == pytest.approx(11.2e6, abs=0.05e6)
    assert found == exact
    if published:
        assert found == pytest.approx(published, abs=0.3e6)


# What cannot be built


@pytest.mark.parametrize(("decoder", "better"), [("shared", "aspp"), ("hitts", "hitts-ms")])
def test_decoders_of_the_finest_map_alone_refuse_a_pyramid_and_say_what_to_take(decoder, better):
    with pytest.raises(
        MultidenseError, match=rf"decoder '{decoder}' reads only .* strides 4, 8, 8, 8: .* Use decoder '{better}'"
    ):
        build_model("resnet18", decoder, TWO, width=0.0625)


@pytest.mark.parametrize("options", [{"gate_stride": 0}, {"intra_stride": -2}, {"head_channels": 0}, {"attention_channels": 0}])
def test_a_stride_or_width_below_one_is_refused(options):
    with pytest.raises(MultidenseError, match=f"{next(iter(options))} should be a whole number of at least 1"):
        network(**options)


def test_fine_grained_tokens_made_of_nothing_are_refused():
    with pytest.raises(MultidenseError, match="orthogonal_embeddings or global_tokens"):
        network(orthogonal_embeddings=False, global_tokens=False)


# Tokens, and both stages


@pytest.fixture(scope="module")
def data():
    return partial.one_label(Rooms(FIVE, "train", size=(34, 40), length=5), seed=0)


@pytest.fixture(scope="module")
def teacher(data):
    return md.fit(network(FIVE), data, epochs=1, batch_size=2, precise_bn=False)


def test_training_moves_every_parameter(data, teacher):
    before = dict(network(FIVE).named_parameters())
    moved = {name for name, parameter in teacher.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(before)


@scales
def test_looking_shows_the_gates_of_every_scale_as_the_forward_pass_used_them(multi_scale):
    model, given = network(multi_scale=multi_scale), []
    for scale in model.decoder.scales:
        scale.inter_task.register_forward_pre_hook(lambda module, inputs: given.append(inputs[1]))
    gates = look(model, images()).gates
    assert list(gates) == list(model.task_names)
    for index, each in enumerate(gates.values()):
        assert len(each) == len(given) == (4 if multi_scale else 1)
        assert all(torch.equal(gate, used[:, index : index + 1]) for gate, used in zip(each, given, strict=True))
    assert not any(scale.query._forward_hooks for scale in model.decoder.scales)


def test_what_tokens_say_is_written_for_every_scale(teacher, data, tmp_path):
    told = write_tokens(teacher, data.reader, tmp_path / "net" / "tokens", images=2, pictured=1)
    expected = teacher.decoder.affinities()
    assert list(told["affinity"]) == list(expected)
    for scale, rows in told["affinity"].items():
        torch.testing.assert_close(torch.tensor(rows), expected[scale].detach(), atol=1e-4, rtol=0)
    for name, each in told["pictures"][0]["tasks"].items():
        assert {"gate-0", "gate-1", "gate-2", "gate-3", "trust"} <= set(each["ranges"])
        assert (tmp_path / "net" / "tokens" / told["pictures"][0]["folder"] / f"{name}.gate-3.png").exists()
    assert all({"cosines", "after"} <= set(each) for each in told["tasks"].values())

    training = SimpleNamespace(path=tmp_path / "net", label="A", colour=0, results=SimpleNamespace(provenance={}))
    run = SimpleNamespace(path=tmp_path, trainings=[training], notes={}, piece=lambda _, place, read: read(tmp_path / place))
    whole, *others = figures([run], ())["networks"]
    assert whole.inter_task is None
    assert [each.label for each in others] == [f"A, {scale}" for scale in expected]
    assert all(each.inter_task.numbers and not each.clouds and not each.scores for each in others)
    assert whole.scores[0].columns[1:6] == [*(f"Global: gate g, scale {j}" for j in range(4)), "Global: trust Mᶠ"]
    for _, maps in whole.scores[0].rows:
        assert [each.said.partition(",")[0] for each in maps[1:6]] == [*["Gate g"] * 4, "Trust Mᶠ"]


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_student_learns_from_all_five_tasks_that_its_teacher_discovered(teacher, data, mode):
    found = md.discover(teacher, data, mode=mode, feature_stride=2)
    assert {task.name for task in found.tasks} == {task.name for task in FIVE}
    for entry in found.manifest["tasks"].values():
        assert entry["images"] == 4
        assert entry["kept_share"] == pytest.approx(0.6, abs=0.1)
    student = network(FIVE)
    objective = md.Objective(labelled=0)  # what moves it is what was discovered: labels and features
    zoomed = Augment(scales=(1.2,), flip=1.0)
    md.fit(student, data, discovered=found, epochs=1, batch_size=5, precise_bn=False, augment=zoomed, objective=objective)
    start = network(FIVE)
    assert all(not torch.equal(student.decoder.tokens[task.name], start.decoder.tokens[task.name]) for task in FIVE)
    assert all(torch.isfinite(parameter).all() for parameter in student.parameters())
    assert torch.equal(student.codebooks["normals"], teacher.codebooks["normals"])


def test_one_channel_tasks_are_confident_by_their_distance_from_even(teacher, data):
    image = data.load(0, ()).image
    for name in ("edges", "saliency"):
        value, confidence = teacher.predict(image)[name]
        torch.testing.assert_close(confidence, (2 * value - 1).abs())
