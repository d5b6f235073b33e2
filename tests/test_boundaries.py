"""Boundary scores: thinning, one-to-one matching, the sums and what is made of them."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from multidense.boundaries import BoundaryMeter, Counts, Protocol, count, count_all
from multidense.correspondence import Matching, candidates, correspond, disc
from multidense.thinning import plane, region_boundaries, stack, suppress, thin, thin_stack, totals
from multidense.types import MultidenseError, Target

maps = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=14))
SHIFTS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))  # x1 … x8: east, then counter-clockwise
TEN_PIXELS = 10 / math.hypot(60, 80)


# The simplest correct version


@cache
def conditions(neighbours: tuple[bool, ...], second: bool) -> bool:
    """Guo and Hall's G1, G2, G3 (G3' if `second`), word by word."""
    x = (None, *neighbours, neighbours[0])
    crossings = sum(not x[2 * i - 1] and (x[2 * i] or x[2 * i + 1]) for i in range(1, 5))
    pairs = min(sum(x[2 * k - 1] or x[2 * k] for k in range(1, 5)), sum(x[2 * k] or x[2 * k + 1] for k in range(1, 5)))
    across = (x[6] or x[7] or not x[4]) and x[5] if second else (x[2] or x[3] or not x[8]) and x[1]
    return crossings == 1 and 2 <= pairs <= 3 and not across


def thin_slowly(lines):
    now = np.pad(lines, 1)
    while True:
        before = now.copy()
        for second in (False, True):
            seen = now.copy()
            for y, x in np.argwhere(seen):
                now[y, x] = not conditions(tuple(bool(seen[y + dy, x + dx]) for dy, dx in SHIFTS), second)
        if (now == before).all():
            return now[1:-1, 1:-1]


def assign_slowly(predicted, true, radius):
    """How many pairs the dense minimum-cost assignment has, an unmatched pixel costing 100 radii."""
    a, b = np.argwhere(predicted), np.argwhere(true)
    distance = np.hypot(*np.moveaxis(a[:, None] - b[None], -1, 0)).reshape(len(a), len(b))
    outlier = 100 * max(radius, 1)
    cost = np.full((len(a) + len(b),) * 2, 0.0)
    cost[: len(a), : len(b)] = np.where(distance <= radius, distance, 10 * outlier)
    cost[: len(a), len(b) :] = cost[len(a) :, : len(b)] = outlier
    row, column = linear_sum_assignment(cost)
    pairs = (row < len(a)) & (column < len(b))
    return np.count_nonzero(pairs & (cost[row, column] <= radius)), cost[row, column][pairs].sum()


def count_slowly(prediction, truth, protocol):
    """Matched true pixels, true pixels, predicted pixels at every threshold, one truth."""
    radius = protocol.max_dist * math.hypot(*truth.shape)
    cuts = [thin_slowly(prediction > t if protocol.strict else prediction >= t) for t in protocol.thresholds]
    return np.array([(assign_slowly(cut, truth, radius)[0], truth.sum(), cut.sum()) for cut in cuts]).T


def line(*rows, shape=(60, 80), columns=slice(10, 70)):
    drawn = np.zeros(shape, bool)
    for row in rows:
        drawn[row, columns] = True
    return drawn


def within(pixels, **more):
    """A protocol with three thresholds that reaches so many pixels in a map of 60×80."""
    return Protocol.plain(3, max_dist=pixels / math.hypot(60, 80), **more)


def columns_of(counts):
    return counts.table.T.tolist()


# Thinning


@pytest.mark.parametrize("second", [False, True])
def test_the_bitwise_conditions_are_the_papers(second):
    centre = np.zeros((256, 3, 3), bool)
    centre[:, 1, 1] = True
    for bit, (dy, dx) in enumerate(SHIFTS):
        centre[:, 1 + dy, 1 + dx] = np.arange(256) >> bit & 1
    from multidense.thinning import _deletable

    around = [centre[:, 1 + dy, 1 + dx].astype(np.uint64) for dy, dx in SHIFTS]
    expected = [conditions(tuple(bool(each[n]) for each in around), second) for n in range(256)]
    assert ((_deletable(*around, second) & np.uint64(1)) == expected).all()
    assert 0 < sum(expected) < 128


@given(maps)
@settings(max_examples=60)
def test_thinning_is_that_of_the_simplest_version(lines):
    assert (thin(lines) == thin_slowly(lines)).all()


def test_thinning_a_square_with_a_tail_gives_what_public_implementations_document():
    square = np.zeros((7, 7), bool)
    square[1:-1, 2:-2] = square[0, 1] = True
    assert np.argwhere(thin(square)).tolist() == [[0, 1], [1, 2], [2, 3], [3, 3], [4, 3]]


@given(maps)
@settings(max_examples=60)
def test_thinning_removes_only_and_once_and_keeps_parts_and_holes(lines):
    thinned = thin(lines)
    assert not (thinned & ~lines).any()
    assert (thin(thinned) == thinned).all()
    eight = np.ones((3, 3))
    assert ndimage.label(thinned, eight)[1] == ndimage.label(lines, eight)[1]
    assert (
        ndimage.label(np.pad(~thinned, 1, constant_values=True))[1] == ndimage.label(np.pad(~lines, 1, constant_values=True))[1]
    )


def test_a_thinned_bar_is_one_pixel_wide_and_a_line_stays():
    assert thin(line(20, 21, 22)).sum(0).max() == 1
    assert (thin(line(20)) == line(20)).all()
    assert not thin(np.zeros((4, 5), bool)).any()


def test_a_stack_thins_each_of_its_maps_alone(rng):
    values = ndimage.gaussian_filter(rng.random((40, 50)), 2)
    thresholds = np.linspace(values.min(), values.max(), 70)
    together = thin_stack(stack(values, thresholds))
    assert len(together) == 2
    for k in (0, 30, 63, 64, 69):
        assert (plane(together, k) == thin(values >= thresholds[k])).all()
    assert totals(together, 70).tolist() == [plane(together, k).sum() for k in range(70)]


def test_thresholds_are_inclusive_unless_strict():
    values, thresholds = np.array([[0.0, 0.25, 0.5, 1.0]]), np.array([0.25, 0.5, 1.0])
    cut = [[plane(stack(values, thresholds, strict), k)[0].tolist() for k in range(3)] for strict in (False, True)]
    assert cut[0] == [[False, True, True, True], [False, False, True, True], [False, False, False, True]]
    assert cut[1] == [[False, False, True, True], [False, False, False, True], [False, False, False, False]]


# Suppression


def suppress_slowly(strength):
    """The published routine pixel by pixel, with its orientation from second derivatives."""
    triangle = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1]) / 25
    smooth = np.pad(strength, 4, mode="symmetric")
    smooth = np.array([np.convolve(row, triangle, "valid") for row in smooth])
    smooth = np.array([np.convolve(column, triangle, "valid") for column in smooth.T]).T
    gy, gx = np.gradient(smooth)
    gxx = np.gradient(gx, axis=1)
    gyy, gxy = np.gradient(gy)
    angle = np.mod(np.arctan(gyy * np.sign(-gxy) / (gxx + 1e-5)), np.pi)
    height, width = strength.shape
    kept = strength.copy()
    for y, x in np.ndindex(height, width):
        for side in (-1, 1):
            v = min(max(y + side * math.sin(angle[y, x]), 0), height - 1.001)
            u = min(max(x + side * math.cos(angle[y, x]), 0), width - 1.001)
            top, left, dv, du = int(v), int(u), v % 1, u % 1
            corner = strength[top : top + 2, left : left + 2]
            between = corner[0, 0] * (1 - dv) * (1 - du) + corner[1, 0] * dv * (1 - du)
            if strength[y, x] * 1.01 < between + corner[0, 1] * (1 - dv) * du + corner[1, 1] * dv * du:
                kept[y, x] = 0
    for at in range(5):
        kept[at] *= at / 5
        kept[-1 - at] *= at / 5
        kept[:, at] *= at / 5
        kept[:, -1 - at] *= at / 5
    return kept


def test_suppression_is_that_of_the_published_routine(rng):
    strength = ndimage.gaussian_filter(rng.random((24, 31)), 1)
    kept = suppress(strength)
    assert np.allclose(kept, suppress_slowly(strength), atol=1e-12)
    assert 0 < np.count_nonzero(kept) < 0.7 * strength.size


def test_suppression_keeps_the_crest_of_a_ridge_and_nothing_else():
    profile = np.exp(-0.5 * ((np.arange(41) - 20) / 3) ** 2)
    kept = suppress(np.tile(profile, (30, 1)))
    assert (np.flatnonzero(kept[15] > 0.01) == 20).all()
    assert kept[15, 20] == 1
    assert kept[1, 20] == pytest.approx(0.2)
    assert kept[0, 20] == 0


def test_suppression_needs_neighbours():
    with pytest.raises(MultidenseError, match="at least 2×2 pixels, found 1×5"):
        suppress(np.ones((1, 5)))


# Boundaries of regions


def test_region_boundaries_lie_right_below_and_diagonally():
    labels = np.zeros((6, 7), int)
    labels[:, 4:] = 9
    assert (region_boundaries(labels) == (np.arange(7) == 3)).all()
    assert (region_boundaries(labels.T) == (np.arange(7) == 3)[:, None]).all()
    assert not region_boundaries(np.ones((5, 5), int)).any()


@given(arrays(np.int64, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(0, 2)))
@settings(max_examples=60)
def test_region_boundaries_are_those_of_four_connected_regions(labels):
    """As published: relabelled by connection, then compared to the right, below and diagonally."""
    region, regions = np.zeros_like(labels), 0
    for label in np.unique(labels):
        parts, number = ndimage.label(labels == label)
        region += np.where(parts > 0, parts + regions, 0)
        regions += number
    height, width = labels.shape
    edge = np.zeros(labels.shape, bool)
    for y, x in np.ndindex(height, width):
        others = region[y : y + 2, x : x + 2]
        edge[y, x] = (others != region[y, x]).any()
    assert (region_boundaries(labels) == thin(edge)).all()


# Matching


def test_a_disc_is_sorted_and_inclusive():
    down, right, distance = disc(2.0)
    assert len(down) == 13
    assert (np.diff(distance) >= 0).all()
    assert distance[0] == 0
    assert {(abs(y), abs(x)) for y, x in zip(down, right, strict=True)} == {(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0)}


def test_the_number_of_pairs_is_the_dense_minimum_cost_assignments(rng):
    augmented = 0
    for _ in range(500):
        shape = tuple(rng.integers(1, 10, 2))
        predicted, true = (rng.random(shape) < rng.choice([0.05, 0.2, 0.5]) for _ in range(2))
        radius = float(rng.choice([0.5, 1, 1.5, 2.3, 4]))
        lone = predicted.astype(np.uint64)[None]
        (found,), matched = correspond(lone, 1, true, radius)
        pairs, total = assign_slowly(predicted, true, radius)
        assert found == pairs == totals(matched, 1)[0]
        assert not (matched & ~lone).any()
        near = Matching(candidates(lone, true, radius))
        near.move_to(np.ones(len(near.present), bool))
        nearest = near.nearest()
        assert np.count_nonzero(nearest >= 0) == pairs
        truth = np.flatnonzero(nearest >= 0)
        a = np.unravel_index(near.candidates.places[nearest[truth]], shape)
        b = np.argwhere(true)[truth].T
        assert np.hypot(a[0] - b[0], a[1] - b[1]).sum() == pytest.approx(total)
        greedy = Matching(candidates(lone, true, radius))
        greedy.present[:] = greedy.free[:-1] = True
        greedy._match_nearest()
        augmented += np.count_nonzero(greedy.of_truth >= 0) < pairs
    assert augmented > 20


def test_what_one_threshold_matched_does_not_bind_the_next(rng):
    for _ in range(8):
        values = ndimage.gaussian_filter(rng.random((12, 14)), 1)
        thresholds = np.quantile(values, np.linspace(0.1, 0.95, 12))
        together = stack(values, thresholds)  # not thinned: dense graphs
        true = rng.random(values.shape) < 0.25
        found, matched = correspond(together, 12, true, 1.5)
        assert found.tolist() == [assign_slowly(plane(together, k), true, 1.5)[0] for k in range(12)]
        assert totals(matched, 12).tolist() == found.tolist()


def test_a_chain_must_shift_as_a_whole():
    predicted, true = np.zeros((1, 300), bool), np.zeros((1, 300), bool)
    predicted[0, ::2], true[0, 1::2] = True, True
    predicted[0, 0], predicted[0, 299] = False, True  # the nearest pairs would leave both ends alone
    (found,), _ = correspond(predicted.astype(np.uint64)[None], 1, true, 1.0)
    assert found == 150


def test_twin_lanes_of_many_dead_ends_are_matched_in_time():
    true = np.zeros((4, 400), bool)
    true[1:3] = True
    predicted = np.zeros((4, 400), bool)
    predicted[0, 3:], predicted[3, 4:] = True, True
    (found,), _ = correspond(predicted.astype(np.uint64)[None], 1, true, 3.2)
    assert found == 397 + 396


# Counts in closed form


@pytest.mark.parametrize(("rows", "matched"), [(0, 60), (1, 60), (3, 60), (4, 0)])
def test_a_shifted_line_matches_within_the_distance_only(rows, matched):
    counts = count(line(20 + rows).astype(float), [line(20)], within(3))
    assert columns_of(counts) == [[matched, 60, matched, 60]] * 3
    assert counts.scores()["odsF"] == 100 * matched / 60


def test_a_doubled_line_matches_once():
    counts = count(line(20, 22).astype(float), [line(21)], within(3))
    assert columns_of(counts) == [[60, 60, 60, 120]] * 3
    scores = counts.scores()
    assert (scores["odsPrecision"], scores["odsRecall"]) == (50, 100)
    assert scores["odsF"] == pytest.approx(200 / 3, abs=1e-12)


def test_a_missing_half_halves_the_recall():
    counts = count(line(20, columns=slice(10, 40)).astype(float), [line(20)], Protocol.plain(3, max_dist=0))
    assert columns_of(counts) == [[30, 60, 30, 30]] * 3
    assert (counts.scores()["odsPrecision"], counts.scores()["odsRecall"]) == (100, 50)


def test_thresholds_see_lines_of_their_strength():
    prediction = 0.3 * line(10) + 0.6 * line(30) + 0.9 * line(50)
    counts = count(prediction, [line(10, 30)], within(2))
    assert counts.matched_truth.tolist() == [120, 60, 0]
    assert counts.prediction.tolist() == [180, 120, 60]
    assert counts.truth.tolist() == [120] * 3
    scores = counts.scores()
    assert (scores["odsThreshold"], scores["odsPrecision"], scores["odsRecall"]) == (0.25, pytest.approx(200 / 3), 100)


@pytest.mark.parametrize(
    ("predicted", "true", "precision", "recall"),
    [(line(), line(5), 100, 0), (line(5), line(), 0, 100), (line(), line(), 0, 100)],
    ids=["nothing predicted", "nothing true", "neither"],
)
def test_empty_maps_score_zero_by_convention(predicted, true, precision, recall):
    scores = count(predicted.astype(float), [true], within(2)).scores()
    assert (scores["odsPrecision"], scores["odsRecall"], scores["odsF"], scores["oisF"]) == (precision, recall, 0, 0)


def test_an_image_without_boundaries_counts_its_predictions_as_wrong():
    protocol = within(2)
    full, empty = count(line(5).astype(float), [line(5)], protocol), count(line(5, 40).astype(float), [line()], protocol)
    assert (full + empty).scores()["odsPrecision"] == pytest.approx(100 / 3)


@pytest.mark.parametrize(
    "protocol", [Protocol.plain(9, max_dist=0.12), Protocol("strict", (0.2, 0.5), strict=True, max_dist=0.1)]
)
def test_counts_are_those_of_the_simplest_version(rng, protocol):
    for _ in range(4):
        prediction = np.round(np.clip(ndimage.gaussian_filter(rng.standard_normal((14, 17)), 1) + 0.5, 0, 1), 1)
        truth = thin(ndimage.gaussian_filter(rng.standard_normal((14, 17)), 1) > 0.2)
        counts = count(prediction, [truth], protocol)
        expected = count_slowly(prediction, truth, protocol)
        assert (counts.table[[0, 1, 3]] == expected).all()
        assert (counts.matched_prediction == counts.matched_truth).all()


def test_the_suppressed_protocol_sees_crests():
    x = np.tile(np.arange(80), (60, 1))
    ridge = np.exp(-0.5 * ((x - 40) / 4) ** 2)
    counts = count(ridge, [x == 40], Protocol.with_nms(max_dist=0.011))
    assert len(counts.truth) == 101
    assert counts.prediction[50] == counts.matched_prediction[50] == 60 - 2 * 3  # at the rim 0, 0.2, 0.4 of it is left


def test_protocols_are_those_that_circulate():
    plain, nms = Protocol.plain(), Protocol.with_nms(max_dist=0.011)
    assert (plain.thresholds[0], plain.thresholds[49], plain.thresholds[-1], len(plain.thresholds)) == (0.01, 0.5, 0.99, 99)
    assert (plain.strict, plain.nms, plain.max_dist) == (False, False, 0.0075)
    assert (nms.thresholds[:2], nms.thresholds[-2:], len(nms.thresholds)) == ((0.001, 0.01), (0.99, 0.999), 101)
    assert (nms.strict, nms.nms, nms.max_dist) == (True, True, 0.011)


def test_eight_bits_cut_values_down():
    prediction = (100.9 / 255) * line(20)
    exact, cut = (Protocol("one", (100.5 / 255,), eight_bit=eight_bit) for eight_bit in (False, True))
    assert count(prediction, [line(20)], exact).prediction.tolist() == [60]
    assert count(prediction, [line(20)], cut).prediction.tolist() == [0]
    assert count(line(20) * 51 / 255, [line(20)], Protocol("one", (0.2,), eight_bit=True)).prediction.tolist() == [60]


# Several annotators


def test_recall_sums_annotators_and_precision_takes_any():
    prediction = line(10, 40).astype(float)
    counts = count(prediction, [line(10), line(40), line(10, 25)], within(2))
    assert columns_of(counts) == [[60 + 60 + 60, 60 + 60 + 120, 120, 120]] * 3


@pytest.mark.parametrize("nearest", [False, True])
def test_annotators_may_come_in_any_order(rng, nearest):
    prediction = rng.random((20, 22))
    truths = [thin(rng.random((20, 22)) < 0.2) for _ in range(3)]
    protocol = Protocol.plain(9, max_dist=0.08, nearest=nearest)
    a, b = count(prediction, truths, protocol), count(prediction, truths[::-1], protocol)
    assert (a.table == b.table).all()
    alone = [count(prediction, [truth], protocol) for truth in truths]
    assert (a.matched_truth == sum(each.matched_truth for each in alone)).all()
    most = np.max([each.matched_prediction for each in alone], 0)
    assert (most <= a.matched_prediction).all()
    assert (a.matched_prediction <= a.prediction).all()


def test_one_annotator_twice_changes_no_score(rng):
    prediction, truth = rng.random((20, 22)), thin(rng.random((20, 22)) < 0.2)
    once, twice = (count(prediction, [truth] * n, Protocol.plain(9, max_dist=0.08)).scores() for n in (1, 2))
    assert once == twice


def test_the_nearest_of_the_largest_matchings_may_leave_fewer_predictions_matched():
    """Two annotators, one line, predictions on both sides: the nearer is everybody's."""
    counts = count(line(19, 23).astype(float), [line(20), line(20)], within(3, nearest=True))
    assert columns_of(counts) == [[120, 120, 60, 120]] * 3


# Scores of sums


def counts_of(protocol, *columns):
    table = np.array(columns, np.int64).T
    return Counts(protocol, table, table[:, 0], 1)


def test_ap_interpolates_between_measured_recalls_and_is_zero_outside():
    protocol = Protocol.plain(2)
    counts = counts_of(protocol, [80, 100, 80, 160], [20, 100, 20, 20])  # (R 0.8, P 0.5), (R 0.2, P 1)
    expected = sum(1 - 0.5 * (r - 20) / 60 for r in range(20, 81)) / 100
    assert counts.scores()["AP"] == pytest.approx(100 * expected, abs=1e-9)
    assert counts_of(protocol, [100, 100, 100, 100], [0, 100, 0, 0]).scores()["AP"] == pytest.approx(101)
    assert counts_of(protocol, [100, 100, 100, 100], [100, 100, 100, 100]).scores()["AP"] == pytest.approx(1)


def test_at_equal_recalls_ap_takes_the_lowest_threshold():
    first, second, third = [50, 100, 50, 100], [50, 100, 50, 50], [0, 100, 0, 1]
    curve = [
        counts_of(Protocol.plain(3), *columns).scores()["AP"] for columns in ([first, second, third], [second, first, third])
    ]
    assert curve == [pytest.approx(sum(0.5 * r / 50 for r in range(51))), pytest.approx(sum(r / 50 for r in range(51)))]


def test_ods_takes_one_threshold_and_ois_each_images_own():
    protocol = within(2)
    strong, weak = count(0.9 * line(10) + 0.6 * line(40), [line(10)], protocol), count(0.3 * line(10), [line(10)], protocol)
    assert strong.best.tolist() == [60, 60, 60, 60]
    assert weak.best.tolist() == [60, 60, 60, 60]
    scores = (strong + weak).scores()
    assert scores["oisF"] == 100
    assert scores["odsF"] == pytest.approx(80)  # at 0.25: P 2/3, R 1
    assert scores["odsThreshold"] == 0.25


@given(st.lists(st.tuples(*[st.integers(0, 50)] * 3), min_size=4, max_size=12))
@settings(max_examples=50)
def test_ois_and_ods_are_bounded_and_ods_is_the_best_threshold(rows):
    protocol = Protocol.plain(2)
    images = [counts_of(protocol, [min(m, t), t, min(m, p), p], [0, t, 0, 0]) for m, t, p in rows]
    scores = sum(images, Counts.none(protocol)).scores()
    assert 0 <= scores["odsF"] <= 100
    assert scores["odsF"] <= max(scores["odsPrecision"], scores["odsRecall"]) + 1e-9
    assert 0 <= scores["AP"] <= 101 + 1e-9


def test_no_image_has_no_score():
    assert all(math.isnan(score) for score in Counts.none(Protocol.plain()).scores().values())


# Sums over images, batches, processes


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(3)
    shapes = [(20, 24), (24, 20), (16, 30), (20, 24), (18, 18)]
    blurred = [ndimage.gaussian_filter(rng.standard_normal(shape), 1.5) for shape in shapes]
    return [(np.clip(0.5 + 2 * z + 0.2 * rng.standard_normal(z.shape), 0, 1), [thin(z > 0.15), thin(z > 0.2)]) for z in blurred]


def test_order_and_grouping_do_not_matter(images):
    protocol = Protocol.plain(19, max_dist=0.05)
    each = [count(*image, protocol) for image in images]
    forward = sum(each, Counts.none(protocol))
    grouped = (each[4] + each[2]) + (each[0] + (each[3] + each[1]))
    assert (forward.table == grouped.table).all()
    assert forward.scores() == grouped.scores()
    assert forward.images == 5


def test_processes_count_what_one_counts(images):
    protocol = Protocol.plain(19, max_dist=0.05)
    alone, spread = (count_all(iter(images), protocol, processes) for processes in (1, 2))
    assert (alone.table == spread.table).all()
    assert alone.scores() == spread.scores()
    assert spread.images == 5


def test_counts_of_two_protocols_do_not_add():
    with pytest.raises(MultidenseError, match="different boundary protocols"):
        Counts.none(Protocol.plain()) + Counts.none(Protocol.with_nms())


def target_of(images):
    value = torch.from_numpy(np.stack([truths[0] for _, truths in images])).float()[:, None]
    return Target(value, torch.ones_like(value, dtype=torch.bool))


def test_a_meter_gives_the_scores_of_the_counts_whatever_the_batches(images):
    pairs = [images[0], images[3]]
    logits = torch.from_numpy(np.stack([p for p, _ in pairs])).float()[:, None].logit(1e-4)
    target = target_of(pairs)
    protocol = Protocol.plain(19, max_dist=0.05)
    together, apart, other = (BoundaryMeter(torch.sigmoid, protocol) for _ in range(3))
    together.update(logits, target)
    apart.update(logits[1:], Target(target.value[1:], target.valid[1:]))
    other.update(logits[:1], Target(target.value[:1], target.valid[:1]))
    apart.merge(other.sums)
    assert together.compute() == apart.compute()
    shown = logits.sigmoid().double().numpy()[:, 0]
    expected = sum((count(p, truths[:1], protocol) for p, (_, truths) in zip(shown, pairs, strict=True)), Counts.none(protocol))
    assert together.compute() == expected.scores()
    together.reset()
    assert math.isnan(together.compute()["odsF"])


def test_a_meter_sees_valid_pixels_only(images):
    target = target_of(images[:1])
    valid = target.valid.clone()
    valid[..., 10:] = False
    logits = torch.from_numpy(images[0][0]).float()[None, None].logit(1e-4)
    noisy = torch.where(valid, logits, 9.0)
    meters = [BoundaryMeter(torch.sigmoid, Protocol.plain(9)) for _ in range(2)]
    for meter, shown in zip(meters, (logits, noisy), strict=True):
        meter.update(shown, Target(target.value, valid))
    assert meters[0].compute() == meters[1].compute()
    meters[0].update(logits, Target(target.value, torch.zeros_like(valid)))
    assert meters[0].images == 1


# What the user can mend


@pytest.mark.parametrize(
    ("prediction", "truths", "message"),
    [
        (np.ones((4, 5), np.uint8), [np.ones((4, 5), bool)], r"divide by 255\); found uint8 \[4, 5\]"),
        (np.ones((1, 4, 5)), [np.ones((4, 5), bool)], r"found float64 \[1, 4, 5\]"),
        (np.full((4, 5), 3.0), [np.ones((4, 5), bool)], "found 3 … 3; give probabilities"),
        (np.full((4, 5), np.nan), [np.ones((4, 5), bool)], "found nan … nan"),
        (np.ones((4, 5)), [], "at least one true boundary map"),
        (np.ones((4, 5)), [np.ones((4, 5), bool), np.ones((5, 4), bool)], r"found bool \[5, 4\] \(annotator 1\)"),
        (np.ones((4, 5)), [np.ones((4, 5), np.uint8)], "found uint8"),
    ],
)
def test_what_cannot_be_counted_is_said(prediction, truths, message):
    with pytest.raises(MultidenseError, match=message):
        count(prediction, truths, Protocol.plain())


def test_no_process_counts_nothing():
    with pytest.raises(MultidenseError, match="at least 1, found 0"):
        count_all([], Protocol.plain(), processes=0)
    assert count_all([], Protocol.plain(), processes=1).images == 0


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Protocol("none", ()), "protocol none: thresholds should be one or more, ascending"),
        (lambda: Protocol("down", (0.5, 0.1)), "ascending; found"),
        (lambda: Protocol.plain(max_dist=4), "fraction of the image's diagonal, such as 0.0075; found 4"),
    ],
)
def test_protocols_that_cannot_be_are_said(made, message):
    with pytest.raises(MultidenseError, match=message):
        made()
