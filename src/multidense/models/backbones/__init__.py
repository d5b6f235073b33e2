"""Backbones: image → feature maps, fine to coarse. Each declares `channels`, `strides` and `minimum_size`."""

from multidense.models.backbones.segnet import SegNet

BACKBONES = {"segnet": SegNet}

__all__ = ["BACKBONES", "SegNet"]
