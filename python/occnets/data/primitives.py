# SPDX-License-Identifier: MIT
"""Signed functions of primitive solids, each evaluated for K placed instances at once.

Every function takes local coordinates ``x, y, z`` of shape (K, N) and a parameter table (K, P), and returns (K, N)
values that are negative inside, zero on the surface and positive outside. Signs are exact; magnitudes are exact
distances or slight underestimates, so that ``abs(value) > r`` means "no surface within about r".

Sources: the box, cylinder, torus and capsule are the textbook Euclidean distances; the ellipsoid uses the first-order
distance estimate F / |grad F| (Taubin, "Estimation of planar curves", PAMI 1991); superquadrics follow the
inside-outside function of Barr, "Superquadrics and angle-preserving transformations", IEEE CG&A 1981.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Coordinates = tuple[Tensor, Tensor, Tensor]


def _columns(table: Tensor) -> list[Tensor]:
    return [table[:, i : i + 1] for i in range(table.shape[1])]


def _length(x: Tensor, y: Tensor, z: Tensor | None = None) -> Tensor:
    """Euclidean norm with as few passes over memory as possible: these functions are bound by memory traffic."""
    square = torch.addcmul(x * x, y, y)
    return torch.sqrt(square if z is None else torch.addcmul(square, z, z))


def ellipsoid(x: Tensor, y: Tensor, z: Tensor, table: Tensor) -> Tensor:
    """Ellipsoid; parameters: the three semi-axes. Exact for a sphere."""
    a, b, c = _columns(table)
    u, v, w = x / a, y / b, z / c
    level, slope = _length(u, v, w), _length(u / a, v / b, w / c)
    # At the very centre both vanish; the limit there is at least minus the smallest semi-axis.
    return torch.where(slope > 1e-6, level * (level - 1) / slope, -table.amin(1, keepdim=True))


def superquadric(x: Tensor, y: Tensor, z: Tensor, table: Tensor) -> Tensor:
    """Superquadric; parameters: semi-axes a, b, c and the exponents e1 (along z) and e2 (in the xy section)."""
    a, b, c, e1, e2 = _columns(table)
    tiny = 1e-6
    u, v, w = (x / a).abs().clamp_min(tiny), (y / b).abs().clamp_min(tiny), (z / c).abs().clamp_min(tiny)
    # The largest ratio is factored out: powers of numbers in [0, 1] cannot overflow for exponents near zero.
    top = torch.maximum(torch.maximum(u, v), w)
    section = (u / top) ** (2 / e2) + (v / top) ** (2 / e2)
    level = top * (section ** (e2 / e1) + (w / top) ** (2 / e1)) ** (e1 / 2)
    return (level - 1) * table[:, :3].amin(1, keepdim=True)


def box(x: Tensor, y: Tensor, z: Tensor, table: Tensor) -> Tensor:
    """Box with rounded edges; parameters: three half sides (rounding included) and the rounding radius (0: sharp)."""
    a, b, c, radius = _columns(table)
    dx, dy, dz = x.abs() - (a - radius), y.abs() - (b - radius), z.abs() - (c - radius)
    inner = torch.maximum(torch.maximum(dx, dy), dz).clamp_max(0)
    return _length(dx.clamp_min(0), dy.clamp_min(0), dz.clamp_min(0)) + (inner - radius)


def cylinder(x: Tensor, y: Tensor, z: Tensor, table: Tensor) -> Tensor:
    """Cylinder along z; parameters: radius, half height (rounding included) and the rounding radius of its rims."""
    big, half, radius = _columns(table)
    dr, dz = _length(x, y) - (big - radius), z.abs() - (half - radius)
    inner = torch.maximum(dr, dz).clamp_max(0)
    return _length(dr.clamp_min(0), dz.clamp_min(0)) + (inner - radius)


def cone(x: Tensor, y: Tensor, z: Tensor, table: Tensor) -> Tensor:
    """Truncated cone along z; parameters: radius at -h, radius at +h, half height h."""
    low, high, half = _columns(table)
    slope = (high - low) / (2 * half)
    side = (torch.addcmul(_length(x, y), z, slope, value=-1) - (low + high) / 2) / torch.sqrt(1 + slope * slope)
    return torch.maximum(side, z.abs() - half)


def torus(x: Tensor, y: Tensor, z: Tensor, table: Tensor) -> Tensor:
    """Torus around z; parameters: ring radius, tube radius."""
    ring, tube = _columns(table)
    return _length(_length(x, y) - ring, z) - tube


def capsule(x: Tensor, y: Tensor, z: Tensor, table: Tensor) -> Tensor:
    """Tapered capsule along z; parameters: radius at -h, radius at +h, half length h of the axis."""
    low, high, half = _columns(table)
    along = torch.minimum(torch.maximum(z, -half), half)
    distance = _length(x, y, z - along)
    return torch.addcmul(distance, along, (high - low) / (2 * half), value=-1) - (low + high) / 2


@dataclass(frozen=True)
class Kind:
    """A primitive kind: its signed function and the number of parameters an instance has."""

    function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    parameters: int


KINDS: dict[str, Kind] = {
    "ellipsoid": Kind(ellipsoid, 3),
    "superquadric": Kind(superquadric, 5),
    "box": Kind(box, 4),
    "cylinder": Kind(cylinder, 3),
    "cone": Kind(cone, 3),
    "torus": Kind(torus, 2),
    "capsule": Kind(capsule, 3),
}


def polygon_distance(u: Tensor, v: Tensor, vertices: Tensor) -> Tensor:
    """Exact signed distance (N,) of 2-D points to a simple polygon (V, 2), negative inside (even-odd rule)."""
    start = vertices
    edge = torch.roll(vertices, -1, 0) - start
    du, dv = u[None] - start[:, :1], v[None] - start[:, 1:]
    eu, ev = edge[:, :1], edge[:, 1:]
    t = ((du * eu + dv * ev) / (eu * eu + ev * ev)).clamp(0, 1)
    ru, rv = du - t * eu, dv - t * ev
    distance = torch.sqrt((ru * ru + rv * rv).amin(0))
    below, beyond = dv >= 0, dv < ev
    left = eu * dv > ev * du
    crossing = (below & beyond & left) | ~(below | beyond | left)
    inside = crossing.sum(0) % 2 == 1
    return torch.where(inside, -distance, distance)
