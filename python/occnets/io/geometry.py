# SPDX-License-Identifier: MIT
"""What a file holds: points, perhaps faces, normals and colours; and the error every reader raises."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


class FormatError(ValueError):
    """A file is not readable as what its ending promises; the message says what was found and what to do."""


@dataclass(frozen=True)
class PointCloud:
    """Points in the file's own units and frame.

    Attributes:
        points: (N, 3) float64.
        normals: (N, 3) float32 as stored (not normalised again), or None.
        colors: (N, 3) uint8, or None.
        notes: remarks of the reader worth showing, e.g. dropped invalid returns.
    """

    points: NDArray[np.float64]
    normals: NDArray[np.float32] | None = None
    colors: NDArray[np.uint8] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True)
class Geometry(PointCloud):
    """A point cloud that may be a triangle mesh: ``faces`` is (F, 3) int64 into ``points``, or None."""

    faces: NDArray[np.int64] | None = None

    @property
    def vertices(self) -> NDArray[np.float64]:
        """The points under the name meshes use."""
        return self.points


def geometry(
    points: NDArray,
    *,
    faces: NDArray | None = None,
    normals: NDArray | None = None,
    colors: NDArray | None = None,
    notes: tuple[str, ...] = (),
) -> Geometry:
    """Check shapes and indices, set the promised dtypes.

    Raises:
        FormatError: shapes disagree, or a face names a vertex that does not exist.
    """
    points = np.ascontiguousarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise FormatError(f"expected points of shape (N, 3), got {points.shape}")
    if normals is not None:
        normals = np.ascontiguousarray(normals, dtype=np.float32)
    if colors is not None:
        colors = as_bytes(colors)
    for name, values in (("normals", normals), ("colors", colors)):
        if values is not None and values.shape != points.shape:
            raise FormatError(f"expected one of {name} per point, shape {points.shape}, got {values.shape}")
    if faces is not None:
        faces = np.ascontiguousarray(faces, dtype=np.int64).reshape(-1, 3)
        if len(faces) and (faces.min() < 0 or faces.max() >= len(points)):
            raise FormatError(
                f"faces name vertices {faces.min()} to {faces.max()}, but there are only {len(points)} vertices"
            )
        faces = faces if len(faces) else None
    return Geometry(points, normals, colors, notes, faces)


def as_bytes(colors: NDArray) -> NDArray[np.uint8]:
    """Colours as 0..255: floats up to 1 are fractions, 16-bit values (as LAS stores them) keep their high byte."""
    colors = np.asarray(colors)
    if colors.dtype == np.uint8 or not colors.size:
        return np.ascontiguousarray(colors, dtype=np.uint8)
    top = float(np.nanmax(colors))
    if colors.dtype.kind == "f" and top <= 1.0:
        colors = colors * 255.0
    elif top > 255.0:
        colors = colors / 256.0
    return np.ascontiguousarray(np.clip(np.rint(np.nan_to_num(colors)), 0, 255).astype(np.uint8))


def fan_triangles(counts: NDArray, corners: NDArray) -> NDArray[np.int64]:
    """Split polygons into fans of triangles.

    Args:
        counts: (P,) corners of each polygon.
        corners: (sum(counts),) vertex indices, polygon after polygon.

    Returns:
        (T, 3) int64; polygons with fewer than three corners give nothing.
    """
    counts, corners = np.asarray(counts, dtype=np.int64), np.asarray(corners, dtype=np.int64)
    if counts.sum() != len(corners):
        raise FormatError(f"polygons need {counts.sum()} corners, got {len(corners)}")
    starts = np.cumsum(counts) - counts
    per_polygon = np.maximum(counts - 2, 0)
    first = np.repeat(starts, per_polygon)
    step = np.arange(len(first)) - np.repeat(np.cumsum(per_polygon) - per_polygon, per_polygon)
    return np.stack([corners[first], corners[first + step + 1], corners[first + step + 2]], axis=1)


def sample_surface(mesh: Geometry, count: int, seed: int = 0) -> PointCloud:
    """Draw ``count`` points uniformly by area from a triangle mesh, with the faces' normals.

    Raises:
        ValueError: there are no faces, their area is zero, or ``count`` is not positive.
    """
    if mesh.faces is None:
        raise ValueError("sample_surface: the input has no faces to sample from; use its points as they are")
    if count < 1:
        raise ValueError(f"sample_surface: `count` must be at least 1, got {count}")
    corners = mesh.points[mesh.faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    doubled = np.linalg.norm(cross, axis=1)
    doubled = np.where(np.isfinite(doubled), doubled, 0.0)
    total = doubled.sum()
    if total <= 0:
        raise ValueError("sample_surface: the faces have no area")
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(doubled), size=count, p=doubled / total)
    u, v = np.sqrt(rng.random(count)), rng.random(count)
    weights = np.stack([1 - u, u * (1 - v), u * v], axis=1)
    points = np.einsum("nk,nkd->nd", weights, corners[chosen])
    normals = (cross[chosen] / doubled[chosen, None]).astype(np.float32)
    return PointCloud(points, normals, None, mesh.notes)


def drop_invalid(cloud: Geometry, reason: str) -> Geometry:
    """Remove points with a NaN or infinite coordinate where the format defines those as "no return"."""
    good = np.isfinite(cloud.points).all(axis=1)
    if good.all():
        return cloud
    note = f"{int((~good).sum())} of {len(good)} points have no coordinates ({reason}) and were dropped"
    return replace(
        cloud,
        points=cloud.points[good],
        normals=None if cloud.normals is None else cloud.normals[good],
        colors=None if cloud.colors is None else cloud.colors[good],
        notes=(*cloud.notes, note),
    )
