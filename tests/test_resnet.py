"""ResNet: counts, names and maps of the published networks, dilated or not; what the backbone asks of its images."""

import pytest
import safetensors.torch
import torch
from torch import nn

from multidense.models import MultiTask, build_model, count_parameters, load_model, multiply_adds
from multidense.models.backbones import ResNet18, ResNet34, ResNet50
from multidense.models.backbones.resnet import DEVIATION, MEAN
from multidense.tasks import Depth, Saliency, SemanticSegmentation
from multidense.types import MultidenseError

KINDS = {"resnet18": ResNet18, "resnet34": ResNet34, "resnet50": ResNet50}
STRIDES = {8: (4, 8, 8, 8), 16: (4, 8, 16, 16), 32: (4, 8, 16, 32)}

kinds = pytest.mark.parametrize("kind", KINDS)


def images(count=2, size=(48, 64)):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


def lively(backbone):
    """In evaluation mode, with running statistics that are those of images."""
    backbone.train()(images())
    return backbone.eval()


class Trunk(nn.Module):
    """The coarsest map alone, to count what the backbone costs."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, image):
        return self.backbone(image).bottleneck


# The published networks


@pytest.mark.parametrize(
    ("kind", "parameters", "giga"),
    [("resnet18", 11_176_512, 1.823), ("resnet34", 21_284_672, 3.678), ("resnet50", 23_508_032, 4.132)],
)
def test_parameters_and_cost_are_those_of_the_published_network(kind, parameters, giga):
    """1.8, 3.7 and 4.1 G for 224 × 224 pixels; by our rule BatchNorm counts too, the last linear layer is not there."""
    with torch.device("meta"):
        backbone = KINDS[kind](output_stride=32)
    assert count_parameters(backbone) == parameters
    assert multiply_adds(Trunk(backbone), (224, 224)) / 1e9 == pytest.approx(giga, abs=0.001)


def test_dilation_costs_no_parameter_but_five_times_the_multiply_adds():
    with torch.device("meta"):
        dilated, plain = ResNet18(), ResNet18(output_stride=32)
    assert count_parameters(dilated) == count_parameters(plain) == 11_176_512
    assert multiply_adds(Trunk(dilated), (512, 512)) / 1e9 == pytest.approx(48.237, abs=0.001)
    assert multiply_adds(Trunk(plain), (512, 512)) / 1e9 == pytest.approx(9.527, abs=0.001)


@pytest.mark.parametrize(("kind", "output_stride"), [("resnet18", 8), ("resnet18", 16), ("resnet50", 8)])
def test_a_published_network_with_the_same_weights_finds_the_same(kind, output_stride):
    timm = pytest.importorskip("timm")
    published = timm.create_model(kind, output_stride=output_stride, num_classes=0)
    ours = KINDS[kind](output_stride=output_stride).eval()
    ours.load_state_dict(published.eval().state_dict())
    image = images(1, (37, 51))
    with torch.no_grad():
        expected = published.forward_features((image - ours.mean) / ours.deviation)
        torch.testing.assert_close(ours(image).bottleneck, expected)


def test_names_are_those_of_public_weight_files():
    names = ResNet18(width=0.125).state_dict().keys()
    assert len(names) == 120
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer4.0.downsample.0.weight"} <= names
    assert {"layer2.0.downsample.1.bias", "layer4.1.bn2.num_batches_tracked"} <= names
    assert not any(name.startswith(("fc", "mean", "deviation", "layer1.0.downsample")) for name in names)
    assert {"layer1.0.downsample.0.weight", "layer3.5.conv3.weight"} <= ResNet50(width=0.125).state_dict().keys()


# Maps


@kinds
@pytest.mark.parametrize("output_stride", STRIDES)
@pytest.mark.parametrize("size", [(33, 47), (64, 96)], ids=str)
def test_maps_keep_to_the_channels_and_strides_declared(kind, output_stride, size):
    backbone = KINDS[kind](width=0.125, output_stride=output_stride)
    features = backbone(images(1, size))
    assert backbone.channels == ((32, 64, 128, 256) if kind == "resnet50" else (8, 16, 32, 64))
    assert backbone.strides == STRIDES[output_stride]
    for maps, channels, stride in zip(features.maps, backbone.channels, backbone.strides, strict=True):
        assert maps.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))
    assert features.bottleneck is features.maps[-1]
    assert features.stages == ()


@kinds
@pytest.mark.parametrize("size", [(48, 64), (45, 67)], ids=str)
def test_a_dilated_network_finds_in_every_second_pixel_what_the_undilated_finds(kind, size):
    plain = lively(KINDS[kind](width=0.125, output_stride=32))
    for output_stride in (8, 16):
        dilated = KINDS[kind](width=0.125, output_stride=output_stride).eval()
        dilated.load_state_dict(plain.state_dict())
        with torch.no_grad():
            pairs = zip(dilated(images(1, size)).maps, plain(images(1, size)).maps, dilated.strides, plain.strides, strict=True)
            for ours, expected, stride, coarser in pairs:
                step = coarser // stride
                torch.testing.assert_close(ours[..., ::step, ::step], expected)


def test_the_convolution_that_loses_its_stride_keeps_its_dilation():
    found = {name: layer.dilation[0] for name, layer in ResNet18(width=0.125).named_modules() if isinstance(layer, nn.Conv2d)}
    assert {name for name, dilation in found.items() if dilation == 2} == {
        *("layer3.0.conv2", "layer3.1.conv1", "layer3.1.conv2", "layer4.0.conv1"),
    }
    assert {name for name, dilation in found.items() if dilation == 4} == {"layer4.0.conv2", "layer4.1.conv1", "layer4.1.conv2"}
    assert all(layer.stride == (1, 1) for layer in ResNet18(width=0.125).layer4.modules() if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize("output_stride", STRIDES)
def test_the_smallest_image_trains_alone(output_stride):
    model = build_model("resnet18", "aspp", [Saliency()], width=0.125, seed=0, output_stride=output_stride, head_channels=8)
    smallest = model.backbone.minimum_size
    model.train()(images(1, (smallest, smallest))).logits["saliency"].square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    with pytest.raises(MultidenseError, match=f"at least {smallest}. Found {smallest - 1}×64"):
        model(images(1, (smallest - 1, 64)))


@kinds
def test_every_parameter_gets_a_gradient_from_the_coarsest_map(kind):
    backbone = lively(KINDS[kind](width=0.125))
    backbone(images()).bottleneck.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in backbone.parameters())


# Images and weights


def test_images_are_normalised_with_the_statistics_of_imagenet():
    backbone, seen = ResNet18(width=0.125), []
    backbone.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    colour = torch.tensor(MEAN) + 2 * torch.tensor(DEVIATION)
    backbone(colour[None, :, None, None].expand(1, 3, 32, 32))
    torch.testing.assert_close(seen[0], torch.full((1, 3, 32, 32), 2.0))


def test_convolutions_start_from_kaimings_distribution():
    backbone = ResNet18(width=0.5)
    for conv in (backbone.conv1, backbone.layer3[0].conv1, backbone.layer4[1].conv2):
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
        assert abs(conv.weight.mean().item()) < 0.05 * (2 / fan_out) ** 0.5


def test_weights_of_a_public_file_are_loaded_and_not_asked_for_again(tmp_path):
    public = ResNet18(width=0.125).state_dict() | {"fc.weight": torch.zeros(5, 64), "fc.bias": torch.zeros(5)}
    public = {name: values for name, values in public.items() if "num_batches" not in name}
    safetensors.torch.save_file(public, tmp_path / "resnet18.safetensors")
    model = build_model(
        "resnet18", "aspp", [Saliency()], width=0.125, head_channels=8, weights=str(tmp_path / "resnet18.safetensors")
    )
    assert all(torch.equal(public[name], values) for name, values in model.backbone.state_dict().items() if name in public)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "resnet18.safetensors").unlink()
    assert isinstance(load_model(tmp_path / "model"), MultiTask)


def test_published_weights_come_from_the_hub(tmp_path, monkeypatch):
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        return str(tmp_path / file)

    monkeypatch.setattr("multidense.models.pretrained.hf_hub_download", download)
    public = ResNet18()
    torch.nn.init.ones_(public.conv1.weight)
    safetensors.torch.save_file(public.state_dict(), tmp_path / "model.safetensors")
    assert torch.equal(ResNet18(pretrained=True).conv1.weight, public.conv1.weight)
    assert asked == [("timm/resnet18.tv_in1k", "model.safetensors")]


def test_a_hub_out_of_reach_is_told_with_what_to_do_instead(monkeypatch):
    def download(repository, file):
        raise OSError("no network")

    monkeypatch.setattr("multidense.models.pretrained.hf_hub_download", download)
    with pytest.raises(MultidenseError, match=r"timm/resnet18.tv_in1k cannot be had .*no network.* give the file as weights"):
        ResNet18(pretrained=True)
    with pytest.raises(MultidenseError, match=r"pretrained is for the full width .* Found width 0.5"):
        ResNet18(0.5, pretrained=True)


@pytest.mark.parametrize("output_stride", [4, 64, 0])
def test_an_output_stride_that_no_layer_ends_at_is_refused(output_stride):
    with pytest.raises(MultidenseError, match="output_stride should be 8, 16 or 32"):
        build_model("resnet18", "aspp", [Depth()], width=0.125, output_stride=output_stride)


def test_a_width_that_leaves_no_channels_is_refused():
    with pytest.raises(MultidenseError, match=r"width 0.001 leaves ResNet no channels .*give width=0.015625"):
        build_model("resnet18", "aspp", [Depth()], width=0.001)


def test_it_has_no_stages_and_decoders_that_read_them_say_so():
    with pytest.raises(MultidenseError, match=r"backbone 'resnet18' gives none. Backbones that fit: 'segnet'\."):
        build_model("resnet18", "mtan", [SemanticSegmentation(5)], width=0.125)
