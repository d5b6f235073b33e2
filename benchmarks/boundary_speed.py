"""What an image's boundary scores cost, stage by stage, and against the simplest correct version.

    python benchmarks/boundary_speed.py [--images 5] [--spread 20] [--out boundary-speed.json]

Drawn images of 321×481: regions of smooth noise, and a prediction that is a sigmoid of the distance to their boundaries,
with a strength and a texture of its own, so that the maps of neighbouring thresholds differ. Noise, too: the hardest there is.
99 thresholds, no suppression, one truth; then further annotators, whose regions are shifted smoothly by a pixel or two.

seconds  CPU time of one thread, median over images; `spread` is wall time, with the start of its processes apart
peak     highest memory of arrays while one image is counted, above what was held before (tracemalloc)
simplest thinning of whole maps, a k-d tree, one minimum-cost assignment with outliers a threshold (SciPy's LAPJVsp), one image
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when numpy is first imported

import argparse
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from multidense.boundaries import Protocol, count, count_all
from multidense.correspondence import Matching, candidates
from multidense.thinning import plane, region_boundaries, stack, suppress, thin_stack

SIZE = (321, 481)
RADIUS = 0.0075 * float(np.hypot(*SIZE))


def smooth(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Gaussian noise smoothed over `sigma` pixels, with deviation one."""
    field = ndimage.gaussian_filter(rng.standard_normal(SIZE), sigma)
    return field / field.std()


def drawn(seed: int, annotators: int = 1) -> tuple[np.ndarray, list[np.ndarray]]:
    """A prediction and its truths."""
    rng = np.random.default_rng(seed)
    labels = np.argmax([smooth(rng, 16) for _ in range(8)], axis=0)
    distance = ndimage.distance_transform_edt(~region_boundaries(labels))
    prediction = 1 / (1 + np.exp(0.8 * distance - 2.5 - 1.5 * smooth(rng, 20) - 1.2 * smooth(rng, 3)))
    truths = [region_boundaries(labels)]
    for _ in range(annotators - 1):
        moved = np.indices(SIZE) + np.stack([1.5 * smooth(rng, 8), 1.5 * smooth(rng, 8)])
        truths.append(region_boundaries(ndimage.map_coordinates(labels, moved, order=0, mode="nearest")))
    return prediction, truths


def timed(work: Callable[..., Any], *arguments: Any, clock: Callable[[], float] = time.process_time) -> tuple[float, Any]:
    began = clock()
    result = work(*arguments)
    return clock() - began, result


def stages(prediction: np.ndarray, truth: np.ndarray, protocol: Protocol) -> dict[str, float]:
    """Seconds of each stage of one image, and of the whole."""
    thresholds = np.asarray(protocol.thresholds)
    seconds = {}
    seconds["suppression"], values = timed(suppress, prediction) if protocol.nms else (0.0, prediction)
    seconds["thinning"], maps = timed(lambda: thin_stack(stack(values, thresholds, protocol.strict)))
    seconds["candidate pairs"], pairs = timed(candidates, maps, truth, RADIUS)
    words = maps.reshape(len(maps), -1)[:, pairs.places]

    def match() -> None:
        matching = Matching(pairs)
        for k in range(len(thresholds)):
            matching.move_to(plane(words, k))

    seconds["matching"], _ = timed(match)
    seconds["count"], _ = timed(count, prediction, [truth], protocol)
    return seconds


def simplest(prediction: np.ndarray, truth: np.ndarray, protocol: Protocol) -> list[int]:
    """Matched true pixels at every threshold, with nothing shared between thresholds."""
    true = np.argwhere(truth)
    tree = cKDTree(true)
    found = []
    for threshold in protocol.thresholds:
        predicted = np.argwhere(thin_whole(prediction >= threshold))
        if not len(predicted):
            found.append(0)
            continue
        near = tree.sparse_distance_matrix(cKDTree(predicted), RADIUS, output_type="coo_matrix")
        alone = np.arange(len(true))
        weight = np.concatenate([1 + near.data, np.full(len(true), 100 * RADIUS)])
        places = (np.concatenate([near.row, alone]), np.concatenate([near.col, len(predicted) + alone]))
        graph = csr_array((weight, places), shape=(len(true), len(predicted) + len(true)))
        found.append(int((min_weight_full_bipartite_matching(graph)[1] < len(predicted)).sum()))
    return found


def thin_whole(lines: np.ndarray) -> np.ndarray:
    """Guo and Hall's thinning, all pixels in every sub-iteration."""
    now = np.pad(lines, 1)
    while True:
        before = now
        for east in (0, 4):
            shifts = ((0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1))
            x = [np.roll(now, shift, (0, 1)) for shift in shifts]
            crossings = sum((~x[2 * i] & (x[2 * i + 1] | x[(2 * i + 2) % 8])).astype(np.int8) for i in range(4))
            ahead = sum((x[2 * i] | x[2 * i + 1]).astype(np.int8) for i in range(4))
            behind = sum((x[2 * i + 1] | x[(2 * i + 2) % 8]).astype(np.int8) for i in range(4))
            pairs = np.minimum(ahead, behind)
            side = (x[(east + 1) % 8] | x[(east + 2) % 8] | ~x[(east + 7) % 8]) & x[east]
            now = now & ~((crossings == 1) & (pairs >= 2) & (pairs <= 3) & ~side)
        if (now == before).all():
            return now[1:-1, 1:-1]


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(median(row[name] for row in rows), 4) for name in rows[0]}


def further_annotators(protocol: Protocol, images: int) -> dict[str, float]:
    """Seconds for one and for four truths, and so for one more."""
    rows = []
    for seed in range(images):
        prediction, truths = drawn(seed, annotators=4)
        one, four = (timed(count, prediction, truths[:n], protocol)[0] for n in (1, 4))
        rows.append({"one": one, "four": four, "each further": (four - one) / 3})
    return medians(rows)


def nearest_of_largest(images: int) -> dict[str, float]:
    """What choosing the nearest of the largest matchings costs a threshold and truth, and what it changes (four truths)."""
    seconds, differences = [], []
    for seed in range(images):
        prediction, truths = drawn(seed, annotators=4)
        most, nearest = (Protocol.plain(5, nearest=nearest) for nearest in (False, True))
        plain = count(prediction, truths, most)
        taken, exact = timed(count, prediction, truths, nearest)
        seconds.append(taken / 20)
        differences.append(100 * (plain.matched_prediction - exact.matched_prediction) / plain.prediction)
    return {
        "seconds a threshold and truth": round(median(seconds), 4),
        "precision, largest difference in points": round(float(np.abs(differences).max()), 4),
    }


def spread(protocol: Protocol, images: int) -> dict[str, float]:
    """Wall seconds an image with one process and two, and what beginning two takes."""
    pairs = [drawn(seed % 4) for seed in range(images)]
    clock = time.perf_counter
    one, _ = timed(count_all, pairs, protocol, 1, clock=clock)
    begin, _ = timed(count_all, [(np.zeros((8, 8)), [np.zeros((8, 8), bool)])] * 2, protocol, 2, clock=clock)
    two, _ = timed(count_all, pairs, protocol, 2, clock=clock)
    return {
        "images": images,
        "one process, s an image": round(one / images, 4),
        "two processes, s an image, their start included": round(two / images, 4),
        "start of two processes, s": round(begin, 4),
    }


def peak(protocol: Protocol) -> float:
    """Highest memory while one image is counted, in MiB."""
    prediction, truths = drawn(0)
    tracemalloc.start()
    count(prediction, truths, protocol)
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return round(highest / 2**20, 1)


def main() -> None:
    """All figures, printed and, with `--out`, as JSON with where they were measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5, help="drawn images that medians are over")
    parser.add_argument("--spread", type=int, default=20, help="images counted with one process and with two; 0: none")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    plain, nms = Protocol.plain(), Protocol.with_nms()
    pairs = [drawn(seed) for seed in range(options.images)]
    rng = np.random.default_rng(0)
    field = smooth(rng, 2)
    hard = {"noise": rng.random(SIZE), "smooth noise": (field - field.min()) / np.ptp(field)}
    found: dict[str, Any] = {}

    def tell(name: str, value: Any) -> None:
        found[name] = value
        print(f"{name:<28}{value}", flush=True)

    tell("true pixels", int(median(truth.sum() for _, (truth,) in pairs)))
    tell("stages, plain", medians([stages(prediction, truth, plain) for prediction, (truth,) in pairs]))
    tell("stages, nms", medians([stages(prediction, truth, nms) for prediction, (truth,) in pairs]))
    prediction, (truth,) = pairs[0]
    for name, values in hard.items():
        tell(f"stages, plain, {name}", medians([stages(values, truth, plain)]))
    tell("annotators", further_annotators(plain, min(options.images, 3)))
    tell("peak, MiB", peak(plain))
    seconds, matched = timed(simplest, prediction, truth, plain)
    fast, counts = timed(count, prediction, [truth], plain)
    told = {"seconds": round(seconds, 3), "of ours": round(fast, 3), "times": round(seconds / fast, 1)}
    tell("simplest", told | {"largest difference in matched pixels": int(np.abs(counts.matched_truth - matched).max())})
    tell("nearest", nearest_of_largest(min(options.images, 2)))
    if options.spread:
        tell("spread", spread(plain, options.spread))
    if options.out:
        from multidense.files import write_json
        from multidense.results import environment

        settings = {"size": list(SIZE), "images": options.images, "thresholds": len(plain.thresholds)}
        write_json(options.out, {"settings": settings, "found": found, "environment": environment()})


if __name__ == "__main__":
    main()
