"""Augmentation: chance is drawn once for a sample, then the image, its targets and whatever was discovered all answer to it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from multidense.data.reader import Reader, Wrapped
from multidense.ops import Geometry, warp
from multidense.task import Task
from multidense.types import MultidenseError, Sample, Target


@dataclass(frozen=True)
class Augment:
    """How much chance may do. The defaults are the literature's on NYUv2: zoom by 1, 1.2 or 1.5 at a random place, and mirror.

    `scales` are the zooms to choose from, or `scale_range` (low, high) is drawn from evenly instead; below 1 the image is seen
    from further away, inside a border that is not valid. `flip` is the probability of mirroring; `rotation` the largest
    turn either way, in degrees. `brightness`, `contrast` and `saturation` are the largest relative changes (0.4: factors from
    0.6 to 1.4), `hue` the largest turn of the colour circle (0.5 is half of it). `size` is the output's (height, width);
    without one an image keeps its own. Shrinking several times here aliases: let the reader's `size` do that.
    """

    scales: tuple[float, ...] = (1.0, 1.2, 1.5)
    scale_range: tuple[float, float] | None = None
    flip: float = 0.5
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    size: tuple[int, int] | None = None

    def __post_init__(self):
        zooms = self.scales if self.scale_range is None else self.scale_range
        checks = {
            "scales": (len(self.scales) > 0 and min(self.scales) > 0, "one zoom or more, each above 0"),
            "scale_range": (self.scale_range is None or (len(zooms) == 2 and 0 < zooms[0] <= zooms[1]), "(low, high)"),
            "flip": (0 <= self.flip <= 1, "a probability in 0 … 1"),
            "rotation": (0 <= self.rotation <= 180, "degrees in 0 … 180"),
            "brightness": (0 <= self.brightness <= 1, "a relative change in 0 … 1"),
            "contrast": (0 <= self.contrast <= 1, "a relative change in 0 … 1"),
            "saturation": (0 <= self.saturation <= 1, "a relative change in 0 … 1"),
            "hue": (0 <= self.hue <= 0.5, "a share of the colour circle in 0 … 0.5"),
            "size": (self.size is None or (len(self.size) == 2 and min(self.size) > 0), "(height, width) in pixels"),
        }
        for name, (fits, expected) in checks.items():
            if not fits:
                raise MultidenseError(f"Augment: {name} should be {expected}, found {getattr(self, name)}")

    @classmethod
    def none(cls, size: tuple[int, int] | None = None) -> Augment:
        """No chance at all: the sample as it is, or only resized."""
        return cls(scales=(1.0,), flip=0.0, size=size)


@dataclass(frozen=True)
class Draw:
    """What chance decided for one sample: the geometry, and factors for the colours (`hue` is a share of the circle)."""

    geometry: Geometry
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0


def draw(augment: Augment, rng: np.random.Generator, source: tuple[int, int]) -> Draw:
    """Decide everything for one sample of `source` (height, width) pixels.

    The same numbers are drawn whatever the settings, so that switching one thing on leaves the others as they were.
    """
    scale, mirror, *numbers = rng.random(9).tolist()
    down, right, turn, bright, contrast, saturation, hue = (2 * number - 1 for number in numbers)
    if augment.scale_range is None:
        zoom = augment.scales[int(scale * len(augment.scales))]
    else:
        low, high = augment.scale_range
        zoom = low + scale * (high - low)
    reach = abs(1 - 1 / zoom) / 2  # the window anywhere inside the image or, below 1, the image anywhere inside the window
    height, width = source
    size = (height, width) if augment.size is None else (augment.size[0], augment.size[1])
    return Draw(
        geometry=Geometry(
            source=(height, width),
            size=size,
            zoom=float(zoom),
            centre=(0.5 + reach * down, 0.5 + reach * right),
            degrees=float(augment.rotation * turn),
            flip=mirror < augment.flip,
        ),
        brightness=1 + augment.brightness * bright,
        contrast=1 + augment.contrast * contrast,
        saturation=1 + augment.saturation * saturation,
        hue=augment.hue * hue,
    )


def apply(sample: Sample, drawn: Draw, tasks: Iterable[Task]) -> Sample:
    """The sample as the draw has it: `clean` moves with the targets and keeps its colours, `image` changes them too.

    Uncovered area shows the image's border and is not valid in any target; features have no confidence there.
    """
    geometry, known = drawn.geometry, {task.name: task for task in tasks}

    def moved(targets: Mapping[str, Target]) -> dict[str, Target]:
        return {name: known[name].warp(target, geometry) for name, target in targets.items()}

    clean = warp(sample.image if sample.clean is None else sample.clean, geometry, border=True)
    image = clean if sample.clean is None else warp(sample.image, geometry, border=True)
    return Sample(
        image=recoloured(image, drawn),
        clean=clean,
        targets=moved(sample.targets),
        discovered=moved(sample.discovered),
        features={
            name: replace(
                feature,
                value=warp(feature.value, geometry, stride=feature.stride),
                confidence=warp(feature.confidence, geometry, stride=feature.stride),
            )
            for name, feature in sample.features.items()
        },
        id=sample.id,
    )


_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], dtype=torch.float64)
_FROM_YIQ = torch.linalg.inv(_TO_YIQ)


def recoloured(image: Float[Tensor, "3 h w"], drawn: Draw) -> Float[Tensor, "3 h w"]:
    """The image in other colours, 0 … 1: one linear map, for saturation and hue only scale and turn the plane of chroma.

    Contrast is taken about the mean luma; the result is clamped once, at the end.
    """
    if (drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue) == (1, 1, 1, 0):
        return image
    turn = 2 * math.pi * drawn.hue
    cosine, sine = drawn.saturation * math.cos(turn), drawn.saturation * math.sin(turn)
    chroma = torch.tensor([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]], dtype=torch.float64)
    colours = (drawn.brightness * drawn.contrast * (_FROM_YIQ @ chroma @ _TO_YIQ)).to(image.dtype)
    luma = drawn.brightness * (_TO_YIQ[0].to(image.dtype) @ image.flatten(1).mean(1))
    return ((colours @ image.flatten(1)) + (1 - drawn.contrast) * luma).clamp_(0, 1).view_as(image)


class Augmented(Wrapped):
    """A reader whose samples are augmented anew every epoch.

    Sample `i` of epoch `e` is drawn from (`seed`, `e`, `i`) alone: the number of workers and a resumed run change nothing. The
    epoch lies in shared memory, so that workers that outlive an epoch see `set_epoch` too.
    """

    def __init__(self, reader: Reader, augment: Augment, seed: int = 0):
        super().__init__(reader)
        self.augment, self.seed = augment, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw from here on as in this epoch, counted from 0."""
        self._epoch.fill_(epoch)

    def load(self, index: int, tasks: Iterable[str]) -> Sample:
        sample = self.reader.load(index, tasks)
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, int(self._epoch), index)))
        height, width = sample.image.shape[-2:]
        return apply(sample, draw(self.augment, rng, (height, width)), self.tasks)

    def provenance(self) -> dict:
        return self.reader.provenance() | {"augment": asdict(self.augment), "augment_seed": self.seed}
