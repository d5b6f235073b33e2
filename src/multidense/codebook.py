"""Codebooks: the centres that let a continuous task be classified, and be decoded again by expectation.

A codebook is a tensor `[k c]`: `k` depths (c = 1), or `k` unit vectors (c = 3).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multidense.ops import unit


def log_bins(low: float, high: float, bins: int) -> Float[Tensor, "k 1"]:
    """`bins` centres spread evenly in log space from `low` to `high`, both included (HiTTs, NYUv2: 30 on 0.67 … 10 m)."""
    if not 0 < low < high:
        raise ValueError(f"log bins need 0 < low < high, found {low} and {high}")
    return torch.linspace(math.log(low), math.log(high), bins, dtype=torch.float64).exp().float()[:, None]


def nearest_bin(values: Float[Tensor, "b 1 h w"], codebook: Float[Tensor, "k 1"]) -> Int[Tensor, "b h w"]:
    """Index of the centre nearest in log space; values beyond the ends belong to the end bins."""
    logs = codebook[:, 0].log()
    return torch.bucketize(values[:, 0].contiguous().log(), (logs[1:] + logs[:-1]) / 2)


def nearest_direction(vectors: Float[Tensor, "b 3 h w"], codebook: Float[Tensor, "k 3"]) -> Int[Tensor, "b h w"]:
    """Index of the centre at the smallest angle."""
    return torch.einsum("bchw,kc->bkhw", vectors, codebook).argmax(1)


def expectation(logits: Float[Tensor, "b k h w"], codebook: Float[Tensor, "k c"]) -> Float[Tensor, "b c h w"]:
    """Σ_k softmax(logits)_k · centre_k: the paper's equation (10), linear in the centres."""
    return torch.einsum("bkhw,kc->bchw", logits.softmax(1), codebook.to(logits.dtype))


def sphere(centers: int, hemisphere: bool = True) -> Float[Tensor, "k 3"]:
    """Unit vectors spread evenly (a Fibonacci lattice) over the half sphere that faces the viewer, or the whole one."""
    index = torch.arange(centers, dtype=torch.float64) + 0.5
    z = 1 - index / centers if hemisphere else 1 - 2 * index / centers
    radius, turn = (1 - z * z).sqrt(), math.pi * (1 + math.sqrt(5)) * index
    return torch.stack([radius * turn.cos(), radius * turn.sin(), z], dim=1).float()


def spherical_kmeans(vectors: Float[Tensor, "n 3"], centers: int, seed: int, iterations: int = 30) -> Float[Tensor, "k 3"]:
    """Unit-vector centres by K-means under the cosine, started far apart (k-means++), deterministic for its seed.

    A centre that loses all its vectors moves to the vector that is served worst.
    """
    if len(vectors) < centers:
        raise ValueError(f"{centers} centres need at least as many labelled pixels, found {len(vectors)}")
    generator = torch.Generator().manual_seed(seed)
    vectors = vectors.double()
    chosen = [vectors[int(torch.randint(len(vectors), (1,), generator=generator))]]
    cosine = vectors @ chosen[0]
    for _ in range(centers - 1):
        odds = (1 - cosine).clamp(min=0) + 1e-12
        chosen.append(vectors[int(torch.multinomial(odds, 1, generator=generator))])
        cosine = torch.maximum(cosine, vectors @ chosen[-1])
    codebook = torch.stack(chosen)
    for _ in range(iterations):
        similarity, nearest = (vectors @ codebook.T).max(1)
        sums = torch.zeros_like(codebook).index_add_(0, nearest, vectors)
        empty = nearest.bincount(minlength=centers) == 0
        if empty.any():
            sums[empty] = vectors[similarity.topk(int(empty.sum()), largest=False).indices]
        updated = unit(sums.T[:, :, None])[:, :, 0].T
        if torch.equal(updated, codebook):
            break
        codebook = updated
    return codebook.float()
