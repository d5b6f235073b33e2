"""How values look."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from multidense import pictures


def test_palette_colours_differ():
    colours = pictures.palette(60)
    assert colours.shape == (60, 3)
    assert colours.dtype == np.uint8
    assert len({tuple(colour) for colour in colours.tolist()}) == 60
    beside = np.abs(np.diff(colours.astype(int), axis=0)).sum(1)
    assert beside.min() > 60


def test_a_palette_keeps_its_colours_when_it_grows():
    assert np.array_equal(pictures.palette(30)[:7], pictures.palette(7))


def test_classes_are_coloured_by_their_ids():
    ids = np.array([[0, 2], [1, 0]])
    assert np.array_equal(pictures.colour_classes(ids, 3), pictures.palette(3)[ids])


def test_near_is_bright_and_far_is_dark_on_a_log_scale():
    picture = pictures.colour_positive(np.array([[0.5, 1.0, 2.0, 4.0, 8.0]]), 0.5, 8.0).astype(int).sum(-1)[0]
    assert (np.diff(picture) < 0).all()


@pytest.mark.parametrize("values", [[0.0, -1.0], [1e-30, 1e30], [np.inf, np.nan]], ids=str)
@pytest.mark.parametrize(("low", "high"), [(0.5, 8.0), (2.0, 2.0)])
def test_depths_beyond_the_ends_have_the_colours_of_the_ends(values, low, high):
    picture = pictures.colour_positive(np.array([values]), low, high)
    assert picture.shape == (1, 2, 3)
    assert picture.dtype == np.uint8


def test_directions_are_red_to_the_right_green_up_and_blue_toward_the_viewer():
    for axis in range(3):
        toward = np.zeros((3, 1, 1), np.float32)
        toward[axis] = 1
        for sign, level in ((1, 255), (-1, 0)):
            assert pictures.colour_directions(sign * toward)[0, 0, axis] == level


def test_greys_and_shares_grow_brighter():
    values = np.linspace(-0.5, 1.5, 9)[None]
    assert pictures.grey(values)[0, [0, 4, 8]].tolist() == [[0] * 3, [128] * 3, [255] * 3]
    assert (np.diff(pictures.colour_share(values).astype(int).sum(-1)[0]) >= 0).all()


def test_hatching_touches_only_what_is_not_valid():
    picture, valid = np.full((8, 8, 3), 10, np.uint8), np.zeros((8, 8), bool)
    valid[2:5] = True
    hatched = pictures.hatch(picture, valid)
    assert np.array_equal(hatched[valid], picture[valid])
    assert set(np.unique(hatched[~valid])) == {150, 205}
    assert pictures.hatch(picture, None) is picture
    assert pictures.hatch(picture, np.ones((8, 8), bool)) is picture


def test_an_image_keeps_its_colours():
    image = np.zeros((3, 1, 2), np.float32)
    image[:, 0, 1] = 0.2, 1.0, 3.0
    assert pictures.from_image(image).tolist() == [[[0, 0, 0], [51, 255, 255]]]


def test_a_grid_puts_rows_below_each_other_and_leaves_gaps_white():
    red, blue = (np.full((2, 3, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    sheet = pictures.grid([[red, blue], [blue]], gap=1)
    assert sheet.shape == (5, 7, 3)
    assert np.array_equal(sheet[:2, :3], red)
    assert np.array_equal(sheet[:2, 4:], blue)
    assert np.array_equal(sheet[3:, :3], blue)
    assert (sheet[2] == 255).all()
    assert (sheet[:, 3] == 255).all()
    assert (sheet[3:, 4:] == 255).all()


def test_a_data_address_holds_the_picture():
    picture = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    kind, _, code = pictures.data_url(picture).partition(",")
    assert kind == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))), picture)


@pytest.mark.parametrize(("size", "width"), [((30, 20), 20), ((200, 100), 32), ((40, 80), 64)])
def test_a_large_picture_is_reduced_and_a_small_one_is_not(tmp_path, size, width):
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "picture.png")
    address, found = pictures.file_url(tmp_path / "picture.png", 64)
    assert found == width
    assert Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).width == width
