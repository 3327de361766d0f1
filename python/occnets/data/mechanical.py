# SPDX-License-Identifier: MIT
"""Recipes of made-looking solids: drilled blocks, plates, couplings, pipes, furniture, and free set operations.

Each recipe returns a tree whose solid has a size of about 1 and lies within [-1.5, 1.5]^3. Lengths are relative to it.
"""

from __future__ import annotations

import math

import numpy as np

from occnets.data.draw import Array, Draw, X, Y, Z, bars, chain, cut, moved, place, star_polygon, tensor, turn, union
from occnets.data.trees import Combine, HalfSpaces, Node, Offset, Polygon, Shell


def _base(draw: Draw) -> tuple[Node, Array]:
    """A main body and its half extents."""
    half = np.array([0.5, draw.uniform(0.2, 0.5), draw.log(0.05, 0.45)])
    kind = draw.pick(["box", "box", "cylinder", "polygon", "angle", "channel", "plate", "steps"])
    sharp = draw.pick([0.0, 0.0, 0.02, 0.05])
    if kind in ("box", "plate"):
        if kind == "plate":
            half[2] = draw.log(0.008, 0.04)
        return place("box", [*half, min(sharp, 0.5 * half[2])], np.zeros(3)), half
    if kind == "cylinder":
        half[:2] = draw.uniform(0.25, 0.5)
        return place("cylinder", [half[0], half[2], min(sharp, 0.5 * half[2])], np.zeros(3)), half
    if kind == "polygon":
        vertices = star_polygon(draw, draw.integer(3, 9), draw.uniform(0.2, 0.4), 0.5)
        return Polygon(tensor(vertices), float(half[2])), np.array([0.35, 0.35, half[2]])
    wall = draw.log(0.02, 0.12)
    x, z = half[0], max(half[2], 0.15)
    half[2] = z
    if kind == "angle":
        outline = [[-x, -z], [x, -z], [x, -z + wall], [-x + wall, -z + wall], [-x + wall, z], [-x, z]]
    elif kind == "channel":
        outline = [[-x, -z], [x, -z], [x, z], [x - wall, z], [x - wall, -z + wall], [-x + wall, -z + wall]]
        outline += [[-x + wall, z], [-x, z]]
    else:
        a, b = draw.uniform(-0.3, 0.0) * 2 * x, draw.uniform(0.0, 0.3) * 2 * x
        outline = [[-x, -z], [x, -z], [x, -z * draw.uniform(0.2, 0.8)], [b, -z * 0.2], [b, z * 0.3], [a, z * 0.4]]
        outline += [[a, z], [-x, z]]
    # The outline lies in xz: local axes x, z, -y.
    return moved(Polygon(tensor(outline), float(half[1])), rotation=np.stack([X, Z, -Y])), half


def _array(draw: Draw, half: Array) -> Array:
    """Centres (K, 3) in the xy plane: a single one, a circle, a line or a grid."""
    kind = draw.pick(["one", "circle", "line", "grid", "corners"])
    w, h = 0.8 * half[0], 0.8 * half[1]
    if kind == "circle":
        count, r = draw.integer(3, 10), draw.uniform(0.5, 0.9) * min(w, h)
        angles = 2 * math.pi * np.arange(count) / count
        xy = np.stack([r * np.cos(angles), r * np.sin(angles)], 1)
    elif kind == "line":
        count = draw.integer(2, 6)
        xy = np.stack([np.linspace(-w, w, count), np.full(count, draw.uniform(-0.5, 0.5) * h)], 1)
    elif kind == "grid":
        nx, ny = draw.integer(2, 5), draw.integer(2, 3)
        xy = np.array([[x, y] for x in np.linspace(-w, w, nx) for y in np.linspace(-h, h, ny)])
    elif kind == "corners":
        xy = np.array([[sx * w, sy * h] for sx in (-1, 1) for sy in (-1, 1)])
    else:
        xy = np.array([[draw.uniform(-0.6, 0.6) * w, draw.uniform(-0.6, 0.6) * h]])
    return np.concatenate([xy, np.zeros((len(xy), 1))], 1)


def _spacing(centers: Array) -> float:
    if len(centers) < 2:
        return 0.6
    distance = np.linalg.norm(centers[:, None] - centers[None], axis=-1)
    return float(distance[distance > 0].min())


def _turned(node: Node, axis: int) -> Node:
    """The node with its z axis along coordinate ``axis``."""
    return node if axis == 2 else moved(node, rotation=np.roll(np.eye(3), 2 - axis, axis=0).T)


def _holes(draw: Draw, half: Array) -> Node:
    """Drilled holes: round, square or slots, through or blind, along a coordinate axis."""
    axis = draw.pick([2, 2, 2, 0, 1])
    frame = np.roll(half, 2 - axis)
    centers = _array(draw, frame)
    radius = min(draw.log(0.025, 0.2), 0.42 * _spacing(centers), 0.8 * float(frame[:2].min()))
    depth = 2.0
    if draw.chance(0.3):
        centers = centers + Z * (frame[2] + 1.0 - draw.uniform(0.3, 0.8) * 2 * frame[2])
        depth = 1.0
    kind = draw.pick(["cylinder", "cylinder", "cylinder", "box", "slot"])
    if kind == "cylinder":
        tool: Node = place("cylinder", [radius, depth, 0], centers)
    elif kind == "box":
        tool = place("box", [radius, radius * draw.uniform(0.6, 1.2), depth, 0], centers)
    else:
        long = draw.uniform(0.2, 0.6) * float(frame[1])
        tool = place("box", [radius * 0.7, long, depth, 0.69 * radius], centers)
    return _turned(tool, axis)


def _addition(draw: Draw, half: Array) -> Node:
    """A boss, rib, flange, ball or tube on the body."""
    kind = draw.pick(["boss", "boss", "rib", "rib", "plate", "tube", "ball"])
    at = np.array([draw.uniform(-0.6, 0.6) * h for h in half])
    if kind == "boss":
        centers = _array(draw, half)
        radius = min(draw.log(0.04, 0.2), 0.45 * _spacing(centers))
        tall = draw.log(0.05, 0.3)
        centers = centers + Z * draw.pick([-1, 1]) * half[2]
        return place("cylinder", [radius, tall, 0], centers)
    if kind == "rib":
        centers = _array(draw, half)[: draw.integer(1, 5)]
        table = [draw.log(0.008, 0.03), draw.uniform(0.15, 0.4), draw.uniform(0.08, 0.3)]
        angle = draw.pick([0.0, 0.0, math.pi / 2, math.pi / 4])
        return place("box", [*table, 0.0], centers + Z * half[2], turn(Z, angle))
    if kind == "plate":
        size = [draw.uniform(0.15, 0.45), draw.uniform(0.15, 0.45), draw.log(0.008, 0.04)]
        return _turned(place("box", [*size, 0.0], np.roll(at, 1)), draw.integer(0, 2))
    if kind == "tube":
        outer = draw.uniform(0.06, 0.2)
        wall = min(draw.log(0.014, 0.05), 0.6 * outer)
        long = draw.uniform(0.15, 0.5)
        ring = cut(
            place("cylinder", [outer, long, 0], np.zeros(3)), [place("cylinder", [outer - wall, 2, 0], np.zeros(3))]
        )
        return moved(_turned(ring, draw.integer(0, 2)), at)
    return place("ellipsoid", [draw.uniform(0.08, 0.25)] * 3, at)


def machined(draw: Draw) -> Node:
    """A block, plate or profile with additions, then holes, pockets, chamfers, or hollowed to thin walls."""
    node, half = _base(draw)
    fillet = draw.pick([0.0, 0.0, 0.0, 0.02, 0.06])
    if draw.chance(0.2):
        wall = draw.log(0.014, 0.06)
        node = Shell(node, wall)
        lid = HalfSpaces(tensor([Z]), tensor([half[2] * draw.uniform(0, 0.8)]))
        node = Combine("intersection", (node, lid))
    additions = [_addition(draw, half) for _ in range(draw.pick([0, 1, 1, 2, 3]))]
    if additions:
        node = union([node, *additions], fillet)
    if draw.chance(0.35):
        normals = [draw.direction() for _ in range(draw.integer(1, 3))]
        offsets = [float(np.abs(n) @ half) * draw.uniform(0.45, 0.9) for n in normals]
        node = Combine("intersection", (node, HalfSpaces(tensor(normals), tensor(offsets))))
    tools = [_holes(draw, half) for _ in range(draw.pick([0, 1, 1, 2, 2, 3]))]
    if draw.chance(0.25):
        at = np.array([draw.uniform(-1, 1) * h for h in half])
        tools.append(place("box", [draw.uniform(0.08, 0.3) for _ in range(3)] + [0.0], at))
    return cut(node, tools, draw.pick([0.0, 0.0, 0.0, 0.015]))


def coupling(draw: Draw) -> Node:
    """A hub with discs, thin spokes or webs, rim, outer bosses and holes; or a gear."""
    hub, tall, bore = draw.uniform(0.08, 0.22), draw.uniform(0.08, 0.5), draw.uniform(0.3, 0.8)
    parts: list[Node] = [place("cylinder", [hub, tall, 0], np.zeros(3))]
    tools: list[Node] = [place("cylinder", [hub * bore, 2, 0], np.zeros(3))] if draw.chance(0.8) else []
    count, outer = draw.integer(3, 8), draw.uniform(0.35, 0.5)
    angles = 2 * math.pi * np.arange(count) / count
    frames = [turn(Z, -a) for a in angles]
    spots = np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1)
    web = draw.log(0.008, 0.03)
    if draw.chance(0.7):
        width = draw.uniform(0.02, max(0.03, 0.8 * tall))
        table = [outer / 2, web, width, 0.0] if draw.chance(0.6) else [outer / 2, draw.uniform(0.03, 0.1), web, 0.0]
        parts.append(place("box", table, spots * outer / 2, frames))
    if draw.chance(0.5):
        parts.append(place("cylinder", [outer, draw.log(0.01, 0.08), 0.0], Z * tall * draw.uniform(-1, 1)))
    if draw.chance(0.5):
        rim, band = draw.uniform(0.02, 0.1), draw.log(0.02, 0.2)
        inner = place("cylinder", [outer - rim, 2, 0], np.zeros(3))
        parts.append(cut(place("cylinder", [outer, band, 0], np.zeros(3)), [inner]))
    if draw.chance(0.5):
        size = min(draw.log(0.03, 0.12), 0.4 * outer * 2 * math.pi / count)
        parts.append(
            place("cylinder", [size, draw.uniform(0.5, 1.2) * tall, 0], spots * outer * draw.uniform(0.7, 1.0))
        )
        if draw.chance(0.6):
            tools.append(place("cylinder", [size * draw.uniform(0.3, 0.7), 2, 0], spots * outer * 0.85))
    if draw.chance(0.2):
        teeth = draw.integer(8, 20)
        turns = 2 * math.pi * np.arange(teeth) / teeth
        ring = np.stack([np.cos(turns), np.sin(turns), 0 * turns], 1) * outer
        table = [draw.uniform(0.03, 0.08), outer * draw.uniform(0.8, 1.4) / teeth, draw.log(0.02, 0.15), 0.0]
        parts.append(place("box", table, ring, [turn(Z, -a) for a in turns]))
        parts.append(place("cylinder", [outer, table[2], 0], np.zeros(3)))
    if draw.chance(0.5):
        radius = min(draw.log(0.025, 0.1), 0.4 * outer * 0.6 * 2 * math.pi / count)
        shift = turn(Z, math.pi / count) if draw.chance(0.5) else np.eye(3)
        tools.append(place("cylinder", [radius, 2, 0], spots @ shift.T * outer * 0.65))
    return cut(union(parts, draw.pick([0.0, 0.0, 0.02])), tools)


def pipework(draw: Draw) -> Node:
    """A bent pipe or bracket along a poly-line with flanges; hollow pipes have thin walls and open ends."""
    count, step = draw.integer(2, 5), draw.uniform(0.2, 0.4)
    points, direction = [np.zeros(3)], draw.pick([X, Y, Z])
    for _ in range(count):
        points.append(points[-1] + direction * step * draw.uniform(0.6, 1.4))
        options = [a * s for a in (X, Y, Z) for s in (-1.0, 1.0) if abs(a @ direction) < 0.6]
        direction = draw.pick(options) if draw.chance(0.8) else direction + draw.vector(0.4)
        direction = direction / np.linalg.norm(direction)
    points = [p - np.mean(points, axis=0) for p in points]
    radius = draw.log(0.03, 0.11)
    parts: list[Node] = [chain(points, [radius] * len(points), draw.pick([0.0, 0.02]))]
    ends = [(points[0], points[0] - points[1]), (points[-1], points[-1] - points[-2])]
    tools: list[Node] = []
    for end, axis in ends:
        axis = axis / np.linalg.norm(axis)
        if draw.chance(0.6):
            thick, wide = draw.log(0.016, 0.06), radius * draw.uniform(1.3, 2.2)
            parts.append(bars("cylinder", [(end - axis * thick, end + axis * 0, wide, 0)]))
        tools.append(bars("cylinder", [(end, end + axis * 3 * radius, 4 * radius, 0)]))
    if draw.chance(0.7) and radius > 0.04:
        inner = radius - draw.log(0.014, 0.6 * radius)
        long = [points[0] + (points[0] - points[1]), *points[1:-1], points[-1] + (points[-1] - points[-2])]
        tools.append(chain(long, [inner] * len(long)))
    if draw.chance(0.3):
        middle = points[len(points) // 2]
        parts.append(place("ellipsoid", [radius * draw.uniform(1.2, 2.0)] * 3, middle))
    return cut(union(parts), tools)


def furniture(draw: Draw) -> Node:
    """Plates on legs, shelves, frames and chairs: slabs and bars at right angles."""
    w, d, h = 0.45, draw.uniform(0.2, 0.45), draw.uniform(0.2, 0.5)
    slab, leg = draw.log(0.008, 0.04), draw.log(0.012, 0.05)
    parts: list[Node] = []
    levels = [h] if draw.chance(0.6) else list(np.linspace(-h, h, draw.integer(2, 4)))
    parts.append(place("box", [w, d, slab, 0.0], [Z * level for level in levels]))
    inset = draw.uniform(0.7, 1.0)
    corners = [np.array([sx * w * inset, sy * d * inset, 0]) for sx in (-1, 1) for sy in (-1, 1)]
    style = draw.pick(["bars", "bars", "tapered", "panels", "single"])
    if style == "bars":
        kind = draw.pick(["box", "cylinder"])
        parts.append(bars(kind, [(c - Z * h, c + Z * h, leg, leg) for c in corners]))
    elif style == "tapered":
        splay = draw.uniform(1.0, 1.3)
        ends = [(c * [splay, splay, 1] - Z * h, c + Z * h, max(0.6 * leg, 0.011), leg) for c in corners]
        parts.append(bars("cone", ends))
    elif style == "panels":
        parts.append(place("box", [max(slab, 0.01), d, h, 0.0], [X * w * inset, -X * w * inset]))
    else:
        parts.append(place("cylinder", [draw.log(0.025, 0.1), h, 0], np.zeros(3)))
        parts.append(place("box", [w * 0.7, d * 0.7, slab, 0.0], -Z * h))
    if draw.chance(0.5):
        tall = draw.uniform(0.15, 0.45)
        if draw.chance(0.5):
            parts.append(place("box", [w, slab, tall, 0.0], Y * d + Z * (h + tall)))
        else:
            n = draw.integer(2, 6)
            spots = [X * x + Y * d + Z * h for x in np.linspace(-0.95 * w, 0.95 * w, n)]
            parts.append(bars("box", [(s, s + Z * 2 * tall, leg * 0.7 + 0.004, leg * 0.7 + 0.004) for s in spots]))
            parts.append(place("box", [w, 0.012 + slab / 2, draw.uniform(0.02, 0.08), 0.0], Y * d + Z * (h + 2 * tall)))
    if draw.chance(0.3):
        level = -h * draw.uniform(0, 0.8)
        pairs = [(corners[0], corners[1]), (corners[2], corners[3]), (corners[0], corners[2])]
        parts.append(
            bars("box", [(a + Z * level, b + Z * level, 0.7 * leg + 0.004, 0.7 * leg + 0.004) for a, b in pairs])
        )
    return union(parts)


def _solid(draw: Draw) -> Node:
    """One primitive of size about 0.5 at the origin."""
    kind = draw.pick(
        ["superquadric", "box", "rounded", "ellipsoid", "cylinder", "cone", "torus", "capsule", "poly", "hull"]
    )
    a, b, c = (draw.uniform(0.15, 0.5) for _ in range(3))
    if kind == "superquadric":
        return place(kind, [a, b, c, draw.uniform(0.25, 1.6), draw.uniform(0.25, 1.6)], np.zeros(3))
    if kind in ("box", "rounded"):
        return place("box", [a, b, c, draw.uniform(0.1, 0.8) * min(a, b, c) if kind == "rounded" else 0.0], np.zeros(3))
    if kind == "poly":
        return Polygon(tensor(star_polygon(draw, draw.integer(3, 10), 0.2, 0.5)), c * 0.7)
    if kind == "hull":
        normals = [draw.direction() for _ in range(draw.integer(6, 14))] + [X, -X, Y, -Y, Z, -Z]
        return HalfSpaces(tensor(normals), tensor([draw.uniform(0.2, 0.45) for _ in normals]))
    table = {
        "ellipsoid": [a, b, c],
        "cylinder": [a, c, draw.pick([0.0, 0.3]) * min(a, c)],
        "cone": [a, draw.uniform(0.02, 1.0) * a, c],
        "torus": [max(a, 0.22), draw.log(0.02, 0.14)],
        "capsule": [a * 0.6, b * 0.6, c],
    }[kind]
    return place(kind, table, np.zeros(3))


def free_form(draw: Draw) -> Node:
    """One to seven primitives under unions, cuts and intersections, sharp or blended; plates, bars and shells."""
    node: Node = _solid(draw)
    for _ in range(draw.integer(0, 5)):
        scale = [draw.log(0.4, 1.2) for _ in range(3)]
        if draw.chance(0.3):
            scale[draw.integer(0, 2)] = draw.log(0.04, 0.12)
        other = moved(_solid(draw), draw.direction() * draw.uniform(0.1, 0.5), draw.rotation(), scale)
        operation = draw.pick(["union", "union", "union", "difference", "difference", "intersection"])
        if operation == "intersection" and draw.chance(0.6):
            operation = "union"
        blend = draw.log(0.02, 0.2) if draw.chance(0.4) else 0.0
        node = Combine(operation, (node, other), blend)
    if draw.chance(0.15):
        plane = HalfSpaces(tensor([draw.direction()]), tensor([draw.uniform(-0.1, 0.2)]))
        node = Combine("intersection", (Shell(node, draw.log(0.016, 0.08)), plane))
    elif draw.chance(0.1):
        node = Offset(node, draw.uniform(0.01, 0.05))
    return node
