"""The plain multi-task decoder: every task reads the same feature through a head of its own (MTL; with one task, STL)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from multidense.models.layers import conv3x3, initialise_convolutions
from multidense.ops import resize
from multidense.task import Task
from multidense.types import Features, MultidenseError, Outputs


class SharedFeature(nn.Module):
    """Per task: Conv3×3 c→c (its output, without BatchNorm or ReLU, is the task feature), then Conv1×1 to the logits.

    Reads the finest map `[b c h w]`, which must have gone through the whole backbone. No tokens, hence no confidence: it counts
    as one. Source: protocol 4.1.
    """

    needs_stages = False

    def __init__(self, tasks: Sequence[Task], channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        check_finest("shared", strides, "aspp")
        width = channels[0]
        self.feature = nn.ModuleDict({task.name: conv3x3(width, width) for task in tasks})
        self.head = nn.ModuleDict({task.name: nn.Conv2d(width, task.channels, kernel_size=1) for task in tasks})
        initialise_convolutions(self)

    def forward(self, features: Features, size: tuple[int, int]) -> Outputs:
        task_features = {name: feature(features.maps[0]) for name, feature in self.feature.items()}
        logits = {name: resize(head(task_features[name]), size) for name, head in self.head.items()}
        return Outputs(logits=logits, features=task_features)


def check_finest(decoder: str, strides: Sequence[int], better: str) -> None:
    """An error where the finest map is coarser than stride 2: of such backbones it lacks all that the deeper maps know."""
    if strides[0] > 2:
        raise MultidenseError(
            f"decoder '{decoder}' reads only the finest map of its backbone: expected one of stride 1 or 2 that has gone "
            f"through all of it, as segnet's. Found strides {', '.join(map(str, strides))}: there it lacks what the deeper "
            f"maps see. Use decoder '{better}', which reads those too ('aspp' has no task tokens, 'hitts-ms' has them)."
        )
