"""Any backbone of timm, by one adapter: `timm/convnext_tiny`, `timm/vit_small_patch14_dinov2`, `timm/resnet50.a1_in1k`, …

Three kinds of networks become one contract, a pyramid of maps with power-of-two strides from 4 on:

- Convolutional pyramids and hierarchical transformers give their stages. Maps finer than stride 4 are left out.
- Plain transformers give maps of one size. Four of their blocks, evenly spaced, become maps of strides 4, 8, 16 and 32 by
  transposed convolutions, identity and max-pooling: the simple feature pyramid of ViTDet (Li et al., 2022), each of whose maps
  is read from a block of its own as in BEiT (Bao et al., 2022). The pyramid is new: no file has weights for it.
- Patches of 14 pixels (DINOv2) cover 16 of the image, which is shrunk by 7/8 for them, so that strides stay powers of two.

Images come as RGB in 0 … 1 and are normalised by the network's own mean and deviation. Any size will do: images are continued
at the right and lower border to what the network needs, and maps are cut to ⌈size / stride⌉ again. A few networks are made for
one size; they take smaller images, and larger ones when built with `img_size`.
"""

from __future__ import annotations

import copy
import difflib
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from multidense.compat import mend_torchvision
from multidense.models.pretrained import Fit, load_weights
from multidense.ops import resize
from multidense.types import Features, MultidenseError

PREFIX = "timm/"
FINEST, COARSEST = 4, 32
"""Strides of the pyramid that plain transformers get; finer maps of others are left out."""
ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}
"""What makes transformers of timm take images of any size, where they know it."""


def zoo(name: str) -> Callable[..., Zoo]:
    """The maker of the backbone `name` ("timm/…"), to be used as the class of a backbone is."""
    make = partial(Zoo, name.removeprefix(PREFIX))
    make.has_stages, make.initial = Zoo.has_stages, Zoo.initial
    return make


class Zoo(nn.Module):
    """A network of timm: image `[b 3 h w]`, RGB in 0 … 1, to its maps, fine to coarse.

    Args:
        name: as timm has it, with or without a tag.
        width: 1; the zoo has its own sizes.
        stages: not used.
        pretrained: whether timm loads the weights of the tag, from its cache or the network.
        weights: a local file of weights instead.
        output_stride: the coarsest stride, of networks that can dilate (8, 16 or 32).
        out_indices: which of the maps that timm counts are taken; of a plain transformer four of its blocks.
        img_size: height and width that a network is built for which is made for one size.
    """

    has_stages = False
    initial = ("pretrained", "weights")
    """Options that say where the first weights come from, and nothing about the network."""

    def __init__(
        self,
        name: str,
        width: float = 1.0,
        stages: bool = False,
        *,
        pretrained: bool = False,
        weights: str | None = None,
        output_stride: int | None = None,
        out_indices: Sequence[int] | None = None,
        img_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if width != 1:
            raise MultidenseError(
                f"width of '{PREFIX}{name}' should be 1. Found {width}; the zoo has smaller networks instead."
            )
        if pretrained and weights:
            raise MultidenseError(f"'{PREFIX}{name}': give either pretrained or weights, not both.")
        self.name = name
        wanted = {"output_stride": output_stride, "img_size": tuple(img_size) if img_size else None}
        net, understood = _made(name, pretrained, {key: value for key, value in wanted.items() if value is not None})
        if pretrained:
            self.fit = _fit_of_timm(net, name)
        info = [dict(each) for each in net.feature_info]
        plain = len(info) > 1 and len({each["reduction"] for each in info}) == 1
        indices = _indices(name, info, plain, out_indices)
        channels, strides = ([info[index][key] for index in indices] for key in ("num_chs", "reduction"))
        self.patch = strides[0] if plain else 1
        self.covers = 2 ** math.ceil(math.log2(self.patch))
        """How many pixels of the image a patch covers."""
        if plain:
            self.pyramid = SimplePyramid(channels[0], self.covers)
            channels, strides = self.pyramid.channels, self.pyramid.strides
        elif any(stride & (stride - 1) for stride in strides) or sorted(strides) != strides:
            raise MultidenseError(f"'{PREFIX}{name}' gives maps at strides {strides}, which are no pyramid; choose another.")
        self.channels, self.strides = tuple(channels), tuple(strides)
        self.minimum_size = max(strides) + 1
        """Two pixels of the coarsest map: of one value, BatchNorm can learn nothing."""

        lost: Collection[str] = ()
        if hasattr(net, "prune_intermediate_layers"):
            whole = net.state_dict().keys()
            indices = net.prune_intermediate_layers(indices, prune_norm=True)
            lost = whole - net.state_dict().keys()
        self.indices = list(indices)
        if weights:
            self.fit = load_weights(net, weights, translations=_translations(net), unused=lost)
        self.net = _plain_batchnorm(net)
        cfg = net.pretrained_cfg
        self.register_buffer("mean", torch.tensor(cfg["mean"])[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(cfg["std"])[:, None, None], persistent=False)
        self.multiple, self.fixed = max(strides), None
        if cfg.get("fixed_input_size") and not understood & ANY_SIZE.keys():
            self._find_sizes(tuple(img_size) if img_size else tuple(cfg["input_size"][-2:]))
        if img_size and not self.fixed:
            raise MultidenseError(f"'{PREFIX}{name}' takes images of any size: leave img_size out.")

    def _find_sizes(self, native: tuple[int, int]) -> None:
        """What sizes a network takes that says it has one: multiples of its stride, of its size, or its size alone.

        Found out on shapes alone (torch's meta device), with a copy: some networks keep what they computed.
        """
        for multiple in (self.multiple, math.lcm(self.multiple, *native)):
            tried = copy.deepcopy(self.net).to("meta")
            try:
                with torch.no_grad():
                    self._maps(tried, torch.empty(2, 3, 2 * multiple, 3 * multiple, device="meta"))
            except Exception:  # networks refuse a size in many ways
                continue
            self.multiple = multiple
            return
        self.fixed = native

    def _maps(self, net: nn.Module, image: Tensor) -> list[Tensor]:
        return net.forward_intermediates(image, indices=self.indices, output_fmt="NCHW", intermediates_only=True)

    def layers(self) -> list[tuple[str, ...]]:
        """Names of parameters from image to output, a group for every stage or block; those of a new pyramid are in none."""
        _timm()
        from timm.models import group_parameters

        matcher = getattr(self.net, "group_matcher", None)
        if matcher is None:
            return [("net",)]
        grouped = group_parameters(self.net, matcher(coarse=True))
        return [tuple(f"net.{name}" for name in names) for _, names in sorted(grouped.items()) if names]

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Features:
        height, width = image.shape[-2:]
        whole = self.fixed or (height + -height % self.multiple, width + -width % self.multiple)
        if height > whole[0] or width > whole[1]:
            raise MultidenseError(
                f"'{PREFIX}{self.name}' is built for images of at most {whole[0]}×{whole[1]}. Found {height}×{width}; give it "
                f"the option img_size: [{height}, {width}], or choose a backbone that takes any size."
            )
        image = (image - self.mean) / self.deviation
        if whole != (height, width):
            image = F.pad(image, (0, whole[1] - width, 0, whole[0] - height), mode="replicate")
        if self.covers != self.patch:
            seen = [side * self.patch // self.covers for side in whole]
            image = F.interpolate(image, size=seen, mode="bilinear", align_corners=False, antialias=True)
        maps = self._maps(self.net, image)
        if hasattr(self, "pyramid"):
            maps = self.pyramid(maps)
        found = []
        for each, stride in zip(maps, self.strides, strict=True):
            each = resize(each, (-(-whole[0] // stride), -(-whole[1] // stride)))  # a few convolutions do not pad
            found.append(each[..., : -(-height // stride), : -(-width // stride)])
        return Features(tuple(found), bottleneck=found[-1])


class SimplePyramid(nn.Module):
    """Four maps `[b dim h w]` of one stride to strides 4, 8, 16, 32; the finer, the fewer channels, as in ViTDet."""

    def __init__(self, dim: int, stride: int) -> None:
        from timm.layers import LayerNorm2d

        super().__init__()
        self.strides = tuple(2**i for i in range(int(math.log2(FINEST)), int(math.log2(COARSEST)) + 1))
        self.channels, steps = [], []
        for wanted in self.strides:
            layers: list[nn.Module] = [LayerNorm2d(dim)]
            channels, now = dim, stride
            while now > wanted:
                halved = max(channels // 2, 1)
                if now < stride:
                    layers += [LayerNorm2d(channels), nn.GELU()]
                layers.append(nn.ConvTranspose2d(channels, halved, kernel_size=2, stride=2))
                channels, now = halved, now // 2
            if now < wanted:
                layers.append(nn.MaxPool2d(wanted // now))
            self.channels.append(channels)
            steps.append(nn.Sequential(*layers))
        self.steps = nn.ModuleList(steps)

    def forward(self, maps: Sequence[Float[Tensor, "b c h w"]]) -> list[Tensor]:
        return [step(each) for step, each in zip(self.steps, maps, strict=True)]


def _timm() -> Any:
    mend_torchvision()
    try:
        import timm
    except ImportError as error:
        raise MultidenseError(
            'backbones "timm/…" need the package timm, which is not installed: pip install "multidense[timm]"'
        ) from error
    return timm


def _made(name: str, pretrained: bool, wanted: dict[str, Any]) -> tuple[nn.Module, set[str]]:
    """The whole network without a head, and the settings it understood."""
    timm = _timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), 3, cutoff=0.5)
        meant = f" (did you mean {' or '.join(repr(PREFIX + each) for each in near)}?)" if near else ""
        raise MultidenseError(f"timm {timm.__version__} has no network '{name}'{meant}. timm.list_models() lists all.")
    told = ANY_SIZE | wanted
    while True:
        try:
            net = timm.create_model(name, pretrained=pretrained, num_classes=0, **told)
            break
        except TypeError as error:
            unknown = [key for key in told if "unexpected keyword" in str(error) and f"'{key}'" in str(error)]
            if not unknown:
                raise
            for key in unknown:
                if key in wanted:
                    raise MultidenseError(f"'{PREFIX}{name}' has no option '{key}'; leave it out.") from error
                told.pop(key)
        except Exception as error:  # a tag that is not there, a stride it cannot have, a download that fails
            what = str(error).strip().splitlines() or [type(error).__name__]
            hint = ""
            if "tag" in what[0]:
                tags = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
                hint = f" Its tags are {', '.join(tag.partition('.')[2] for tag in tags) or 'none'}."
            elif pretrained:
                hint = " Without access to the weights' place, download them elsewhere and give the file as weights."
            asked = ", ".join(
                f"{key}={value!r}" for key, value in ({"pretrained": True} if pretrained else {} | wanted).items()
            )
            raise MultidenseError(f"timm cannot make '{name}'{f' with {asked}' if asked else ''}: {what[0]}.{hint}") from error
    if not hasattr(net, "forward_intermediates") or not getattr(net, "feature_info", None):
        raise MultidenseError(
            f"'{PREFIX}{name}' of timm {timm.__version__} does not give the maps of its stages; choose another."
        )
    return net, set(told)


def _indices(name: str, info: Sequence[dict], plain: bool, wanted: Sequence[int] | None) -> list[int]:
    """Which maps are taken: those asked for, else four blocks of a plain transformer, else all of stride 4 and more."""
    count = len(info)
    if wanted is not None:
        indices = [index + count if index < 0 else index for index in wanted]
        right = bool(indices) and indices == sorted(set(indices)) and all(0 <= index < count for index in indices)
        if not right or (plain and len(indices) != 4):
            raise MultidenseError(
                f"out_indices of '{PREFIX}{name}' should be {'four' if plain else 'some'} of 0 … {count - 1} in rising order. "
                f"Found {list(wanted)}."
            )
        return indices
    if plain:
        return [max(round(count * share / 4) - 1, 0) for share in (1, 2, 3, 4)]
    return [index for index, each in enumerate(info) if each["reduction"] >= FINEST] or list(range(count))


def _translations(net: nn.Module) -> list[Callable[[dict], Any]]:
    """From the names of those who published a network, by what timm knows about them; and from those of a saved model here."""
    published = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    own = [lambda weights: {name.replace(".batchnorm.", "."): tensor for name, tensor in weights.items()}]
    return own + ([lambda weights: published(weights, net)] if published else [])


def _fit_of_timm(net: nn.Module, name: str) -> Fit:
    """timm loads all or fails."""
    size = sum(parameter.numel() for parameter in net.parameters())
    tag = net.pretrained_cfg.get("tag") or ""
    source = f"timm, {name.partition('.')[0]}{f'.{tag}' if tag else ''}"
    return Fit(source, tuple(net.state_dict()), parameters_loaded=size, parameters=size)


def _plain_batchnorm(net: nn.Module) -> nn.Module:
    """The network with every BatchNorm that also activates as a BatchNorm and what follows, in place: the former can be
    made one over several processes.
    """
    from timm.layers import BatchNormAct2d

    for name, layer in net.named_children():
        if type(layer) is BatchNormAct2d:
            norm = nn.BatchNorm2d(
                layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats, device="meta"
            )
            norm._parameters, norm._buffers = layer._parameters, layer._buffers
            parts = OrderedDict(batchnorm=norm.train(layer.training), drop=layer.drop, act=layer.act)
            setattr(net, name, nn.Sequential(parts))
        else:
            _plain_batchnorm(layer)
    return net
