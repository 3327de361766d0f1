# SPDX-License-Identifier: MIT
"""Random numbers and small tree builders shared by the shape recipes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from occnets.data.trees import Combine, Displace, Node, Place, Primitives

T = TypeVar("T")
Array = NDArray[np.float64]
X, Y, Z = np.eye(3)


class Draw:
    """Named draws from one numpy generator."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return float(self.generator.uniform(low, high))

    def log(self, low: float, high: float) -> float:
        """Log-uniform in [low, high)."""
        return float(math.exp(self.generator.uniform(math.log(low), math.log(high))))

    def integer(self, low: int, high: int) -> int:
        """Uniform integer in [low, high], both included."""
        return int(self.generator.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        """True with ``probability``."""
        return bool(self.generator.random() < probability)

    def pick(self, options: Sequence[T]) -> T:
        """One of ``options``."""
        return options[int(self.generator.integers(len(options)))]

    def direction(self) -> Array:
        """Uniform unit vector (3,)."""
        vector = self.generator.normal(size=3)
        return np.asarray(vector / np.linalg.norm(vector))

    def vector(self, size: float) -> Array:
        """Normal vector (3,) with standard deviation ``size`` per axis."""
        return np.asarray(self.generator.normal(size=3) * size)

    def rotation(self) -> Array:
        """Uniform rotation (3, 3): the orthogonal factor of a normal matrix with fixed signs."""
        q, r = np.linalg.qr(self.generator.normal(size=(3, 3)))
        q = q * np.sign(np.diag(r))
        q[:, 0] *= np.linalg.det(q)
        return np.asarray(q)


def tensor(values: ArrayLike) -> Tensor:
    """float32 tensor of nested numbers."""
    return torch.tensor(np.asarray(values, dtype=np.float32))


def axis_frame(axis: Array) -> Array:
    """Rotation (3, 3) whose rows are an orthonormal frame with ``axis`` last."""
    w = axis / np.linalg.norm(axis)
    u = np.cross(X if abs(w[0]) < 0.8 else Y, w)
    u /= np.linalg.norm(u)
    return np.stack([u, np.cross(w, u), w])


def turn(axis: Array, angle: float) -> Array:
    """Rotation matrix (3, 3) by ``angle`` radians about ``axis`` (Rodrigues)."""
    a = axis / np.linalg.norm(axis)
    k = np.array([[0, -a[2], a[1]], [a[2], 0, -a[0]], [-a[1], a[0], 0]])
    return np.asarray(np.eye(3) + math.sin(angle) * k + (1 - math.cos(angle)) * (k @ k))


def place(
    kind: str, tables: ArrayLike, centers: ArrayLike, rotations: ArrayLike | None = None, blend: float = 0.0
) -> Primitives:
    """Instances of ``kind``; a single rotation (3, 3) or none serves all of them."""
    table = tensor(tables).reshape(-1, np.asarray(tables).shape[-1])
    center = tensor(centers).reshape(-1, 3)
    count = max(table.shape[0], center.shape[0])
    rotation = tensor(np.eye(3) if rotations is None else rotations).reshape(-1, 3, 3)
    return Primitives(
        kind,
        table.expand(count, -1).contiguous(),
        rotation.expand(count, -1, -1).contiguous(),
        center.expand(count, -1).contiguous(),
        blend,
    )


def bars(kind: str, ends: Sequence[tuple[Array, Array, float, float]], blend: float = 0.0) -> Primitives:
    """Bars from (start, end, start radius, end radius): ``capsule``, ``cone``, ``cylinder`` (start radius only) or
    ``box`` (start radius is the half width, end radius the other half width)."""
    tables, centers, rotations = [], [], []
    for start, end, low, high in ends:
        axis = np.asarray(end) - np.asarray(start)
        half = max(float(np.linalg.norm(axis)) / 2, 1e-3)
        tables.append(
            {
                "capsule": (low, high, half),
                "cone": (low, high, half),
                "cylinder": (low, half, 0.0),
                "box": (low, high, half, 0.0),
            }[kind]
        )
        centers.append((np.asarray(start) + np.asarray(end)) / 2)
        rotations.append(axis_frame(axis if np.linalg.norm(axis) > 1e-6 else Z))
    return place(kind, tables, centers, rotations, blend)


def chain(points: Sequence[Array], radii: Sequence[float], blend: float = 0.0, kind: str = "capsule") -> Primitives:
    """Bars along a poly-line with a radius at every point."""
    return bars(kind, [(points[i], points[i + 1], radii[i], radii[i + 1]) for i in range(len(points) - 1)], blend)


def union(children: Sequence[Node], blend: float = 0.0) -> Node:
    """Union of the children; a single child is returned as it is."""
    return children[0] if len(children) == 1 else Combine("union", tuple(children), blend)


def cut(node: Node, tools: Sequence[Node], blend: float = 0.0) -> Node:
    """``node`` without the ``tools``."""
    return Combine("difference", (node, *tools), blend) if tools else node


def moved(node: Node, center: ArrayLike = (0, 0, 0), rotation: ArrayLike | None = None, scale: ArrayLike = 1.0) -> Node:
    """``node`` scaled, rotated (local axes are the rows of ``rotation``) and moved to ``center``."""
    size = np.broadcast_to(np.asarray(scale, dtype=np.float64), (3,))
    return Place(node, tensor(np.eye(3) if rotation is None else rotation), tensor(center), tensor(size))


def bumps(draw: Draw, node: Node, amplitude: float, frequency: float) -> Node:
    """``node`` with an irregular relief of about ``amplitude``, ``frequency`` radians per unit length."""
    count = draw.integer(4, 7)
    waves = np.stack([draw.direction() * frequency * draw.uniform(0.6, 1.6) for _ in range(count)])
    phases = draw.generator.uniform(0, 2 * math.pi, count)
    weights = draw.generator.uniform(0.4, 1.0, count)
    return Displace(node, tensor(waves), tensor(phases), tensor(amplitude * weights / np.sqrt((weights**2).sum())))


def star_polygon(draw: Draw, count: int, low: float = 0.4, high: float = 1.0) -> Array:
    """A simple polygon (count, 2) around the origin with radii in [low, high]."""
    steps = draw.generator.uniform(0.5, 1.5, count)
    angles = np.cumsum(steps) / steps.sum() * 2 * math.pi
    radii = draw.generator.uniform(low, high, count)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)
