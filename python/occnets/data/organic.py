# SPDX-License-Identifier: MIT
"""Recipes of grown-looking solids: limbed bodies, blobs, branches, wires and vessels.

Each recipe returns a tree whose solid has a size of about 1 and lies within [-1.5, 1.5]^3. Radii are relative to that.
"""

from __future__ import annotations

import math

import numpy as np

from occnets.data.draw import Array, Draw, X, Y, Z, bars, bumps, chain, cut, moved, place, tensor, turn, union
from occnets.data.trees import Combine, HalfSpaces, Node, Polygon, Shell

GOLDEN = (1 + 5**0.5) / 2


def _limb(draw: Draw, start: Array, reach: Array, radii: tuple[float, float], joints: int, bend: float) -> list[Array]:
    """Points of a limb from ``start`` along ``reach`` with ``joints`` inner joints pushed sideways by ``bend``."""
    length = float(np.linalg.norm(reach))
    points = [start + reach * t for t in np.linspace(0, 1, joints + 2)]
    for i in range(1, joints + 1):
        points[i] = points[i] + draw.direction() * bend * length
    return points


def _radii(low: float, high: float, count: int, draw: Draw) -> list[float]:
    values = np.exp(np.linspace(math.log(low), math.log(high), count))
    return [float(v * draw.uniform(0.85, 1.15)) for v in values]


def _legs(draw: Draw, spine: list[Array], body: float, length: float) -> list[Node]:
    """Pairs of legs (or arms) below the spine, mirrored in y, sometimes with different poses and feet."""
    pairs = draw.pick([1, 2, 2, 2, 2, 3, 4])
    top, foot = draw.log(0.022, 0.085), draw.log(0.012, 0.04)
    top = min(top, 0.8 * body)
    foot = min(foot, top)
    joints, sprawl, bend = draw.integer(0, 2), draw.uniform(-0.2, 0.6), draw.uniform(0, 0.16)
    alike, feet = draw.chance(0.4), draw.chance(0.5)
    nodes: list[Node] = []
    for place_ in np.linspace(0, 1, pairs) if pairs > 1 else [draw.uniform(0.2, 0.8)]:
        hip = spine[0] + (spine[-1] - spine[0]) * place_
        pose = draw.vector(0.18)
        for side in (-1.0, 1.0):
            if not alike:
                pose = draw.vector(0.18)
            reach = length * (-Z + X * pose[0] + Y * side * (sprawl + 0.3 * pose[1]))
            start = hip + Y * side * body * draw.uniform(0.35, 0.65) - Z * body * 0.4
            points = _limb(draw, start, reach, (top, foot), joints, bend)
            radii = _radii(top, foot, len(points), draw)
            if feet:
                points.append(points[-1] + X * draw.uniform(0.05, 0.14))
                radii.append(radii[-1] * draw.uniform(0.7, 1.3))
            nodes.append(chain(points, radii, draw.uniform(0.005, 0.02)))
    return nodes


def _head(draw: Draw, base: Array, body: float) -> list[Node]:
    """Neck, head, and perhaps ears, horns or a snout."""
    forward = draw.uniform(0.1, 1.0) * X + draw.uniform(-0.2, 1.0) * Z
    tip = base + forward / np.linalg.norm(forward) * (body + draw.log(0.05, 0.4))
    neck = max(body * draw.uniform(0.25, 0.8), 0.02)
    size = draw.log(0.06, 0.2)
    middle = (base + tip) / 2 + X * draw.uniform(-0.05, 0.12)
    nodes: list[Node] = [
        chain([base, middle, tip], [neck * 1.2, neck, max(0.7 * neck, 0.015)], 0.02),
        place("ellipsoid", [size * draw.uniform(0.8, 1.4), size * draw.uniform(0.6, 1), size], tip),
    ]
    if draw.chance(0.6):
        snout = tip + X * size * draw.uniform(1.0, 1.9) - Z * size * draw.uniform(0, 0.6)
        nodes.append(chain([tip, snout], [size * 0.7, size * draw.uniform(0.25, 0.6)]))
    if draw.chance(0.75):
        length, width = draw.log(0.06, 0.4), draw.log(0.02, 0.06)
        flat = draw.chance(0.5)
        lean = draw.vector(0.4) + Z
        for side in (-1.0, 1.0):
            axis = lean * [1, 0, 1] + Y * side * draw.uniform(0.1, 0.7)
            axis /= np.linalg.norm(axis)
            root = tip + Y * side * size * 0.45 + axis * size * 0.4
            if flat:
                frame = np.stack([np.cross(axis, X), np.cross(axis, np.cross(axis, X)), axis])
                frame /= np.linalg.norm(frame, axis=1, keepdims=True)
                table = [max(width, 0.03), draw.uniform(0.009, 0.02), length / 2 + 0.03]
                nodes.append(place("ellipsoid", table, root + axis * length / 2, frame))
            else:
                bend = root + axis * length * 0.6 + draw.vector(0.15 * length)
                nodes.append(chain([root, bend, root + axis * length], [width, width * 0.8, max(width * 0.4, 0.009)]))
    return nodes


def creature(draw: Draw) -> Node:
    """A body along x with head, legs, tail and humps, parts smoothly blended."""
    length, body = draw.uniform(0.3, 0.9), draw.log(0.07, 0.26)
    arch = draw.uniform(-0.12, 0.15)
    spine = [
        X * length * (t - 0.5) + Z * arch * math.sin(math.pi * t) + Y * draw.uniform(-0.03, 0.03)
        for t in np.linspace(0, 1, draw.integer(2, 4))
    ]
    widths = [body * draw.uniform(0.65, 1.15) for _ in spine]
    trunk: list[Node] = [chain(spine, widths, 0.04)]
    for _ in range(draw.pick([0, 0, 1, 2, 3])):
        at = spine[0] + (spine[-1] - spine[0]) * draw.uniform(0, 1) + Z * body * draw.uniform(-0.3, 1.1)
        trunk.append(place("ellipsoid", [body * draw.uniform(0.3, 1.1) for _ in range(3)], at, draw.rotation()))
    parts = [union(trunk, draw.uniform(0.03, 0.12))]
    if draw.chance(0.9):
        parts += _legs(draw, spine, body, draw.log(0.15, 0.7))
    if draw.chance(0.85):
        parts += _head(draw, spine[-1], body)
    if draw.chance(0.6):
        points = _limb(draw, spine[0], -X * draw.log(0.15, 0.7) + draw.vector(0.2), (0, 0), 3, 0.15)
        parts.append(chain(points, _radii(min(0.5 * body, 0.07), draw.log(0.012, 0.03), 5, draw), 0.015))
    return union(parts, draw.log(0.012, 0.08))


def blob(draw: Draw) -> Node:
    """Ellipsoids and superquadrics grown on one another, with a relief and perhaps appendages."""
    centers, sizes, parts = [np.zeros(3)], [draw.uniform(0.25, 0.45)], []
    for _ in range(draw.integer(1, 8)):
        parent = draw.integer(0, len(centers) - 1)
        centers.append(centers[parent] + draw.direction() * sizes[parent] * draw.uniform(0.6, 1.1))
        sizes.append(sizes[parent] * draw.log(0.3, 0.95))
    for center, size in zip(centers, sizes, strict=True):
        axes = [size * draw.uniform(0.6, 1.2) for _ in range(3)]
        if draw.chance(0.25):
            table = [*axes, draw.uniform(0.35, 1.3), draw.uniform(0.35, 1.3)]
            parts.append(place("superquadric", table, center, draw.rotation()))
        else:
            parts.append(place("ellipsoid", axes, center, draw.rotation()))
    node = union(parts, draw.log(0.02, 0.2))
    extra: list[Node] = []
    for _ in range(draw.pick([0, 0, 1, 2, 3, 4])):
        start, width = draw.pick(centers), draw.log(0.018, 0.08)
        points = _limb(draw, start, draw.direction() * draw.uniform(0.4, 0.9), (0, 0), 2, 0.15)
        extra.append(chain(points, _radii(width * 1.3, width, 4, draw), 0.02))
    if draw.chance(0.2):
        extra.append(place("torus", [draw.uniform(0.12, 0.25), draw.log(0.018, 0.05)], centers[-1], draw.rotation()))
    if extra:
        node = union([node, *extra], draw.log(0.01, 0.06))
    if draw.chance(0.3):
        sphere = place("ellipsoid", [draw.uniform(0.1, 0.35)] * 3, draw.direction() * draw.uniform(0.2, 0.5))
        node = cut(node, [sphere], draw.pick([0.0, 0.03]))
    return bumps(draw, node, draw.log(0.004, 0.02), draw.log(8, 40)) if draw.chance(0.7) else node


def branches(draw: Draw) -> Node:
    """A tree or coral: tapered limbs splitting from a trunk, sometimes leaf plates at the ends."""
    trunk = draw.log(0.03, 0.12)
    tips: list[tuple[Array, Array, float]] = [(np.zeros(3), Z + draw.vector(0.1), trunk)]
    ends: list[tuple[Array, Array, float, float]] = []
    length, shrink = draw.uniform(0.3, 0.6), draw.uniform(0.6, 0.85)
    finest, limit = draw.log(0.012, 0.03), draw.integer(8, 20)
    while tips and len(ends) < limit:
        start, direction, radius = tips.pop(0)
        direction = direction / np.linalg.norm(direction)
        end = start + direction * length * (radius / trunk) ** 0.5 * draw.uniform(0.6, 1.2)
        thin = max(radius * shrink, finest)
        ends.append((start, end, radius, thin))
        if radius > finest * 1.01:
            tips += [(end, direction + draw.vector(0.5), thin) for _ in range(draw.pick([1, 2, 2, 3]))]
    parts: list[Node] = [bars("capsule", ends, draw.log(0.005, 0.04))]
    if draw.chance(0.3):
        chosen = [ends[draw.integer(0, len(ends) - 1)][1] for _ in range(draw.integer(1, 5))]
        table = [draw.uniform(0.06, 0.16), draw.uniform(0.05, 0.12), draw.log(0.012, 0.08)]
        parts.append(place("ellipsoid", table, chosen, [draw.rotation() for _ in chosen]))
    if draw.chance(0.4):
        parts.append(place("cylinder", [draw.uniform(0.12, 0.35), draw.log(0.015, 0.1), 0.0], np.zeros(3)))
    return union(parts, draw.pick([0.0, 0.02, 0.05]))


def _polyhedron(draw: Draw) -> tuple[Array, list[tuple[int, int]]]:
    """Vertices and edges of a random regular or prismatic solid."""
    kind = draw.pick(["cube", "octahedron", "icosahedron", "prism", "tetrahedron"])
    if kind == "cube":
        vertices = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 3**0.5
    elif kind == "octahedron":
        vertices = np.concatenate([np.eye(3), -np.eye(3)])
    elif kind == "icosahedron":
        rows = [np.roll([0, a, b * GOLDEN], k) for k in range(3) for a in (-1, 1) for b in (-1, 1)]
        vertices = np.array(rows) / math.hypot(1, GOLDEN)
    elif kind == "tetrahedron":
        vertices = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5
    else:
        sides, half = draw.integer(3, 8), draw.uniform(0.2, 0.9)
        angles = 2 * math.pi * np.arange(sides) / sides
        ring = [[math.cos(a), math.sin(a)] for a in angles]
        edges = [(i, (i + 1) % sides) for i in range(sides)] + [(i, i + sides) for i in range(sides)]
        edges += [(i + sides, (i + 1) % sides + sides) for i in range(sides)]
        return np.array([[*p, s] for s in (-half, half) for p in ring]), edges
    distance = np.linalg.norm(vertices[:, None] - vertices[None], axis=-1)
    shortest = distance[distance > 1e-6].min()
    count = len(vertices)
    pairs = [(i, j) for i in range(count) for j in range(i) if distance[i, j] < 1.01 * shortest]
    return vertices, pairs


def wires(draw: Draw) -> Node:
    """Wire frames, helices, knots, chains of rings and lattices of bars."""
    radius = draw.log(0.012, 0.05)
    kind = draw.pick(["frame", "frame", "helix", "knot", "links", "lattice"])
    if kind == "frame":
        vertices, edges = _polyhedron(draw)
        vertices = vertices * 0.5 * np.array([draw.uniform(0.6, 1.0) for _ in range(3)])
        bar = draw.pick(["capsule", "capsule", "box"])
        parts: list[Node] = [bars(bar, [(vertices[i], vertices[j], radius, radius) for i, j in edges])]
        if draw.chance(0.4):
            parts.append(place("ellipsoid", [radius * draw.uniform(1.4, 2.5)] * 3, vertices))
        if draw.chance(0.25):
            parts.append(place("ellipsoid", [draw.uniform(0.1, 0.25)] * 3, np.zeros(3)))
        return union(parts)
    if kind == "lattice":
        n = draw.pick([2, 3, 3, 4])
        lines = np.linspace(-0.45, 0.45, n)
        depth = draw.pick([0.0, 0.3, 0.45])
        ends = [(np.array([a, -0.5, d]), np.array([a, 0.5, d]), radius, radius) for a in lines for d in {-depth, depth}]
        ends += [
            (np.array([-0.5, a, d]), np.array([0.5, a, d]), radius, radius) for a in lines for d in {-depth, depth}
        ]
        if depth:
            ends += [(np.array([a, b, -depth]), np.array([a, b, depth]), radius, radius) for a in lines for b in lines]
        return bars(draw.pick(["capsule", "box"]), ends)
    if kind == "links":
        ring, count = draw.uniform(0.1, 0.18), draw.integer(2, 5)
        tube = min(radius * 1.3, 0.3 * ring)
        centers = [X * (i - (count - 1) / 2) * 2 * (ring - tube) * 0.97 for i in range(count)]
        frames = [turn(X, math.pi / 2 * (i % 2)) for i in range(count)]
        return place("torus", [ring, tube], centers, frames)
    t = np.linspace(0, 2 * math.pi, draw.integer(22, 30))
    if kind == "helix":
        turns, wide, tall = draw.uniform(1, 3), draw.uniform(0.15, 0.4), draw.uniform(0.4, 1.0)
        points = np.stack([wide * np.cos(turns * t), wide * np.sin(turns * t), tall * (t / (2 * math.pi) - 0.5)], 1)
    else:
        p, q, small = draw.pick([2, 3]), draw.pick([1, 3]), draw.uniform(0.1, 0.18)
        r = 0.3 + small * np.cos(q * t)
        points = np.stack([r * np.cos(p * t), r * np.sin(p * t), small * np.sin(q * t)], 1)
    return chain(list(points), [radius] * len(points), 0.004)


def vessel(draw: Draw) -> Node:
    """A turned body: solid, or a cup with a thin wall and an open top; perhaps with a handle or a spout."""
    count = draw.integer(3, 6)
    heights = np.linspace(-0.5, 0.5, count)
    radii = np.array([draw.uniform(0.12, 0.5) for _ in range(count)])
    profile = np.concatenate([[[-0.05, -0.5]], np.stack([radii, heights], 1), [[-0.05, 0.5]]])
    rounding = draw.pick([0.0, 0.02, 0.05])
    body: Node = Polygon(tensor(profile), revolve=True)
    if draw.chance(0.4):
        body = place("ellipsoid", [0.5, 0.5, draw.uniform(0.4, 0.9)], np.zeros(3))
        if draw.chance(0.5):
            body = union([body, place("cone", [draw.uniform(0.1, 0.3), draw.uniform(0.1, 0.4), 0.3], Z * 0.5)], 0.15)
    wall = draw.log(0.014, 0.07)
    node = body
    if draw.chance(0.7):
        top = HalfSpaces(tensor([Z + draw.vector(draw.pick([0.0, 0.0, 0.3]))]), tensor([draw.uniform(0.1, 0.45)]))
        node = Combine("intersection", (Shell(body, wall), top), draw.pick([0.0, 0.01]))
    if draw.chance(0.45):
        tube = draw.log(0.016, 0.05)
        side = float(radii.max()) * 0.9
        ring = place("torus", [draw.uniform(0.12, 0.25), tube], X * side, turn(X, math.pi / 2))
        inside = Combine("difference", (ring, body)) if draw.chance(0.8) else ring
        node = union([node, inside], draw.pick([0.0, 0.02]))
    if draw.chance(0.3):
        node = union([node, place("cylinder", [draw.uniform(0.15, 0.4), draw.log(0.015, 0.05), 0], -0.5 * Z)])
    if rounding and draw.chance(0.3):
        node = moved(node, scale=[1, draw.uniform(0.5, 0.9), 1])
    return node
