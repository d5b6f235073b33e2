"""What stands and hangs in the rooms: furniture and other things as solids, each drawn at random within its kind's ranges."""

import colorsys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from multidense.data import _raycast as rc


class Piece(NamedTuple):
    """One solid of an object, in the object's frame: x to the right, y to its front, z up, origin at its foot."""

    shape: int
    part: str
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    material: rc.Material
    taper: float = 0.0


class Object(NamedTuple):
    """Something to put into a room. rests: places (x, y, z, half size) in its frame where smaller things may stand."""

    kind: str
    pieces: list[Piece]
    rests: Sequence[tuple[float, float, float, float]] = ()

    def extent(self, axis: int) -> float:
        """How far it reaches from its origin along one of its axes."""
        return max(abs(piece.centre[axis]) + piece.half[axis] for piece in self.pieces)


Range = tuple[float, float]
Hues = tuple[Range, Range, Range]  # hue, saturation, value
WOOD: Hues = ((0.05, 0.1), (0.4, 0.65), (0.4, 0.75))
DARK: Hues = ((0.0, 1.0), (0.0, 0.3), (0.12, 0.3))
WHITE: Hues = ((0.0, 1.0), (0.0, 0.08), (0.85, 1.0))
RED: Hues = ((0.93, 1.04), (0.6, 0.9), (0.4, 0.8))
LEAVES: Hues = ((0.25, 0.4), (0.3, 0.6), (0.4, 0.7))
PALE_WOOD: Hues = ((0.09, 0.13), (0.3, 0.5), (0.8, 1.0))
DARK_WOOD: Hues = ((0.0, 0.07), (0.4, 0.7), (0.2, 0.38))
VIVID: Hues = ((0.0, 1.0), (0.7, 1.0), (0.7, 1.0))
WARM: Hues = ((0.07, 0.13), (0.2, 0.5), (0.95, 1.0))

# What things may look like: pattern, metres of one repeat, and the colours of the ground, its variation and the trim;
# None makes it a darker ground. A class has its family of colours, and the families overlap, so that colour is a hint
# and never the answer.
_LOOKS: dict[str, list[tuple[int, float, Hues, Hues | None, Hues | None]]] = {
    "wall": [
        (rc.PLAIN, 0.6, ((0.0, 1.0), (0.05, 0.2), (0.75, 0.95)), None, None),
        (rc.PLAIN, 0.15, WHITE, None, None),
        (rc.STRIPES, 0.5, ((0.0, 1.0), (0.1, 0.2), (0.75, 0.95)), ((0.0, 1.0), (0.0, 0.15), (0.75, 0.9)), None),
    ],
    "floor": [
        (rc.WOOD, 0.16, ((0.05, 0.1), (0.3, 0.6), (0.45, 0.7)), None, None),
        (rc.TILES, 0.45, ((0.0, 0.15), (0.05, 0.35), (0.5, 0.8)), None, WHITE),
        (rc.FABRIC, 0.3, ((0.6, 1.1), (0.15, 0.4), (0.35, 0.6)), None, None),
    ],
    "ceiling": [(rc.PLAIN, 0.5, WHITE, None, None)],
    "window": [(rc.WINDOW, 1.0, ((0.5, 0.6), (0.25, 0.5), (0.9, 1.0)), LEAVES, WHITE)],
    "door": [(rc.DOOR, 1.0, WOOD, None, WHITE), (rc.DOOR, 1.0, WOOD, None, DARK)],
    "picture": [(rc.PICTURE, 1.0, WHITE, VIVID, DARK), (rc.PICTURE, 1.0, DARK, VIVID, DARK)],
    "table": [(rc.WOOD, 0.25, PALE_WOOD, None, None), (rc.PLAIN, 0.3, PALE_WOOD, None, None)],
    "chair": [(rc.PLAIN, 0.3, RED, None, None), (rc.PLAIN, 0.3, RED, None, None), (rc.WOOD, 0.1, WOOD, None, None)],
    "sofa": [
        (rc.FABRIC, 0.4, ((0.3, 0.7), (0.4, 0.65), (0.3, 0.65)), None, None),
        (rc.STRIPES, 0.3, ((0.45, 0.7), (0.4, 0.65), (0.35, 0.65)), None, None),
    ],
    "pole": [(rc.PLAIN, 0.3, DARK, None, None)],
    "shade": [(rc.PLAIN, 0.3, WARM, None, None)],
    "shelf": [(rc.WOOD, 0.2, DARK_WOOD, None, None)],
    "box": [
        (rc.PARCEL, 0.3, ((0.07, 0.12), (0.5, 0.75), (0.7, 0.95)), None, WHITE),
        (rc.PARCEL, 0.3, ((0.1, 0.3), (0.7, 0.95), (0.7, 0.95)), None, None),
    ],
    "ball": [
        (rc.BEACH_BALL, 1.0, ((0.75, 0.95), (0.7, 1.0), (0.7, 1.0)), VIVID, WHITE),
        (rc.BEACH_BALL, 1.0, ((0.55, 0.95), (0.7, 1.0), (0.7, 1.0)), WHITE, WHITE),
    ],
}


def draw_colour(random: np.random.Generator, hues: Hues) -> np.ndarray:
    """A linear colour [3] from these ranges."""
    return np.power(colorsys.hsv_to_rgb(*(random.uniform(*span) for span in hues)), 2.2)


def draw_look(random: np.random.Generator, name: str, glow: float = 0.0) -> rc.Material:
    """One of the looks of that name, with colours drawn from its ranges."""
    looks = _LOOKS[name]
    pattern, scale, *ranges = looks[random.integers(len(looks))]
    ground, variation, trim = (hues and draw_colour(random, hues) for hues in ranges)
    colours = (ground, 0.65 * ground if variation is None else variation, 0.4 * ground if trim is None else trim)
    return rc.Material(pattern, colours, scale, random.random(), glow, random.uniform(0, 0.25))


def _panel(kind: str, width: Range, height: Range, glow: float = 0.0) -> Callable[[np.random.Generator], Object]:
    """A maker of flat things that hang on walls, of half width and height within the ranges."""

    def make(random: np.random.Generator) -> Object:
        half = (random.uniform(*width), 0.03, random.uniform(*height) / 2)
        return Object(kind, [Piece(rc.BOX, "background", (0.0, 0.03, half[2]), half, draw_look(random, kind, glow))])

    return make


window = _panel("window", (0.4, 0.85), (0.85, 1.3), glow=2.2)
door = _panel("door", (0.4, 0.55), (1.9, 2.15))
picture = _panel("picture", (0.3, 0.6), (0.5, 0.85))


def _legs(x: float, y: float, height: float, thickness: float, material: rc.Material) -> list[Piece]:
    half = (thickness, thickness, height / 2)
    return [Piece(rc.BOX, "leg", (i * x, j * y, height / 2), half, material) for i in (-1, 1) for j in (-1, 1)]


def table(random: np.random.Generator) -> Object:
    x, y, height = random.uniform(0.45, 0.85), random.uniform(0.35, 0.5), random.uniform(0.55, 0.78)
    top, rests = draw_look(random, "table"), [(i * x, 0.0, height + 0.04, 0.18) for i in (-0.6, 0, 0.6)]
    if random.random() < 0.3:
        pole = draw_look(random, "table")
        return Object("table", [
            Piece(rc.FRUSTUM, "top", (0.0, 0.0, height), (x, x, 0.04), top),
            Piece(rc.FRUSTUM, "leg", (0.0, 0.0, height / 2), (0.07, 0.07, height / 2), pole),
            Piece(rc.FRUSTUM, "leg", (0.0, 0.0, 0.03), (0.3, 0.3, 0.03), pole, 0.6),
        ], rests)  # fmt: skip
    slab = Piece(rc.BOX, "top", (0.0, 0.0, height), (x, y, 0.04), top)
    return Object("table", [slab, *_legs(x - 0.06, y - 0.06, height, 0.04, draw_look(random, "table"))], rests)


def chair(random: np.random.Generator) -> Object:
    x, seat, back = random.uniform(0.2, 0.26), random.uniform(0.42, 0.5), random.uniform(0.4, 0.55)
    look = draw_look(random, "chair")
    return Object("chair", [
        Piece(rc.BOX, "seat", (0.0, 0.0, seat), (x, x, 0.035), look),
        Piece(rc.BOX, "back", (0.0, 0.03 - x, seat + back / 2 + 0.03), (x, 0.03, back / 2), look),
        *_legs(x - 0.03, x - 0.03, seat, 0.03, look),
    ])  # fmt: skip


def sofa(random: np.random.Generator) -> Object:
    x, y, back, arm = random.uniform(0.65, 1.0), random.uniform(0.38, 0.45), random.uniform(0.7, 0.9), 0.1
    look, inner = draw_look(random, "sofa"), x - 2 * arm
    cushions = [Piece(rc.BOX, "seat", (i * inner / 2, y + 0.1, 0.42), (inner / 2 - 0.01, y - 0.1, 0.06), look) for i in (-1, 1)]
    arms = [Piece(rc.BOX, "arm", (i * (x - arm), y, 0.31), (arm, y, 0.27), look) for i in (-1, 1)]
    return Object("sofa", [
        Piece(rc.BOX, "seat", (0.0, y + 0.05, 0.21), (inner, y - 0.05, 0.15), look),
        Piece(rc.BOX, "back", (0.0, 0.12, back / 2 + 0.03), (inner, 0.12, back / 2 - 0.03), look),
        *cushions, *arms,
    ], [(i * inner / 2, y + 0.1, 0.48, 0.14) for i in (-1, 1)])  # fmt: skip


def shelf(random: np.random.Generator) -> Object:
    x, y, height = random.uniform(0.35, 0.6), random.uniform(0.15, 0.19), random.uniform(1.0, 2.0)
    look, back = draw_look(random, "shelf"), draw_look(random, "shelf")
    levels = np.linspace(0.08, height - 0.02, int(height / 0.4) + 1)
    boards = [Piece(rc.BOX, "top", (0.0, y, level), (x, y, 0.02), look) for level in levels]
    sides = [Piece(rc.BOX, "leg", (i * x, y, height / 2), (0.025, y, height / 2), look) for i in (-1, 1)]
    panel = Piece(rc.BOX, "back", (0.0, 0.01, height / 2), (x, 0.01, height / 2), back)
    rests = [(i * x, y, level + 0.02, 0.13) for level in levels for i in (-0.5, 0.1, 0.6)]
    return Object("shelf", [*boards, *sides, panel], rests)


def lamp(random: np.random.Generator, height: float) -> Object:
    """A lamp on a foot, as high as asked for."""
    size = random.uniform(0.2, 0.3) if height > 1 else random.uniform(0.14, 0.2)
    pole, shade = draw_look(random, "pole"), draw_look(random, "shade", random.uniform(0.8, 2.0))
    taper, middle = random.uniform(0, 0.5), height - 0.7 * size
    return Object("lamp", [
        Piece(rc.FRUSTUM, "leg", (0.0, 0.0, 0.02), (0.7 * size, 0.7 * size, 0.02), pole, 0.3),
        Piece(rc.FRUSTUM, "leg", (0.0, 0.0, height / 2 - size / 2), (0.025, 0.025, height / 2 - size / 2), pole),
        Piece(rc.FRUSTUM, "shade", (0.0, 0.0, middle), (size, size, 0.7 * size), shade, taper),
    ])  # fmt: skip


def box(random: np.random.Generator, size: float) -> Object:
    x, y, z = size * random.uniform(0.6, 1, 3)
    cuboid = Piece(rc.BOX, "background", (0.0, 0.0, z), (x, y, z), draw_look(random, "box"))
    return Object("box", [cuboid], [(0.0, 0.0, 2 * z, 0.6 * size)])


def ball(random: np.random.Generator, size: float) -> Object:
    return Object("ball", [Piece(rc.BALL, "background", (0.0, 0.0, size), (size, size, size), draw_look(random, "ball"))])


def pendant(random: np.random.Generator, drop: float) -> Object:
    """A lamp whose shade hangs `drop` below its origin, where the cord meets the ceiling."""
    size = random.uniform(0.2, 0.34)
    cord = drop / 2 - 0.2 * size  # half its length: it ends within the shade, short of the light
    pole, shade = draw_look(random, "pole"), draw_look(random, "shade", random.uniform(0.8, 2.0))
    return Object("lamp", [
        Piece(rc.FRUSTUM, "leg", (0.0, 0.0, -cord), (0.015, 0.015, cord), pole),
        Piece(rc.FRUSTUM, "shade", (0.0, 0.0, -drop), (size, size, 0.5 * size), shade, random.uniform(0.2, 0.7)),
    ])  # fmt: skip


def rug(random: np.random.Generator) -> Object:
    """Counts as floor."""
    half = (random.uniform(0.6, 1.1), random.uniform(0.5, 0.9), 0.006)
    return Object("floor", [Piece(rc.BOX, "background", (0.0, 0.0, 0.006), half, draw_look(random, "floor"))])
