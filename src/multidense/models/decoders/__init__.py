"""Decoders: feature maps → outputs of all tasks. Each says in `needs_stages` whether it reads `Features.stages`."""

from multidense.models.decoders.hitts import HierarchicalTaskTokens
from multidense.models.decoders.mtan import MultiTaskAttention
from multidense.models.decoders.shared import SharedFeature

DECODERS = {"shared": SharedFeature, "hitts": HierarchicalTaskTokens, "mtan": MultiTaskAttention}

__all__ = ["DECODERS", "HierarchicalTaskTokens", "MultiTaskAttention", "SharedFeature"]
