"""Pure functions on maps: masked means, resampling under one geometry, angles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor


def masked_mean(
    values: Float[Tensor, "b c h w"], valid: Bool[Tensor, "b 1 h w"], weight: Float[Tensor, "b 1 h w"] | None = None
) -> Float[Tensor, " b"]:
    """Mean over each image's valid pixels, summed over channels; 0 (with a zero gradient) where none is valid.

    With a `weight` it is the mean of weighted values, not a weighted mean: an image that is trusted little counts little.
    """
    summed = (values if weight is None else weight * values).masked_fill(~valid, 0.0).flatten(1).sum(1)
    return summed / valid.flatten(1).sum(1).clamp(min=1)


def unit(vectors: Float[Tensor, "*b c h w"], eps: float = 1e-6) -> Float[Tensor, "*b c h w"]:
    """Vectors of length one along the channel axis; the zero vector stays zero, with a finite gradient."""
    return vectors / vectors.square().sum(-3, keepdim=True).add(eps * eps).sqrt()


def angle(a: Float[Tensor, "*b 3 h w"], b: Float[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 1 h w"]:
    """Angle between vectors in degrees, as 2·atan2(|a − b|, |a + b|) of the unit vectors: exact also near 0 and 180."""
    a, b = unit(a), unit(b)
    difference, total = (a - b).norm(dim=-3, keepdim=True), (a + b).norm(dim=-3, keepdim=True)
    return torch.rad2deg(2 * torch.atan2(difference, total))


@dataclass(frozen=True)
class Geometry:
    """One geometric draw: how an output pixel finds its place in the input. Image, targets and found maps all obey it.

    The input, of `source` (height, width) pixels, is seen through a window of relative size 1/`zoom` (2 = twice as
    large) whose centre lies at `centre` (relative y, x; (0.5, 0.5) is the middle), turned counter-clockwise by `degrees`,
    mirrored left–right (after turning) if `flip`, and sampled at `size` (height, width) pixels.
    """

    source: tuple[int, int]
    size: tuple[int, int]
    zoom: float = 1.0
    centre: tuple[float, float] = (0.5, 0.5)
    degrees: float = 0.0
    flip: bool = False

    @property
    def is_identity(self) -> bool:
        """Whether every output pixel is the input pixel of the same place."""
        plain = Geometry(self.source, self.source)
        return self == plain

    @lru_cache(maxsize=8)  # noqa: B019 (a sample's image, targets and found maps ask for the same grid in turn)
    def grid(self, stride: int = 1) -> Float[Tensor, "h w 2"]:
        """Sampling positions for `torch.nn.functional.grid_sample` (align_corners=False), of a map at `stride`."""
        height, width = (-(-side // stride) for side in self.size)
        y = (torch.arange(height, dtype=torch.float64) + 0.5) * stride / self.size[0] - 0.5
        x = (torch.arange(width, dtype=torch.float64) + 0.5) * stride / self.size[1] - 0.5
        if self.flip:
            x = -x
        # Turning must happen in pixels, not in relative units, or a non-square image would be sheared.
        y, x = (y * self.source[0] / self.zoom)[:, None], (x * self.source[1] / self.zoom)[None]
        if self.degrees:  # otherwise rows and columns stay apart, and only the last line costs anything
            cosine, sine = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
            x, y = cosine * x - sine * y, sine * x + cosine * y
        source_x = x / self.source[1] + self.centre[1]
        source_y = y / self.source[0] + self.centre[0]
        # A map whose stride does not divide the image reaches a little beyond it.
        reach_y, reach_x = (-(-side // stride) * stride / side for side in self.source)
        positions = (2 * source_x / reach_x - 1).float(), (2 * source_y / reach_y - 1).float()
        return torch.stack(torch.broadcast_tensors(*positions), dim=-1)


def warp(
    values: Shaped[Tensor, "c h w"], geometry: Geometry, mode: str = "bilinear", stride: int = 1, border: bool = False
) -> Shaped[Tensor, "c h2 w2"]:
    """A map `[c h w]` seen through `geometry`, in its own dtype; outside the input it is zero (or the border's value).

    `mode` is "nearest" or "bilinear". `stride` says that both the map and what is wanted are that much coarser than the image.
    """
    if geometry.is_identity:
        return values
    sampled = F.grid_sample(
        values[None].float(),
        geometry.grid(stride)[None],
        mode=mode,
        padding_mode="border" if border else "zeros",
        align_corners=False,
    )[0]
    return sampled.round().to(values.dtype) if not values.dtype.is_floating_point else sampled.to(values.dtype)


def resize(values: Float[Tensor, "b c h w"], size: tuple[int, int], mode: str = "bilinear") -> Float[Tensor, "b c h2 w2"]:
    """Maps at another size; the same object where the size already fits."""
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    align = {} if mode == "nearest" else {"align_corners": False}
    return F.interpolate(values, size=tuple(size), mode=mode, **align)


def pool(values: Float[Tensor, "b c h w"], stride: int) -> Float[Tensor, "b c h2 w2"]:
    """Means over `stride` × `stride` cells (a smaller cell at the right and lower border)."""
    return values if stride == 1 else F.avg_pool2d(values, stride, ceil_mode=True, count_include_pad=False)
