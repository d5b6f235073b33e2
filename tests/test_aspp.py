"""The decoder 'aspp': the published count, what its heads compute, pyramids made one map, and a batch of a single image."""

import copy

import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F
from torch import nn

import multidense as md
from multidense.data import Rooms, partial
from multidense.models import DECODERS, build_model, count_parameters, load_model, multiply_adds
from multidense.models.decoders.aspp import ASPP, Fuse, normalised
from multidense.processes import synchronised
from multidense.tasks import Depth, Edges, HumanParts, Normals, Saliency, SemanticSegmentation
from multidense.types import Features, MultidenseError

PASCAL = (SemanticSegmentation(21), HumanParts(7), Saliency(), Edges(), Normals())
TASKS = (SemanticSegmentation(5), Depth(bins=6))


def images(count=2, size=(48, 64)):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


def small(tasks=TASKS, backbone="resnet18", **options):
    return build_model(backbone, "aspp", tasks, width=0.125, seed=0, **({"head_channels": 8} | options))


# The published decoder


@pytest.mark.parametrize(
    ("tasks", "options", "parameters", "giga"),
    [
        (PASCAL, {}, 34_795_873, 142.350),
        (PASCAL[:1], {}, 15_904_085, 67.074),
        (PASCAL, {"output_stride": 32}, 35_288_417, 394.065),
    ],
    ids=["five tasks", "one task", "on a pyramid"],
)
def test_parameters_are_those_of_the_public_code_and_the_cost_is_known(tasks, options, parameters, giga):
    with torch.device("meta"):
        model = build_model("resnet18", "aspp", tasks, **options)
    assert count_parameters(model) == parameters
    assert multiply_adds(model, (512, 512)) / 1e9 == pytest.approx(giga, abs=0.001)


def test_cost_does_not_depend_on_the_mode():
    model = small()
    assert multiply_adds(model.train(), (48, 64)) == multiply_adds(model.eval(), (48, 64))


def test_task_features_are_as_published():
    features = small(head_channels=256).eval()(images()).features
    assert {name: tuple(value.shape) for name, value in features.items()} == {
        "semseg": (2, 256, 6, 8),
        "depth": (2, 256, 6, 8),
    }


def test_what_is_computed_is_what_is_printed():
    """A head in plain words, in training mode: all statistics from the batch."""
    model = small(dropout=0.0, rates=(1, 2)).double().train()
    image = images().double()
    state = model.decoder.state_dict()
    seen = model.backbone.train()(image).maps[-1]

    def conv(name, maps, dilation=1):
        kernel = state[f"feature.depth.{name}.0.weight"]
        maps = F.conv2d(maps, kernel, padding=dilation * (kernel.shape[-1] // 2), dilation=dilation)
        mean, variance = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), unbiased=False, keepdim=True)
        return ((maps - mean) / (variance + 1e-5).sqrt()).clamp(min=0)

    branches = [conv("0.local.0", seen), conv("0.local.1", seen, 1), conv("0.local.2", seen, 2)]
    whole = conv("0.whole", seen.mean((2, 3), keepdim=True)).expand_as(branches[0])
    joined = torch.cat([*branches, whole], dim=1)
    state |= {"feature.depth.last.0.weight": state["feature.depth.1.weight"]}
    feature = conv("last", conv("0.project", joined))
    logits = F.conv2d(feature, state["head.depth.weight"], state["head.depth.bias"])
    outputs = model(image)
    torch.testing.assert_close(outputs.features["depth"], feature)
    torch.testing.assert_close(
        outputs.logits["depth"], F.interpolate(logits, size=(48, 64), mode="bilinear", align_corners=False)
    )


def test_dropout_is_drawn_in_training_and_off_in_evaluation():
    model, image = small().train(), images()
    assert not torch.equal(model(image).logits["depth"], model(image).logits["depth"])
    model.eval()
    assert torch.equal(model(image).logits["depth"], model(image).logits["depth"])
    still = small(dropout=0.0).train()
    assert torch.equal(still(image).logits["depth"], still(image).logits["depth"])


def test_options_are_saved_and_loaded(tmp_path):
    model = small(rates=[2, 4, 6, 8], dropout=0.25, fuse=True).train()
    model(images())
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.spec == model.spec
    with torch.no_grad():
        assert torch.equal(loaded(images()).logits["semseg"], model.eval()(images()).logits["semseg"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"rates": (6, 0)}, "rates should be whole numbers of at least 1"),
        ({"head_channels": 0}, "head_channels should be a whole number of at least 1"),
        ({"dropout": 1.0}, "dropout should be at least 0 and below 1. Found 1.0"),
        ({"dropout": -0.1}, "dropout should be at least 0 and below 1"),
    ],
    ids=str,
)
def test_an_option_that_makes_no_head_is_refused(option, message):
    with pytest.raises(MultidenseError, match=message):
        small(**option)


# Pyramids


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ({}, False),
        ({"output_stride": 16}, True),
        ({"output_stride": 32}, True),
        ({"fuse": True}, True),
        ({"output_stride": 32, "fuse": False}, False),
        ({"backbone": "segnet"}, True),
    ],
    ids=str,
)
def test_all_maps_are_read_where_the_coarsest_alone_is_too_coarse(options, fused):
    model = small(**options).eval()
    features = model.backbone(images())
    maps = [each.detach().requires_grad_() for each in features.maps]
    outputs = model.decoder(Features(maps, maps[-1]), (48, 64))
    sum(value.square().sum() for value in outputs.logits.values()).backward()
    assert [each.grad is not None and bool(each.grad.any()) for each in maps] == [fused] * (len(maps) - 1) + [True]
    assert outputs.features["depth"].shape[-2:] == maps[0 if fused else -1].shape[-2:]


def test_fused_maps_are_enlarged_put_side_by_side_and_mixed():
    fuse = Fuse((3, 5), 4).eval()
    fine, coarse = torch.randn(2, 3, 6, 8), torch.randn(2, 5, 3, 4)
    joined = torch.cat([fine, F.interpolate(coarse, size=(6, 8), mode="bilinear", align_corners=False)], dim=1)
    conv, norm, _ = fuse.layers
    torch.testing.assert_close(fuse([fine, coarse]), norm(F.conv2d(joined, conv.weight)).clamp(min=0))


@pytest.mark.parametrize(("coarsest", "seen"), [(64, 64), (512, 512), (2048, 512)])
def test_a_fused_map_has_the_channels_of_the_coarsest_but_at_most_512(coarsest, seen):
    with torch.device("meta"):
        decoder = DECODERS["aspp"](TASKS, (16, 32, coarsest), (8, 16, 32))
        read = DECODERS["aspp"](TASKS, (16, 32, coarsest), (8, 8, 8))
    assert decoder.fuse.layers[0].weight.shape == (seen, 48 + coarsest, 1, 1)
    assert decoder.feature["depth"][0].whole[0].in_channels == seen
    assert read.feature["depth"][0].whole[0].in_channels == coarsest


# A batch of one


def test_the_mean_of_a_single_image_is_normalised_by_running_statistics_which_stay():
    aspp = ASPP(4, 6, rates=(1,), dropout=0.0).train()
    norm = aspp.whole[1]
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    before = copy.deepcopy(norm.state_dict())
    seen = []
    aspp.project.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, -6:]))
    maps = torch.randn(1, 4, 5, 7)
    aspp(maps)
    mean = F.conv2d(maps.mean((2, 3), keepdim=True), aspp.whole[0].weight)
    shift, scale = before["running_mean"][:, None, None], (before["running_var"][:, None, None] + 1e-5).sqrt()
    torch.testing.assert_close(seen[0], ((mean - shift) / scale).clamp(min=0).expand(1, 6, 5, 7))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert norm.training

    aspp(torch.randn(2, 4, 5, 7))
    assert norm.num_batches_tracked == 1
    assert not torch.equal(norm.running_mean, before["running_mean"])
    assert aspp.local[0][1].num_batches_tracked == 2


def part(rank: int, folder: str, port: int) -> None:
    """One of two processes: a whole batch of two, one image each; then a whole batch of one, and a stand-in."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        norms = torch.load(f"{folder}/norms.pt", weights_only=True)
        values = norms.pop("values")
        found = {}
        for name, counts in {"two": True, "one": rank == 0}.items():
            norm = synchronised(nn.Sequential(nn.BatchNorm2d(3)))[0].train()
            norm.load_state_dict(norms)
            norm.counts = counts
            given = values[rank : rank + 1].clone().requires_grad_()
            out = normalised(norm, given)
            (out.square() * (counts or 0.0)).sum().backward()
            found[name] = {"out": out.detach(), "gradient": given.grad, "mean": norm.running_mean}
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_normalise_as_one(tmp_path, unused_port):
    values, norm = torch.randn(2, 3, 1, 1), nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 2)
    torch.save(norm.state_dict() | {"values": values}, tmp_path / "norms.pt")
    torch.multiprocessing.start_processes(part, (str(tmp_path), unused_port), nprocs=2, start_method="fork")
    shares = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, images in (("two", 2), ("one", 1)):
        alone, given = copy.deepcopy(norm).train(), values[:images].clone().requires_grad_()
        out = normalised(alone, given)
        out.square().sum().backward()
        for kind, expected in {"out": out.detach(), "gradient": given.grad}.items():
            torch.testing.assert_close(torch.cat([share[name][kind] for share in shares[:images]]), expected)
        assert given.grad.abs().max() > 0 or name == "two"
        for share in shares:
            torch.testing.assert_close(share[name]["mean"], alone.running_mean)


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# Training


def test_it_learns_from_partial_labels_and_from_what_it_discovered():
    tasks = [SemanticSegmentation(13), Edges()]
    data = partial.one_label(Rooms(tasks, "train", size=(32, 48), length=2), seed=0)
    found = md.discover(small(tasks), data, mode="online")
    student = md.fit(small(tasks), data, discovered=found, epochs=1, batch_size=2)
    assert not torch.equal(student.decoder.head["edges"].weight, small(tasks).decoder.head["edges"].weight)
    value, confidence = student.predict(images(1, (37, 51)))["edges"]
    assert value.shape == confidence.shape == (1, 1, 37, 51)
    assert bool(torch.isfinite(value).all())
