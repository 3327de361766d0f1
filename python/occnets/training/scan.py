# SPDX-License-Identifier: MIT
"""Turns clean surface samples into the noisy, incomplete clouds of one training step.

Everything is a function of a generator, so that a step is a function of (seed, step) and a resumed run repeats it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from occnets.training.config import ScanConfig

Array = NDArray[np.float32]

#: Half the side of the query box: the unit cube with the family's padding of 0.1.
HALF_BOX = 0.55


@dataclass(frozen=True)
class Shape:
    """One shape of the pool, longest side 1, centred.

    Attributes:
        points: (S, 3) surface points.
        normals: (S, 3) outward unit normals.
        queries: (Q, 3) points of the query box.
        occupied: (Q,) bool.
        voxels: (V, V, V) bool, occupancy at the centres of the cells of the unit cube, axes x, y, z; None if the pool
            has none.
    """

    points: NDArray[np.floating]
    normals: NDArray[np.floating]
    queries: NDArray[np.floating]
    occupied: NDArray[np.bool_]
    voxels: NDArray[np.bool_] | None = None


def draw_count(rng: np.random.Generator, config: ScanConfig, available: int) -> int:
    """Number of input points of one step, shared by all its clouds."""
    if rng.random() < config.points_fixed:
        return min(config.points, available)
    low, high = np.log(config.points_range)
    return min(int(round(np.exp(rng.uniform(low, high)))), available)


def cube_symmetry(rng: np.random.Generator) -> Array:
    """One of the 48 signed permutation matrices, (3, 3)."""
    matrix = np.zeros((3, 3), np.float32)
    matrix[np.arange(3), rng.permutation(3)] = rng.choice((-1.0, 1.0), 3)
    return matrix


def _seen(rng: np.random.Generator, points: Array, normals: Array) -> NDArray[np.bool_]:
    """Points that face at least one of one to four random viewpoints; (S,)."""
    views = rng.normal(size=(int(rng.integers(1, 5)), 3))
    views *= rng.uniform(1.0, 2.5, (len(views), 1)) / np.linalg.norm(views, axis=1, keepdims=True)
    facing = normals @ views.T.astype(np.float32) - (points * normals).sum(1, keepdims=True)
    return np.asarray((facing > 0).any(1))


def _outside_holes(rng: np.random.Generator, points: Array) -> NDArray[np.bool_]:
    """Points outside one to four balls centred on the surface; (S,)."""
    kept = np.ones(len(points), bool)
    for _ in range(int(rng.integers(1, 5))):
        centre = points[rng.integers(len(points))]
        kept &= ((points - centre) ** 2).sum(1) > rng.uniform(0.04, 0.20) ** 2
    return kept


def _density(rng: np.random.Generator, points: Array) -> NDArray[np.float64]:
    """Sampling weights that fall off away from a random direction or place; (S,), a ratio of up to 30."""
    direction = rng.normal(size=3)
    along = points @ (direction / np.linalg.norm(direction))
    if rng.random() < 0.5:
        along = -np.linalg.norm(points - points[rng.integers(len(points))], axis=1)
    span = float(np.ptp(along)) or 1.0
    return np.asarray(np.exp(rng.uniform(0.5, 3.4) * (along - along.max()) / span))


def _choose(rng: np.random.Generator, shape: Shape, config: ScanConfig, count: int) -> NDArray[np.int64]:
    """Indices of ``count`` surface points; with repetition only where fewer points are left."""
    total = len(shape.points)
    uneven = rng.random() < config.uneven_fraction
    partial = rng.random() < config.partial_fraction
    if not uneven and not partial:
        return rng.permutation(total)[:count]
    points = shape.points.astype(np.float32)
    weights = _density(rng, points) if uneven else np.ones(total)
    if partial:
        one_sided = rng.random() < 0.5
        kept = _seen(rng, points, shape.normals.astype(np.float32)) if one_sided else _outside_holes(rng, points)
        if kept.sum() >= total // 8:
            weights = weights * kept
    # Exponential races: the `count` smallest of Exp(1)/weight are a weighted sample without replacement.
    with np.errstate(divide="ignore"):
        arrival = rng.exponential(size=total) / weights
    available = int(np.isfinite(arrival).sum())
    if available >= count:
        return np.argpartition(arrival, count - 1)[:count]
    first = np.flatnonzero(np.isfinite(arrival))
    return np.concatenate((first, rng.choice(first, count - available)))


def _disturb(rng: np.random.Generator, points: Array, config: ScanConfig) -> None:
    """Add noise and outliers in place; (N, 3)."""
    heavy = rng.random() < config.noise_heavy_fraction
    sigma = rng.uniform(config.noise[0], config.noise_heavy if heavy else config.noise[1])
    points += np.float32(sigma) * rng.standard_normal(points.shape, np.float32)
    if rng.random() < config.outlier_fraction:
        count = int(len(points) * rng.uniform(*config.outlier_range))
        # The order of the points carries nothing, so that the first ones may be replaced.
        points[:count] = rng.uniform(-HALF_BOX, HALF_BOX, (count, 3))


def make_sample(
    rng: np.random.Generator, shape: Shape, config: ScanConfig, count: int, queries: int
) -> tuple[Array, Array, Array]:
    """One cloud with its queries.

    Args:
        rng: source of all randomness.
        shape: the clean shape.
        config: what to do to it.
        count: number of input points N.
        queries: number of queries M.

    Returns:
        points (N, 3), queries (M, 3), occupancy (M,) of 0 and 1; all float32 in one frame.
    """
    points = shape.points[_choose(rng, shape, config, count)].astype(np.float32)
    _disturb(rng, points, config)
    chosen = rng.permutation(len(shape.queries))[:queries]
    where = shape.queries[chosen].astype(np.float32)
    scale = np.float32(rng.uniform(*config.scale))
    room = max(0.0, min(config.shift, HALF_BOX - 0.5 * float(scale) - 0.005))
    shift = rng.uniform(-room, room, 3).astype(np.float32)
    matrix = scale * (cube_symmetry(rng) if config.symmetry else np.eye(3, dtype=np.float32))
    # Queries that leave the box are moved onto its border, where nothing is occupied.
    moved = np.clip(where @ matrix.T + shift, -HALF_BOX, HALF_BOX)
    return points @ matrix.T + shift, moved, shape.occupied[chosen].astype(np.float32)


def make_voxel_sample(
    rng: np.random.Generator, shape: Shape, config: ScanConfig, queries: int
) -> tuple[Array, Array, Array]:
    """A voxel grid with its queries; of the disturbances only the symmetries apply to it.

    Returns:
        voxels (V, V, V), queries (M, 3), occupancy (M,) of 0 and 1; all float32.
    """
    assert shape.voxels is not None
    voxels = shape.voxels.astype(np.float32)
    chosen = rng.permutation(len(shape.queries))[:queries]
    where = shape.queries[chosen].astype(np.float32)
    if config.symmetry:
        matrix = cube_symmetry(rng)
        where = where @ matrix.T
        voxels = np.flip(voxels.transpose(np.abs(matrix).argmax(axis=1)), np.flatnonzero(matrix.sum(axis=1) < 0))
    return np.ascontiguousarray(voxels), where, shape.occupied[chosen].astype(np.float32)
