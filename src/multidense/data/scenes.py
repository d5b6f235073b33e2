"""Procedural indoor scenes with exact labels: the data set `rooms`, which needs no download.

A scene is drawn from (seed, index) alone: a room, what hangs on its walls and stands on its floor, the lights and the
camera. The size of the picture only sets how densely the same view is sampled. `_raycast` does the geometry and the
light; this module decides what there is to see.
"""

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
_SALIENT = tuple(_CLASS[name] for name in ("table", "chair", "sofa", "lamp", "shelf", "box", "ball"))
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
    height, width = size
    focal = max(width, _NOMINAL_ASPECT * height) / (2 * view.tangent)
    cx, cy = (width - 1) / 2, (height - 1) / 2
    rows, columns = (grid.ravel() for grid in np.indices(size, dtype=np.float32))

    def look(rows, columns):
        """Hits of the rays through these places of the picture, and their linear colours."""
        seen = np.stack([(columns - cx) / focal, (cy - rows) / focal, np.full_like(rows, -1)], axis=1)
        hits = rc.cast(view.position, (seen @ view.axes).astype(np.float32), stage.solids, room.half)
        return hits, _radiance(hits, stage, room, focal)

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
        normals=(hits.normal @ view.axes.T).astype(np.float32).reshape(*size, 3),
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
        back = self.position - (x, y, random.uniform(0.5, 1.3))
        back /= math.hypot(*back)
        right = np.array([-back[1], back[0], 0]) / math.hypot(back[0], back[1])
        up = np.cross(back, right)
        roll = random.normal(0, 0.03)
        cosine, sine = math.cos(roll), math.sin(roll)
        self.axes = np.stack([cosine * right + sine * up, cosine * up - sine * right, back])
        self.tangent = math.tan(random.uniform(0.53, 0.7))

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
        self.half = np.float32([random.uniform(1.7, 2.7), random.uniform(2.1, 3.2), random.uniform(1.15, 1.45)])
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
        """Add the object to a wall in view, its foot `low` above the floor, keeping the floor before it clear."""
        half_width, height = item.extent(0), item.extent(2)
        for _ in range(16):
            place, wall = self._along_wall(half_width, low)
            front = place.beside(0, clearance / 2 + 0.01)
            turned = abs(math.sin(place.yaw)) > 0.5
            zone = (clearance / 2, half_width) if turned else (half_width, clearance / 2)
            area = (place.y if turned else place.x, low + height / 2, half_width + 0.06, height / 2 + 0.04)
            if not self.camera.sees(place.x, place.y, low + height / 2, 1.3) or not self._free(wall, area):
                continue
            if clearance == 0 or self._claim("floor", (front.x, front.y, *zone)):
                self._claim(wall, area)
                self.add(item, place)
                return place
        return None

    def _along_wall(self, half_width: float, height: float) -> tuple[_Place, str]:
        wall = str(self.random.choice(["back", "left", "right"], p=[0.5, 0.25, 0.25]))
        across, along, _ = self.half
        free = (across if wall == "back" else along) - half_width - 0.05
        u = self.random.uniform(-free, free)
        places = {
            "back": _Place(u, along, height, math.pi),
            "left": _Place(-across, u, height, -math.pi / 2),
            "right": _Place(across, u, height, math.pi / 2),
        }
        return places[wall], wall

    def _free(self, surface: str, area: tuple[float, float, float, float]) -> bool:
        x, y, half_x, half_y = area
        taken = self.occupied.setdefault(surface, [])
        return not any(abs(x - a) < half_x + c and abs(y - b) < half_y + d for a, b, c, d in taken)

    def _claim(self, surface: str, area: tuple[float, float, float, float]) -> bool:
        """Take a rectangle of a surface if it is free, and say whether it was."""
        free = self._free(surface, area)
        if free:
            self.occupied[surface].append(area)
        return free
