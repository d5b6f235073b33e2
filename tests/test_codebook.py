"""Bins, unit-vector centres, and what decodes them."""

import math

import pytest
import torch

from multidense.codebook import expectation, log_bins, nearest_bin, nearest_direction, sphere, spherical_kmeans
from multidense.ops import unit


def as_map(rows: torch.Tensor) -> torch.Tensor:
    """Vectors `[n c]` as a map `[1 c 1 n]`."""
    return rows.T[None, :, None]


def test_log_bins_include_both_ends_and_have_one_ratio():
    bins = log_bins(0.67, 10.0, 30)[:, 0].double()
    assert bins[[0, -1]].tolist() == pytest.approx([0.67, 10.0])
    assert (bins[1:] / bins[:-1]).tolist() == pytest.approx([(10 / 0.67) ** (1 / 29)] * 29)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 2.0), (3.0, 2.0)])
def test_log_bins_refuse_bounds_without_a_logarithm(low, high):
    with pytest.raises(ValueError, match=f"0 < low < high, found {low} and {high}"):
        log_bins(low, high, 5)


def test_the_nearest_bin_is_nearest_in_log_space():
    bins = log_bins(1.0, 100.0, 3)
    values = torch.tensor([3.1, 3.2, 31.0, 32.0])[:, None]
    assert nearest_bin(as_map(values), bins).flatten().tolist() == [0, 1, 1, 2], "the middle of 1 and 10 is √10"


def test_values_beyond_the_ends_belong_to_the_end_bins():
    values = torch.tensor([1e-6, 0.5, 200.0, 1e30])[:, None]
    assert nearest_bin(as_map(values), log_bins(1.0, 100.0, 3)).flatten().tolist() == [0, 0, 2, 2]


def test_the_nearest_bin_is_the_one_found_by_trying_all(rng):
    bins = log_bins(0.5, 9.0, 17)
    values = torch.tensor(rng.uniform(0.2, 12, (500, 1)), dtype=torch.float32)
    brute = (values.log() - bins.log().T).abs().argmin(1)
    assert torch.equal(nearest_bin(as_map(values), bins).flatten(), brute)


def test_the_nearest_direction_is_the_one_found_by_trying_all():
    centres, vectors = sphere(9, hemisphere=False), unit(torch.randn(200, 3).T[:, :, None])[:, :, 0].T
    brute = torch.cdist(vectors, centres).argmin(1)
    assert torch.equal(nearest_direction(as_map(vectors), centres).flatten(), brute)


@pytest.mark.parametrize("codebook", [log_bins(0.5, 9.0, 6), sphere(6)], ids=["depths", "directions"])
def test_expectation_of_a_sure_centre_is_that_centre(codebook):
    sure = as_map(200 * torch.eye(6))
    assert torch.allclose(expectation(sure, codebook)[0, :, 0].T, codebook)


def test_expectation_of_no_opinion_is_the_mean_centre():
    codebook = log_bins(1.0, 100.0, 3)
    assert expectation(torch.zeros(1, 3, 1, 1), codebook).item() == pytest.approx(37.0)


def test_expectation_weighs_centres_by_their_probability():
    logits = torch.tensor([0.2, 0.3, 0.5]).log()[None, :, None, None]
    assert expectation(logits, log_bins(1.0, 100.0, 3)).item() == pytest.approx(0.2 + 3 + 50)


@pytest.mark.parametrize("hemisphere", [True, False])
def test_sphere_points_are_unit_and_spread_evenly(hemisphere):
    centres = sphere(40, hemisphere)
    assert torch.allclose(centres.norm(dim=1), torch.ones(40), atol=1e-6)
    nearest = (centres @ centres.T - 2 * torch.eye(40)).amax(1).clamp(-1, 1).acos()
    even = math.sqrt((2 if hemisphere else 4) * math.pi / 40)
    assert nearest.min() > 0.6 * even
    assert nearest.max() < 1.4 * even


def test_a_hemisphere_faces_the_viewer_and_a_sphere_goes_round():
    assert (sphere(40)[:, 2] > 0).all()
    assert torch.allclose(sphere(40, hemisphere=False).mean(0), torch.zeros(3), atol=0.02)


def clusters(count: int, each: int = 60, spread: float = 0.03) -> tuple[torch.Tensor, torch.Tensor]:
    middles = sphere(count, hemisphere=False)
    vectors = middles.repeat_interleave(each, 0) + spread * torch.randn(count * each, 3)
    return middles, vectors / vectors.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("seed", range(4))
def test_kmeans_finds_clusters_that_lie_apart(seed):
    middles, vectors = clusters(7)
    centres = spherical_kmeans(vectors, 7, seed)
    assert torch.allclose(centres.norm(dim=1), torch.ones(7), atol=1e-6)
    cosine = middles @ centres.T
    assert cosine.argmax(1).sort().values.tolist() == list(range(7)), "every cluster has its own centre"
    assert cosine.amax(1).min() > math.cos(math.radians(3))


def test_kmeans_repeats_itself_for_its_seed():
    _, vectors = clusters(5, spread=0.5)
    assert torch.equal(spherical_kmeans(vectors, 8, 1), spherical_kmeans(vectors, 8, 1))
    assert not torch.equal(spherical_kmeans(vectors, 8, 1), spherical_kmeans(vectors, 8, 2))


def test_kmeans_leaves_the_global_random_state_alone():
    _, vectors = clusters(3)
    before = torch.get_rng_state()
    spherical_kmeans(vectors, 3, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_kmeans_lowers_the_distance_that_its_start_has():
    vectors = unit(torch.randn(400, 3).T[:, :, None])[:, :, 0].T
    first, last = (spherical_kmeans(vectors, 6, 0, iterations) for iterations in (0, 30))
    assert (vectors @ last.T).amax(1).mean() > (vectors @ first.T).amax(1).mean()


def test_kmeans_gives_unit_centres_where_vectors_are_fewer_than_they_seem():
    vectors = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).repeat(10, 1)
    centres = spherical_kmeans(vectors, 4, 0)
    assert torch.allclose(centres.norm(dim=1), torch.ones(4))
    assert (vectors @ centres.T).amax(1).tolist() == pytest.approx([1.0] * 20)


def test_kmeans_needs_as_many_vectors_as_centres():
    with pytest.raises(ValueError, match="5 centres need at least as many labelled pixels, found 3"):
        spherical_kmeans(sphere(3), 5, 0)
