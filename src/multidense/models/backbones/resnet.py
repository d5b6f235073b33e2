"""ResNet (He, Zhang, Ren, Sun, CVPR 2016), dilated: the backbone of all PASCAL-Context tables (protocol 4.2).

A 7×7 convolution and max-pooling to stride 4, then four layers of residual blocks of 64, 128, 256, 512 · `width` channels
(four times as many behind the bottleneck blocks of ResNet-50). Parameters are named as in torchvision, so that files with its
weights fit.

Unusual:
- The strides end at `output_stride`; behind it every layer that would halve the map doubles its dilation instead. The one
  3×3 convolution that loses its stride keeps the dilation it had: it still reads the map of the layer before, at the spacing
  it learned on. All later ones are dilated. So the maps at every second (fourth) pixel are those of the undilated network, to
  the bit of the arithmetic.
- Images come as RGB in 0 … 1; ImageNet's mean and deviation are taken here, with given weights and without, so no data reader
  needs to know the backbone. The two are constants, not saved with the weights.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from multidense.models.pretrained import from_hub, load_weights
from multidense.types import Features, MultidenseError

WIDTHS = (64, 128, 256, 512)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training images, RGB in 0 … 1."""


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut: `[b before h w]` to `[b after h/stride w/stride]`.

    `dilations` are those of the two; the first has the stride too.
    """

    expansion = 1

    def __init__(self, before: int, after: int, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(before, after, 3, stride, dilations[0]), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = _conv(after, after, 3, 1, dilations[1]), nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(before, after, stride)

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        residual = self.relu(self.bn1(self.conv1(maps)))
        residual = self.bn2(self.conv2(residual))
        return self.relu(residual + self.downsample(maps))


class Bottleneck(nn.Module):
    """A 3×3 convolution between two 1×1, beside a shortcut; the channels widen fourfold at the end.

    The 3×3 convolution has the stride, as in torchvision, and the first of the `dilations`: there is no second.
    """

    expansion = 4

    def __init__(self, before: int, after: int, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        within = after // self.expansion
        self.conv1, self.bn1 = _conv(before, within, 1), nn.BatchNorm2d(within)
        self.conv2, self.bn2 = _conv(within, within, 3, stride, dilations[0]), nn.BatchNorm2d(within)
        self.conv3, self.bn3 = _conv(within, after, 1), nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(before, after, stride)

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        residual = self.relu(self.bn1(self.conv1(maps)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return self.relu(residual + self.downsample(maps))


class ResNet(nn.Module):
    """Image `[b 3 h w]`, RGB in 0 … 1, to the outputs of the four layers: strides 4, 8, 8, 8 (at `output_stride` 8).

    `output_stride` is 8, 16 or 32. `pretrained` takes torchvision's ImageNet weights from the Hugging Face Hub (or its cache),
    `weights` a local file of weights, as torchvision or timm publish them; without either the convolutions start from Kaiming's
    normal distribution. A map is ⌈h/stride⌉ × ⌈w/stride⌉, at any size.
    """

    hub: ClassVar[str]
    block: ClassVar[type[BasicBlock | Bottleneck]]
    depths: ClassVar[tuple[int, int, int, int]]

    has_stages = False
    initial = ("pretrained", "weights")
    """Options that say where the first weights come from, and nothing about the network."""

    def __init__(
        self,
        width: float = 1.0,
        stages: bool = False,
        *,
        output_stride: int = 8,
        pretrained: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        widths = [round(full * width) for full in WIDTHS]
        if min(widths) < 1:
            raise MultidenseError(
                f"width {width} leaves ResNet no channels ({WIDTHS[0]} · {width} rounds to {widths[0]}). "
                f"Expected at least 1/{WIDTHS[0]}; give width={1 / WIDTHS[0]} or more."
            )
        if output_stride not in (8, 16, 32):
            raise MultidenseError(f"output_stride should be 8, 16 or 32. Found {output_stride!r}; the published one is 8.")
        if pretrained and (weights or width != 1):
            wrong = "weights as well" if weights else f"width {width}"
            raise MultidenseError(f"pretrained is for the full width and without other weights. Found {wrong}; leave one out.")
        self.minimum_size = output_stride + 1
        """Two pixels of the coarsest map: of one value, BatchNorm can learn nothing."""

        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None], persistent=False)
        self.conv1, self.bn1 = _conv(3, widths[0], 7, 2), nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

        self.channels = tuple(self.block.expansion * each for each in widths)
        strides, dilations = [4], [1]
        for _ in WIDTHS[1:]:
            halved = 2 * strides[-1] <= output_stride
            strides.append(strides[-1] * (2 if halved else 1))
            dilations.append(dilations[-1] * (1 if halved else 2))
        self.strides = tuple(strides)
        for index, depth in enumerate(self.depths):
            before, after = [widths[0], *self.channels][index : index + 2]
            stride = strides[index] // [4, *strides][index]
            first, later = [1, *dilations][index : index + 2]
            blocks = [self.block(before, after, stride, (first, later))]
            blocks += [self.block(after, after, 1, (later, later)) for _ in range(depth - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))

        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if pretrained:
            weights = from_hub(self.hub)
        if weights is not None:
            load_weights(self, weights)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Features:
        maps = (image - self.mean) / self.deviation
        maps = self.maxpool(self.relu(self.bn1(self.conv1(maps))))
        found = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = layer(maps)
            found.append(maps)
        return Features(tuple(found), bottleneck=maps)

    def layers(self) -> list[tuple[str, ...]]:
        """Beginnings of parameter names from image to output: the stem, then the four layers."""
        return [("conv1", "bn1"), *((f"layer{number}",) for number in range(1, len(WIDTHS) + 1))]


class ResNet18(ResNet):
    """ResNet of 2, 2, 2, 2 basic blocks: 11,176,512 parameters."""

    hub, block, depths = "timm/resnet18.tv_in1k", BasicBlock, (2, 2, 2, 2)


class ResNet34(ResNet):
    """ResNet of 3, 4, 6, 3 basic blocks: 21,284,672 parameters."""

    hub, block, depths = "timm/resnet34.tv_in1k", BasicBlock, (3, 4, 6, 3)


class ResNet50(ResNet):
    """ResNet of 3, 4, 6, 3 bottleneck blocks: 23,508,032 parameters."""

    hub, block, depths = "timm/resnet50.tv_in1k", Bottleneck, (3, 4, 6, 3)


def _conv(before: int, after: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(before, after, kernel, stride, padding, dilation, bias=False)


def _shortcut(before: int, after: int, stride: int) -> nn.Module:
    """The map itself where its shape is kept, else a 1×1 convolution and BatchNorm."""
    if stride == 1 and before == after:
        return nn.Identity()
    return nn.Sequential(_conv(before, after, 1, stride), nn.BatchNorm2d(after))
