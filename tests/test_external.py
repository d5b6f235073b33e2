"""Backbones of the zoo: whatever they are inside, they come out as one pyramid, at any size. Nothing is downloaded."""

import sys

import pytest
import torch
from torch import nn

from multidense.models import build_model, load_model, weights_hash
from multidense.models.backbones.external import zoo
from multidense.parameters import groups
from multidense.processes import synchronised
from multidense.tasks import Depth, SemanticSegmentation
from multidense.types import MultidenseError

TASKS = (SemanticSegmentation(3), Depth())
SIZE = (61, 83)
SMALL = {"head_channels": 4, "rates": [1, 2]}

CONVOLUTIONAL = [
    "resnet18",
    "regnetx_002",
    "convnext_atto",
    "mobilenetv3_small_050",
    "efficientnet_b0",
    "edgenext_xx_small",
    "hrnet_w18_small",
]
HIERARCHICAL = ["swin_tiny_patch4_window7_224", "pvt_v2_b0", "mobilevit_xxs"]
PLAIN = ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "vit_small_patch14_dinov2"]


@pytest.fixture(scope="module", params=[*CONVOLUTIONAL, *HIERARCHICAL, *PLAIN])
def model(request):
    return build_model(f"timm/{request.param}", "aspp", TASKS, seed=0, **SMALL)


def test_a_backbone_of_the_zoo_keeps_to_what_it_declares_and_learns(model):
    backbone, seen = model.backbone, []
    assert backbone.strides == (4, 8, 16, 32)
    hook = backbone.register_forward_hook(lambda layer, inputs, features: seen.append(features))
    outputs = model.train()(torch.rand(2, 3, *SIZE)).logits
    hook.remove()
    for maps, channels, stride in zip(seen[0].maps, backbone.channels, backbone.strides, strict=True):
        assert maps.shape == (2, channels, -(-SIZE[0] // stride), -(-SIZE[1] // stride))
        assert maps.isfinite().all()
    assert seen[0].bottleneck is seen[0].maps[-1]
    assert {name: tuple(each.shape) for name, each in outputs.items()} == {"semseg": (2, 3, *SIZE), "depth": (2, 1, *SIZE)}

    sum(each.square().mean() for each in outputs.values()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == [], "nothing is there for nothing"
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    before = {name: parameter.detach().clone() for name, parameter in backbone.named_parameters()}
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    near = [name for name in backbone.layers()[0] if not torch.equal(backbone.get_parameter(name), before[name])]
    assert near, "it learns down to the image"

    value, _ = model.predict(torch.rand(3, *SIZE))["semseg"]
    assert value.shape == (1, *SIZE)


def test_the_layers_of_a_backbone_hold_every_parameter_once(model):
    names = [name for layer in model.backbone.layers() for name in layer]
    assert len(model.backbone.layers()) >= 5
    assert sorted(names) == sorted(name for name, _ in model.backbone.named_parameters() if name.startswith("net."))
    first, last = ([model.backbone.get_parameter(name) for name in model.backbone.layers()[end]] for end in (0, -1))
    scales = {id(p): group.get("lr_scale", 1.0) for group in groups(model, 0.5, 0.9) for p in group["params"]}
    depth = len(model.backbone.layers()) - 1
    assert {scales[id(p)] for p in last} == {0.5}
    assert {scales[id(p)] for p in first} == {0.5 * 0.9**depth}
    assert {scales[id(p)] for p in model.decoder.parameters()} == {1.0}
    if hasattr(model.backbone, "pyramid"):
        assert {scales[id(p)] for p in model.backbone.pyramid.parameters()} == {1.0}, "it is new"


def test_its_batchnorm_can_be_made_one_over_several_processes(model):
    backbone = model.backbone
    names = list(backbone.state_dict())
    assert list(synchronised(backbone).state_dict()) == names


# Single networks


def test_what_the_zoo_gives_with_batchnorm_and_activation_apart_is_the_same():
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model("regnetx_002", num_classes=0).eval()
    ours = zoo("timm/regnetx_002")().eval()
    ours.net.load_state_dict({_renamed(name, ours.net): each for name, each in theirs.state_dict().items()}, strict=True)
    image = torch.rand(1, 3, 64, 64)
    normal = (image - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    expected = theirs.forward_intermediates(normal, intermediates_only=True)[1:]
    assert all(torch.equal(one, other) for one, other in zip(ours(image).maps, expected, strict=True))


def _renamed(name: str, net: nn.Module) -> str:
    layer, _, last = name.rpartition(".")
    return f"{layer}.batchnorm.{last}" if isinstance(net.get_submodule(layer), nn.Sequential) else name


def test_a_network_of_the_zoo_is_saved_and_loaded_again(tmp_path):
    model = build_model("timm/mobilenetv3_small_050", "aspp", TASKS, seed=0, **SMALL)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert weights_hash(loaded) == weights_hash(model)
    assert loaded.spec == model.spec
    assert weights_hash(build_model("timm/mobilenetv3_small_050", "aspp", TASKS, seed=0, **SMALL)) == weights_hash(model)


def test_weights_of_the_publisher_and_of_a_saved_model_fit(tmp_path):
    import timm

    torch.manual_seed(3)
    theirs = timm.create_model("mobilenetv3_small_050")
    torch.save({"state_dict": {f"module.{name}": each for name, each in theirs.state_dict().items()}}, tmp_path / "all.pth")
    model = build_model("timm/mobilenetv3_small_050", "aspp", TASKS, weights=str(tmp_path / "all.pth"), **SMALL)
    assert not model.backbone.fit.missing
    assert model.backbone.fit.unused == ("conv_head.weight", "conv_head.bias", "classifier.weight", "classifier.bias")
    assert not model.backbone.fit.unexpected
    assert torch.equal(model.backbone.net.get_parameter("conv_stem.weight"), theirs.conv_stem.weight)

    model.save_pretrained(tmp_path / "model")
    own = zoo("timm/mobilenetv3_small_050")(weights=str(tmp_path / "model" / "model.safetensors"))
    assert not own.fit.missing
    assert weights_hash(own) == weights_hash(model.backbone)

    (tmp_path / "all.pth").unlink()
    assert load_model(tmp_path / "model").spec["options"]["weights"] == str(tmp_path / "all.pth")


def test_pretrained_weights_are_not_asked_for_when_a_model_is_only_rebuilt(monkeypatch):
    import timm

    asked = []
    make = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained, **told: asked.append(pretrained) or make(name, pretrained=False, **told)
    )
    model = build_model("timm/convnext_atto", "aspp", TASKS, initial=False, pretrained=True, **SMALL)
    assert asked
    assert not any(asked)
    assert model.spec["options"]["pretrained"] is True


def test_a_network_for_one_size_pads_up_to_it_and_can_be_built_for_another():
    small = zoo("timm/mixer_s32_224")()
    assert [tuple(each.shape[-2:]) for each in small(torch.rand(1, 3, *SIZE)).maps] == [(16, 21), (8, 11), (4, 6), (2, 3)]
    with pytest.raises(MultidenseError, match=r"at most 224×224. Found 64×256; .* img_size: \[64, 256\]"):
        small(torch.rand(1, 3, 64, 256))
    large = zoo("timm/mixer_s32_224")(img_size=[64, 256])
    assert large(torch.rand(1, 3, 60, 256)).maps[0].shape[-2:] == (15, 64)


def test_options_of_the_zoo():
    backbone = zoo("timm/resnet18")(output_stride=8)
    assert backbone.strides == (4, 8, 8, 8)
    assert backbone(torch.rand(2, 3, *SIZE)).maps[-1].shape == (2, 512, 8, 11)
    assert zoo("timm/resnet18")(out_indices=[-2, -1]).strides == (16, 32)
    assert zoo("timm/resnet18")(out_indices=[0, 1]).strides == (2, 4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("convnext_tinny", {}, r"no network 'convnext_tinny' \(did you mean 'timm/convnext_tiny'"),
        ("resnet18.a1_in2k", {}, r"Invalid pretrained tag.*Its tags are .*a1_in1k"),
        ("resnet18", {"width": 0.5}, "width of 'timm/resnet18' should be 1. Found 0.5"),
        ("resnet18", {"img_size": [32, 64]}, "'timm/resnet18' has no option 'img_size'"),
        ("pvt_v2_b0", {"output_stride": 8}, "'timm/pvt_v2_b0' has no option 'output_stride'"),
        ("resnet18", {"out_indices": [4, 1]}, r"out_indices .* some of 0 … 4 in rising order. Found \[4, 1\]"),
        ("vit_tiny_patch16_224", {"out_indices": [11]}, "should be four of 0 … 11"),
        ("vit_tiny_patch16_224", {"img_size": [64, 64]}, "takes images of any size: leave img_size out"),
        ("resnet18", {"weights": "nowhere.pth"}, "there is no file nowhere.pth"),
        ("resnet18", {"weights": "nowhere.pth", "pretrained": True}, "either pretrained or weights"),
    ],
)
def test_what_the_zoo_cannot_do_is_said(name, options, message):
    with pytest.raises(MultidenseError, match=message):
        zoo(f"timm/{name}")(**options)


def test_without_timm_the_line_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MultidenseError, match=r'pip install "multidense\[timm\]"'):
        build_model("timm/resnet18", "aspp", TASKS)


def test_a_decoder_that_reads_stages_is_refused():
    with pytest.raises(MultidenseError, match="'timm/resnet18' gives none"):
        build_model("timm/resnet18", "mtan", TASKS)
