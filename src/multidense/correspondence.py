"""Which predicted boundary pixels belong to which true ones: one-to-one, within a distance, as many as can be.

The official code (Martin, Fowlkes and Malik, PAMI 2004) solves a minimum-cost assignment in which an unmatched pixel costs
100 times the largest distance: it first matches as many pixels as it can, then chooses the shortest distances. How many are
matched is therefore the size of a maximum matching, whichever of them is chosen. Two differences remain. The official
assignment is solved on a graph thinned at random (every pixel keeps a few of its outlier edges), so that its counts vary a
little from run to run; and where one more pair could be had only by shifting more than about 100 others, its finite price
forgoes it.

With several truths the predicted pixels that *any* of them matches are counted, and then it matters which ones a truth took:
`nearest` chooses, among the largest matchings, one of the least total distance.

The matching is found by SciPy's maximum flow (Dinic) in the residual graph of a greedy start. Its Hopcroft–Karp,
`maximum_bipartite_matching`, takes time exponential in the length of a chain on graphs like these (SciPy issue 26147).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Integer, UInt64
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow, min_weight_full_bipartite_matching

from multidense.thinning import plane

NOBODY = -1


@dataclass(frozen=True)
class Candidates:
    """Which pixels of a stack may be matched with a truth's, at any of its maps.

    `places` `[n]` are the pixels (flat in the image) that some map holds within reach of a true pixel. `near` `[truth discs]`
    are their numbers around every true pixel, nearest first, n where there is none. `start` `[n + 1]` and `truths` list the
    true pixels within reach of every place; `distance` belongs to a disc's entry, in pixels.
    """

    places: Integer[np.ndarray, " n"]
    near: Integer[np.ndarray, "truth discs"]
    start: Integer[np.ndarray, " n1"]
    truths: Integer[np.ndarray, " pairs"]
    distance: np.ndarray


@lru_cache(maxsize=16)
def disc(radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets (rows, columns) within `radius` pixels and their lengths, nearest first."""
    whole = int(radius)
    y, x = (each.ravel() for each in np.mgrid[-whole : whole + 1, -whole : whole + 1])
    squared = y * y + x * x
    order = np.argsort(squared, kind="stable")
    order = order[squared[order] <= radius * radius]
    return y[order], x[order], np.sqrt(squared[order])


def candidates(maps: UInt64[np.ndarray, "words h w"], truth: Bool[np.ndarray, "h w"], radius: float) -> Candidates:
    """Every pair of a pixel of the maps and a true pixel no further than `radius` pixels apart."""
    height, width = truth.shape
    down, right, distance = disc(radius)
    row, column = np.nonzero(truth)
    rows, columns = row[:, None] + down, column[:, None] + right
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    flat = np.where(inside, rows * width + columns, 0)
    pair = inside & (np.bitwise_or.reduce(maps, axis=0) != 0).ravel()[flat]
    reached = np.zeros(height * width, bool)
    reached[flat[pair]] = True
    places = np.flatnonzero(reached)
    number = np.cumsum(reached) - 1
    near = np.where(pair, number[flat], len(places))
    graph = csr_array((np.ones(pair.sum(), np.int8), (near[pair], pair.nonzero()[0])), shape=(len(places), len(row)))
    return Candidates(places, near, graph.indptr, graph.indices, distance)


class Matching:
    """A matching between a truth and one map after another; it keeps what a map shares with the one before.

    `of_truth` `[truth]` is the place every true pixel is matched with, `of_place` `[n]` the reverse, both −1 for nobody.
    """

    def __init__(self, candidates: Candidates):
        self.candidates = candidates
        places, truths = len(candidates.places), len(candidates.near)
        self.present = np.zeros(places, bool)
        self.free = np.zeros(places + 1, bool)  # the last stands for "no place" and is never free
        self.of_place = np.full(places, NOBODY, np.int64)
        self.of_truth = np.full(truths, NOBODY, np.int64)

    def move_to(self, present: Bool[np.ndarray, " n"]) -> None:
        """Make it a maximum matching with the map that holds the places `present`."""
        gone, came = np.flatnonzero(self.present & ~present), np.flatnonzero(present & ~self.present)
        left = self.of_place[gone]
        self.of_truth[left[left != NOBODY]] = NOBODY
        self.of_place[gone] = NOBODY
        self.free[gone], self.free[came] = False, True
        self.present = present
        if not len(came) and (left == NOBODY).all():
            return  # what is left of the graph holds the whole matching, which was as large as the larger graph allows
        self._match_nearest()
        if self.free.any() and (self.of_truth == NOBODY).any():
            self._augment()

    def _match_nearest(self) -> None:
        """Match what can be matched at once, the shortest distances first."""
        near = self.candidates.near
        single = np.flatnonzero(self.of_truth == NOBODY)
        possible = self.free[near[single]]
        single, possible = single[possible.any(1)], possible[possible.any(1)]
        for step in np.flatnonzero(possible.any(0)):
            truth = single[possible[:, step]]
            place = near[truth, step]
            both = self.free[place] & (self.of_truth[truth] == NOBODY)
            self._pair(place[both], truth[both])

    def _pair(self, place: Integer[np.ndarray, " m"], truth: Integer[np.ndarray, " m"]) -> None:
        self.of_place[place], self.of_truth[truth], self.free[place] = truth, place, False

    def _augment(self) -> None:
        """Make it maximum: the largest flow from free places to free true pixels along alternating paths.

        Arcs lead from a place to the true pixels it might take, and from a matched true pixel to its place. What is matched
        stays matched, though perhaps with another.
        """
        start, truths = self.candidates.start, self.candidates.truths
        place = np.flatnonzero(self.present)
        length = start[place + 1] - start[place]
        entry = np.repeat(start[place] - np.cumsum(length) + length, length) + np.arange(length.sum())
        truth = truths[entry]
        truth = truth[self.of_truth[truth] != np.repeat(place, length)]
        length = length - (self.of_place[place] != NOBODY)
        free = np.flatnonzero(self.free[place])
        count, first, sink = len(self.of_truth), 1 + len(place), 1 + len(place) + len(self.of_truth)
        node = np.cumsum(self.present)
        back = np.where(self.of_truth == NOBODY, sink, node[self.of_truth])
        arcs = np.concatenate([1 + free, first + truth, back]).astype(np.int32)
        ends = np.cumsum(np.concatenate([[0, len(free)], length, np.ones(count, np.int64), [0]])).astype(np.int32)
        graph = csr_array((np.ones(len(arcs), np.int32), arcs, ends), shape=(sink + 1, sink + 1))
        flow = maximum_flow(graph, 0, sink).flow
        taken = np.flatnonzero(flow.data[flow.indptr[1] : flow.indptr[first]] > 0) + flow.indptr[1]
        origin = np.searchsorted(flow.indptr, taken, side="right") - 2
        self._pair(place[origin], flow.indices[taken] - first)

    def nearest(self) -> Integer[np.ndarray, " truth"]:
        """The place of every true pixel in a matching of the same size and the least total distance; −1 for nobody."""
        near, n = self.candidates.near, len(self.candidates.places)
        truth, step = np.nonzero(np.append(self.present, False)[near])
        chosen = np.full(len(near), NOBODY, np.int64)
        if not len(truth):
            return chosen
        alone = np.unique(truth)
        row = np.searchsorted(alone, truth)
        price = 1 + (len(alone) + 1) * (1 + self.candidates.distance[-1])  # more than any shifting of the others can save
        weight = np.concatenate([1 + self.candidates.distance[step], np.full(len(alone), price)])
        column = np.concatenate([near[truth, step], n + np.arange(len(alone))])
        rows = np.concatenate([row, np.arange(len(alone))])
        at, to = min_weight_full_bipartite_matching(csr_array((weight, (rows, column)), shape=(len(alone), n + len(alone))))
        chosen[alone[at]] = np.where(to < n, to, NOBODY)
        return chosen


def correspond(
    maps: UInt64[np.ndarray, "words h w"], count: int, truth: Bool[np.ndarray, "h w"], radius: float, nearest: bool = False
) -> tuple[Integer[np.ndarray, " count"], UInt64[np.ndarray, "words h w"]]:
    """How many true pixels each of the first `count` maps of a stack matches, and the stack of their matched pixels."""
    pairs = candidates(maps, truth, radius)
    words = maps.reshape(len(maps), -1)[:, pairs.places]
    matched = np.zeros_like(words)
    sizes = np.zeros(count, np.int64)
    matching = Matching(pairs)
    for k in range(count):
        matching.move_to(plane(words, k))
        partner = matching.nearest() if nearest else matching.of_truth
        taken = partner[partner != NOBODY]
        sizes[k] = len(taken)
        matched[k // 64, taken] |= np.uint64(1 << k % 64)
    found = np.zeros((len(maps), truth.size), np.uint64)
    found[:, pairs.places] = matched
    return sizes, found.reshape(maps.shape)
