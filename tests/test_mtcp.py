"""MT-CP: windows, coherence of tasks without a stored affinity, and the trace back from the deepest stage."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from multidense.codebook import log_bins, sphere
from multidense.contrast import CCR
from multidense.models import build_model, count_parameters, load_model
from multidense.models.decoders._windows import Merge, WindowAttention, WindowStages, partition, unite
from multidense.models.decoders.mtcp import CBAM, CoherenceFusion, SharedMap, TraceBack, coherent, default_channels
from multidense.tasks import Depth, Edges, HumanParts, Normals, Saliency, SemanticSegmentation
from multidense.types import MultidenseError

TWO = (SemanticSegmentation(5), Edges())
THREE = (SemanticSegmentation(13), Depth(bins=6), Normals(centers=4))
FIVE = (SemanticSegmentation(21), HumanParts(7), Normals(), Edges(), Saliency())


def small(tasks=TWO, backbone="resnet18", **options):
    return build_model(backbone, "mtcp", tasks, width=0.125, seed=0, **options)


@pytest.fixture(scope="module")
def three():
    """A network of three tasks, in evaluation mode, for tests that leave it as it is."""
    return small(THREE).eval()


def images(count=2, size=(48, 64)):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


def predictions(outputs):
    return [*outputs.logits.values(), *(each for several in outputs.auxiliary.values() for each in several)]


class Calls(TorchDispatchMode):
    """Names of the operations that ran, and how large the largest result was."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = [], 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        results = function(*arguments, **(keywords or {}))
        self.names.append(function.__name__)
        first = results[0] if isinstance(results, tuple) else results
        self.largest = max(self.largest, first.numel() if isinstance(first, torch.Tensor) else 0)
        return results


# The whole


@pytest.mark.parametrize(
    ("tasks", "backbone"),
    [(TWO, "segnet"), (THREE, "resnet18"), (FIVE, "resnet18")],
    ids=["two, segnet", "three, resnet18", "five, resnet18"],
)
def test_every_prediction_has_the_images_size_and_every_parameter_a_gradient(tasks, backbone):
    model = small(tasks, backbone).eval()
    outputs = model(images(2, (33, 47)))
    assert list(outputs.logits) == list(outputs.auxiliary) == list(outputs.features) == [task.name for task in tasks]
    for task in tasks:
        maps = [outputs.logits[task.name], *outputs.auxiliary[task.name]]
        assert [each.shape for each in maps] == 4 * [(2, task.channels, 33, 47)]
        assert outputs.features[task.name].shape == (2, 32, 9, 12)
    generator = torch.Generator().manual_seed(2)
    sum((each * torch.rand(each.shape, generator=generator)).sum() for each in predictions(outputs)).backward()
    assert {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0} == set()


def test_all_parameters_learn_from_the_final_predictions_but_those_of_the_heads_before_them():
    model = small(TWO).eval()
    sum(each.square().sum() for each in model(images()).logits.values()).backward()
    idle = {name.removeprefix("decoder.") for name, p in model.named_parameters() if p.grad is None}
    assert idle
    assert all(
        name.startswith(("initial.", "intermediate.")) or (name.startswith("trace.") and "to_prediction" in name)
        for name in idle
    )


def test_a_batch_of_one_trains():
    model = small(TWO).train()
    sum(each.square().mean() for each in predictions(model(images(1, (32, 32))))).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_a_single_pixel_to_learn_from_is_refused_and_no_obstacle_to_prediction():
    model = small(TWO)
    with pytest.raises(MultidenseError, match="at least 17 pixels on one side, or two of them"):
        model.train()(images(1, (16, 16)))
    assert model(images(1, (16, 17))).logits["edges"].shape == (1, 1, 16, 17)
    assert model.eval()(images(1, (16, 16))).logits["edges"].shape == (1, 1, 16, 16)


def test_a_prediction_depends_on_its_image_and_the_seed_alone(three):
    with torch.no_grad():
        together, alone, again = three(images(3)), three(images(3)[1:2]), small(THREE).eval()(images(3))
    for mixed, single, same in zip(*map(predictions, (together, alone, again)), strict=True):
        torch.testing.assert_close(mixed[1:2], single)
        assert torch.equal(mixed, same)


def test_the_order_of_the_tasks_changes_nothing(three):
    backward = small(THREE[::-1]).eval()
    backward.load_state_dict(three.state_dict())
    with torch.no_grad():
        one, other = three(images(1)), backward(images(1))
    for kind in ("logits", "auxiliary", "features"):
        for name, value in getattr(one, kind).items():
            torch.testing.assert_close(getattr(other, kind)[name], value)


def test_a_loaded_model_predicts_exactly_as_the_saved_one(tmp_path):
    model = small(THREE, depths=[2], window=4, scale=None, residual=True, channels=8)
    model.set_codebook("depth", log_bins(0.5, 10.0, 6))
    model.set_codebook("normals", sphere(4))
    model.train()(images(1))  # so that the running statistics are worth saving
    model.save_pretrained(tmp_path)
    before, after = model.predict(images(1)), load_model(tmp_path).predict(images(1))
    assert all(torch.equal(before[name][0], after[name][0]) for name in before)


def test_parameters_at_full_width():
    with torch.device("meta"):
        model = build_model("resnet18", "mtcp", (SemanticSegmentation(13), Depth(), Normals()))
    assert (count_parameters(model), count_parameters(model.decoder)) == (94_482_389, 83_305_877)
    assert model.decoder.head["depth"][-1].in_channels == 256
    assert count_parameters(model.decoder.stages) == 3 * 22_320_968


@pytest.mark.parametrize(("coarsest", "found"), [(512, 256), (2048, 256), (768, 256), (64, 32), (30, 16), (1, 2)])
def test_channels_follow_the_coarsest_map_up_to_the_published_256(coarsest, found):
    assert default_channels((8, coarsest)) == found


def test_contrast_finds_its_way_to_the_task_features(three):
    assert set(CCR.for_model(three).channels.values()) == {32}


# Options


@pytest.mark.parametrize(
    ("options", "count"),
    [({"supervise_initial": False}, 2), ({"depths": (1,)}, 1), ({"depths": (1, 1), "supervise_initial": False}, 1)],
    ids=str,
)
def test_auxiliary_predictions_are_the_initial_one_and_one_a_refinement_but_the_last(options, count):
    with torch.no_grad():
        outputs = small(TWO, channels=4, **options)(images(1))
    assert [len(each) for each in outputs.auxiliary.values()] == [count, count]


def test_one_task_is_refused_with_what_to_use():
    with pytest.raises(MultidenseError, match=r"at least two tasks.*Found one, 'semseg'.*'aspp' or 'hitts'"):
        small(TWO[:1])


@pytest.mark.parametrize(
    "options",
    [{"channels": 7}, {"channels": 0}, {"window": 0}, {"depths": []}, {"depths": [1, 0]}, {"scale": 0.0}],
    ids=str,
)
def test_an_option_that_makes_no_sense_is_refused(options):
    with pytest.raises(MultidenseError, match=f"{next(iter(options))} of 'mtcp' should be"):
        small(TWO, **options)


# R


def test_the_shared_map_is_a_pyramid_gated_by_one_linear_channel():
    shared = SharedMap((6, 8), (4, 8), 4)
    maps = [torch.randn(2, 6, 9, 12), torch.randn(2, 8, 5, 6)]
    fine, coarse = (lateral(each) for lateral, each in zip(shared.pyramid.lateral, maps, strict=True))
    fused = shared.pyramid.smooth(fine + F.interpolate(coarse, size=(9, 12), mode="nearest"))
    gate = torch.einsum("bchw,c->bhw", fused, shared.gate.weight[0, :, 0, 0]) + shared.gate.bias
    torch.testing.assert_close(shared(maps, (33, 47)), fused * gate[:, None])


def test_the_gate_starts_open(three):
    assert three.decoder.shared.gate.bias.tolist() == [1]


def test_finer_maps_are_averaged_over_the_cells_they_cover():
    shared, image = SharedMap((3,), (1,), 4), torch.randn(1, 3, 32, 48)
    fused = shared.pyramid.smooth(shared.pyramid.lateral[0](F.avg_pool2d(image, 4)))
    torch.testing.assert_close(shared([image], (32, 48)), fused * shared.gate(fused))


@pytest.mark.parametrize("strides", [(1, 2, 4, 8), (2, 4), (4, 8), (8, 16), (16,)], ids=str)
@pytest.mark.parametrize("rounds", [int, math.ceil], ids=["floor", "ceiling"])
def test_any_strides_meet_at_stride_four(strides, rounds):
    maps = [torch.randn(1, 3, rounds(33 / stride), rounds(47 / stride)) for stride in strides]
    assert SharedMap([3] * len(maps), strides, 4)(maps, (33, 47)).shape == (1, 4, 9, 12)


# Windows


def in_plain_words(attention, maps, lead):
    """Every pixel against every other, those of another window left out; `lead` says where each axis's first window begins."""
    (batch, height, width, channels), heads, side = maps.shape, attention.heads, attention.window
    y, x = (each.flatten() for each in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    window = (y + lead[0]) // side * 1000 + (x + lead[1]) // side
    together = window[:, None] == window
    place = (y[:, None] - y + side - 1) * (2 * side - 1) + x[:, None] - x + side - 1
    out = torch.zeros(batch, height * width, channels)
    query, key, value = (part(maps).flatten(1, 2) for part in (attention.to_query, attention.to_key, attention.to_value))
    for head in range(heads):
        own = slice(head * channels // heads, (head + 1) * channels // heads)
        logits = query[..., own] @ key[..., own].mT / (channels / heads) ** 0.5
        logits[:, together] += attention.position[place[together], head]
        out[..., own] = logits.masked_fill(~together, -torch.inf).softmax(2) @ value[..., own]
    return attention.to_out(out).unflatten(1, (height, width))


@pytest.mark.parametrize(
    ("size", "window", "shifted", "lead"),
    [
        ((4, 5), 7, False, (0, 0)),
        ((5, 5), 5, True, (0, 0)),
        ((4, 6), 2, False, (0, 0)),
        ((4, 6), 2, True, (1, 1)),
        ((5, 7), 3, False, (0, 0)),
        ((5, 7), 3, True, (2, 2)),
        ((3, 7), 3, True, (0, 2)),
        ((3, 4), 1, True, (0, 0)),
    ],
    ids=str,
)
def test_windows_see_what_dense_attention_with_a_mask_sees(size, window, shifted, lead):
    attention = WindowAttention(4, 2, window, shifted)
    torch.nn.init.normal_(attention.position)
    maps = torch.randn(2, *size, 4)
    with torch.no_grad():
        torch.testing.assert_close(attention(maps), in_plain_words(attention, maps, lead), rtol=1e-4, atol=1e-5)


def test_a_shift_moves_the_windows_by_half_a_window_as_swins_does():
    assert [WindowAttention(2, 1, window, True).lead for window in (7, 4, 1)] == [4, 2, 0]
    stage = WindowStages(4, (3,), 7).blocks[0]
    assert [block.attend[1].lead for block in stage] == [0, 4, 0]


def test_windows_and_back():
    maps = torch.arange(2 * 6 * 9 * 4.0).view(2, 6, 9, 4)
    windows = partition(maps, 3)
    assert windows.shape == (2, 2, 3, 9, 4)
    assert torch.equal(windows[1, 1, 2].view(3, 3, 4), maps[1, 3:, 6:])
    assert torch.equal(unite(windows, 3), maps)


def test_merging_takes_four_neighbours_and_completes_an_odd_side_with_zeros():
    merge, maps = Merge(2), torch.randn(1, 3, 4, 2)
    found = merge(maps)
    assert found.shape == (1, 2, 2, 4)
    corner = torch.cat([maps[0, 2, 2], maps[0, 2, 3], torch.zeros(4)])
    torch.testing.assert_close(found[0, 1, 1], merge.reduce(merge.norm(corner)))


def test_stages_halve_the_map_and_double_the_channels():
    found = WindowStages(4, (1, 2, 1), 7)(torch.randn(2, 4, 9, 15))
    assert [each.shape for each in found] == [(2, 4, 9, 15), (2, 8, 5, 8), (2, 16, 3, 4)]
    torch.testing.assert_close(found[2].mean(1), torch.zeros(2, 3, 4), atol=1e-5, rtol=0)


# Coherence


def written_out(theta, phi, values, scale):
    factor = theta.shape[1] ** -0.5 if scale is None else scale
    affinity = (factor * theta.flatten(2).mT @ phi.flatten(2)).softmax(2)
    return (affinity @ values.flatten(2).mT).mT.unflatten(2, values.shape[-2:])


@pytest.mark.parametrize("scale", [1.0, None])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_affinity_is_that_of_all_pixels_and_is_never_stored(scale, layout):
    leaves = [torch.rand(2, width, 9, 11).contiguous(memory_format=layout).requires_grad_() for width in (16, 16, 8)]
    weights = torch.randn(2, 8, 9, 11)
    expected = written_out(*leaves, scale)
    gradients = torch.autograd.grad((weights * expected).sum(), leaves)
    with Calls() as calls:
        found = coherent(*leaves, scale)
        ours = torch.autograd.grad((weights * found).sum(), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(ours, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    fused = [name for name in calls.names if "flash_attention_for_cpu" in name]
    assert len(fused) == 2, "once forward, once backward"
    assert calls.largest < 2 * 99 * 99


def test_one_affinity_a_task_in_training_and_in_prediction_all_fused():
    model = small(THREE, depths=(1,), channels=4)
    with Calls() as calls:
        outputs = model.train()(images(1))
    with Calls() as quiet, torch.no_grad():
        model.eval()(images(1))
    assert set(outputs.logits) == {task.name for task in THREE}
    for each in (calls, quiet):
        assert sum("flash_attention_for_cpu" in name for name in each.names) == len(THREE)


def test_auxiliaries_say_which_pixels_relate_and_the_target_supplies_the_values():
    fusion = CoherenceFusion(8, ["b", "a"], scale=0.5, residual=False).double().eval()
    target, a, b = torch.randn(3, 2, 8, 5, 6, dtype=torch.float64).unbind()
    gated = [maps * fusion.gates[name](maps).sigmoid() for name, maps in (("a", a), ("b", b))]
    mixed = fusion.mix(torch.cat(gated, dim=1)).relu()
    theta, phi = ((part[1](part[0](mixed))).relu() for part in (fusion.theta, fusion.phi))
    expected = fusion.out(written_out(theta, phi, fusion.values(target), 0.5))
    found = fusion(target, {"b": b, "a": a})
    torch.testing.assert_close(found, expected)
    fusion.residual = True
    torch.testing.assert_close(fusion(target, {"a": a, "b": b}), target + expected)


def test_a_gate_of_channels_and_then_one_of_pixels():
    gate, maps = CBAM(4).eval(), torch.randn(2, 4, 5, 6)
    mean, most = (each.view(2, 4, 1, 1) for each in (maps.flatten(2).mean(2), maps.flatten(2).amax(2)))
    seen = maps * (gate.mlp(mean) + gate.mlp(most)).sigmoid()
    places = gate.place(torch.stack([seen.mean(1), seen.amax(1)], dim=1)).sigmoid()
    assert places.shape == (2, 1, 5, 6)
    torch.testing.assert_close(gate(maps), seen * places)


# Trace back


def test_the_deepest_stage_comes_first_and_the_passed_back_map_carries_on():
    trace = TraceBack(4, (4, 8, 16)).eval()
    assert [(each.traced_gate.mlp[0].in_channels, each.own_gate.mlp[0].in_channels) for each in trace.refinements] == [
        (4, 16),
        (16, 8),
        (8, 4),
    ]
    assert [each.to_next is None for each in trace.refinements] == [False, False, True]
    first, *stages = (torch.randn(1, width, *size) for width, size in ((4, (9, 12)), (4, (9, 12)), (8, (5, 6)), (16, (3, 3))))
    found = trace(first, stages)
    assert [each.shape for each in found] == [(1, 4, 3, 3), (1, 4, 5, 6), (1, 4, 9, 12)]

    def changed(index):
        other = [stage + (torch.randn_like(stage) if place == index else 0) for place, stage in enumerate(stages)]
        return [not torch.equal(one, two) for one, two in zip(trace(first, other), found, strict=True)]

    assert [changed(stage) for stage in range(3)] == [[False, False, True], [False, True, True], [True, True, True]]
    assert all(not torch.equal(one, two) for one, two in zip(trace(2 * first, stages), found, strict=True))
