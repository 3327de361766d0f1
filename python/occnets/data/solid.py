# SPDX-License-Identifier: MIT
"""A normalised solid given by a signed-function tree, with exact occupancy and uniform surface samples."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from occnets.data.trees import Node

COARSE_CELLS = 24
FINE_SPLIT = 3
SEGMENT = 0.014
RESIDUAL = 2e-4
_TETRAHEDRON = ((1.0, 1.0, 1.0), (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0))


class DegenerateShape(ValueError):
    """The tree has no usable surface (empty, too thin to sample, or too small)."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Cubes near the surface: centres (C, 3) and their common side, in the frame of the tree."""

    centers: Tensor
    side: float


@dataclass(frozen=True, eq=False)
class Solid:
    """A closed solid: points p are inside when ``root((p * scale + center)) < 0``.

    Attributes:
        root: signed-function tree in its own frame.
        cells: cubes that cover the surface with a margin of half a sampling segment.
        center: (3,) centre of the bounding box in the tree's frame.
        scale: longest side of the bounding box in the tree's frame.
        family: name of the recipe that made it.
    """

    root: Node
    cells: Cells
    center: Tensor = field(default_factory=lambda: torch.zeros(3))
    scale: float = 1.0
    family: str = ""

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Solid:
        """This solid with its tables on ``device``."""
        cells = Cells(self.cells.centers.to(device, dtype), self.cells.side)
        return dataclasses.replace(
            self, root=self.root.to(device, dtype), cells=cells, center=self.center.to(device, dtype)
        )

    def signed(self, points: Tensor) -> Tensor:
        """Signed function (N,) at ``points`` (N, 3): negative inside, about the distance near the surface."""
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"Solid.signed: points must be (N, 3), got {tuple(points.shape)}; reshape them first")
        center = self.center.to(points)
        return self.root((points * self.scale + center).T.contiguous()) / self.scale

    def occupancy(self, points: Tensor) -> Tensor:
        """Exact occupancy (N,) bool at ``points`` (N, 3)."""
        return self.signed(points) < 0

    def gradient(self, points: Tensor, step: float = 4e-4) -> tuple[Tensor, Tensor]:
        """Value (N,) and gradient (N, 3) from four evaluations on a small tetrahedron of half diagonal ``step``."""
        directions = torch.tensor(_TETRAHEDRON, dtype=points.dtype, device=points.device)
        value = self.signed((points[None] + step * directions[:, None]).reshape(-1, 3)).view(4, -1)
        return value.mean(0), (value.T @ directions) / (4 * step)

    def project(self, points: Tensor, steps: int = 5) -> tuple[Tensor, Tensor]:
        """Newton steps along the gradient onto the surface.

        Returns:
            The moved points (N, 3) and a mask (N,): true where the residual is at most ``RESIDUAL`` and the sign
            changes across the point along the gradient.
        """
        limit = 0.05
        for _ in range(steps):
            value, gradient = self.gradient(points)
            square = gradient.square().sum(1).clamp_min(1e-4)
            move = (value / square)[:, None] * gradient
            points = points - move * (limit / move.norm(dim=1, keepdim=True).clamp_min(limit))
        _, gradient = self.gradient(points)
        normal = torch.nn.functional.normalize(gradient, dim=1)
        out, within = self.signed(points + 4 * RESIDUAL * normal), self.signed(points - 4 * RESIDUAL * normal)
        return points, (self.signed(points).abs() <= RESIDUAL) & (out > 0) & (within < 0)

    def surface(self, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Surface points (count, 3) uniform by area and their outward unit normals (count, 3).

        Short segments of random place and direction hit a surface with a probability proportional to its area
        (Cauchy-Crofton), wherever it is and however it is curved. Segments whose ends differ in sign are narrowed to
        the crossing by bracketed false-position steps; points whose residual stays above ``RESIDUAL`` are dropped.

        Raises:
            DegenerateShape: too few segments hit the surface.
        """
        generator = torch.Generator().manual_seed(seed)
        points, normals, found, rate = [], [], 0, 0.1
        for _ in range(24):
            wanted = min(int((count - found) / max(rate, 0.01) * 1.1) + 256, 400_000)
            p, n = self._crossings(wanted, generator)
            points.append(p)
            normals.append(n)
            found += p.shape[0]
            rate = p.shape[0] / wanted
            if found >= count:
                return torch.cat(points)[:count], torch.cat(normals)[:count]
        raise DegenerateShape(f"Solid.surface: found {found} of {count} surface points; the solid is too thin or empty")

    def _crossings(self, tries: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Surface points and normals from ``tries`` random segments."""
        centers = self.cells.centers
        draw = torch.rand(tries, 6, generator=generator).to(centers)
        index = torch.randint(centers.shape[0], (tries,), generator=generator).to(centers.device)
        height = 2 * draw[:, 3] - 1
        angle, flat = 2 * math.pi * draw[:, 4], torch.sqrt(1 - height * height)
        direction = torch.stack([flat * torch.cos(angle), flat * torch.sin(angle), height], 1) * (SEGMENT / 2)
        middle = centers[index] + (draw[:, :3] - 0.5) * self.cells.side
        middle = (middle - self.center) / self.scale
        value = self.signed(torch.cat([middle - direction, middle + direction])).view(2, -1)
        hit = (value[0] < 0) != (value[1] < 0)
        return self._refine(middle[hit], direction[hit], value[0][hit], value[1][hit])

    def _refine(self, middle: Tensor, direction: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Roots on the segments middle + t * direction, t in [-1, 1], given the end values of differing sign."""
        left, right = torch.full_like(low, -1.0), torch.full_like(low, 1.0)
        for step in range(4):
            # False position with a bisection in between: neither end can get stuck.
            t = (left * high - right * low) / (high - low) if step != 1 else (left + right) / 2
            value = self.signed(middle + t[:, None] * direction)
            same = (value < 0) == (low < 0)
            left, low = torch.where(same, t, left), torch.where(same, value, low)
            right, high = torch.where(same, right, t), torch.where(same, high, value)
        points = middle + ((left * high - right * low) / (high - low))[:, None] * direction
        value, gradient = self.gradient(points)
        length = gradient.norm(dim=1)
        good = (value.abs() <= RESIDUAL) & (length > 0.02) & torch.isfinite(length)
        return points[good], gradient[good] / length[good, None]


def _split(cells: Cells, parts: int) -> Cells:
    steps = (torch.arange(parts, dtype=torch.float32) - (parts - 1) / 2) * (cells.side / parts)
    offsets = torch.cartesian_prod(steps, steps, steps)
    return Cells((cells.centers[:, None] + offsets[None]).reshape(-1, 3), cells.side / parts)


def _near(root: Node, cells: Cells, margin: float) -> tuple[Cells, Tensor]:
    """The cells whose cubes, grown by ``margin``, may hold a surface; and all values at the centres."""
    value = root(cells.centers.T.contiguous())
    # Magnitudes are distance estimates; the factor covers blends and warps that overestimate.
    reach = 1.15 * (cells.side * math.sqrt(3) / 2 + margin)
    return Cells(cells.centers[value.abs() < reach], cells.side), value


def make_solid(root: Node, family: str = "", *, half_extent: float = 1.6, min_fill: float = 0.003) -> Solid:
    """Find the surface of ``root`` inside the cube of ``half_extent`` and normalise it to a unit bounding box.

    Args:
        root: tree in any frame; its solid must lie inside [-half_extent, half_extent]^3.
        min_fill: smallest accepted volume as a fraction of the unit cube.

    Raises:
        DegenerateShape: empty, smaller than ``min_fill``, or reaching the border of the cube.
    """
    coarse = 20
    everything = Cells(torch.zeros(1, 3), 2 * half_extent)
    rough, value = _near(root, _split(everything, coarse), 0.0)
    if rough.centers.shape[0] == 0:
        raise DegenerateShape("make_solid: no surface in the cube")
    inside = (value < rough.side).view(coarse, coarse, coarse)
    border = inside[[0, -1]].any() | inside[:, [0, -1]].any() | inside[:, :, [0, -1]].any()
    if border:
        raise DegenerateShape("make_solid: the solid reaches the border of the evaluation cube")
    low, high = rough.centers.amin(0) - rough.side / 2, rough.centers.amax(0) + rough.side / 2
    extent = float((high - low).amax())
    # SEGMENT is measured in the normalised frame, whose scale is at most the rough extent.
    margin = SEGMENT / 2 * extent
    cells = Cells(((low + high) / 2)[None], extent)
    cells, _ = _near(root, _split(cells, COARSE_CELLS), margin)
    cells, value = _near(root, _split(cells, FINE_SPLIT), margin)
    if cells.centers.shape[0] < 16:
        raise DegenerateShape("make_solid: the surface covers too few cells")
    draft = Solid(root, cells, (low + high) / 2, extent, family)
    points, _ = draft.surface(3000, seed=1)
    low, high = points.amin(0), points.amax(0)
    scale = extent * float((high - low).amax())
    solid = Solid(root, cells, draft.center + extent * (low + high) / 2, scale, family)
    generator = torch.Generator().manual_seed(2)
    fill = solid.occupancy(torch.rand(8192, 3, generator=generator) - 0.5).float().mean()
    if fill < min_fill:
        raise DegenerateShape(f"make_solid: volume fraction {float(fill):.4f} is below {min_fill}")
    return solid
