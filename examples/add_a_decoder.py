"""A decoder of one's own: every map of the backbone, projected, enlarged and summed; then a head a task.

Run it: `python examples/add_a_decoder.py`. It trains for one epoch on a few small rooms.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

import multidense as md
from multidense.data import Rooms
from multidense.models import DECODERS
from multidense.models.layers import conv_block, initialise_convolutions
from multidense.ops import resize
from multidense.task import Task
from multidense.types import Features, Outputs


class Pyramid(nn.Module):
    """Reads the `levels` finest maps; a task's feature has as many channels as the finest of them."""

    needs_stages = False

    def __init__(self, tasks: Sequence[Task], channels: Sequence[int], strides: Sequence[int], *, levels: int = 3) -> None:
        super().__init__()
        width = channels[0]
        self.project = nn.ModuleList(nn.Conv2d(there, width, kernel_size=1) for there in channels[:levels])
        self.feature = nn.ModuleDict({task.name: conv_block(width, width) for task in tasks})
        self.head = nn.ModuleDict({task.name: nn.Conv2d(width, task.channels, kernel_size=1) for task in tasks})
        initialise_convolutions(self)

    def forward(self, features: Features, size: tuple[int, int]) -> Outputs:
        finest = features.maps[0].shape[-2:]
        maps = zip(self.project, features.maps, strict=False)
        shared = sum(resize(project(one), finest) for project, one in maps)
        task_features = {name: feature(shared) for name, feature in self.feature.items()}
        logits = {name: resize(head(task_features[name]), size) for name, head in self.head.items()}
        return Outputs(logits=logits, features=task_features)


DECODERS["pyramid"] = Pyramid  # in the package: add the class to the dict in models/decoders/__init__.py


def main() -> None:
    tasks = [md.SemanticSegmentation(classes=13), md.Depth(bins=8)]
    model = md.build_model("segnet", "pyramid", tasks, width=0.125, seed=0, levels=2)
    print(model)
    md.fit(model, Rooms(tasks, "train", size=(32, 48), length=8), epochs=1)
    print(md.evaluate(model, Rooms(tasks, "val", size=(32, 48), length=4)))


if __name__ == "__main__":
    main()
