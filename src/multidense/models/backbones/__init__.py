"""Backbones: image → feature maps, fine to coarse. Each declares `channels`, `strides` and `minimum_size`."""

from multidense.models.backbones.resnet import ResNet18, ResNet34, ResNet50
from multidense.models.backbones.segnet import SegNet

BACKBONES = {"segnet": SegNet, "resnet18": ResNet18, "resnet34": ResNet34, "resnet50": ResNet50}

__all__ = ["BACKBONES", "ResNet18", "ResNet34", "ResNet50", "SegNet"]
