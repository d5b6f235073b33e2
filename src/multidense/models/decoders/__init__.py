"""Decoders: feature maps → outputs of all tasks. Each says in `needs_stages` whether it reads `Features.stages`."""

from multidense.models.decoders.aspp import AtrousHeads
from multidense.models.decoders.hitts import HierarchicalTaskTokens
from multidense.models.decoders.hitts_pyramid import PyramidTaskTokens
from multidense.models.decoders.mtan import MultiTaskAttention
from multidense.models.decoders.mtcp import MTCP
from multidense.models.decoders.shared import SharedFeature

DECODERS = {
    "shared": SharedFeature,
    "hitts": HierarchicalTaskTokens,
    "hitts-ms": PyramidTaskTokens,
    "mtan": MultiTaskAttention,
    "aspp": AtrousHeads,
    "mtcp": MTCP,
}

__all__ = [
    "DECODERS",
    "MTCP",
    "AtrousHeads",
    "HierarchicalTaskTokens",
    "MultiTaskAttention",
    "PyramidTaskTokens",
    "SharedFeature",
]
