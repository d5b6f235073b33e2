"""Hierarchical Task Tokens (HiTTs), single scale: "Multi-Task Label Discovery via Hierarchical Task Tokens for
Partially Annotated Dense Predictions" (Zhang et al., arXiv 2411.18823). Numbers in parentheses are its equations.

    F_s ─ Query ─ InterTask (1)(2) ─ IntraTask ─┬─ M^f, confidence
    θ ────┴──────────┴───────────────────┴──────┴─ FineGrained (3)(4) ─ G', the logits

Axes: `b` images, `t` tasks, `c` channels of F_s, `h w` its size, `k` categories (logits) of one task, `a` of attention.

What differs from the text, or settles what it leaves open:
- A token queries the feature through a spatial sigmoid gate, computed at `gate_stride`.
- A is scaled by 1/√c. Since Σ_j A_ij (g_j ⊙ F_s) = (Σ_j A_ij g_j) ⊙ F_s, the mix 𝓕' = A𝓕 is done on t one-channel gates.
  Keys have no bias in any attention here: softmax cannot see it, so it would never learn.
- Conv3×3, BatchNorm, ReLU follow the inter-task and the intra-task step, one of each per task.
- Intra-task attention runs at `intra_stride`: one head, no positions, a residual on the features but not on the token.
- Tokens stay per image from there on (the authors average them over the batch), so no prediction depends on its batch mates.
- Global tokens are registered parameters and learn (in the authors' code they are neither trained nor saved).
- In (4) the fine-grained tokens multiply the task feature F'_i, for φ_i `[k c]` times G_i `[k h w]` does not fit; being linear,
  the product is taken at `fine_stride` and enlarged. The MLP of (3) works along the category axis.
- A switched-off part takes its parameters with it. With a single task there is nothing to mix, so A and its weights are gone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from multidense.models.decoders.shared import check_finest
from multidense.models.layers import Coarsen, conv3x3, conv_block, initialise_convolutions, recomputed, refine
from multidense.ops import resize
from multidense.task import Task
from multidense.types import Features, MultidenseError, Outputs


class TokenDecoder(nn.Module, ABC):
    """What decoders with task tokens share: global tokens, and all that follows inter-task learning.

    Who derives from it fills `tokens` (empty without global tokens), `intra_task` and `fine_grained`, each by task name.
    """

    needs_stages = False
    tokens: nn.ParameterDict
    intra_task: nn.ModuleDict
    fine_grained: nn.ModuleDict

    def global_tokens(self) -> Float[Tensor, "t c"]:
        """Θ, in the order of the tasks (which is not the order of the dict that holds them)."""
        return torch.stack([self.tokens[name] for name in self.intra_task])

    @abstractmethod
    def affinities(self) -> dict[str, Float[Tensor, "t t"]]:
        """A of (1) by the name of its scale, "" where there is only one; empty where nothing is mixed."""

    def refined(
        self,
        task_features: Mapping[str, Float[Tensor, "b c h w"]],
        tokens: Mapping[str, Float[Tensor, " c"]],
        size: tuple[int, int],
        finish: Callable[[Tensor], Tensor] = lambda feature: feature,
    ) -> Outputs:
        """Intra-task learning and everything after it; `finish` is done to each task feature in between."""
        logits, features, confidence, refined_tokens, fine_tokens, score_maps = {}, {}, {}, {}, {}, {}
        for name, intra_task in self.intra_task.items():
            feature, token = intra_task(task_features[name], tokens.get(name))
            feature = finish(feature)
            fine_logits, phi, scores = self.fine_grained[name](feature, token)
            features[name], logits[name] = feature, resize(fine_logits, size)
            if token is not None:
                refined_tokens[name] = token
                confidence[name] = torch.einsum("bc,bchw->bhw", token, feature).sigmoid()[:, None]
            if phi is not None:
                fine_tokens[name], score_maps[name] = phi, scores
        return Outputs(
            logits=logits,
            features=features,
            confidence=confidence,
            tokens=refined_tokens,
            fine_tokens=fine_tokens,
            score_maps=score_maps,
        )

    def initialise(self, aligned: bool) -> None:
        """Convolutions as published; the last of (4) as the identity where `aligned`."""
        initialise_convolutions(self)
        if aligned:
            for fine_grained in self.fine_grained.values():
                nn.init.dirac_(fine_grained.to_logits.weight)


class HierarchicalTaskTokens(TokenDecoder):
    """The decoder: reads the finest map F_s `[b c h w]`; `Outputs` carries everything that the tokens say.

    features F'_i `[b c h w]` and confidence M^f_i `[b 1 h w]` at the size of F_s; score_maps φ_i F'_i `[b k h2 w2]`,
    `fine_stride` times coarser; tokens θ'_i `[b c]` (after intra-task learning), fine_tokens φ_i `[b k c]`; logits G'_i
    `[b k height width]` at the image's size.

    `attention_channels` (default c/2) is the width of intra-task attention, `identity_bias` makes the affinities (A + I)/2,
    the three strides trade memory for resolution. The last five switches are the ablations of the paper's Table 5.

    `aligned` (default) starts the last convolution of (4) as the identity: channel k of G_i and row k of φ_i then stand for
    category k from the first step on. From a random start nothing ties them to it, and they end without one of their own.

    `lean` is not the paper's: query, inter-task and intra-task steps see F_s on a grid twice as coarse (so do their strides),
    and what a task finds there is enlarged and added to F_s: F'_i = F_s + what was found. Everything after that is the same.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        gate_stride: int = 2,
        intra_stride: int = 4,
        fine_stride: int = 2,
        attention_channels: int | None = None,
        identity_bias: bool = False,
        lean: bool = False,
        aligned: bool = True,
        orthogonal_embeddings: bool = True,
        inter_task: bool = True,
        intra_task: bool = True,
        global_tokens: bool = True,
        fine_tokens: bool = True,
    ) -> None:
        super().__init__()
        width = channels[0]
        attention = max(1, width // 2) if attention_channels is None else attention_channels
        check_finest("hitts", strides, "hitts-ms")
        check_positive(
            gate_stride=gate_stride, intra_stride=intra_stride, fine_stride=fine_stride, attention_channels=attention
        )
        check_made_of_something(fine_tokens, orthogonal_embeddings, global_tokens)
        names = [task.name for task in tasks]
        self.coarsen = Coarsen(width, stride=2) if lean else None
        self.tokens = nn.ParameterDict({name: nn.Parameter(torch.randn(width)) for name in names if global_tokens})
        self.query = Query(width, gate_stride) if global_tokens else None
        self.inter_task = InterTask(names, width, mixes=inter_task and global_tokens, identity_bias=identity_bias)
        self.intra_task = nn.ModuleDict(
            {name: IntraTask(width, attention, intra_stride, attends=intra_task, with_token=global_tokens) for name in names}
        )
        self.fine_grained = nn.ModuleDict(
            {task.name: FineGrained(task.channels, width, fine_stride, fine_tokens, orthogonal_embeddings) for task in tasks}
        )
        self.initialise(aligned)

    def forward(self, features: Features, size: tuple[int, int]) -> Outputs:
        finest = features.maps[0]
        shared = self.coarsen(finest) if self.coarsen else finest
        tokens = self.global_tokens() if self.query else None
        gates = self.query(tokens, shared) if self.query else None
        tokens, task_features = self.inter_task(tokens, gates, shared)

        def finish(feature: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b c h w"]:
            return finest + refine(feature, self.coarsen.stride, finest.shape[-2:]) if self.coarsen else feature

        return self.refined(task_features, tokens, size, finish)

    def affinities(self) -> dict[str, Float[Tensor, "t t"]]:
        return {"": self.inter_task.affinity(self.global_tokens())} if self.inter_task.mixes else {}


class Query(nn.Module):
    """Each global token says where in F_s its task looks: g_i = σ⟨θ_i, F_s⟩, so that F_i = g_i ⊙ F_s."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.coarsen = Coarsen(channels, stride)

    def forward(self, tokens: Float[Tensor, "t c"], shared: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t h w"]:
        gates = torch.einsum("tc,bchw->bthw", tokens, self.coarsen(shared)).sigmoid()
        return refine(gates, self.coarsen.stride, shared.shape[-2:])


class InterTask(nn.Module):
    """(1) A = softmax(QKᵀ/√c) over the tasks, Q = ΘW_q, K = ΘW_k; (2) Θ' = AΘ, 𝓕' = A𝓕; then one conv block a task.

    Where nothing mixes (one task, or switched off) A is the identity; without tokens every F_i is F_s itself.
    """

    def __init__(self, names: Sequence[str], channels: int, mixes: bool, identity_bias: bool) -> None:
        super().__init__()
        self.mixes, self.identity_bias = mixes and len(names) > 1, identity_bias
        if self.mixes:
            self.to_query = nn.Linear(channels, channels)
            self.to_key = nn.Linear(channels, channels, bias=False)
        self.convs = nn.ModuleDict({name: conv_block(channels, channels) for name in names})

    def forward(
        self,
        tokens: Float[Tensor, "t c"] | None,
        gates: Float[Tensor, "b t h w"] | None,
        shared: Float[Tensor, "b c h w"],
    ) -> tuple[Mapping[str, Float[Tensor, " c"]], Mapping[str, Float[Tensor, "b c h w"]]]:
        if tokens is None:
            return {}, {name: conv(shared) for name, conv in self.convs.items()}
        if self.mixes:
            affinity = self.affinity(tokens)
            tokens, gates = affinity @ tokens, torch.einsum("ij,bjhw->bihw", affinity, gates)
        features = {
            name: block[1:](recomputed(block[0], torch.mul, gates[:, i, None], shared))
            for i, (name, block) in enumerate(self.convs.items())
        }
        return dict(zip(self.convs, tokens, strict=True)), features

    def affinity(self, tokens: Float[Tensor, "t c"]) -> Float[Tensor, "t t"]:
        """A: how much of every task (column) goes into each (row); rows sum to one."""
        scale = 1 / math.sqrt(tokens.shape[1])
        affinity = (scale * self.to_query(tokens) @ self.to_key(tokens).T).softmax(dim=1)
        return (affinity + torch.eye(len(tokens)).to(affinity)) / 2 if self.identity_bias else affinity


class IntraTask(nn.Module):
    """Self-attention of one task over [θ'_i ; F'_i]: token and feature learn from each other. Then a conv block.

    F'_i stays at its resolution (residual); the attention sees its `stride`-fold coarser grid.
    """

    def __init__(self, channels: int, attention: int, stride: int, attends: bool, with_token: bool) -> None:
        super().__init__()
        self.attends, self.stride = attends, stride
        if attends:
            self.coarsen = nn.ModuleDict({role: Coarsen(channels, stride, bias=False) for role in ROLES})
            self.project = nn.ModuleDict({role: nn.Linear(channels, attention, bias=role != "key") for role in ROLES})
            self.to_feature = nn.Linear(attention, channels)
            self.to_token = nn.Linear(attention, channels) if with_token else None
        self.conv = conv_block(channels, channels)

    def forward(
        self, feature: Float[Tensor, "b c h w"], token: Float[Tensor, " c"] | None
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c"] | None]:
        token = None if token is None else token.expand(len(feature), -1)
        if not self.attends:
            return self.conv(feature), token
        context, token = self.attention(feature, token)
        return self.conv[1:](recomputed(self.conv[0], self.residual, feature, context)), token

    def residual(self, feature: Float[Tensor, "b c h w"], context: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b c h w"]:
        """The feature with what its grid gathered."""
        return feature + refine(context, self.stride, feature.shape[-2:])

    def attention(
        self, feature: Float[Tensor, "b c h w"], token: Float[Tensor, "b c"] | None
    ) -> tuple[Float[Tensor, "b c h2 w2"], Float[Tensor, "b c"] | None]:
        """What every position of the grid, and the token, gathers from all of them."""
        sequences = {}
        for role in ROLES:
            grid = self.coarsen[role](feature)
            rows = grid.flatten(2).transpose(1, 2)
            sequence = rows if token is None else torch.cat([token[:, None], rows], dim=1)
            sequences[role] = self.project[role](sequence)[:, None]  # [b 1 n a], one head
        attended = F.scaled_dot_product_attention(*sequences.values())[:, 0]
        if token is not None:
            token, attended = self.to_token(attended[:, 0]), attended[:, 1:]
        return self.to_feature(attended).transpose(1, 2).unflatten(2, grid.shape[-2:]), token


ROLES = ("query", "key", "value")


class FineGrained(nn.Module):
    """One token a category, and what it finds: (3) φ_i = MLP_i(W^o_i o + θ'_i)ᵀ, (4) G'_i = Conv3×3(G_i ⊙ Softplus(φ_i F'_i)).

    o `[k k]` is a fixed orthonormal basis that keeps the rows of φ_i apart (without it, θ'_i is repeated k times). G_i is a
    Conv1×1 of F'_i. Without tokens, G'_i = Conv3×3(G_i). `hidden` (default 2c) is the width of the MLP.
    """

    def __init__(
        self,
        categories: int,
        channels: int,
        stride: int,
        fine_tokens: bool,
        orthogonal_embeddings: bool,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.categories = categories
        self.to_maps = nn.Conv2d(channels, categories, kernel_size=1)
        self.to_logits = conv3x3(categories, categories)
        self.embed, self.mlp = None, None
        if fine_tokens:
            if orthogonal_embeddings:
                self.register_buffer("basis", torch.eye(categories), persistent=False)
                self.embed = nn.Linear(categories, channels)
            self.mlp = _mlp(categories, hidden=2 * channels if hidden is None else hidden)
            self.coarsen = Coarsen(channels, stride)

    def forward(
        self, feature: Float[Tensor, "b c h w"], token: Float[Tensor, "b c"] | None
    ) -> tuple[Float[Tensor, "b k h w"], Float[Tensor, "b k c"] | None, Float[Tensor, "b k h2 w2"] | None]:
        """The logits G'_i, the fine-grained tokens φ_i and their score maps φ_i F'_i."""
        maps = self.to_maps(feature)
        if self.mlp is None:
            return self.to_logits(maps), None, None
        phi = self.tokens(token).expand(len(feature), -1, -1)
        coarse = self.coarsen(feature)
        rows = coarse.flatten(2).mT @ phi.mT  # pixels first, so that the scores lie in memory as the maps do
        scores = rows.mT.unflatten(2, coarse.shape[-2:])
        return recomputed(self.to_logits, self.refined, maps, scores), phi, scores

    def refined(self, maps: Float[Tensor, "b k h w"], scores: Float[Tensor, "b k h2 w2"]) -> Float[Tensor, "b k h w"]:
        """G_i ⊙ Softplus(φ_i F'_i)."""
        return maps * F.softplus(refine(scores, self.coarsen.stride, maps.shape[-2:]))

    def tokens(self, token: Float[Tensor, "b c"] | None) -> Float[Tensor, "_ k c"]:
        """(3); of one row only, the same for all images, where there are no global tokens."""
        embedded = self.embed(self.basis)[None] if self.embed else 0
        repeated = token[:, None].expand(-1, self.categories, -1) if token is not None else 0
        return self.mlp((embedded + repeated).mT).mT


def _mlp(categories: int, hidden: int) -> nn.Sequential:
    """k → hidden → hidden → k along the category axis, with LayerNorm and GELU between."""
    return nn.Sequential(
        nn.Linear(categories, hidden),
        nn.LayerNorm(hidden),
        nn.GELU(),
        nn.Linear(hidden, hidden),
        nn.LayerNorm(hidden),
        nn.GELU(),
        nn.Linear(hidden, categories),
    )


def check_positive(**options: int) -> None:
    """An error unless all are whole numbers of at least 1."""
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise MultidenseError(f"{name} should be a whole number of at least 1. Found {value!r}.")


def check_made_of_something(fine_tokens: bool, orthogonal_embeddings: bool, global_tokens: bool) -> None:
    """An error where fine-grained tokens are wanted, and both parts of which they are made are off."""
    if fine_tokens and not (orthogonal_embeddings or global_tokens):
        raise MultidenseError(
            "fine-grained tokens need something to be made of: expected orthogonal_embeddings or global_tokens to be on, "
            "found both off. Turn one on, or fine_tokens off as well."
        )
