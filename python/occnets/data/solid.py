# SPDX-License-Identifier: MIT
"""A normalised solid given by a signed-function tree, with exact occupancy and uniform surface samples."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from occnets.data.trees import Node

ROUGH_CELLS = 20
SPLITS = (18, 2, 2)
# Magnitudes are distance estimates; the factor covers blends and warps that overestimate.
SLACK = 1.15
SEGMENT = 0.014
RESIDUAL = 2e-4
# Below this share of hits the function is far from a distance, and sampling would take too long.
MIN_RATE = 0.02
_TETRAHEDRON = ((1.0, 1.0, 1.0), (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0))


class DegenerateShape(ValueError):
    """The tree has no usable surface (empty, too thin to sample, or too small)."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Cubes near the surface in the frame of the tree: centres (C, 3), common side, values (C,) at the centres."""

    centers: Tensor
    side: float
    values: Tensor


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
        cells = Cells(self.cells.centers.to(device, dtype), self.cells.side, self.cells.values.to(device, dtype))
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
            p, n, rate = self._crossings(wanted, count - found, generator)
            points.append(p)
            normals.append(n)
            found += p.shape[0]
            if found >= count:
                return torch.cat(points)[:count], torch.cat(normals)[:count]
        raise DegenerateShape(f"Solid.surface: found {found} of {count} surface points; the solid is too thin or empty")

    def area(self, tries: int = 20_000, seed: int = 0) -> float:
        """Estimate of the surface's area from the share of random segments that cross it (Cauchy-Crofton)."""
        *_, rate = self._crossings(tries, 0, torch.Generator().manual_seed(seed))
        volume = self.cells.centers.shape[0] * (self.cells.side / self.scale) ** 3
        return 2.0 * rate * volume / SEGMENT

    def _crossings(self, tries: int, needed: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
        """About ``needed`` surface points and normals at most from ``tries`` random segments, and the rate of hits."""
        centers = self.cells.centers
        draw = torch.rand(tries, 6, generator=generator).to(centers)
        index = torch.randint(centers.shape[0], (tries,), generator=generator).to(centers.device)
        height = 2 * draw[:, 3] - 1
        angle, flat = 2 * math.pi * draw[:, 4], torch.sqrt(1 - height * height)
        direction = torch.stack([flat * torch.cos(angle), flat * torch.sin(angle), height], 1) * (SEGMENT / 2)
        shift = (draw[:, :3] - 0.5) * self.cells.side
        # The value at the cell's centre bounds the distance to the surface: hopeless segments cost nothing.
        reach = SLACK * (shift.norm(dim=1) + SEGMENT / 2 * self.scale)
        hopeful = self.cells.values[index].abs() < reach
        direction = direction[hopeful]
        middle = ((centers[index] + shift)[hopeful] - self.center) / self.scale
        value = self.signed(torch.cat([middle - direction, middle + direction])).view(2, -1)
        hits = ((value[0] < 0) != (value[1] < 0)).nonzero()[:, 0]
        rate = hits.shape[0] / tries
        hits = hits[: needed + needed // 50 + 16]
        return *self._refine(middle[hits], direction[hits], value[0][hits], value[1][hits]), rate

    def _refine(self, middle: Tensor, direction: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Roots on the segments middle + t * direction, t in [-1, 1], given the end values of differing sign."""
        left, right = torch.full_like(low, -1.0), torch.full_like(low, 1.0)
        for step in range(3):
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
    return Cells((cells.centers[:, None] + offsets[None]).reshape(-1, 3), cells.side / parts, torch.empty(0))


def _near(root: Node, cells: Cells, margin: float) -> tuple[Cells, Tensor, float]:
    """Keep the cells whose cubes, grown by ``margin``, may hold a surface.

    Returns:
        The kept cells, their values, and the volume of the discarded inside cells.
    """
    value = root(cells.centers.T.contiguous())
    keep = value.abs() < SLACK * (cells.side * math.sqrt(3) / 2 + margin)
    filled = float((value[~keep] < 0).sum()) * cells.side**3
    return Cells(cells.centers[keep], cells.side, value[keep]), value, filled


def _extent(root: Node, cells: Cells) -> tuple[Tensor, Tensor]:
    """Corners of the bounding box: a random search outwards from the outermost cells that touch the solid."""
    generator = torch.Generator().manual_seed(3)
    axes = torch.cat([-torch.eye(3), torch.eye(3)])
    # Cells with an outside centre may still hold a thin part, so they start the search too, below every inside point.
    touching = cells.values < 0.9 * cells.side
    start, value = cells.centers[touching], cells.values[touching]
    count = min(64, start.shape[0])
    chosen = torch.topk(start @ axes.T, count, dim=0).indices.T
    best, height = (
        start[chosen],
        torch.einsum("dnc,dc->dn", start[chosen], axes).masked_fill(value[chosen] >= 0, -math.inf),
    )
    for reach, tries in ((0.5, 16), (0.7, 8), (0.5, 8), (0.3, 8), (0.2, 8), (0.1, 8)):
        moves = torch.randn(6, best.shape[1], tries, 3, generator=generator) * (reach * cells.side)
        found = (best[:, :, None] + moves).reshape(6, -1, 3)
        inside = root(found.reshape(-1, 3).T.contiguous()).view(6, -1) < 0
        level = torch.einsum("dnc,dc->dn", found, axes).masked_fill(~inside, -math.inf)
        best, height = torch.cat([best, found], 1), torch.cat([height, level], 1)
        height, index = torch.topk(height, min(32, height.shape[1]), dim=1)
        best = torch.gather(best, 1, index[:, :, None].expand(-1, -1, 3))
    corner = height.amax(1)
    return -corner[:3], corner[3:]


def make_solid(root: Node, family: str = "", *, half_extent: float = 1.6, min_fill: float = 0.003) -> Solid:
    """Find the surface of ``root`` inside the cube of ``half_extent`` and normalise it to a unit bounding box.

    Args:
        root: tree in any frame; its solid must lie inside [-half_extent, half_extent]^3.
        min_fill: smallest accepted volume as a fraction of the unit cube.

    Raises:
        DegenerateShape: empty, smaller than ``min_fill``, or reaching the border of the cube.
    """
    everything = Cells(torch.zeros(1, 3), 2 * half_extent, torch.zeros(1))
    rough, value, _ = _near(root, _split(everything, ROUGH_CELLS), 0.0)
    if rough.centers.shape[0] == 0:
        raise DegenerateShape("make_solid: no surface in the cube")
    inside = (value < 0.5 * rough.side).view(ROUGH_CELLS, ROUGH_CELLS, ROUGH_CELLS)
    if inside[[0, -1]].any() or inside[:, [0, -1]].any() or inside[:, :, [0, -1]].any():
        raise DegenerateShape("make_solid: the solid reaches the border of the evaluation cube")
    low, high = rough.centers.amin(0) - rough.side / 2, rough.centers.amax(0) + rough.side / 2
    extent = float((high - low).amax())
    # SEGMENT is measured in the normalised frame, whose scale is at most the rough extent.
    margin = SEGMENT / 2 * extent
    cells, volume = Cells(((low + high) / 2)[None], extent, torch.zeros(1)), 0.0
    for parts in SPLITS:
        cells, _, filled = _near(root, _split(cells, parts), margin)
        volume += filled
    if cells.centers.shape[0] < 16:
        raise DegenerateShape("make_solid: the surface covers too few cells")
    volume += float((cells.values < 0).sum()) * cells.side**3
    low, high = _extent(root, cells)
    scale = float((high - low).amax())
    if not scale > 0 or volume < min_fill * scale**3:
        raise DegenerateShape(f"make_solid: volume {volume:.2g} is below {min_fill} of the cube of side {scale:.2g}")
    solid = Solid(root, cells, (low + high) / 2, scale, family)
    *_, rate = solid._crossings(2000, 64, torch.Generator().manual_seed(4))
    if rate < MIN_RATE:
        raise DegenerateShape(f"make_solid: only {rate:.2%} of the trial segments hit the surface")
    return solid
