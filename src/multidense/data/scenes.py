"""Procedural indoor scenes with exact labels: the data set `rooms`, which needs no download.

A scene is drawn from (seed, index) alone: a room, what hangs on its walls and stands on its floor, the lights and the
camera. The size of the picture only sets how densely the same view is sampled. `_raycast` does the geometry and the
light; this module decides what there is to see.
"""

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from multidense.data import _raycast as rc

CLASSES = (
    "wall", "floor", "ceiling", "window", "door", "picture", "table", "chair", "sofa", "lamp", "shelf", "box", "ball",
)  # fmt: skip
PARTS = ("background", "leg", "top", "seat", "back", "arm", "shade")
VERSION = 1  # bumped when the pictures change: it keys caches

_CLASS = {name: number for number, name in enumerate(CLASSES)}
_PART = {name: number for number, name in enumerate(PARTS)}
_FREE_STANDING = tuple(_CLASS[name] for name in ("table", "chair", "sofa", "lamp", "shelf", "box", "ball"))
_NOMINAL_ASPECT = 4 / 3  # layouts are arranged for this view; every size shows it or a crop of it


@dataclass(frozen=True)
class Scene:
    """A picture of a room and everything known about it.

    image: uint8 [h w 3] RGB.
    classes: uint8 [h w] index into CLASSES.
    parts: uint8 [h w] index into PARTS. Only tables, chairs, sofas, lamps and shelves have parts; of a shelf the boards
        are tops, the uprights legs and the panel behind them the back.
    instances: uint8 [h w] 0 wall, 1 floor, 2 ceiling, then one number per object.
    depth: float32 [h w] metres along the optical axis.
    normals: float32 [h w 3] unit, camera frame: x right, y up, z toward the viewer.
    edges: bool [h w] the pixel's instance differs from its right or its lower neighbour's.
    saliency: bool [h w] the objects of interest. An object (table, chair, sofa, lamp, shelf, box or ball) weighs the
        sum over its visible pixels of exp(-2 r^2), r the distance from the middle of the picture in half diagonals; the
        heaviest one is salient, and so is every other at least half as heavy.
    fx, fy, cx, cy: the pinhole camera in pixels. The pixel in row v and column u looks along
        ((u - cx) / fx, (cy - v) / fy, -1) in the frame of the normals.
    """

    image: np.ndarray
    classes: np.ndarray
    parts: np.ndarray
    instances: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    edges: np.ndarray
    saliency: np.ndarray
    fx: float
    fy: float
    cx: float
    cy: float


def render(seed: int, index: int, size: tuple[int, int]) -> Scene:
    """Scene number `index` of the world `seed` as a picture of `size` (height, width); the same on every call."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, index))))
    room = _Room(random)
    _furnish(room)
    view, stage = room.camera, room.stage()
    eye, axes = np.float32(view.position), np.float32(view.axes)
    height, width = size
    focal = max(width, _NOMINAL_ASPECT * height) / (2 * view.tangent)
    cx, cy = (width - 1) / 2, (height - 1) / 2
    rows, columns = (grid.ravel() for grid in np.indices(size, dtype=np.float32))

    def look(rows, columns):
        """Hits of the rays through these places of the picture, and their linear colours."""
        seen = np.stack([(columns - cx) / focal, (cy - rows) / focal, np.full_like(rows, -1)], axis=1, dtype=np.float32)
        hits = rc.cast(eye, seen @ axes, stage.solids, room.half)
        return hits, _radiance(hits, eye, stage, room, focal)

    hits, colours = look(rows, columns)
    instances = stage.instances[hits.owner].reshape(size)
    edges = _boundaries(instances)
    _smooth(colours, np.flatnonzero(_dilated(_boundaries(hits.owner.reshape(size)))), rows, columns, look)
    classes = stage.classes[hits.owner].reshape(size)
    return Scene(
        image=_develop(colours, random).reshape(*size, 3),
        classes=classes,
        parts=stage.parts[hits.owner].reshape(size),
        instances=instances,
        depth=hits.depth.reshape(size),
        normals=(hits.normal @ axes.T).reshape(*size, 3),
        edges=edges,
        saliency=_salient(instances, classes),
        fx=focal,
        fy=focal,
        cx=cx,
        cy=cy,
    )


class _Piece(NamedTuple):
    """One solid of an object, in the object's frame: x to the right, y to its front, z up, origin at its foot."""

    shape: int
    part: str
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    material: rc.Material
    taper: float = 0.0


class _Object(NamedTuple):
    """Something to put into a room. rests: places (x, y, z, half size) in its frame where smaller things may stand."""

    kind: str
    pieces: list[_Piece]
    rests: Sequence[tuple[float, float, float, float]] = ()

    def extent(self, axis: int) -> float:
        """How far it reaches from its origin along one of its axes."""
        return max(abs(piece.centre[axis]) + piece.half[axis] for piece in self.pieces)


class _Place(NamedTuple):
    """Where an object stands: its origin in the world and its yaw, zero when its front looks along y."""

    x: float
    y: float
    z: float
    yaw: float

    def beside(self, right: float, ahead: float, above: float = 0.0, turn: float = 0.0) -> "_Place":
        """The place this far to the right, to the front and above, in this place's own frame."""
        cosine, sine = math.cos(self.yaw), math.sin(self.yaw)
        x, y = self.x + cosine * right - sine * ahead, self.y + sine * right + cosine * ahead
        return _Place(x, y, self.z + above, self.yaw + turn)


class _Camera:
    """A camera at the near end of a room, looking at the far one. axes: [3 3] rows right, up and back."""

    def __init__(self, random: np.random.Generator, half: np.ndarray) -> None:
        x, y = random.uniform(-0.6, 0.6) * half[0], random.uniform(0.2, 0.8) - half[1]
        self.position = np.array([x, y, random.uniform(1.15, 1.75)])
        x, y = random.uniform(-0.5, 0.5) * half[0], random.uniform(0.3, 0.8) * half[1]
        back = self.position - (x, y, random.uniform(0.6, 1.3))
        back /= math.hypot(*back)
        right = np.array([-back[1], back[0], 0]) / math.hypot(back[0], back[1])
        up = np.cross(back, right)
        roll = random.normal(0, 0.03)
        cosine, sine = math.cos(roll), math.sin(roll)
        self.axes = np.stack([cosine * right + sine * up, cosine * up - sine * right, back])
        self.tangent = math.tan(random.uniform(0.5, 0.64))

    def sees(self, x: float, y: float, z: float, nearest: float) -> bool:
        """Whether a point is well inside the nominal view and at least `nearest` metres deep."""
        right, up, back = self.axes @ (np.array([x, y, z]) - self.position)
        reach = -0.85 * back * self.tangent
        return -back > nearest and abs(right) < reach and abs(up) < reach / _NOMINAL_ASPECT


class _Room:
    """A room in the making, centred on the world's origin and standing on z = 0.

    half: [3] its half sizes. `occupied` holds the rectangles (x, y, half x, half y) taken on the floor; the walls'
    share it under their name, with the height in place of y.
    """

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.half = np.float32([random.uniform(1.5, 2.2), random.uniform(1.9, 2.7), random.uniform(1.15, 1.45)])
        self.camera = _Camera(random, self.half)
        self.lights: list[rc.Light] = []
        self.rows: list[tuple[_Piece, _Place, int, int]] = []  # piece, place, instance, class
        self.instances = 3  # after wall, floor and ceiling
        self.occupied = {"floor": [(*self.camera.position[:2], 0.5, 0.5)]}

    def add(self, item: _Object, place: _Place) -> None:
        """Put an object at a place; what is called `floor` is part of the floor."""
        instance = self.instances
        if item.kind == "floor":
            instance = 1
        else:
            self.instances += 1
        self.rows += [(piece, place, instance, _CLASS[item.kind]) for piece in item.pieces]

    def stand(self, item: _Object, draw: Callable[[], _Place], nearest: float) -> _Place | None:
        """Add the object at the first drawn place that is free and in view; None when there is none."""
        half_x, half_y = item.extent(0), item.extent(1)
        for _ in range(16):
            place = draw()
            cosine, sine = abs(math.cos(place.yaw)), abs(math.sin(place.yaw))
            zone = (place.x, place.y, cosine * half_x + sine * half_y, sine * half_x + cosine * half_y)
            inside = abs(place.x) + zone[2] < self.half[0] and abs(place.y) + zone[3] < self.half[1]
            height = min(item.extent(2) / 2, 0.6)
            if inside and self.camera.sees(place.x, place.y, height, nearest) and self._claim("floor", zone):
                self.add(item, place)
                return place
        return None

    def hang(self, item: _Object, low: float, clearance: float = 0.0) -> _Place | None:
        """Add the object to a wall in view, its foot `low` above the floor, with a free stretch of floor before it."""
        half_width, half_height = item.extent(0), item.extent(2) / 2
        for _ in range(16):
            wall = (0, 0, 1, 2)[self.random.integers(4)]  # mostly the far one
            turned = wall > 0
            free = self.half[int(turned)] - half_width - 0.05
            u = self.random.uniform(-free, free)
            x, y = ((u, self.half[1]), (-self.half[0], u), (self.half[0], u))[wall]
            place = _Place(x, y, low, (math.pi, -math.pi / 2, math.pi / 2)[wall])
            front = place.beside(0, clearance / 2 + 0.01)
            zone = (clearance / 2, half_width) if turned else (half_width, clearance / 2)
            area = (u, low + half_height, half_width + 0.06, half_height + 0.04)
            if not self.camera.sees(x, y, low + half_height, 1.3) or not self._free(f"wall {wall}", area):
                continue
            if clearance == 0 or self._claim("floor", (front.x, front.y, *zone)):
                self._claim(f"wall {wall}", area)
                self.add(item, place)
                return place
        return None

    def _free(self, surface: str, area: tuple[float, float, float, float]) -> bool:
        x, y, half_x, half_y = area
        taken = self.occupied.get(surface, ())
        return not any(abs(x - a) < half_x + c and abs(y - b) < half_y + d for a, b, c, d in taken)

    def _claim(self, surface: str, area: tuple[float, float, float, float]) -> bool:
        """Take a rectangle of a surface if it is free, and say whether it was."""
        free = self._free(surface, area)
        if free:
            self.occupied.setdefault(surface, []).append(area)
        return free

    def stage(self) -> "_Stage":
        """Everything added so far, and the room's own surfaces, as arrays."""
        rows = sorted(self.rows, key=lambda row: row[0].shape)
        pieces, places, instances, classes = zip(*rows, strict=True)
        yaw = np.array([place.yaw for place in places])
        solids = rc.Solids(
            np.array([piece.shape for piece in pieces]),
            np.float32([place.beside(*piece.centre)[:3] for piece, place in zip(pieces, places, strict=True)]),
            np.float32([piece.half for piece in pieces]),
            np.stack([np.cos(yaw), np.sin(yaw)], axis=1).astype(np.float32),
            np.float32([piece.taper for piece in pieces]),
        )
        looks = [piece.material for piece in pieces] + [_look(self.random, name) for name in CLASSES[:3]]
        pattern, *columns = zip(*looks, strict=True)
        materials = rc.Material(np.array(pattern), *(np.float32(column) for column in columns))
        shadows = np.isin(classes, _FREE_STANDING) & (materials.glow[: len(pieces)] == 0)
        return _Stage(
            solids,
            solids.select(shadows),
            materials,
            np.uint8([*instances, 0, 1, 2]),
            np.uint8([*classes, 0, 1, 2]),
            np.uint8([_PART[piece.part] for piece in pieces] + [0, 0, 0]),
        )


class _Stage(NamedTuple):
    """A furnished room as arrays over its S solids; the tables from `materials` on end with the room's surfaces."""

    solids: rc.Solids
    casters: rc.Solids
    materials: rc.Material
    instances: np.ndarray
    classes: np.ndarray
    parts: np.ndarray


_Range = tuple[float, float]
_Hues = tuple[_Range, _Range, _Range]  # hue, saturation, value
_WOOD: _Hues = ((0.05, 0.1), (0.4, 0.65), (0.4, 0.75))
_DARK: _Hues = ((0.0, 1.0), (0.0, 0.3), (0.12, 0.3))
_WHITE: _Hues = ((0.0, 1.0), (0.0, 0.08), (0.85, 1.0))
_RED: _Hues = ((0.93, 1.04), (0.6, 0.9), (0.4, 0.8))
_LEAVES: _Hues = ((0.25, 0.4), (0.3, 0.6), (0.4, 0.7))
_PALE_WOOD: _Hues = ((0.09, 0.13), (0.3, 0.5), (0.8, 1.0))
_DARK_WOOD: _Hues = ((0.0, 0.07), (0.4, 0.7), (0.2, 0.38))
_VIVID: _Hues = ((0.0, 1.0), (0.7, 1.0), (0.7, 1.0))
_WARM: _Hues = ((0.07, 0.13), (0.2, 0.5), (0.95, 1.0))

# What things may look like: pattern, metres of one repeat, and the colours of the ground, its variation and the trim;
# None makes it a darker ground. A class has its family of colours, and the families overlap, so that colour is a hint
# and never the answer.
_LOOKS: dict[str, list[tuple[int, float, _Hues, _Hues | None, _Hues | None]]] = {
    "wall": [
        (rc.PLAIN, 0.6, ((0.0, 1.0), (0.05, 0.2), (0.75, 0.95)), None, None),
        (rc.PLAIN, 0.15, _WHITE, None, None),
        (rc.STRIPES, 0.5, ((0.0, 1.0), (0.1, 0.2), (0.75, 0.95)), ((0.0, 1.0), (0.0, 0.15), (0.75, 0.9)), None),
    ],
    "floor": [
        (rc.WOOD, 0.16, ((0.05, 0.1), (0.3, 0.6), (0.45, 0.7)), None, None),
        (rc.TILES, 0.45, ((0.0, 0.15), (0.05, 0.35), (0.5, 0.8)), None, _WHITE),
        (rc.FABRIC, 0.3, ((0.6, 1.1), (0.15, 0.4), (0.35, 0.6)), None, None),
    ],
    "ceiling": [(rc.PLAIN, 0.5, _WHITE, None, None)],
    "window": [(rc.WINDOW, 1.0, ((0.5, 0.6), (0.25, 0.5), (0.9, 1.0)), _LEAVES, _WHITE)],
    "door": [(rc.DOOR, 1.0, _WOOD, None, _WHITE), (rc.DOOR, 1.0, _WOOD, None, _DARK)],
    "picture": [(rc.PICTURE, 1.0, _WHITE, _VIVID, _DARK), (rc.PICTURE, 1.0, _DARK, _VIVID, _DARK)],
    "table": [(rc.WOOD, 0.25, _PALE_WOOD, None, None), (rc.PLAIN, 0.3, _PALE_WOOD, None, None)],
    "chair": [(rc.PLAIN, 0.3, _RED, None, None), (rc.PLAIN, 0.3, _RED, None, None), (rc.WOOD, 0.1, _WOOD, None, None)],
    "sofa": [
        (rc.FABRIC, 0.4, ((0.3, 0.7), (0.4, 0.65), (0.3, 0.65)), None, None),
        (rc.STRIPES, 0.3, ((0.45, 0.7), (0.4, 0.65), (0.35, 0.65)), None, None),
    ],
    "pole": [(rc.PLAIN, 0.3, _DARK, None, None)],
    "shade": [(rc.PLAIN, 0.3, _WARM, None, None)],
    "shelf": [(rc.WOOD, 0.2, _DARK_WOOD, None, None)],
    "box": [
        (rc.PARCEL, 0.3, ((0.07, 0.12), (0.5, 0.75), (0.7, 0.95)), None, _WHITE),
        (rc.PARCEL, 0.3, ((0.1, 0.3), (0.7, 0.95), (0.7, 0.95)), None, None),
    ],
    "ball": [
        (rc.BEACH_BALL, 1.0, ((0.75, 0.95), (0.7, 1.0), (0.7, 1.0)), _VIVID, _WHITE),
        (rc.BEACH_BALL, 1.0, ((0.55, 0.95), (0.7, 1.0), (0.7, 1.0)), _WHITE, _WHITE),
    ],
}


def _look(random: np.random.Generator, name: str, glow: float = 0.0) -> rc.Material:
    """One of the looks of that name, with colours drawn from its ranges."""
    looks = _LOOKS[name]
    pattern, scale, *ranges = looks[random.integers(len(looks))]
    drawn = [part and np.power(colorsys.hsv_to_rgb(*(random.uniform(*span) for span in part)), 2.2) for part in ranges]
    ground, variation, trim = drawn
    colours = (ground, 0.65 * ground if variation is None else variation, 0.4 * ground if trim is None else trim)
    return rc.Material(pattern, colours, scale, random.random(), glow, random.uniform(0, 0.25))


def _panel(kind: str, width: _Range, height: _Range, glow: float = 0.0) -> Callable[[np.random.Generator], _Object]:
    """A maker of flat things that hang on walls, of half width and height within the ranges."""

    def make(random: np.random.Generator) -> _Object:
        half = (random.uniform(*width), 0.03, random.uniform(*height) / 2)
        return _Object(kind, [_Piece(rc.BOX, "background", (0, 0.03, half[2]), half, _look(random, kind, glow))])

    return make


_window = _panel("window", (0.4, 0.85), (0.85, 1.3), glow=2.2)
_door = _panel("door", (0.4, 0.55), (1.9, 2.15))
_picture = _panel("picture", (0.3, 0.6), (0.5, 0.85))


def _legs(x: float, y: float, height: float, thickness: float, material: rc.Material) -> list[_Piece]:
    half = (thickness, thickness, height / 2)
    return [_Piece(rc.BOX, "leg", (i * x, j * y, height / 2), half, material) for i in (-1, 1) for j in (-1, 1)]


def _table(random: np.random.Generator) -> _Object:
    x, y, height = random.uniform(0.45, 0.85), random.uniform(0.35, 0.5), random.uniform(0.55, 0.78)
    top, rests = _look(random, "table"), [(i * x, 0.0, height + 0.04, 0.18) for i in (-0.6, 0, 0.6)]
    if random.random() < 0.3:
        pole = _look(random, "table")
        return _Object("table", [
            _Piece(rc.FRUSTUM, "top", (0, 0, height), (x, x, 0.04), top),
            _Piece(rc.FRUSTUM, "leg", (0, 0, height / 2), (0.07, 0.07, height / 2), pole),
            _Piece(rc.FRUSTUM, "leg", (0, 0, 0.03), (0.3, 0.3, 0.03), pole, 0.6),
        ], rests)  # fmt: skip
    slab = _Piece(rc.BOX, "top", (0, 0, height), (x, y, 0.04), top)
    return _Object("table", [slab, *_legs(x - 0.06, y - 0.06, height, 0.04, _look(random, "table"))], rests)


def _chair(random: np.random.Generator) -> _Object:
    x, seat, back = random.uniform(0.2, 0.26), random.uniform(0.42, 0.5), random.uniform(0.4, 0.55)
    look = _look(random, "chair")
    return _Object("chair", [
        _Piece(rc.BOX, "seat", (0, 0, seat), (x, x, 0.035), look),
        _Piece(rc.BOX, "back", (0, 0.03 - x, seat + back / 2 + 0.03), (x, 0.03, back / 2), look),
        *_legs(x - 0.03, x - 0.03, seat, 0.03, look),
    ])  # fmt: skip


def _sofa(random: np.random.Generator) -> _Object:
    x, y, back, arm = random.uniform(0.65, 1.0), random.uniform(0.38, 0.45), random.uniform(0.7, 0.9), 0.1
    look, inner = _look(random, "sofa"), x - 2 * arm
    cushions = [
        _Piece(rc.BOX, "seat", (i * inner / 2, y + 0.1, 0.42), (inner / 2 - 0.01, y - 0.1, 0.06), look) for i in (-1, 1)
    ]
    arms = [_Piece(rc.BOX, "arm", (i * (x - arm), y, 0.31), (arm, y, 0.27), look) for i in (-1, 1)]
    return _Object("sofa", [
        _Piece(rc.BOX, "seat", (0, y + 0.05, 0.21), (inner, y - 0.05, 0.15), look),
        _Piece(rc.BOX, "back", (0, 0.12, back / 2 + 0.03), (inner, 0.12, back / 2 - 0.03), look),
        *cushions, *arms,
    ], [(i * inner / 2, y + 0.1, 0.48, 0.14) for i in (-1, 1)])  # fmt: skip


def _shelf(random: np.random.Generator) -> _Object:
    x, y, height = random.uniform(0.35, 0.6), random.uniform(0.15, 0.19), random.uniform(1.0, 2.0)
    look, back = _look(random, "shelf"), _look(random, "shelf")
    levels = np.linspace(0.08, height - 0.02, int(height / 0.4) + 1)
    boards = [_Piece(rc.BOX, "top", (0, y, level), (x, y, 0.02), look) for level in levels]
    sides = [_Piece(rc.BOX, "leg", (i * x, y, height / 2), (0.025, y, height / 2), look) for i in (-1, 1)]
    panel = _Piece(rc.BOX, "back", (0, 0.01, height / 2), (x, 0.01, height / 2), back)
    rests = [(i * x, y, level + 0.02, 0.13) for level in levels for i in (-0.5, 0.1, 0.6)]
    return _Object("shelf", [*boards, *sides, panel], rests)


def _lamp(random: np.random.Generator, height: float) -> _Object:
    """A lamp on a foot, as high as asked for."""
    size = random.uniform(0.2, 0.3) if height > 1 else random.uniform(0.14, 0.2)
    pole, shade = _look(random, "pole"), _look(random, "shade", random.uniform(0.8, 2.0))
    taper, middle = random.uniform(0, 0.5), height - 0.7 * size
    return _Object("lamp", [
        _Piece(rc.FRUSTUM, "leg", (0, 0, 0.02), (0.7 * size, 0.7 * size, 0.02), pole, 0.3),
        _Piece(rc.FRUSTUM, "leg", (0, 0, height / 2 - size / 2), (0.025, 0.025, height / 2 - size / 2), pole),
        _Piece(rc.FRUSTUM, "shade", (0, 0, middle), (size, size, 0.7 * size), shade, taper),
    ])  # fmt: skip


def _box(random: np.random.Generator, size: float) -> _Object:
    x, y, z = size * random.uniform(0.6, 1, 3)
    cuboid = _Piece(rc.BOX, "background", (0, 0, z), (x, y, z), _look(random, "box"))
    return _Object("box", [cuboid], [(0, 0, 2 * z, 0.6 * size)])


def _ball(random: np.random.Generator, size: float) -> _Object:
    return _Object("ball", [_Piece(rc.BALL, "background", (0, 0, size), (size, size, size), _look(random, "ball"))])


def _pendant(random: np.random.Generator, drop: float) -> _Object:
    """A lamp whose shade hangs `drop` below its origin, where the cord meets the ceiling."""
    size = random.uniform(0.2, 0.34)
    cord = drop / 2 - 0.2 * size  # half its length: it ends within the shade, short of the light
    pole, shade = _look(random, "pole"), _look(random, "shade", random.uniform(0.8, 2.0))
    return _Object("lamp", [
        _Piece(rc.FRUSTUM, "leg", (0, 0, -cord), (0.015, 0.015, cord), pole),
        _Piece(rc.FRUSTUM, "shade", (0, 0, -drop), (size, size, 0.5 * size), shade, random.uniform(0.2, 0.7)),
    ])  # fmt: skip


def _furnish(room: _Room) -> None:
    """Fill the room: the walls and what leans on them first, then the floor, then what stands on furniture."""
    random = room.random
    across, along, up = room.half

    def anywhere() -> _Place:
        return _Place(random.uniform(-across, across), random.uniform(-along, along), 0.0, random.uniform(-0.6, 0.6))

    def shine(place: _Place, strength: float, hues: _Hues = _WARM) -> None:
        colour = np.power(colorsys.hsv_to_rgb(*(random.uniform(*span) for span in hues)), 2.2)
        room.lights.append(rc.Light(np.float32(place[:3]), np.float32(strength * random.uniform(0.6, 1.4) * colour)))

    ceiling = _Place(random.uniform(-0.5, 0.5) * across, random.uniform(-0.2, 0.6) * along, 2 * up, 0.0)
    drop = random.uniform(0.4, 0.7)
    shine(ceiling.beside(0, 0, -drop), 3.0, _WHITE)
    if random.random() < 0.45 and room.camera.sees(ceiling.x, ceiling.y, ceiling.z - drop, 1.5):
        room.add(_pendant(random, drop), ceiling)
    if random.random() < 0.75:
        room.hang(_door(random), 0.0, clearance=0.5)
    for _ in range(random.integers(0, 3)):
        window = _window(random)
        place = room.hang(window, random.uniform(0.75, 1.0))
        if place and len(room.lights) < 2:
            shine(place.beside(0, 0.8, window.extent(2) / 2), 2.5, ((0.5, 0.65), (0.0, 0.25), (0.9, 1.0)))

    hosts: list[tuple[_Object, _Place | None]] = []
    if random.random() < 0.7:
        shelf = _shelf(random)
        hosts.append((shelf, room.hang(shelf, 0.0, clearance=shelf.extent(1))))
    if random.random() < 0.75:
        sofa = _sofa(random)
        hosts.append((sofa, room.hang(sofa, 0.0, clearance=sofa.extent(1))))
    if random.random() < 0.7:
        table = _table(random)
        hosts.append((table, room.stand(table, anywhere, 1.7)))
    for _ in range(random.integers(0, 3)):
        room.stand(_chair(random), lambda: anywhere()._replace(yaw=random.uniform(-math.pi, math.pi)), 1.2)
    if random.random() < 0.5:
        lamp = _lamp(random, random.uniform(1.2, 1.7))
        place = room.stand(lamp, anywhere, 1.3)
        if place and len(room.lights) < 3:
            shine(place.beside(0, 0, lamp.extent(2) - 0.15), 1.5)
    for _ in range(random.integers(1, 4)):
        box = _box(random, random.uniform(0.2, 0.36))
        hosts.append((box, room.stand(box, anywhere, 1.0)))
    for _ in range(random.integers(1, 4)):
        room.stand(_ball(random, random.uniform(0.15, 0.3)), anywhere, 1.0)
    for _ in range(random.integers(1, 4)):
        room.hang(_picture(random), random.uniform(1.1, 1.5))
    if random.random() < 0.4:
        half = (random.uniform(0.6, 1.1), random.uniform(0.5, 0.9), 0.006)
        rug = _Object("floor", [_Piece(rc.BOX, "background", (0, 0, 0.006), half, _look(random, "floor"))])
        room.add(rug, _Place(0.0, random.uniform(-0.3, 0.3) * along, 0.0, random.uniform(-0.5, 0.5)))
    for host, place in hosts:
        for right, ahead, above, size in host.rests if place else ():
            if random.random() < 0.4:
                small = _trinket(random, host.kind, size)
                room.add(small, place.beside(right, ahead, above, random.uniform(-0.5, 0.5)))


def _trinket(random: np.random.Generator, host: str, size: float) -> _Object:
    """Something small enough for a place of that half size."""
    if host == "table" and random.random() < 0.4:
        return _lamp(random, random.uniform(0.4, 0.55))
    return (_box if random.random() < 0.6 else _ball)(random, size * random.uniform(0.6, 1))


def _radiance(hits: rc.Hits, eye: np.ndarray, stage: _Stage, room: _Room, focal: float) -> np.ndarray:
    """Linear colour [N 3] of the light that the hits send to the camera."""
    slant = np.abs(np.einsum("ij,ij->i", hits.normal, eye - hits.point)) / hits.depth
    albedo, glow = rc.paint(hits, stage.materials, hits.depth / (focal * np.maximum(slant, 0.1)))
    diffuse, mirrored = rc.light_up(hits, eye, room.lights, stage.casters, stage.materials.gloss[hits.owner])
    ambient = 0.5 * rc.openness(hits, room.half) * (1 + 0.25 * hits.normal[:, 2])
    return albedo * (diffuse + ambient[:, None]) + mirrored + glow


def _smooth(colours: np.ndarray, border: np.ndarray, rows: np.ndarray, columns: np.ndarray, look: Callable) -> None:
    """Average the colours of the `border` pixels over four more rays each, in place."""
    offsets = np.float32([(-0.375, -0.125), (-0.125, 0.375), (0.125, -0.375), (0.375, 0.125)])
    down, right = offsets.T[:, :, None]
    _, extra = look((rows[border] + down).ravel(), (columns[border] + right).ravel())
    colours[border] = (colours[border] + extra.reshape(4, -1, 3).sum(axis=0)) / 5


def _develop(colours: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Linear colours as a camera records them, uint8: exposed for their mean, tinted, compressed and noisy."""
    exposure = random.uniform(0.32, 0.48) / np.minimum(colours, 2).mean()
    cast = np.float32(1 + random.uniform(-0.04, 0.04, 3))
    linear = colours * (np.float32(exposure) * cast)
    display = (linear * (1 + linear / 6) / (1 + linear)) ** np.float32(1 / 2.2)
    noise = random.standard_normal(display.shape, dtype=np.float32) * np.float32(random.uniform(0.003, 0.012))
    return (255 * np.clip(display + noise, 0, 1) + 0.5).astype(np.uint8)


def _boundaries(labels: np.ndarray) -> np.ndarray:
    """Where [h w] labels differ from the right or the lower neighbour."""
    border = np.zeros(labels.shape, bool)
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    border[:-1] |= labels[:-1] != labels[1:]
    return border


def _dilated(border: np.ndarray) -> np.ndarray:
    """The pixels [h w] of a boundary and the neighbours across it."""
    both = border.copy()
    both[:, 1:] |= border[:, :-1]
    both[1:] |= border[:-1]
    return both


def _salient(instances: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The objects of interest, by the rule that `Scene` states."""
    height, width = instances.shape
    rows, columns = np.indices(instances.shape, dtype=np.float32)
    distance = ((rows - (height - 1) / 2) ** 2 + (columns - (width - 1) / 2) ** 2) / ((height**2 + width**2) / 4)
    weight = np.exp(-2 * distance) * np.isin(classes, _FREE_STANDING)
    totals = np.bincount(instances.ravel(), weight.ravel())
    return ((totals > 0) & (totals >= totals.max() / 2))[instances]
