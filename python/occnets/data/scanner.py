# SPDX-License-Identifier: MIT
"""A virtual scanner: turns clean surface samples into the clouds that real sensors give.

Everything is batched tensor arithmetic, so a training step can call it on any device. Every sample of a batch draws its
own degradations: views with occlusion, holes, uneven density, noise across the surface or along the view rays, outliers
and rounded coordinates. The mixture follows the scan-like protocols of Berger et al., "A Benchmark for Surface
Reconstruction" (TOG 2013) and Sulzer et al. (arXiv 2301.13656).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from occnets.data.solid import Solid


@dataclass(frozen=True)
class ScanConfig:
    """Ranges of the degradations; lengths are relative to the longest side of the bounding box.

    Attributes:
        points: smallest and largest number of points (log-uniform) for :func:`scan_solid`.
        noise: range of the standard deviation of the Gaussian noise (uniform).
        ray_noise: probability that the noise runs along the view ray only (samples seen by cameras).
        outlier_chance: probability that a sample has outliers.
        outliers: range of the outlier fraction (uniform) of such a sample.
        density_chance: probability of uneven density.
        density: largest ratio between dense and sparse regions.
        view_chance: probability that only what cameras see is kept.
        cameras: fewest and most cameras of such a sample.
        hole_chance: probability of holes.
        holes: fewest and most holes.
        hole_radius: range of their radii.
        rounding_chance: probability that coordinates are rounded to a raster.
        rounding: range of the raster step.
    """

    points: tuple[int, int] = (300, 50_000)
    noise: tuple[float, float] = (0.0, 0.02)
    ray_noise: float = 0.3
    outlier_chance: float = 0.3
    outliers: tuple[float, float] = (0.0, 0.3)
    density_chance: float = 0.4
    density: float = 10.0
    view_chance: float = 0.3
    cameras: tuple[int, int] = (1, 12)
    hole_chance: float = 0.2
    holes: tuple[int, int] = (1, 4)
    hole_radius: tuple[float, float] = (0.02, 0.1)
    rounding_chance: float = 0.05
    rounding: tuple[float, float] = (0.001, 0.006)

    def __post_init__(self) -> None:
        for name in ("points", "noise", "outliers", "cameras", "holes", "hole_radius", "rounding"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"ScanConfig: {name} must be (low, high) with 0 <= low <= high, got {(low, high)}")
        if self.outliers[1] > 1 or self.density < 1 or self.cameras[0] < 1:
            raise ValueError(
                "ScanConfig: outliers must be at most 1, density and cameras at least 1, got "
                f"{self.outliers}, {self.density}, {self.cameras}"
            )


CLEAN = ScanConfig(
    noise=(0.0, 0.0),
    outlier_chance=0.0,
    density_chance=0.0,
    view_chance=0.0,
    hole_chance=0.0,
    rounding_chance=0.0,
)


@dataclass(frozen=True, eq=False)
class Scan:
    """Clouds of a batch.

    Attributes:
        points: (B, N, 3).
        normals: (B, N, 3) outward normals of the surface points they come from; zero for outliers.
        outlier: (B, N) bool.
        noise: (B,) standard deviation of the noise of each sample.
        index: (B, N) int64, the surface sample each point comes from.
    """

    points: Tensor
    normals: Tensor
    outlier: Tensor
    noise: Tensor
    index: Tensor


class _Random:
    """Draws on the device of the generator, in the dtype of the data."""

    def __init__(self, generator: torch.Generator, like: Tensor) -> None:
        self.generator, self.like = generator, like

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        draw = torch.rand(shape, generator=self.generator, device=self.generator.device, dtype=self.like.dtype)
        return (low + (high - low) * draw).to(self.like.device)

    def normal(self, *shape: int) -> Tensor:
        draw = torch.randn(shape, generator=self.generator, device=self.generator.device, dtype=self.like.dtype)
        return draw.to(self.like.device)

    def direction(self, *shape: int) -> Tensor:
        return torch.nn.functional.normalize(self.normal(*shape, 3), dim=-1)

    def chance(self, batch: int, probability: float) -> Tensor:
        return self.uniform(batch) < probability


def visible(points: Tensor, normals: Tensor, cameras: Tensor) -> Tensor:
    """Which surface points a camera sees, by a depth buffer over the points themselves.

    A point is seen when it faces the camera and nothing nearer covers its pixel or a neighbouring one; the depth
    tolerance grows with the slant of the surface, so that a flat slanted face does not hide itself.

    Args:
        points, normals: (B, S, 3) surface samples dense enough to cover the surface, and outward normals.
        cameras: (B, C, 3) camera positions outside the object, looking at the origin.

    Returns:
        (B, C, S) bool.
    """
    batch, count = points.shape[:2]
    number = cameras.shape[1]
    distance = cameras.norm(dim=2, keepdim=True)
    forward = -cameras / distance
    helper = torch.eye(3, dtype=points.dtype, device=points.device)[forward.abs().argmin(2)]
    right = torch.nn.functional.normalize(torch.linalg.cross(helper, forward, dim=2), dim=2)
    down = torch.linalg.cross(forward, right, dim=2)
    offset = points[:, None] - cameras[:, :, None]
    depth = torch.einsum("bcsk,bck->bcs", offset, forward)
    zoom = distance / depth.clamp_min(1e-3)
    u, v = (torch.einsum("bcsk,bck->bcs", offset, axis) * zoom for axis in (right, down))
    facing = -torch.einsum("bcsk,bsk->bcs", offset, normals) / offset.norm(dim=3).clamp_min(1e-6)
    raster = min(max(int(0.8 * count**0.5), 16), 512)
    half = torch.maximum(u.abs().amax(), v.abs().amax()) * 1.001
    column, row = (((w / half + 1) * (raster / 2)).long().clamp(0, raster - 1) for w in (u, v))
    pixel = (row * raster + column).view(batch * number, count)
    buffer = points.new_full((batch * number, raster * raster), math.inf)
    buffer.scatter_reduce_(1, pixel, depth.reshape(batch * number, count), "amin")
    near: Tensor = -torch.nn.functional.max_pool2d(-buffer.view(-1, 1, raster, raster), 3, 1, 1)
    nearest = torch.gather(near.view(batch * number, -1), 1, pixel).view(batch, number, count)
    width = float(2 * half / raster)
    slant = torch.sqrt(1 - facing.clamp(0, 1) ** 2) / facing.clamp_min(0.1)
    seen: Tensor = (facing > 0.1) & (depth <= nearest + width * (0.5 + 2 * slant))
    return seen


def _views(points: Tensor, normals: Tensor, config: ScanConfig, random: _Random) -> tuple[Tensor, Tensor, Tensor]:
    """Seen points (B, S), unit rays (B, S, 3) from a seeing camera, and which samples (B,) are view-limited."""
    batch = points.shape[0]
    limited = random.chance(batch, config.view_chance)
    low, high = config.cameras
    cameras = random.direction(batch, high) * random.uniform(batch, high, 1, low=1.5, high=3.0)
    used = (low + random.uniform(batch) * (high - low + 1)).long().clamp_max(high)
    keep, rays = torch.ones_like(points[..., 0], dtype=torch.bool), torch.zeros_like(points)
    # One sample at a time: each has its own number of cameras, and the depth test is the dearest part of a scan.
    for row in limited.nonzero()[:, 0].tolist():
        eyes = cameras[row, : int(used[row])]
        seen = visible(points[row : row + 1], normals[row : row + 1], eyes[None])[0]
        keep[row] = seen.any(0)
        rays[row] = torch.nn.functional.normalize(points[row] - eyes[seen.to(torch.uint8).argmax(0)], dim=1)
    return keep, rays, limited


def _holes(points: Tensor, config: ScanConfig, random: _Random) -> Tensor:
    """Points (B, S) outside of the random ball-shaped holes."""
    batch, count = points.shape[:2]
    low, high = config.holes
    number = (low + random.uniform(batch) * (high - low + 1)).long().clamp_max(high)
    number = torch.where(random.chance(batch, config.hole_chance), number, 0)
    if int(number.max()) == 0:
        return torch.ones_like(points[..., 0], dtype=torch.bool)
    index = (random.uniform(batch, max(high, 1)) * count).long().clamp_max(count - 1)
    centers = torch.gather(points, 1, index[:, :, None].expand(-1, -1, 3))
    radius = random.uniform(batch, max(high, 1), low=config.hole_radius[0], high=config.hole_radius[1])
    radius = torch.where(torch.arange(max(high, 1), device=points.device)[None] < number[:, None], radius, -1.0)
    return (torch.cdist(points, centers) > radius[:, None, :]).all(2)


def _density(points: Tensor, config: ScanConfig, random: _Random) -> Tensor:
    """Logarithmic sampling weights (B, S): a smooth random field with a range of up to log(density)."""
    batch = points.shape[0]
    uneven = random.chance(batch, config.density_chance)
    if not bool(uneven.any()):
        return torch.zeros_like(points[..., 0])
    waves = random.direction(batch, 3) * random.uniform(batch, 3, 1, low=2.0, high=9.0)
    phases = random.uniform(batch, 1, 3, high=2 * math.pi)
    field = torch.cos(torch.einsum("bsk,bwk->bsw", points, waves) + phases).mean(2)
    low, high = field.amin(1, keepdim=True), field.amax(1, keepdim=True)
    strength = torch.where(uneven, random.uniform(batch) * math.log(config.density), 0.0)
    return (field - low) / (high - low).clamp_min(1e-6) * strength[:, None]


def scan(
    points: Tensor,
    normals: Tensor,
    count: int,
    *,
    config: ScanConfig | None = None,
    seed: int | torch.Generator = 0,
) -> Scan:
    """Degraded clouds of ``count`` points from clean surface samples.

    Points are drawn without replacement until the kept samples run out, then repeated. A sample of which fewer than
    max(32, S / 50) points would be left keeps all of its points instead.

    Args:
        points, normals: (B, S, 3) floating, uniform by area, in the frame of the unit bounding box.
        count: N, points per cloud, outliers included.
        config: default :class:`ScanConfig` (its ``points`` is not used here).
        seed: seed, or a generator to draw from.

    Raises:
        ValueError: shapes do not fit or ``count`` is not positive.
    """
    if points.ndim != 3 or points.shape[2] != 3 or normals.shape != points.shape:
        raise ValueError(
            f"scan: points and normals must both be (B, S, 3), got {tuple(points.shape)} and {tuple(normals.shape)}"
        )
    if count < 1:
        raise ValueError(f"scan: count must be positive, got {count}")
    config = config or ScanConfig()
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    random = _Random(generator, points)
    batch, total = points.shape[:2]
    seen, rays, limited = _views(points, normals, config, random)
    keep = seen & _holes(points, config, random)
    keep |= (keep.sum(1) < max(32, total // 50))[:, None]
    # Gumbel keys: sorting them draws without replacement in proportion to the weights (Efraimidis-Spirakis).
    gumbel = -torch.log(-torch.log(random.uniform(batch, total, low=1e-9, high=1 - 1e-7)))
    keys = gumbel + _density(points, config, random)
    order = keys.masked_fill(~keep, -math.inf).argsort(dim=1, descending=True)
    position = torch.arange(count, device=points.device)[None] % keep.sum(1, keepdim=True)
    index = torch.gather(order, 1, position)
    rows = index[:, :, None].expand(-1, -1, 3)
    cloud, facing = torch.gather(points, 1, rows), torch.gather(normals, 1, rows)
    sigma = random.uniform(batch, low=config.noise[0], high=config.noise[1])
    noise = random.normal(batch, count, 3)
    along = (limited & random.chance(batch, config.ray_noise))[:, None, None]
    noise = torch.where(along, noise[..., :1] * torch.gather(rays, 1, rows), noise) * sigma[:, None, None]
    cloud, outlier = _outliers(cloud + noise, config, random)
    step = random.uniform(batch, 1, 1, low=config.rounding[0], high=config.rounding[1]).clamp_min(1e-9)
    rounded = random.chance(batch, config.rounding_chance)[:, None, None]
    cloud = torch.where(rounded, torch.round(cloud / step) * step, cloud)
    return Scan(cloud, facing.masked_fill(outlier[:, :, None], 0.0), outlier, sigma, index)


def _outliers(cloud: Tensor, config: ScanConfig, random: _Random) -> tuple[Tensor, Tensor]:
    """Replace a random fraction by uniform points of [-.55, .55]^3 and (a third of them) by far-off copies."""
    batch, count = cloud.shape[:2]
    fraction = random.uniform(batch, low=config.outliers[0], high=config.outliers[1])
    fraction = torch.where(random.chance(batch, config.outlier_chance), fraction, 0.0)
    outlier = random.uniform(batch, count) < fraction[:, None]
    anywhere = random.uniform(batch, count, 3, low=-0.55, high=0.55)
    stray = cloud + 0.06 * random.normal(batch, count, 3)
    wrong = torch.where(random.uniform(batch, count, 1) < 1 / 3, stray, anywhere)
    return torch.where(outlier[:, :, None], wrong, cloud), outlier


def scan_solid(solid: Solid, seed: int, config: ScanConfig | None = None, *, count: int | None = None) -> Scan:
    """Scan one solid with a log-uniform number of points (or ``count``); the batch axis has length 1."""
    config = config or ScanConfig()
    generator = torch.Generator().manual_seed(seed)
    if count is None:
        low, high = config.points
        draw = float(torch.rand((), generator=generator))
        count = round(math.exp(math.log(low) + draw * (math.log(high) - math.log(low))))
    # Enough samples for the depth buffer, and spare ones for what views and holes remove.
    points, normals = solid.surface(max(6000, 2 * count), seed)
    return scan(points[None], normals[None], count, config=config, seed=generator)
