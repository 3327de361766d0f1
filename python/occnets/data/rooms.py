# SPDX-License-Identifier: MIT
"""Procedural floors of a building: rooms along a corridor, doors, windows and furniture, in metres, z up.

Everything is solid and known exactly: ``Scene.occupancy`` is the truth that a reconstruction can be compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from occnets.data.draw import Draw
from occnets.data.mechanical import furniture
from occnets.data.procedural import ShapeConfig, random_shape
from occnets.data.solid import DegenerateShape, Solid, make_solid

Array = NDArray[np.float64]
Opening = tuple[float, float, float, float]  # along the wall from, to; height from, to

_SKIN = 2e-3  # metres; a surface point so far outside its own part must not be inside another
_BLOCK = 400_000


@dataclass(frozen=True)
class PlanConfig:
    """Ranges of a floor plan, in metres.

    Attributes:
        rooms: number of rooms.
        width, depth: of a room.
        height: of the walls.
        wall: thickness of the walls.
        slab: thickness of the floor (and ceiling).
        ceiling: put a slab on top.
        furniture: fewest and most pieces in a room.
        corridor: width; rooms lie on both sides of it. With one or two rooms there is none.
    """

    rooms: int = 20
    width: tuple[float, float] = (3.0, 5.0)
    depth: tuple[float, float] = (3.6, 5.2)
    height: tuple[float, float] = (2.5, 2.9)
    wall: tuple[float, float] = (0.12, 0.24)
    slab: float = 0.2
    ceiling: bool = False
    furniture: tuple[int, int] = (2, 5)
    corridor: float = 1.8

    def __post_init__(self) -> None:
        if self.rooms < 1:
            raise ValueError(f"PlanConfig: rooms must be at least 1, got {self.rooms}")
        for name in ("width", "depth", "height", "wall", "furniture"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"PlanConfig: {name} must be (low, high) with 0 <= low <= high, got {(low, high)}")


@dataclass(frozen=True, eq=False)
class Item:
    """A solid standing in the scene: local coordinates are ``rotation @ (p - center) / scale``.

    Attributes:
        solid: in its own unit cube.
        scale: length of its longest side.
        rotation: (3, 3).
        center: (3,).
        reach: half the sides (3,) of a box around ``center`` that holds it.
    """

    solid: Solid
    scale: float
    rotation: Array
    center: Array
    reach: Array

    def occupancy(self, points: Array) -> NDArray[np.bool_]:
        """(N,) whether the points lie inside."""
        inside = np.zeros(len(points), dtype=bool)
        near = np.flatnonzero((np.abs(points - self.center) <= self.reach).all(axis=1))
        if len(near):
            local = (points[near] - self.center) @ self.rotation.T / self.scale
            inside[near] = self.solid.occupancy(torch.from_numpy(local.astype(np.float32))).numpy()
        return inside

    def surface(self, count: int, seed: int) -> tuple[Array, Array]:
        """Surface points (count, 3), uniform by area, and outward normals."""
        points, normals = (value.double().numpy() for value in self.solid.surface(count, seed))
        return points @ self.rotation * self.scale + self.center, normals @ self.rotation


@dataclass(frozen=True, eq=False)
class Scene:
    """Walls and slabs as boxes, and the things between them.

    Attributes:
        boxes: (K, 2, 3) lower and upper corners.
        items: furniture.
        rooms: (R, 2, 3) lower and upper corners of the free space of every room, the corridor last if there is one.
    """

    boxes: Array
    items: tuple[Item, ...]
    rooms: Array

    @property
    def bounds(self) -> Array:
        """(2, 3) corners of everything."""
        return np.stack([self.boxes[:, 0].min(axis=0), self.boxes[:, 1].max(axis=0)])

    def occupancy(self, points: NDArray[np.floating]) -> NDArray[np.bool_]:
        """(N,) whether the points (N, 3) are inside a solid."""
        points = np.asarray(points, dtype=np.float64)
        inside = np.zeros(len(points), dtype=bool)
        # Sorted along x, every part touches one run of points only.
        order = np.argsort(points[:, 0], kind="stable")
        along = points[order]
        for low, high in self.boxes:
            part = slice(*np.searchsorted(along[:, 0], (low[0], high[0])))
            inside[part] |= ((along[part, 1:] > low[1:]) & (along[part, 1:] < high[1:])).all(axis=1)
        for item in self.items:
            x, reach = item.center[0], item.reach[0]
            part = slice(*np.searchsorted(along[:, 0], (x - reach, x + reach)))
            inside[part] |= item.occupancy(along[part])
        result = np.empty_like(inside)
        result[order] = inside
        return result

    def surface(self, count: int, seed: int = 0) -> tuple[Array, Array]:
        """Surface points (N, 3) uniform by area, with normals; about ``count``, less those inside other parts."""
        rng = np.random.default_rng(seed)
        sides = self.boxes[:, 1] - self.boxes[:, 0]
        faces = np.stack([sides[:, 1] * sides[:, 2], sides[:, 0] * sides[:, 2], sides[:, 0] * sides[:, 1]], axis=1)
        areas = [item.solid.area(4000) * item.scale**2 for item in self.items]
        density = count / (2.0 * faces.sum() + sum(areas))
        points, normals = [], []
        for axis in range(3):
            for side in (0, 1):
                which = np.repeat(np.arange(len(sides)), rng.poisson(faces[:, axis] * density))
                where = self.boxes[which, 0] + rng.random((len(which), 3)) * sides[which]
                where[:, axis] = self.boxes[which, side, axis]
                points.append(where)
                normals.append(np.broadcast_to((2 * side - 1) * np.eye(3)[axis], where.shape))
        for number, (item, area) in enumerate(zip(self.items, areas, strict=True)):
            where, direction = item.surface(max(1, round(area * density)), seed + number)
            points.append(where)
            normals.append(direction)
        found, directions = np.concatenate(points), np.concatenate(normals)
        free = ~self.occupancy(found + _SKIN * directions)
        order = rng.permutation(np.flatnonzero(free))
        return found[order], directions[order]

    def viewpoints(self, per_room: int, seed: int = 0) -> Array:
        """(R * per_room, 3) places of a scanner on its tripod, in every room, not inside anything."""
        rng = np.random.default_rng(seed)
        found = []
        for low, high in self.rooms:
            tries = (
                low + [0.4, 0.4, 1.2] + rng.random((40 * per_room, 3)) * np.maximum(high - low - [0.8, 0.8, 1.2], 0.01)
            )
            tries[:, 2] = np.minimum(tries[:, 2], low[2] + 1.8)
            around = tries[:, None] + 0.15 * np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3))])
            free = ~self.occupancy(around.reshape(-1, 3)).reshape(len(tries), -1).any(axis=1)
            found.append(tries[np.flatnonzero(free)[:per_room]])
        return np.concatenate(found)

    def scan(self, count: int, *, per_room: int = 3, noise: float = 0.0, seed: int = 0) -> tuple[Array, Array]:
        """What scanners in the rooms see, thinned evenly: points (N, 3) and the normals of their surfaces.

        Args:
            count: at most so many points; fewer when less is seen.
            per_room: scanner positions in each room.
            noise: standard deviation of the Gaussian noise, metres.
            seed: of every random choice.
        """
        rng = np.random.default_rng(seed)
        points, normals = self.surface(round(1.1 * count), seed)
        eyes = self.viewpoints(per_room, seed)
        seen = seen_from(points, normals, eyes)
        for _ in range(2):
            if seen.any() and seen.sum() < count:
                points, normals = self.surface(round(1.15 * count / max(seen.mean(), 0.05)), seed)
                seen = seen_from(points, normals, eyes)
        chosen = np.flatnonzero(seen)[:count]
        cloud = points[chosen]
        return cloud + noise * rng.standard_normal(cloud.shape), normals[chosen]


def seen_from(points: Array, normals: Array, eyes: Array, *, reach: float = 8.0) -> NDArray[np.bool_]:
    """(N,) which surface points at least one of the places ``eyes`` (E, 3) sees, by panoramic depth buffers.

    A point is seen when it faces the place, is no further than ``reach``, and nothing nearer covers its pixel or a
    neighbouring one. Pixels have equal solid angles; their number follows that of the points.
    """
    seen = np.zeros(len(points), dtype=bool)
    for eye in eyes:
        near = np.flatnonzero((np.abs(points - eye) <= reach).all(axis=1))
        ray = points[near] - eye
        distance = np.linalg.norm(ray, axis=1)
        facing = -np.einsum("nc,nc->n", ray, normals[near]) / np.maximum(distance, 1e-9)
        rows = int(np.clip(0.35 * np.sqrt(len(near)), 24, 1024))
        columns = 2 * rows
        row = ((ray[:, 2] / np.maximum(distance, 1e-9) + 1) * (rows / 2)).astype(np.int64).clip(0, rows - 1)
        column = ((np.arctan2(ray[:, 1], ray[:, 0]) / np.pi + 1) * rows).astype(np.int64) % columns
        depth = np.full((rows, columns), np.inf)
        np.minimum.at(depth, (row, column), distance)
        wide = np.concatenate([depth[:, -1:], depth, depth[:, :1]], axis=1)
        wide = np.minimum(np.minimum(wide[:, :-2], wide[:, 1:-1]), wide[:, 2:])
        tall = np.pad(wide, ((1, 1), (0, 0)), mode="edge")
        nearest = np.minimum(np.minimum(tall[:-2], tall[1:-1]), tall[2:])[row, column]
        pixel = np.pi / rows * distance
        slant = np.sqrt(1 - facing.clip(0, 1) ** 2) / facing.clip(0.1)
        seen[near] |= (facing > 0.08) & (distance <= nearest + pixel * (1.0 + 2.0 * slant)) & (distance <= reach)
    return seen


def _wall(
    axis: int, at: tuple[float, float], span: tuple[float, float], height: float, openings: Sequence[Opening]
) -> list[Array]:
    """Boxes of a wall along ``axis`` (0 or 1) between ``at`` across it, with rectangular openings."""
    boxes, cuts = [], sorted(openings)
    edges = [span[0], *(edge for cut in cuts for edge in cut[:2]), span[1]]
    pieces = [(edges[i], edges[i + 1], 0.0, height) for i in range(0, len(edges), 2)]
    pieces += [(a, b, 0.0, low) for a, b, low, _ in cuts] + [(a, b, high, height) for a, b, _, high in cuts]
    for a, b, low, high in pieces:
        if b > a and high > low:
            corners = np.array([[a, at[0], low], [b, at[1], high]])
            boxes.append(corners if axis == 0 else corners[:, [1, 0, 2]])
    return boxes


def _row(draw: Draw, config: PlanConfig, count: int) -> Array:
    return draw.generator.uniform(*config.width, count)


def make_floor(seed: int, config: PlanConfig | None = None) -> Scene:
    """The floor number ``seed``: rooms in two rows along a corridor (one row without it for one or two rooms).

    Args:
        seed: non-negative integer; equal seeds and configurations give equal scenes.
        config: default :class:`PlanConfig`.
    """
    config = config or PlanConfig()
    draw = Draw(np.random.default_rng([seed, 71]))
    height, wall = draw.uniform(*config.height), draw.uniform(*config.wall)
    single = config.rooms <= 2
    counts = (config.rooms,) if single else ((config.rooms + 1) // 2, config.rooms // 2)
    widths = [_row(draw, config, count) for count in counts]
    # Both rows end at the same outer wall.
    length = max(row.sum() + wall * (len(row) - 1) for row in widths)
    widths = [row * ((length - wall * (len(row) - 1)) / row.sum()) for row in widths]
    depths = [draw.uniform(*config.depth) for _ in counts]
    boxes: list[Array] = []
    rooms: list[Array] = []
    base = 0.0
    for number, (row, depth) in enumerate(zip(widths, depths, strict=True)):
        base += config.corridor + 2 * wall if number else 0.0
        y = (base, base + depth)
        inner = y[1] if number == 0 else y[0] - wall  # lower face of the wall to the corridor
        outer = y[0] - wall if number == 0 else y[1]
        doors, windows = [], []
        x = 0.0
        for k, width in enumerate(row):
            rooms.append(np.array([[x, y[0], 0.0], [x + width, y[1], height]]))
            doors.append(_opening(draw, x, width, 0.9, (0.0, 2.05)))
            if draw.chance(0.6):
                windows.append(_opening(draw, x, width, draw.uniform(0.8, 1.6), (0.9, 2.0)))
            if k + 1 < len(row):
                between = [_opening(draw, y[0], depth, 0.9, (0.0, 2.05))] if single or draw.chance(0.25) else []
                boxes += _wall(1, (x + width, x + width + wall), y, height, between)
            x += width + wall
        boxes += _wall(0, (inner, inner + wall), (0.0, length), height, [] if single else doors)
        boxes += _wall(0, (outer, outer + wall), (0.0, length), height, windows)
        base += depth
    if not single:
        rooms.append(np.array([[0.0, depths[0] + wall, 0.0], [length, depths[0] + wall + config.corridor, height]]))
    for x in (-wall, length):
        boxes += _wall(1, (x, x + wall), (-wall, base + wall), height, [])
    for low, high in [(-config.slab, 0.0)] + ([(height, height + config.slab)] if config.ceiling else []):
        boxes.append(np.array([[-wall, -wall, low], [length + wall, base + wall, high]]))
    free = np.stack(rooms)
    furnished = free if single else free[:-1]
    items = [item for room in furnished for item in _furnish(draw, room, draw.integer(*config.furniture))]
    return Scene(np.stack(boxes), tuple(items), free)


def _opening(draw: Draw, start: float, length: float, width: float, heights: tuple[float, float]) -> Opening:
    width = min(width, 0.8 * length)
    at = start + draw.uniform(0.1 * length, 0.9 * length - width)
    return at, at + width, *heights


_THINGS = ShapeConfig(
    weights={"vessel": 0.2, "machined": 0.2, "blob": 0.15, "creature": 0.15, "free_form": 0.2, "furniture": 0.1},
    aligned=0.6,
)


def _furnish(draw: Draw, room: Array, count: int) -> list[Item]:
    """Up to ``count`` things standing on the floor of a room without touching."""
    items: list[Item] = []
    for _ in range(count):
        upright = draw.chance(0.65)
        scale = draw.uniform(0.7, 1.7) if upright else draw.uniform(0.3, 0.8)
        try:
            solid = (
                make_solid(furniture(draw), "furniture") if upright else random_shape(draw.integer(0, 2**31), _THINGS)
            )
        except DegenerateShape:
            continue
        angle = draw.pick([0.0, 0.5, 1.0, 1.5]) * np.pi + (draw.uniform(-0.3, 0.3) if draw.chance(0.5) else 0.0)
        rotation = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
        sample = solid.surface(400, 0)[0].double().numpy() @ rotation * scale
        low, high = sample.min(axis=0), sample.max(axis=0)
        # Sunk by a few millimetres, so that nothing floats.
        height = room[0, 2] - low[2] - 0.005
        if height + high[2] > room[1, 2] - 0.2:
            continue
        for _ in range(30):
            place = room[0, :2] + draw.generator.random(2) * (room[1, :2] - room[0, :2])
            fits = (place + low[:2] > room[0, :2] + 0.1).all() and (place + high[:2] < room[1, :2] - 0.1).all()
            center = np.array([*place, height])
            reach = 1.03 * np.abs(sample).max(axis=0) + 0.02
            apart = all((np.abs(center - other.center)[:2] > reach[:2] + other.reach[:2]).any() for other in items)
            if fits and apart:
                items.append(Item(solid, scale, rotation, center, reach))
                break
    return items
