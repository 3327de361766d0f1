# SPDX-License-Identifier: MIT
"""Signed-function trees: placed primitives, set operations, blends, shells and space warps.

A node maps points (3, N) to values (N,): negative inside, positive outside. Coordinates lead so that every component
is one contiguous row, which is what the element-wise kernels want on CPU and GPU alike. Nodes are immutable; their
tables follow the device and dtype of the points they are given (use :meth:`Node.to` once to avoid repeated copies).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from occnets.data.primitives import KINDS, polygon_distance

N_ = TypeVar("N_", bound="Node")


@dataclass(frozen=True, eq=False)
class Node:
    """Base of all tree nodes."""

    def __call__(self, points: Tensor) -> Tensor:
        """Signed values (N,) at ``points`` (3, N)."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(points)")

    def to(self: N_, device: torch.device | str, dtype: torch.dtype = torch.float32) -> N_:
        """This tree with every table on ``device`` in ``dtype``."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, dtype)
            if isinstance(value, Node):
                return value.to(device, dtype)
            if isinstance(value, tuple):
                return tuple(move(item) for item in value)
            return value

        return dataclasses.replace(self, **{f.name: move(getattr(self, f.name)) for f in dataclasses.fields(self)})


def smooth_minimum(a: Tensor, b: Tensor, blend: float) -> Tensor:
    """Quadratic blend of two signed functions; ``blend`` is the width (0: the plain minimum)."""
    if blend <= 0:
        return torch.minimum(a, b)
    overlap = (blend - (a - b).abs()).clamp_min(0)
    return torch.minimum(a, b) - overlap * overlap * (0.25 / blend)


@dataclass(frozen=True, eq=False)
class Primitives(Node):
    """Union of K placed instances of one primitive kind.

    Attributes:
        kind: a key of :data:`occnets.data.primitives.KINDS`.
        table: (K, P) parameters of the instances.
        rotation: (K, 3, 3), rows are the local axes: local = rotation @ (point - center).
        center: (K, 3).
        blend: width of the smooth union of the instances, 0 for a sharp one.
    """

    kind: str
    table: Tensor
    rotation: Tensor
    center: Tensor
    blend: float = 0.0

    def __call__(self, points: Tensor) -> Tensor:
        count = self.table.shape[0]
        table, rotation, center = (t.to(points) for t in (self.table, self.rotation, self.center))
        offset = -(rotation @ center[:, :, None]).transpose(0, 1).reshape(3 * count, 1)
        # Rows are ordered (axis, instance): each local axis of all instances is one contiguous block.
        local = torch.addmm(offset, rotation.transpose(0, 1).reshape(3 * count, 3), points).view(3, count, -1)
        value = KINDS[self.kind].function(local[0], local[1], local[2], table)
        if count == 1:
            return value[0]
        if self.blend <= 0:
            return value.amin(0)
        # Exponential blend, independent of the order of the instances; two equal values sink by blend / 4.
        sharpness = self.blend / (4 * 0.6931471805599453)
        return -sharpness * torch.logsumexp(value * (-1 / sharpness), 0)


@dataclass(frozen=True, eq=False)
class Polygon(Node):
    """A polygon (V, 2) extruded along z to ``half_height``, or revolved around z (u = radius, v = z)."""

    vertices: Tensor
    half_height: float = 0.0
    revolve: bool = False

    def __call__(self, points: Tensor) -> Tensor:
        x, y, z = points
        vertices = self.vertices.to(points)
        if self.revolve:
            return polygon_distance(torch.sqrt(x * x + y * y), z, vertices)
        side, cap = polygon_distance(x, y, vertices), z.abs() - self.half_height
        ps, pc = side.clamp_min(0), cap.clamp_min(0)
        return torch.sqrt(ps * ps + pc * pc) + torch.maximum(side, cap).clamp_max(0)


@dataclass(frozen=True, eq=False)
class HalfSpaces(Node):
    """Convex intersection of half-spaces normals (M, 3) . p <= offsets (M,)."""

    normals: Tensor
    offsets: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        return torch.addmm(-self.offsets.to(points)[:, None], self.normals.to(points), points).amax(0)


@dataclass(frozen=True, eq=False)
class Combine(Node):
    """Set operation of the children from left to right: ``union``, ``intersection`` or ``difference``, blended."""

    operation: str
    children: tuple[Node, ...]
    blend: float = 0.0

    def __call__(self, points: Tensor) -> Tensor:
        value = self.children[0](points)
        for child in self.children[1:]:
            other = child(points)
            if self.operation == "union":
                value = smooth_minimum(value, other, self.blend)
            elif self.operation == "intersection":
                value = -smooth_minimum(-value, -other, self.blend)
            elif self.operation == "difference":
                value = -smooth_minimum(-value, other, self.blend)
            else:
                raise ValueError(
                    f"Combine: operation must be union, intersection or difference, got {self.operation!r}"
                )
        return value


@dataclass(frozen=True, eq=False)
class Shell(Node):
    """The wall of a solid: everything within ``thickness`` below its surface."""

    child: Node
    thickness: float

    def __call__(self, points: Tensor) -> Tensor:
        return (self.child(points) + self.thickness / 2).abs() - self.thickness / 2


@dataclass(frozen=True, eq=False)
class Offset(Node):
    """A solid grown (and its edges rounded) by ``radius``, shrunk when negative."""

    child: Node
    radius: float

    def __call__(self, points: Tensor) -> Tensor:
        return self.child(points) - self.radius


@dataclass(frozen=True, eq=False)
class Place(Node):
    """A child moved: child point = scale^-1 * rotation @ (point - center), per-axis ``scale`` (3,)."""

    child: Node
    rotation: Tensor
    center: Tensor
    scale: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        rotation, center, scale = (t.to(points) for t in (self.rotation, self.center, self.scale))
        matrix = rotation / scale[:, None]
        return self.child(torch.addmm(-(matrix @ center)[:, None], matrix, points)) * scale.amin()


@dataclass(frozen=True, eq=False)
class Warp(Node):
    """Twist, taper or bend of space along z before the child is evaluated.

    ``twist`` turns sections by ``rate`` radians per unit of z; ``taper`` scales them by ``1 + rate * z`` (kept above
    0.25); ``bend`` curls the xz plane with curvature ``rate``. Values are divided by the warp's stretch within the
    unit ball so that magnitudes stay distance estimates.
    """

    child: Node
    kind: str
    rate: float

    def __call__(self, points: Tensor) -> Tensor:
        x, y, z = points
        if self.kind == "twist":
            c, s = torch.cos(self.rate * z), torch.sin(self.rate * z)
            return self.child(torch.stack([c * x - s * y, s * x + c * y, z])) / math.sqrt(1 + 0.36 * self.rate**2)
        if self.kind == "taper":
            width = (1 + self.rate * z).clamp_min(0.25)
            narrow: Tensor = self.child(torch.stack([x / width, y / width, z])) * width.clamp_max(1)
            return narrow / math.sqrt(1 + abs(self.rate))
        if self.kind == "bend":
            c, s = torch.cos(self.rate * x), torch.sin(self.rate * x)
            return self.child(torch.stack([c * x - s * z, y, s * x + c * z])) / (1 + 0.5 * abs(self.rate))
        raise ValueError(f"Warp: kind must be twist, taper or bend, got {self.kind!r}")


@dataclass(frozen=True, eq=False)
class Displace(Node):
    """A child whose value is shifted by a sum of sines: waves (J, 3), phases (J,), amplitudes (J,)."""

    child: Node
    waves: Tensor
    phases: Tensor
    amplitudes: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        waves, phases, amplitudes = (t.to(points) for t in (self.waves, self.phases, self.amplitudes))
        bumps = amplitudes[None] @ torch.sin(torch.addmm(phases[:, None], waves, points))
        slope = float((self.amplitudes * self.waves.norm(dim=1)).square().sum().sqrt())
        return (self.child(points) + bumps[0]) / (1 + slope)
