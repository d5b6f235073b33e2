"""Hierarchical Task Tokens on a pyramid of maps (HiTTs, arXiv 2411.18823): ResNet's in all PASCAL-Context tables.

    F_s^(j) ─ Query ─ InterTask ─┐ for each scale j                  ┌─ M^f, confidence
    θ^(j) = W_i^(j) θ ─┴─────────┴─ fuse (14)–(18) ─ ASPP ─ IntraTask ─┴─ FineGrained ─ G', the logits

Numbers in parentheses are the paper's equations. Per scale, d_j channels: θ_i^(j) = W_i^(s→m,j) θ_i, query and inter-task
learning as on a single scale. Then F'_i = Conv1×1([F'_i^(0); …; F'_i^(3)]) at the size of the finest map, and
θ'_i = Σ_j W_i^(m→s,j) θ'_i^(j). `multi_scale=False` fuses the maps of the backbone first, once, and has one scale.

Axes: `b` images, `t` tasks, `d` channels of one scale, `c` of the heads, `h w` the size of the finest map, `k` categories.

What differs from the text, or settles what it leaves open (protocol 9.2, rows 8 and 26–28):
- The text fuses "features after intra-task learning … before intra-task learning": read as after inter-task learning.
- θ_i lives in the widest space, that of the coarsest map (512 at full width); fused maps have as many channels.
- Every task has a fusion, and projections of its token, of its own. What Σ_j adds up is one projection of [θ'^(0); …; θ'^(3)].
- A Conv1×1 of enlarged maps is their enlarged Conv1×1, so each scale is convolved at its own size, then enlarged and added.
- A head a task, ASPP and Conv3×3 as in the decoder 'aspp', stands before intra-task learning, which sees what it returns.
- The MLP of (3) is half as wide as the heads (128 at 256 channels), as in the authors' code; the single-scale decoder's is 2c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from multidense.models.decoders.aspp import ASPP, conv_norm_relu, default_head_channels, initialise_kaiming
from multidense.models.decoders.hitts import (
    FineGrained,
    InterTask,
    IntraTask,
    Query,
    TokenDecoder,
    check_made_of_something,
    check_positive,
)
from multidense.ops import resize
from multidense.task import Task
from multidense.types import Features, Outputs


class PyramidTaskTokens(TokenDecoder):
    """The decoder: reads all maps `[b d_j h_j w_j]`, fine to coarse; `Outputs` carries everything that the tokens say.

    features F'_i `[b c h w]`, c = `head_channels` (by default as in 'aspp'), and confidence M^f_i `[b 1 h w]` at the size of
    the finest map; score_maps φ_i F'_i `[b k h2 w2]`, `fine_stride` times coarser; tokens θ'_i `[b c]` (after intra-task
    learning), fine_tokens φ_i `[b k c]`; logits G'_i `[b k height width]` at the image's size, enlarged from those at the size
    of the finest map.

    `gate_stride` (default 2, on a single scale 1) is that of the query on every scale; `intra_stride` and `fine_stride` count
    from the finest map. `attention_channels` (default c) is the width of intra-task attention; `rates` and `dropout` are those
    of ASPP. `identity_bias`, `aligned` and the last five switches are those of `HierarchicalTaskTokens`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        multi_scale: bool = True,
        head_channels: int | None = None,
        attention_channels: int | None = None,
        rates: Sequence[int] = (12, 24, 36),
        dropout: float = 0.5,
        gate_stride: int | None = None,
        intra_stride: int = 2,
        fine_stride: int = 1,
        identity_bias: bool = False,
        aligned: bool = True,
        orthogonal_embeddings: bool = True,
        inter_task: bool = True,
        intra_task: bool = True,
        global_tokens: bool = True,
        fine_tokens: bool = True,
    ) -> None:
        super().__init__()
        head_channels = default_head_channels(channels[-1]) if head_channels is None else head_channels
        attention = head_channels if attention_channels is None else attention_channels
        gate = (2 if multi_scale else 1) if gate_stride is None else gate_stride
        check_positive(head_channels=head_channels, attention_channels=attention)
        check_positive(gate_stride=gate, intra_stride=intra_stride, fine_stride=fine_stride)
        check_made_of_something(fine_tokens, orthogonal_embeddings, global_tokens)
        names, widest = [task.name for task in tasks], channels[-1]
        widths = tuple(channels) if multi_scale else (widest,)
        self.scale_names = tuple(f"scale {j}, stride {stride}" for j, stride in enumerate(strides)) if multi_scale else ("",)

        self.tokens = nn.ParameterDict({name: nn.Parameter(torch.randn(widest)) for name in names if global_tokens})
        self.shared = None if multi_scale else Fusion(channels, widest)
        self.to_scales = nn.ModuleDict(
            {name: nn.Linear(widest, sum(widths)) for name in names if global_tokens and multi_scale}
        )
        self.scales = nn.ModuleList(
            Scale(names, width, gate if global_tokens else None, inter_task and global_tokens, identity_bias)
            for width in widths
        )
        self.fuse = nn.ModuleDict({name: Fusion(widths, widest) for name in names if multi_scale})
        self.from_scales = nn.ModuleDict({name: nn.Linear(sum(widths), head_channels) for name in names if global_tokens})
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(
                    ASPP(widest, head_channels, rates, dropout), *conv_norm_relu(head_channels, head_channels, kernel=3)
                )
                for name in names
            }
        )
        self.intra_task = nn.ModuleDict(
            {name: IntraTask(head_channels, attention, intra_stride, intra_task, global_tokens) for name in names}
        )
        hidden = max(1, head_channels // 2)
        self.fine_grained = nn.ModuleDict(
            {
                task.name: FineGrained(task.channels, head_channels, fine_stride, fine_tokens, orthogonal_embeddings, hidden)
                for task in tasks
            }
        )
        self.initialise(aligned)
        initialise_kaiming(self.heads)
        for fusion in (*self.fuse.values(), *filter(None, [self.shared])):
            fusion.initialise()

    def forward(self, features: Features, size: tuple[int, int]) -> Outputs:
        maps = features.maps if self.shared is None else (self.shared(features.maps),)
        seen = [scale(tokens, each) for scale, tokens, each in zip(self.scales, self.scale_tokens(), maps, strict=True)]
        tokens = {name: project(torch.cat([own[name] for own, _ in seen])) for name, project in self.from_scales.items()}
        task_features = {}
        for name, head in self.heads.items():
            own = [found[name] for _, found in seen]
            task_features[name] = head(self.fuse[name](own) if self.fuse else own[0])
        return self.refined(task_features, tokens, size)

    def scale_tokens(self) -> Sequence[Float[Tensor, "t _"] | None]:
        """Θ^(j) of every scale; None each without global tokens."""
        if not self.tokens:
            return [None] * len(self.scales)
        if not self.to_scales:
            return [self.global_tokens()]
        projected = torch.stack([self.to_scales[name](self.tokens[name]) for name in self.intra_task])
        return projected.split([scale.channels for scale in self.scales], dim=1)

    def affinities(self) -> dict[str, Float[Tensor, "t t"]]:
        each = zip(self.scale_names, self.scales, self.scale_tokens(), strict=True)
        return {name: scale.inter_task.affinity(tokens) for name, scale, tokens in each if scale.inter_task.mixes}


class Scale(nn.Module):
    """Query and inter-task learning on one map: tokens Θ' and features F'_i of its own. `gate` is the stride of the query."""

    def __init__(self, names: Sequence[str], channels: int, gate: int | None, mixes: bool, identity_bias: bool) -> None:
        super().__init__()
        self.channels = channels
        self.query = None if gate is None else Query(channels, gate)
        self.inter_task = InterTask(names, channels, mixes, identity_bias)

    def forward(
        self, tokens: Float[Tensor, "t d"] | None, shared: Float[Tensor, "b d h w"]
    ) -> tuple[Mapping[str, Float[Tensor, " d"]], Mapping[str, Float[Tensor, "b d h w"]]]:
        gates = None if self.query is None else self.query(tokens, shared)
        return self.inter_task(tokens, gates, shared)


class Fusion(nn.Module):
    """Conv1×1 of maps of several sizes side by side, at the size of the first: `[b d_j h_j w_j]` to `[b d h w]`.

    It is held as the parts of its weight that belong to each map; the first has the bias.
    """

    def __init__(self, channels: Sequence[int], fused: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(each, fused, kernel_size=1, bias=j == 0) for j, each in enumerate(channels))

    def initialise(self) -> None:
        """Xavier-normal, as of the one convolution that the parts make up."""
        inputs, outputs = sum(part.in_channels for part in self.parts), self.parts[0].out_channels
        for part in self.parts:
            nn.init.normal_(part.weight, std=(2 / (inputs + outputs)) ** 0.5)

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b d h w"]:
        size = tuple(maps[0].shape[-2:])
        fused = self.parts[0](maps[0])
        for part, each in zip(self.parts[1:], maps[1:], strict=True):
            fused = fused + resize(part(each), size)
        return fused
