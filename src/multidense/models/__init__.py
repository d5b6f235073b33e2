"""Models: a backbone and a decoder that turn images into the outputs of all tasks."""

from multidense.models.backbones import BACKBONES
from multidense.models.cost import count_parameters, multiply_adds
from multidense.models.decoders import DECODERS
from multidense.models.multitask import MultiTask, build_model, load_model, weights_hash

__all__ = [
    "BACKBONES",
    "DECODERS",
    "MultiTask",
    "build_model",
    "count_parameters",
    "load_model",
    "multiply_adds",
    "weights_hash",
]
