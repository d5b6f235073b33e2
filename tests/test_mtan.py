"""MTAN: its published size and cost, its masks, its formulas at every stage; and that it learns from discovered labels."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import multidense as md
from multidense.data import Rooms, collate, partial
from multidense.models import BACKBONES, MultiTask, build_model, count_parameters, multiply_adds
from multidense.models.backbones import SegNet
from multidense.models.decoders.mtan import Mask, _enlarged_product
from multidense.types import Features, MultidenseError

TASKS = (md.SemanticSegmentation(5), md.Depth(bins=6), md.Normals(centers=4))
WIDTHS = (8, 16, 32, 64, 64)  # of SegNet at width 0.125


def small(tasks=TASKS):
    return build_model("segnet", "mtan", tasks, width=0.125, seed=0)


def images(count=2, size=(48, 64)):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


# Size and cost


def test_it_has_the_parameters_and_cost_of_the_published_table():
    with torch.device("meta"):
        model = build_model("segnet", "mtan", (md.SemanticSegmentation(13), md.Depth(), md.Normals()))
    assert count_parameters(model) == 44_229_073
    assert multiply_adds(model, (288, 384)) / 1e9 == pytest.approx(217.263, abs=0.001)


def test_a_task_brings_masks_and_a_head_and_the_blocks_are_there_once():
    one, two, three = (small(TASKS[:count]).decoder for count in (1, 2, 3))
    added = {name for name, _ in three.named_parameters()} - {name for name, _ in two.named_parameters()}
    assert {name.split(".")[0] for name in added} == {"encoder_masks", "decoder_masks", "feature", "head"}
    assert all(name.split(".")[1] == "normals" for name in added)
    blocks = [count_parameters(decoder.down) + count_parameters(decoder.up) for decoder in (one, two, three)]
    assert len(set(blocks)) == 1


def test_convolutions_start_as_published():
    for layer in small().modules():
        if isinstance(layer, nn.Conv2d):
            fan = layer.weight[0].numel() + layer.weight[:, 0].numel()
            if layer.weight.numel() > 5_000:
                assert layer.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05)
            assert not layer.bias.any()


# What it computes


def as_printed(decoder, stages, name):
    """One task's feature in plain words, from the twenty shared maps."""
    down, up, feature = decoder.down, decoder.up, decoder.feature[name]
    first, last, unpooled, decoded = stages[0:10:2], stages[1:10:2], stages[10::2], stages[11::2]
    masks = [mask.layers for mask in decoder.encoder_masks[name]]
    own = F.max_pool2d(down[0](masks[0](first[0]) * last[0]), 2)
    for k in (1, 2, 3, 4):
        own = F.max_pool2d(down[k](masks[k](torch.cat([first[k], own], 1)) * last[k]), 2)
    masks = [mask.layers for mask in decoder.decoder_masks[name]]
    for step, k in enumerate((4, 3, 2, 1, 0)):
        size = unpooled[step].shape[-2:]
        block = up[k](F.interpolate(own, size=size, mode="bilinear", align_corners=True))
        own = masks[k](torch.cat([unpooled[step], block], 1)) * decoded[step]
    return feature(own)


@pytest.mark.parametrize("size", [(32, 64), (33, 47)], ids=str)
def test_what_is_computed_is_what_is_printed_forward_and_backward(size):
    model = small(TASKS[:2]).double().train()
    stages = [stage.detach() for stage in model.backbone(images(2, size).double()).stages]
    names, found = model.task_names, []
    for form in (
        lambda decoder, maps: decoder(Features((), maps[9], maps), size).features,
        lambda decoder, maps: {name: as_printed(decoder, maps, name) for name in names},
    ):
        decoder = copy.deepcopy(model.decoder)
        maps = tuple(stage.clone().requires_grad_() for stage in stages)
        features = form(decoder, maps)
        generator = torch.Generator().manual_seed(2)
        sum((feature * torch.rand(feature.shape, generator=generator)).sum() for feature in features.values()).backward()
        parameters = [p.grad for name, p in decoder.named_parameters() if not name.startswith("head.")]
        found.append([*features.values(), *(stage.grad for stage in maps), *parameters])
    for ours, printed in zip(*found, strict=True):
        torch.testing.assert_close(ours, printed, rtol=1e-6, atol=1e-8)


def test_a_mask_is_the_formula_by_hand():
    mask = Mask(5, 2).train()
    for parameter in mask.parameters():
        nn.init.normal_(parameter)
    shared, own = torch.randn(2, 3, 4, 6), torch.randn(2, 2, 4, 6)
    reduce, norm, _, widen, last_norm, _ = mask.layers

    def mixed(conv, pixels):  # pixels × channels
        return pixels @ conv.weight[:, :, 0, 0].T + conv.bias

    def normalised(layer, pixels):
        mean, spread = pixels.mean(0), (pixels.var(0, unbiased=False) + 1e-5).sqrt()
        return layer.weight * (pixels - mean) / spread + layer.bias

    pixels = torch.cat([shared, own], 1).permute(0, 2, 3, 1).reshape(-1, 5)
    hidden = normalised(norm, mixed(reduce, pixels)).clamp(min=0)
    expected = 1 / (1 + torch.exp(-normalised(last_norm, mixed(widen, hidden))))
    found = mask(shared, own).permute(0, 2, 3, 1).reshape(-1, 2)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(Mask(3, 2).eval()(shared).shape, torch.Size((2, 2, 4, 6)))


def test_every_task_has_a_mask_at_every_stage_between_0_and_1_as_wide_as_what_it_masks():
    model, masks = small(), []
    for module in model.modules():
        if isinstance(module, Mask):
            module.register_forward_hook(lambda _, __, output: masks.append(output))
    model(images(2, (33, 47)))
    sizes = ((33, 47), (16, 23), (8, 11), (4, 5), (2, 2))
    encoder = [(2, width, *size) for width, size in zip(WIDTHS, sizes, strict=True)]
    decoder = [(2, width, *size) for width, size in zip((8, *WIDTHS[:4]), sizes, strict=True)]
    assert [tuple(mask.shape) for mask in masks] == 3 * (encoder + decoder[::-1])
    assert all(mask.min() >= 0 and mask.max() <= 1 and mask.std() > 0.01 for mask in masks)


def test_maps_are_enlarged_with_their_corners_on_corners():
    ramp = torch.tensor([[0.0, 3.0], [6.0, 9.0]])[None, None]
    enlarged = _enlarged_product(ramp, size=(3, 4))
    torch.testing.assert_close(enlarged[0, 0], torch.tensor([[0.0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]))
    torch.testing.assert_close(_enlarged_product(ramp, 2 * torch.ones_like(ramp), size=(3, 4)), 2 * enlarged)


def test_any_width_will_do_at_the_smallest_size():
    logits = build_model("segnet", "mtan", TASKS[:1], width=0.05, seed=0).eval()(images(1, (32, 32))).logits
    assert logits["semseg"].shape == (1, 5, 32, 32)


# Tasks among themselves


def test_no_task_reads_the_masks_of_another():
    model = small(TASKS[:2])
    model(images()).logits["semseg"].sum().backward()
    touched = {name.split(".")[1] for name, p in model.decoder.named_parameters() if p.grad is not None and "mask" in name}
    assert touched == {"semseg"}
    assert all(p.grad is not None for block in (model.decoder.down, model.decoder.up) for p in block.parameters())


def test_in_training_too_a_task_is_normalised_by_its_own_statistics():
    """Were the tasks normalised together in the blocks they share, a second task would change the first."""
    both, alone = small(TASKS[:2]).train(), small(TASKS[:1]).train()
    alone.load_state_dict({name: both.state_dict()[name] for name in alone.state_dict()})
    torch.testing.assert_close(alone(images()).logits["semseg"], both(images()).logits["semseg"])
    assert {int(block[1].num_batches_tracked) for block in both.decoder.down} == {2}
    assert {int(block[1].num_batches_tracked) for block in alone.decoder.down} == {1}


# What it needs of a backbone


class Stageless(SegNet):
    has_stages = False


class Silent(SegNet):
    def __init__(self, width=1.0, stages=False):
        super().__init__(width, stages=False)


def test_a_backbone_without_stages_is_refused_naming_those_that_fit(monkeypatch):
    monkeypatch.setitem(BACKBONES, "plain", Stageless)
    with pytest.raises(
        MultidenseError, match=r"'mtan' reads the maps of every stage.*'plain' gives none.*that fit: 'segnet'\."
    ):
        build_model("plain", "mtan", TASKS, width=0.125)
    assert build_model("plain", "shared", TASKS, width=0.125).task_names == ("semseg", "depth", "normals")


def test_a_backbone_that_does_not_say_so_is_refused_when_it_runs(monkeypatch):
    monkeypatch.setitem(BACKBONES, "silent", Silent)
    with pytest.raises(MultidenseError, match=r"expected 20 maps of 8, 8, 16, 16.*Found 0\. Take .*'segnet'"):
        build_model("silent", "mtan", TASKS, width=0.125)(images())
    narrow = MultiTask(SegNet(0.25, stages=True), small().decoder, TASKS)
    with pytest.raises(MultidenseError, match=r"expected 20 maps of 8, 8, .* Found 20 of 16, 16, "):
        narrow(images())


# Discovered labels


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_it_learns_from_what_it_discovered(mode):
    tasks = [md.SemanticSegmentation(13), md.Depth(bins=4)]
    data = partial.one_label(Rooms(tasks, "train", size=(32, 48), length=4), seed=0)
    teacher = md.fit(small(tasks), data, epochs=1)
    found = md.discover(teacher, data, mode=mode)
    batch = found.complete(collate([found.attach(data)[index] for index in range(len(data))], data.tasks))
    student = small(tasks).train()
    assert any(batch.discovered[task.name].valid.any() for task in tasks)
    for name, target in batch.features.items():
        assert target.value.shape[1] == 8
        seen = target.confidence.flatten(1).amax(1) > 0
        assert seen.any()
        assert bool((target.confidence[seen] == 1).all()), name
    assert set(batch.features) == {"semseg", "depth"}

    outputs = student(batch.image)
    terms = md.Objective(labelled=0, discovered=0).terms(teacher.tasks, outputs, batch)
    sum(loss.mean() for loss in terms["features"].values()).backward()
    masks = [p for name, p in student.decoder.named_parameters() if "masks" in name and "layers.0.weight" in name]
    assert len(masks) == 2 * 10
    assert all(mask.grad.abs().max() > 0 for mask in masks)
    md.fit(student, data, discovered=found, epochs=1)
