"""Ray casting with numpy: what the rays of one eye meet inside a room, and how it is coloured and lit.

World frame: x and y along the floor, z up, metres. All rays of a call leave from one point (the camera or a light), so
a solid's bounding sphere is a cone of directions and one small matrix product rejects most pairs of ray and solid.
Directions need not be unit: distances are counted in lengths of the direction, which makes them depths along the
optical axis when the directions reach the plane one metre before the camera.
"""

from typing import NamedTuple

import numpy as np

BOX, BALL, FRUSTUM = range(3)
PLAIN, WOOD, TILES, STRIPES, FABRIC, WINDOW, DOOR, PICTURE, BEACH_BALL, PARCEL = range(10)
WALL, FLOOR, CEILING = range(3)  # the room's own surfaces follow the last solid, in this order

_BLOCK = 8192  # rays at a time: bounds the memory of the ray x solid table, and keeps it in the cache
_NOISE = np.random.Generator(np.random.PCG64(7)).random((64, 64), dtype=np.float32)


class Solids(NamedTuple):
    """S convex solids: a unit cube, ball or cone stump, stretched, turned about the vertical and moved.

    shape: [S] BOX, BALL or FRUSTUM, ascending. centre: [S 3]. half: [S 3] half sizes. turn: [S 2] cosine and sine of
    the yaw. taper: [S] how much narrower a frustum is at its top, as a fraction of its bottom radius.
    """

    shape: np.ndarray
    centre: np.ndarray
    half: np.ndarray
    turn: np.ndarray
    taper: np.ndarray

    def reach(self) -> np.ndarray:
        """Radius [S] of the bounding spheres."""
        across, along, up = self.half.T
        flat = np.where(self.shape == BOX, across**2 + along**2, across**2)
        return np.sqrt(np.where(self.shape == BALL, 0, up**2) + flat)

    def select(self, keep: np.ndarray) -> "Solids":
        """The solids where `keep` [S] is true."""
        return Solids(*(column[keep] for column in self))


class Hits(NamedTuple):
    """Where N rays end.

    depth: [N] in lengths of the ray's direction. owner: [N] index of the solid, or S + WALL, FLOOR, CEILING.
    point, normal: [N 3] world; the normal is unit and faces the eye. surface: [N 2] metres on the surface from the
    middle of the face (horizontal, then vertical). relative: [N 2] along a box's width and height, or the longitude and
    the height of what is round, from -1 to 1.
    """

    depth: np.ndarray
    owner: np.ndarray
    point: np.ndarray
    normal: np.ndarray
    surface: np.ndarray
    relative: np.ndarray


class Light(NamedTuple):
    """A point light: position [3] in metres and colour [3], the radiance it lends to white at one metre."""

    position: np.ndarray
    colour: np.ndarray


class Material(NamedTuple):
    """The look of one thing, or of M things with every field stacked to [M].

    pattern: one of PLAIN to PARCEL. colours: [3 3] linear RGB of the ground, its variation and the trim. scale: metres
    of one repeat. phase: offset of the pattern. glow: light given off. gloss: strength of the highlights.
    """

    pattern: int | np.ndarray
    colours: np.ndarray
    scale: float | np.ndarray
    phase: float | np.ndarray
    glow: float | np.ndarray
    gloss: float | np.ndarray


def cast(origin: np.ndarray, directions: np.ndarray, solids: Solids, room_half: np.ndarray) -> Hits:
    """What rays from `origin` [3], float32, along `directions` [N 3] meet in a room of half sizes `room_half` [3].

    The room is centred on the world's origin in x and y and stands on z = 0.
    """
    count = len(solids.shape)
    depth, normal, owner = _room_exit(origin, directions, room_half)
    near, solid = _nearest(origin, directions, solids)
    front = np.flatnonzero(near < depth)
    depth[front] = near[front]
    point = origin + depth[:, None] * directions
    surface, relative = _box_face(point - _middle(room_half), normal, room_half)
    owner += count
    owner[front] = solid[front]
    normal[front], surface[front], relative[front] = _solid_surface(
        origin, directions, front, solid[front], near[front], solids
    )
    return Hits(depth, owner, point, normal, surface, relative)


def light_up(hits: Hits, eye: np.ndarray, lights: list[Light], casters: Solids, gloss: np.ndarray):
    """Diffuse and mirrored light [N 3] that `lights` send to the hits, shadowed by `casters`."""
    diffuse, mirrored = np.zeros_like(hits.point), np.zeros_like(hits.point)
    to_eye = _unit(eye - hits.point)
    for light in lights:
        away = hits.point - light.position
        distance = np.sqrt(_dot(away, away))
        slant = -_dot(hits.normal, away) / distance
        lit = np.flatnonzero(slant > 0)
        reach, _ = _nearest(light.position, away[lit], casters)
        lit = lit[reach > 0.998]  # the surface itself lies at 1
        received = light.colour * (slant[lit] / (0.5 + distance[lit] ** 2))[:, None]
        halfway = _unit(to_eye[lit] - away[lit] / distance[lit, None])
        diffuse[lit] += received
        mirrored[lit] += received * (gloss[lit] * np.maximum(_dot(hits.normal[lit], halfway), 0) ** 40)[:, None]
    return diffuse, mirrored


def openness(hits: Hits, room_half: np.ndarray) -> np.ndarray:
    """Share [N] of the ambient light that arrives: less where another surface of the room is close."""
    share = np.ones_like(hits.depth)
    centre = _middle(room_half)
    for axis in range(3):
        for side in (-1, 1):
            gap = room_half[axis] - side * (hits.point[:, axis] - centre[axis])
            turned_away = 1 - np.maximum(-side * hits.normal[:, axis], 0)
            share *= 1 - 0.45 * turned_away * np.exp(-np.maximum(gap, 0) / 0.35)
    return share


def paint(hits: Hits, materials: Material, pixel_size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Albedo [N 3] and glow [N 3] of the hits; `pixel_size` [N] in metres on the surface fades what is too fine."""
    which = materials.pattern[hits.owner]
    variation, trim = np.zeros_like(hits.depth), np.zeros_like(hits.depth)
    scale, phase = materials.scale[hits.owner], materials.phase[hits.owner]
    for pattern in np.unique(which):
        rows = np.flatnonzero(which == pattern)
        variation[rows], trim[rows] = _PATTERNS[pattern](
            *(hits.surface[rows] / scale[rows, None]).T, *hits.relative[rows].T, phase[rows]
        )
    contrast = 1 / (1 + (2.5 * pixel_size / scale) ** 2)
    variation = 0.5 + (variation - 0.5) * contrast
    ground, second, third = materials.colours[hits.owner].swapaxes(0, 1)
    colour = ground + variation[:, None] * (second - ground)
    glow = materials.glow[hits.owner] * (1 - trim)
    return colour + (trim * contrast)[:, None] * (third - colour), colour * glow[:, None]


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", first, second)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt(_dot(vectors, vectors))[:, None]


def _middle(room_half: np.ndarray) -> np.ndarray:
    """The centre [3] of the room, which stands on the floor."""
    return room_half * np.float32([0, 0, 1])


def _room_exit(origin, directions, room_half):
    """Distance [N], inward normal [N 3] and surface [N] of the room where the rays leave it."""
    start = origin - _middle(room_half)
    away = np.where(directions >= 0, np.float32(1), np.float32(-1))
    leave = (room_half * away - start) / (directions + 1e-9 * away)
    axis = leave.argmin(axis=1)
    rows = np.arange(len(directions))
    normal = np.zeros_like(directions)
    normal[rows, axis] = -away[rows, axis]
    surface = np.where(axis < 2, WALL, np.where(away[:, 2] < 0, FLOOR, CEILING))
    return leave[rows, axis], normal, surface


def _nearest(origin, directions, solids):
    """Distance [N] to the first solid along each ray (infinite when there is none), and its index [N]."""
    depth = np.full(len(directions), np.inf, np.float32)
    owner = np.zeros(len(directions), np.intp)
    for first in range(0, len(directions), _BLOCK):
        block = directions[first : first + _BLOCK]
        ids, rays = _candidates(origin, block, solids)
        reach = _entries(origin, block, rays, ids, solids)
        nearest, winner = depth[first : first + _BLOCK], owner[first : first + _BLOCK]
        np.minimum.at(nearest, rays, reach)
        won = reach == nearest[rays]
        winner[rays[won]] = ids[won]
    return depth, owner


def _candidates(origin, directions, solids):
    """Pairs (solid, ray), sorted by solid, whose ray passes through the solid's bounding sphere."""
    offset = solids.centre - origin
    tangent = _dot(offset, offset) - solids.reach() ** 2
    # An eye within the sphere sees it in every direction.
    needed = np.where(tangent > 0, np.sqrt(np.maximum(tangent, 0)), -np.inf)
    return np.nonzero(offset @ _unit(directions).T > needed[:, None])


def _localise(origin, directions, rays, ids, solids):
    """Start and direction [3 M] of pairs of ray and solid, in the frame where the solid is of unit size."""
    offset = origin - solids.centre
    cosine, sine = solids.turn.T
    start = np.stack([cosine * offset[:, 0] + sine * offset[:, 1], cosine * offset[:, 1] - sine * offset[:, 0],
                      offset[:, 2]]) / solids.half.T  # fmt: skip
    x, y, z = directions.T
    x, y, z, cosine, sine = x[rays], y[rays], z[rays], cosine[ids], sine[ids]
    half = solids.half.T
    heading = np.stack([(cosine * x + sine * y) / half[0][ids], (cosine * y - sine * x) / half[1][ids],
                        z / half[2][ids]])  # fmt: skip
    return start[:, ids], heading + np.float32(1e-9)  # never exactly zero, which would divide by it


def _entries(origin, directions, rays, ids, solids):
    """Distance [M] at which each pair's ray enters its solid, infinite where it passes by; `ids` ascending."""
    start, heading = _localise(origin, directions, rays, ids, solids)
    balls, frustums = np.searchsorted(solids.shape[ids], (BALL, FRUSTUM))
    box, ball, frustum = slice(balls), slice(balls, frustums), slice(frustums, None)
    return np.concatenate([
        _enter_box(start[:, box], heading[:, box]),
        _enter_ball(start[:, ball], heading[:, ball]),
        _enter_frustum(start[:, frustum], heading[:, frustum], solids.taper[ids[frustum]]),
    ])  # fmt: skip


def _enter_box(start, heading):
    inverse = 1 / heading
    middle, reach = -start * inverse, np.abs(inverse)
    enter, leave = (middle - reach).max(axis=0), (middle + reach).min(axis=0)
    return np.where((enter < leave) & (enter > 0), enter, np.float32(np.inf))


def _enter_ball(start, heading):
    enter, _ = _roots(_dot(heading.T, heading.T), _dot(start.T, heading.T), _dot(start.T, start.T) - 1)
    return np.where(enter > 0, enter, np.float32(np.inf))


def _enter_frustum(start, heading, taper):
    middle, growth = 1 - taper / 2, -taper / 2  # the radius at height z is middle + growth z
    radius, widening = middle + growth * start[2], growth * heading[2]
    flat_start, flat_heading = start[:2].T, heading[:2].T
    sides = _roots(
        _dot(flat_heading, flat_heading) - widening**2,
        _dot(flat_start, flat_heading) - radius * widening,
        _dot(flat_start, flat_start) - radius**2,
    )
    caps = [(end - start[2]) / heading[2] for end in (-1, 1)]
    enter = np.full(start.shape[1], np.inf, np.float32)
    for reach, inside in [(t, np.abs(start[2] + t * heading[2]) <= 1) for t in sides] + [
        (t, ((start[:2] + t * heading[:2]) ** 2).sum(axis=0) <= (middle + growth * end) ** 2)
        for t, end in zip(caps, (-1, 1), strict=True)
    ]:
        enter = np.where(inside & (reach > 0) & (reach < enter), reach, enter)
    return enter


def _roots(a, b, c):
    """Both solutions of a t^2 + 2 b t + c = 0, nan where there are none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt(b * b - a * c)
        return (-b - spread) / a, (-b + spread) / a


def _solid_surface(origin, directions, rays, ids, depth, solids):
    """World normal [M 3] and surface coordinates [M 2], [M 2] where `rays` [M] meet the solids `ids` [M]."""
    start, heading = _localise(origin, directions, rays, ids, solids)
    place, half = (start + depth * heading).T, solids.half[ids]
    normal, surface, relative = np.zeros_like(place), np.zeros_like(place[:, :2]), np.zeros_like(place[:, :2])
    shape = solids.shape[ids]

    rows = np.flatnonzero(shape == BOX)
    inverse = 1 / heading[:, rows]
    axis = (-start[:, rows] * inverse - np.abs(inverse)).argmax(axis=0)
    normal[rows, axis] = -np.sign(heading[axis, rows])
    surface[rows], relative[rows] = _box_face(place[rows] * half[rows], normal[rows], half[rows])

    rows = np.flatnonzero(shape == BALL)
    normal[rows] = _unit(place[rows] / half[rows])
    relative[rows] = _angles(place[rows, 1], place[rows, 2], place[rows, 0])
    surface[rows] = relative[rows] * (np.pi * half[rows, :1])

    rows = np.flatnonzero(shape == FRUSTUM)
    taper = solids.taper[ids[rows]]
    x, y, z = place[rows].T
    radius, distance = 1 - taper * (z + 1) / 2, np.hypot(x, y)
    side = np.stack([x, y, radius * taper / 2], axis=1) / half[rows]
    on_cap = 1 - np.abs(z) < np.abs(radius - distance)
    normal[rows] = np.where(on_cap[:, None], np.sign(z)[:, None] * np.float32([0, 0, 1]), _unit(side))
    relative[rows] = _angles(x, y, z)
    surface[rows] = np.stack([relative[rows, 0] * np.pi * half[rows, 0], z * half[rows, 2]], axis=1)

    cosine, sine = solids.turn[ids].T
    x, y, z = normal.T
    normal = np.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=1)
    grazing = _dot(normal, directions[rays]) > 0  # rounding at a silhouette
    normal[grazing] *= -1
    return normal, surface, relative


def _angles(x, y, height):
    """Longitude about the axis and height along it, both within -1 and 1: [M 2]."""
    return np.stack([np.arctan2(y, x) / np.float32(np.pi), height], axis=1)


def _box_face(place, normal, half):
    """Metres [M 2] on the face of a box, and where its width and height [M 2] are, from -1 to 1."""
    axis = np.abs(normal).argmax(axis=1)
    rows, columns = np.arange(len(axis))[:, None], np.stack([axis == 0, np.where(axis == 2, 1, 2)], axis=1).astype(int)
    return place[rows, columns], (place / half)[:, ::2]


def _noise(u, v):
    """Smooth noise [M] within 0 and 1, one bump per unit, repeating after 64."""
    left, bottom = np.floor(u), np.floor(v)
    x, y = u - left, v - bottom
    x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)
    i, j = left.astype(np.int32) & 63, bottom.astype(np.int32) & 63
    i_next, j_next = (i + 1) & 63, (j + 1) & 63
    low = _NOISE[i, j] + x * (_NOISE[i_next, j] - _NOISE[i, j])
    high = _NOISE[i, j_next] + x * (_NOISE[i_next, j_next] - _NOISE[i, j_next])
    return low + y * (high - low)


# A pattern maps the surface in repeats (u, v), the place relative to the whole (a, b) and a phase, all [M], to how far
# the ground colour turns into the variation and how much of the trim covers both.


def _plain(u, v, a, b, phase):
    return 0.7 * _noise(u + phase, v) + 0.3 * _noise(4 * u, 4 * v + phase), np.zeros_like(u)


def _wood(u, v, a, b, phase):
    plank = np.floor(v + phase)
    grain = _noise(0.7 * u + 7 * plank, 9 * v)
    tone = _NOISE[plank.astype(np.int32) & 63, 3]
    joint = (np.abs(v + phase - plank - 0.5) > 0.46) | ((0.2 * u + 0.37 * plank) % 1 < 0.01)
    return 0.5 * tone + 0.5 * grain, 0.8 * joint.astype(np.float32)


def _tiles(u, v, a, b, phase):
    column, row = np.floor(u + phase), np.floor(v + phase)
    joint = np.maximum(np.abs(u + phase - column - 0.5), np.abs(v + phase - row - 0.5)) > 0.465
    return 0.8 * ((column + row) % 2) + 0.2 * _noise(3 * u, 3 * v), joint.astype(np.float32)


def _stripes(u, v, a, b, phase):
    return ((u + phase) % 1 < 0.5).astype(np.float32), ((u + phase) % 1 < 0.06).astype(np.float32)


def _fabric(u, v, a, b, phase):
    weave = 0.5 + 0.5 * np.sin(40 * u) * np.sin(40 * v)
    return 0.55 * _noise(2 * u + phase, 2 * v) + 0.25 * _noise(9 * u, 9 * v) + 0.2 * weave, np.zeros_like(u)


def _window(u, v, a, b, phase):
    frame = (np.maximum(np.abs(a), np.abs(b)) > 0.9) | (np.abs(a) < 0.045) | (np.abs(b - 0.25) < 0.03)
    trees = b < -0.75 + 0.7 * _noise(3 * a + phase, 0 * a)
    return np.where(trees, 1, 0.35 * (1 - b) * _noise(a + phase, 2 * b)), frame.astype(np.float32)


def _door(u, v, a, b, phase):
    panel = np.abs(np.abs(b) - 0.48) - 0.36
    panel = np.maximum(panel, np.abs(a) - 0.58)
    edge = np.abs(panel + 0.02) < 0.035
    frame = (np.abs(a) > 0.86) | (b > 0.94)
    return 0.3 * _noise(9 * u, 0.8 * v + phase) + 0.7 * edge, frame.astype(np.float32)


def _picture(u, v, a, b, phase):
    border = np.maximum(np.abs(a), np.abs(b))
    hills = b + 0.4 < 0.9 * _noise(2 * a + phase, 0 * a + phase)
    art = np.where(hills, 1, 0.3 * _noise(3 * a, 4 * b))
    return np.where(border > 0.7, 0.05, art), (border > 0.85).astype(np.float32)


def _beach_ball(u, v, a, b, phase):
    return (np.floor(3 * (a + phase)) % 2).astype(np.float32), (np.abs(b) > 0.93).astype(np.float32)


def _parcel(u, v, a, b, phase):
    return 0.4 * _noise(4 * u + phase, 4 * v), (np.abs(a) < 0.16).astype(np.float32)


_PATTERNS = (_plain, _wood, _tiles, _stripes, _fabric, _window, _door, _picture, _beach_ball, _parcel)
