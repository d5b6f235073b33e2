"""Masked means, one geometry for all maps, angles."""

import numpy as np
import pytest
import torch

from multidense.ops import Geometry, angle, masked_mean, pool, resize, unit, warp

SIZE = (6, 8)


@pytest.fixture
def image():
    return torch.rand(2, *SIZE)


def at(**moves) -> Geometry:
    return Geometry(SIZE, SIZE, **moves)


# Means


def test_a_masked_mean_is_over_valid_pixels_and_summed_over_channels(rng):
    values, valid = rng.normal(size=(3, 2, *SIZE)), rng.random((3, 1, *SIZE)) < 0.5
    expected = [v[:, m[0]].sum() / m.sum() for v, m in zip(values, valid, strict=True)]
    assert masked_mean(torch.tensor(values), torch.tensor(valid)).tolist() == pytest.approx(expected)


def test_a_mean_over_nothing_is_zero_with_a_zero_gradient_even_of_what_is_not_a_number():
    values = torch.full((1, 1, 2, 2), torch.nan, requires_grad=True)
    mean = masked_mean(values, torch.zeros(1, 1, 2, 2, dtype=torch.bool))
    mean.sum().backward()
    assert mean.tolist() == [0.0]
    assert torch.equal(values.grad, torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_pooling_averages_cells_and_smaller_ones_at_the_border(stride):
    values = torch.rand(1, 1, *SIZE)
    pooled = pool(values, stride)
    rows, columns = -(-SIZE[0] // stride), -(-SIZE[1] // stride)
    cells = [
        values[0, 0, i * stride : (i + 1) * stride, j * stride : (j + 1) * stride] for i in range(rows) for j in range(columns)
    ]
    assert pooled.shape == (1, 1, rows, columns)
    assert pooled.flatten().tolist() == pytest.approx([cell.mean().item() for cell in cells])


def test_resizing_to_the_same_size_gives_the_same_object():
    values = torch.rand(1, 2, *SIZE)
    assert resize(values, SIZE) is values
    assert resize(values, (3, 9)).shape == (1, 2, 3, 9)
    assert torch.equal(resize(values, (12, 16), "nearest")[..., ::2, ::2], values)


# Directions


def test_unit_vectors_have_length_one_and_zero_stays_zero_with_a_finite_gradient():
    vectors = torch.randn(2, 3, *SIZE) * 10
    assert torch.allclose(unit(vectors).norm(dim=1), torch.ones(2, *SIZE), atol=1e-5)
    zero = torch.zeros(3, 1, 1, requires_grad=True)
    unit(zero).sum().backward()
    assert torch.equal(unit(zero), torch.zeros(3, 1, 1))
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("degrees", [0.0, 1e-3, 0.1, 45.0, 90.0, 135.0, 179.9, 179.999, 180.0])
def test_an_angle_is_exact_also_near_zero_and_straight(degrees):
    turn = np.radians(degrees)
    a, b = torch.tensor([1.0, 0, 0]), torch.tensor([np.cos(turn), np.sin(turn), 0])
    found = angle(a.double()[:, None, None], 5 * b.double()[:, None, None]).item()
    assert found == pytest.approx(degrees, abs=1e-9)


def test_a_small_angle_survives_single_precision():
    a, b = torch.tensor([0.0, 0, 1])[:, None, None], torch.tensor([1e-5, 0, 1])[:, None, None]
    assert angle(a, b).item() == pytest.approx(np.degrees(1e-5), rel=1e-3), "the arc cosine would say zero"


# Geometry


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_the_identity_is_exact_and_copies_nothing(image, mode):
    assert at().is_identity
    assert warp(image, at(), mode) is image


@pytest.mark.parametrize(
    "geometry",
    [Geometry(SIZE, (6, 9)), at(zoom=1.1), at(centre=(0.5, 0.6)), at(degrees=1.0), at(flip=True)],
    ids=["size", "zoom", "centre", "degrees", "flip"],
)
def test_any_move_is_not_the_identity(geometry):
    assert not geometry.is_identity


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_flip_is_torch_flip(image, mode):
    assert torch.allclose(warp(image, at(flip=True), mode), image.flip(-1), atol=1e-6)


def test_a_quarter_turn_is_counter_clockwise():
    image = torch.rand(1, 5, 5)
    assert torch.equal(warp(image, Geometry((5, 5), (5, 5), degrees=90.0), "nearest"), image.rot90(1, (-2, -1)))


def test_a_small_turn_moves_the_right_side_up():
    image = torch.zeros(1, 41, 41)
    image[0, 20, 35] = 1
    turned = warp(image, Geometry((41, 41), (41, 41), degrees=20.0))
    row, column = np.unravel_index(turned[0].argmax().item(), (41, 41))
    assert (row, column) == pytest.approx((20 - 15 * np.sin(np.radians(20)), 20 + 15 * np.cos(np.radians(20))), abs=1)


def test_turning_keeps_distances_in_an_image_that_is_not_square():
    image = torch.zeros(1, 21, 61)
    image[0, 10, 38] = 1
    turned = warp(image, Geometry((21, 61), (21, 61), degrees=90.0), "nearest")
    assert turned[0].nonzero().tolist() == [[2, 30]]


def test_mirroring_comes_after_turning(image):
    both = warp(image, at(degrees=30.0, flip=True))
    assert torch.allclose(both, warp(image, at(degrees=30.0)).flip(-1), atol=1e-6)


def test_zooming_by_two_shows_the_middle_half():
    image = torch.arange(16.0).reshape(1, 4, 4)
    assert torch.equal(
        warp(image, Geometry((4, 4), (4, 4), zoom=2.0), "nearest"),
        image[:, 1:3, 1:3].repeat_interleave(2, 1).repeat_interleave(2, 2),
    )


def test_zooming_looks_where_its_centre_is():
    image = torch.arange(16.0).reshape(1, 4, 4)
    corner = warp(image, Geometry((4, 4), (2, 2), zoom=2.0, centre=(0.25, 0.75)), "nearest")
    assert torch.equal(corner, image[:, :2, 2:])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.long, torch.float64])
def test_nearest_keeps_the_type_and_only_values_there_were(dtype):
    image = torch.tensor([3, 7, 200])[torch.randint(3, (1, *SIZE))].to(dtype)
    warped = warp(image, at(zoom=0.8, degrees=37.0, flip=True), "nearest")
    assert warped.dtype == dtype
    assert set(warped.unique().tolist()) <= {0, 3, 7, 200}


def test_outside_is_zero_or_what_the_border_has():
    image = torch.ones(1, *SIZE)
    assert warp(image, at(zoom=0.5))[0, 0, 0] == 0
    assert torch.allclose(warp(image, at(zoom=0.5), border=True), image)


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize(
    "moves",
    [{"flip": True}, {"degrees": 35.0}, {"zoom": 1.7, "centre": (0.4, 0.6)}, {"zoom": 0.6, "degrees": -70.0, "flip": True}],
    ids=str,
)
def test_a_coarse_grid_lies_in_the_middle_of_the_fine_ones_cells(stride, moves):
    geometry = Geometry((24, 40), (16, 32), **moves)
    coarse, fine = geometry.grid(stride), geometry.grid()
    cells = fine.unfold(0, stride, stride).unfold(1, stride, stride).mean((-2, -1))
    assert torch.allclose(coarse, cells, atol=1e-6)


def test_a_coarse_map_moves_as_the_fine_one_it_was_pooled_from():
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    ramp = (0.3 * x + 0.7 * y)[None]
    geometry = Geometry((32, 48), (32, 48), zoom=1.5, degrees=10.0, flip=True)
    coarse = warp(pool(ramp[None], 4)[0], geometry, stride=4)
    assert torch.allclose(coarse, pool(warp(ramp, geometry)[None], 4)[0], atol=1e-3)


def test_a_coarse_map_of_a_size_that_does_not_divide_has_room_for_the_rest():
    geometry = Geometry((10, 13), (7, 9), zoom=1.2)
    assert warp(torch.rand(2, 3, 4), geometry, stride=4).shape == (2, 2, 3)


def test_a_weighted_mean_is_over_valid_pixels_not_over_weights():
    valid = torch.tensor([[[[True, True], [True, False]]]])
    weight = torch.tensor([[[[1.0, 0.5], [0.0, 9.0]]]])
    assert masked_mean(torch.ones(1, 1, 2, 2), valid, weight).tolist() == [0.5]
