"""Procedural indoor scenes with exact labels: the data set `rooms`, which needs no download.

A scene is drawn from (seed, index) alone: a room, what hangs on its walls and stands on its floor, the lights and the
camera. The size of the picture only sets how densely the same view is sampled. `_furniture` builds the things, this
module decides where they stand and what the camera sees, and `_raycast` does the geometry and the light.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from multidense.data import _furniture as furniture
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


class _Area(NamedTuple):
    """A rectangle of a surface: its middle and half its sizes."""

    x: float
    y: float
    half_x: float
    half_y: float


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
        return bool(-back > nearest and abs(right) < reach and abs(up) < reach / _NOMINAL_ASPECT)


class _Room:
    """A room in the making, centred on the world's origin and standing on z = 0.

    half: [3] its half sizes. `occupied` holds what is taken of the floor; the walls share it under their name, with the
    height in place of y.
    """

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.half = np.float32([random.uniform(1.5, 2.2), random.uniform(1.9, 2.7), random.uniform(1.15, 1.45)])
        self.camera = _Camera(random, self.half)
        self.lights: list[rc.Light] = []
        self.rows: list[tuple[furniture.Piece, _Place, int, int]] = []  # piece, place, instance, class
        self.instances = 3  # after wall, floor and ceiling
        self.occupied = {"floor": [_Area(*self.camera.position[:2], 0.5, 0.5)]}

    def add(self, item: furniture.Object, place: _Place) -> None:
        """Put an object at a place; what is called `floor` is part of the floor."""
        instance = self.instances
        if item.kind == "floor":
            instance = 1
        else:
            self.instances += 1
        self.rows += [(piece, place, instance, _CLASS[item.kind]) for piece in item.pieces]

    def stand(self, item: furniture.Object, draw: Callable[[], _Place], nearest: float) -> _Place | None:
        """Add the object at the first drawn place that is free and in view; None when there is none."""
        half_x, half_y = item.extent(0), item.extent(1)
        for _ in range(16):
            place = draw()
            cosine, sine = abs(math.cos(place.yaw)), abs(math.sin(place.yaw))
            zone = _Area(place.x, place.y, cosine * half_x + sine * half_y, sine * half_x + cosine * half_y)
            inside = abs(place.x) + zone.half_x < self.half[0] and abs(place.y) + zone.half_y < self.half[1]
            height = min(item.extent(2) / 2, 0.6)
            if inside and self.camera.sees(place.x, place.y, height, nearest) and self._claim("floor", zone):
                self.add(item, place)
                return place
        return None

    def hang(self, item: furniture.Object, low: float, clearance: float = 0.0) -> _Place | None:
        """Add the object to a wall in view, its foot `low` above the floor, with a free stretch of floor before it."""
        half_width, half_height = item.extent(0), item.extent(2) / 2
        for _ in range(16):
            wall = (0, 0, 1, 2)[self.random.integers(4)]  # mostly the far one
            turned = wall > 0
            free = self.half[int(turned)] - half_width - 0.05
            u = self.random.uniform(-free, free)
            x, y = ((u, self.half[1]), (-self.half[0], u), (self.half[0], u))[wall]
            place = _Place(x, y, low, (math.pi, -math.pi / 2, math.pi / 2)[wall])
            front = place.beside(0.0, clearance / 2 + 0.01)
            zone = _Area(front.x, front.y, *((clearance / 2, half_width) if turned else (half_width, clearance / 2)))
            area = _Area(u, low + half_height, half_width + 0.06, half_height + 0.04)
            if not self.camera.sees(float(x), float(y), low + half_height, 1.3) or not self._free(f"wall {wall}", area):
                continue
            if clearance == 0 or self._claim("floor", zone):
                self._claim(f"wall {wall}", area)
                self.add(item, place)
                return place
        return None

    def _free(self, surface: str, area: _Area) -> bool:
        x, y, half_x, half_y = area
        taken = self.occupied.get(surface, ())
        return not any(abs(x - a) < half_x + c and abs(y - b) < half_y + d for a, b, c, d in taken)

    def _claim(self, surface: str, area: _Area) -> bool:
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
        looks = [piece.material for piece in pieces] + [furniture.draw_look(self.random, name) for name in CLASSES[:3]]
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


def _furnish(room: _Room) -> None:
    """Fill the room: the walls and what leans on them first, then the floor, then what stands on furniture."""
    random = room.random
    across, along, up = room.half

    def anywhere() -> _Place:
        return _Place(random.uniform(-across, across), random.uniform(-along, along), 0.0, random.uniform(-0.6, 0.6))

    def shine(place: _Place, strength: float, hues: furniture.Hues = furniture.WARM) -> None:
        colour = furniture.draw_colour(random, hues)
        room.lights.append(rc.Light(np.float32(place[:3]), np.float32(strength * random.uniform(0.6, 1.4) * colour)))

    ceiling = _Place(random.uniform(-0.5, 0.5) * across, random.uniform(-0.2, 0.6) * along, 2 * up, 0.0)
    drop = random.uniform(0.4, 0.7)
    bulb = ceiling.beside(0.0, 0.0, -drop)
    shine(bulb, 3.0, furniture.WHITE)
    if random.random() < 0.45 and room.camera.sees(float(bulb.x), float(bulb.y), float(bulb.z), 1.5):
        room.add(furniture.pendant(random, drop), ceiling)
    if random.random() < 0.75:
        room.hang(furniture.door(random), 0.0, clearance=0.5)
    for _ in range(random.integers(0, 3)):
        window = furniture.window(random)
        place = room.hang(window, random.uniform(0.75, 1.0))
        if place and len(room.lights) < 2:
            shine(place.beside(0.0, 0.8, window.extent(2) / 2), 2.5, ((0.5, 0.65), (0.0, 0.25), (0.9, 1.0)))

    hosts: list[tuple[furniture.Object, _Place | None]] = []
    if random.random() < 0.7:
        shelf = furniture.shelf(random)
        hosts.append((shelf, room.hang(shelf, 0.0, clearance=shelf.extent(1))))
    if random.random() < 0.75:
        sofa = furniture.sofa(random)
        hosts.append((sofa, room.hang(sofa, 0.0, clearance=sofa.extent(1))))
    if random.random() < 0.7:
        table = furniture.table(random)
        hosts.append((table, room.stand(table, anywhere, 1.7)))
    for _ in range(random.integers(0, 3)):
        room.stand(furniture.chair(random), lambda: anywhere()._replace(yaw=random.uniform(-math.pi, math.pi)), 1.2)
    if random.random() < 0.5:
        lamp = furniture.lamp(random, random.uniform(1.2, 1.7))
        place = room.stand(lamp, anywhere, 1.3)
        if place and len(room.lights) < 3:
            shine(place.beside(0.0, 0.0, lamp.extent(2) - 0.15), 1.5)
    for _ in range(random.integers(1, 4)):
        box = furniture.box(random, random.uniform(0.2, 0.36))
        hosts.append((box, room.stand(box, anywhere, 1.0)))
    for _ in range(random.integers(1, 4)):
        room.stand(furniture.ball(random, random.uniform(0.15, 0.3)), anywhere, 1.0)
    for _ in range(random.integers(1, 4)):
        room.hang(furniture.picture(random), random.uniform(1.1, 1.5))
    if random.random() < 0.4:
        room.add(furniture.rug(random), _Place(0.0, random.uniform(-0.3, 0.3) * along, 0.0, random.uniform(-0.5, 0.5)))
    for host, place in hosts:
        for right, ahead, above, size in host.rests if place else ():
            if random.random() < 0.4:
                small = _trinket(random, host.kind, size)
                room.add(small, place.beside(right, ahead, above, random.uniform(-0.5, 0.5)))


def _trinket(random: np.random.Generator, host: str, size: float) -> furniture.Object:
    """Something small enough for a place of that half size."""
    if host == "table" and random.random() < 0.4:
        return furniture.lamp(random, random.uniform(0.4, 0.55))
    return (furniture.box if random.random() < 0.6 else furniture.ball)(random, size * random.uniform(0.6, 1))


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
