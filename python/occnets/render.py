# SPDX-License-Identifier: MIT
"""Stills without a display or OpenGL: a small software rasteriser in numpy with a z-buffer, for meshes and points."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from occnets.components import is_watertight
from occnets.io import Geometry

BACKGROUND = (250, 250, 252)
_MESH_COLOR = np.array([0.86, 0.84, 0.80])
_POINT_COLOR = np.array([0.22, 0.42, 0.68])
_SUPERSAMPLING = 2
_FIELD_OF_VIEW = 28.0  # degrees; long enough a lens not to distort, short enough to look solid
_MARGIN = 0.06  # of the panel, left free around the objects
_BATCH = 4_000_000  # pixel candidates handled at once, to bound memory
_MOST_SPLATS = 60_000  # more points than pixels only cost time
_CREASE = 0.75  # cosine between a vertex's and a face's normal below which the edge counts as sharp
_UP = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}
_FRONT = {"x": (0.0, 0.0, 1.0), "y": (0.0, 0.0, 1.0), "z": (0.0, -1.0, 0.0)}
_EMPTY = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class View:
    """Where the camera stands.

    Attributes:
        azimuth: degrees to the right of the front (+z for ``up`` x or y, -y for z).
        elevation: degrees above the horizon.
        up: the axis that points up in the picture: x, y or z.
    """

    azimuth: float = 35.0
    elevation: float = 22.0
    up: str = "y"

    def __post_init__(self) -> None:
        if self.up not in _UP:
            raise ValueError(f"View: `up` must be x, y or z, got {self.up!r}")

    def axes(self) -> NDArray[np.float64]:
        """(3, 3): right, upward and towards the camera, as rows."""
        up, front = np.array(_UP[self.up]), np.array(_FRONT[self.up])
        side = np.cross(up, front)
        azimuth, elevation = np.radians(self.azimuth), np.radians(self.elevation)
        level = np.cos(azimuth) * front + np.sin(azimuth) * side
        back = np.cos(elevation) * level + np.sin(elevation) * up
        right = np.cross(up, back) if abs(np.cos(elevation)) > 1e-9 else np.cross(-level * np.sin(elevation), back)
        right = right / np.linalg.norm(right)
        return np.stack([right, np.cross(back, right), back])


@dataclass(frozen=True)
class _Camera:
    """Perspective camera fitted to the objects; pixel units, y down."""

    axes: NDArray[np.float64]
    centre: NDArray[np.float64]
    distance: float
    scale: float
    shift: NDArray[np.float64]

    def project(self, points: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Pixel positions (N, 2), depths that are affine on the screen (smaller is nearer), pixels per unit (N,)."""
        local = (points - self.centre) @ self.axes.T
        along = self.distance - local[:, 2]
        per_unit = self.scale / along
        flat = local[:, :2] * per_unit[:, None] * np.array([1.0, -1.0]) + self.shift
        return flat, -1.0 / along, per_unit


def _fit_camera(clouds: Sequence[NDArray], view: View, width: int, height: int) -> _Camera:
    points = np.concatenate(clouds)
    axes = view.axes()
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    radius = max(float(np.linalg.norm(points - centre, axis=1).max()), 1e-30)
    distance = radius / np.sin(np.radians(_FIELD_OF_VIEW / 2))
    probe = _Camera(axes, centre, distance, 1.0, np.zeros(2)).project(points)[0]
    low, high = probe.min(axis=0), probe.max(axis=0)
    room = np.array([width, height]) * (1 - 2 * _MARGIN)
    scale = float((room / np.maximum(high - low, 1e-30)).min())
    return _Camera(axes, centre, distance, scale, np.array([width, height]) / 2 - scale * (low + high) / 2)


def render(shapes: Sequence[Geometry], *, size: int = 640, view: View | None = None) -> NDArray[np.uint8]:
    """Draw shapes side by side, seen by the same camera.

    Args:
        shapes: each a mesh (``faces`` given) or a cloud, all in one frame.
        size: side of each square panel in pixels.
        view: where to look from.

    Returns:
        (size, size * len(shapes), 3) uint8 picture on a light background.

    Raises:
        ValueError: nothing to draw, or ``size`` out of 16..8192.
    """
    if not shapes or any(not len(shape.points) for shape in shapes):
        raise ValueError("render: every shape needs at least one point, and there must be at least one shape")
    if not 16 <= size <= 8192:
        raise ValueError(f"render: `size` must be from 16 to 8192 pixels, got {size}")
    large = size * _SUPERSAMPLING
    camera = _fit_camera([shape.points for shape in shapes], view or View(), large, large)
    panels = [_panel(shape, camera, large) for shape in shapes]
    return np.concatenate([_reduce(panel) for panel in panels], axis=1)


def render_png(shapes: Sequence[Geometry], *, size: int = 640, view: View | None = None) -> bytes:
    """`render`, encoded as PNG."""
    return encode_png(render(shapes, size=size, view=view))


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 as PNG bytes."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()


def _reduce(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    side = image.shape[0] // _SUPERSAMPLING
    blocks = image.reshape(side, _SUPERSAMPLING, side, _SUPERSAMPLING, 3).mean(axis=(1, 3))
    return np.clip(np.rint(blocks), 0, 255).astype(np.uint8)


def _panel(shape: Geometry, camera: _Camera, size: int) -> NDArray[np.float32]:
    image = np.empty((size * size, 3), dtype=np.float32)
    image[:] = BACKGROUND
    if shape.faces is None:
        shaded = _draw_points(shape, camera, size)
    else:
        shaded = _draw_mesh(shape, camera, size)
    pixels, colors, depth = shaded
    image[pixels] = 255.0 * np.clip(colors, 0, 1) * _crevices(pixels, depth, size)[:, None]
    return image.reshape(size, size, 3)


def _crevices(pixels: NDArray, depth: NDArray, size: int) -> NDArray[np.float32]:
    """Darkening where a pixel lies behind its surroundings (depth-buffer unsharp masking, Luft et al. 2006)."""
    from scipy.ndimage import gaussian_filter

    if not len(pixels):
        return np.empty(0, dtype=np.float32)
    low, high = float(depth.min()), float(depth.max())
    relative = (depth - low) / max(high - low, 1e-30)
    # The blur is wide, so a quarter of the resolution is enough for it.
    small = -(-size // 4)
    cell = pixels // size // 4 * small + pixels % size // 4
    sums = (np.bincount(cell, weights=values, minlength=small * small) for values in (np.ones(len(cell)), relative))
    weight, total = (gaussian_filter(values.reshape(small, small), size / 360).reshape(-1)[cell] for values in sums)
    return (1.0 - np.clip(2.5 * (relative - total / np.maximum(weight, 1e-6)), 0.0, 0.45)).astype(np.float32)


def _pack(depth: NDArray, low: float, high: float, index: NDArray) -> NDArray[np.uint64]:
    """Depth in the high half and index in the low half: the minimum is the nearest, and says who it is."""
    level = np.clip((depth - low) / max(high - low, 1e-30), 0.0, 1.0) * (2**31)
    return (level.astype(np.uint64) << np.uint64(32)) | index.astype(np.uint64)


def _shade(normals: NDArray, base: NDArray) -> NDArray[np.float64]:
    """Headlight, a key light from the upper left, and sky light; ``normals`` (N, 3) in camera axes."""
    key = np.array([-0.45, 0.65, 0.61])
    front = np.clip(normals[:, 2], 0, 1)
    light = 0.34 + 0.08 * normals[:, 1] + 0.36 * front + 0.38 * np.clip(normals @ key, 0, 1)
    glint = 0.10 * np.clip(normals @ (key + [0, 0, 1]) / np.linalg.norm(key + [0, 0, 1]), 0, 1) ** 40
    return base * light[:, None] + glint[:, None]


def _draw_points(
    shape: Geometry, camera: _Camera, size: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Points as little shaded balls: covered pixels, their colours, their depths."""
    points, colors = shape.points, shape.colors
    if len(points) > _MOST_SPLATS:
        chosen = np.random.default_rng(0).choice(len(points), _MOST_SPLATS, replace=False)
        points, colors = points[chosen], None if colors is None else colors[chosen]
    flat, depth, per_unit = camera.project(points)
    radius = float(np.clip(0.38 * size / np.sqrt(len(points)), 1.6, size / 80))
    reach = int(np.ceil(radius))
    dy, dx = (axis.reshape(-1) for axis in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    inside = dx**2 + dy**2 <= radius**2
    dx, dy = dx[inside], dy[inside]
    bulge = np.sqrt(np.maximum(radius**2 - dx**2 - dy**2, 0.0))
    # A ball's surface is nearer than its centre by bulge / per_unit; d(-1/z) = dz / z^2.
    nearer = bulge[None] / per_unit[:, None] * (depth**2)[:, None]
    depths = depth[:, None] - nearer
    columns = np.rint(flat[:, :1]).astype(np.int64) + dx
    rows = np.rint(flat[:, 1:]).astype(np.int64) + dy
    seen = (columns >= 0) & (columns < size) & (rows >= 0) & (rows < size)
    low, high = float(depths.min()), float(depths.max())
    index = np.broadcast_to(np.arange(len(points))[:, None], depths.shape)
    buffer = np.full(size * size, _EMPTY)
    np.minimum.at(buffer, (rows * size + columns)[seen], _pack(depths[seen], low, high, index[seen]))
    pixels = np.flatnonzero(buffer != _EMPTY)
    owner = (buffer[pixels] & np.uint64(2**32 - 1)).astype(np.int64)
    offset = np.stack([pixels % size, pixels // size], axis=1) - np.rint(flat[owner])
    side = offset / (radius * 1.05) * np.array([1.0, -1.0])
    normals = np.column_stack([side, np.sqrt(np.maximum(1 - (side**2).sum(axis=1), 0.0))])
    base = _POINT_COLOR if colors is None else colors[owner] / 255.0
    colors = _shade(normals, base * 1.1)
    # Far points fade, because one sees through a cloud to its back.
    far = ((depth[owner] - low) / max(high - low, 1e-30))[:, None]
    return pixels, colors + 0.4 * far**1.5 * (np.array(BACKGROUND) / 255.0 - colors), depth[owner]


def _draw_mesh(
    shape: Geometry, camera: _Camera, size: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Triangles with interpolated normals: covered pixels, their colours, their depths."""
    assert shape.faces is not None
    flat, depth, _ = camera.project(shape.points)
    corners = flat[shape.faces]  # (F, 3, 2)
    low, high = float(depth.min()), float(depth.max())
    face_depth = depth[shape.faces]
    buffer = np.full(size * size, _EMPTY)
    for index, pixel, v, w in _candidates(corners, _facing_camera(shape.faces, corners), size):
        near = face_depth[index]
        z = near[:, 0] + v * (near[:, 1] - near[:, 0]) + w * (near[:, 2] - near[:, 0])
        np.minimum.at(buffer, pixel, _pack(z, low, high, index))
    pixels = np.flatnonzero(buffer != _EMPTY)
    owner = (buffer[pixels] & np.uint64(2**32 - 1)).astype(np.int64)
    centres = np.stack([pixels % size, pixels // size], axis=1) + 0.5
    v, w = _barycentric(corners[owner], centres)
    weights = np.stack([1.0 - v - w, v, w], axis=1)
    faces = shape.faces[owner]
    normals = _shading_normals(_vertex_normals(shape)[faces], _face_normals(shape)[owner], weights) @ camera.axes.T
    normals = np.where(normals[:, 2:] < 0, -normals, normals)  # both sides of a face are lit
    base: Any = _MESH_COLOR
    if shape.colors is not None:
        base = np.einsum("nk,nkd->nd", weights, shape.colors[faces] / 255.0)
    return pixels, _shade(normals, base), np.einsum("nk,nk->n", weights, depth[faces])


def _shading_normals(corners: NDArray, flat: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """Unit normals (N, 3) interpolated from vertices' (N, 3, 3); a corner on a sharp edge takes the face's own."""
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-300)
    smooth = np.einsum("nkd,nd->nk", corners, flat) > _CREASE
    normals = np.einsum("nk,nkd->nd", weights, np.where(smooth[..., None], corners, flat[:, None]))
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)


def _facing_camera(faces: NDArray, corners: NDArray) -> NDArray[np.int64]:
    """Faces worth drawing: of a closed mesh only those that face the camera, otherwise all."""
    ab, ac = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    doubled = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    # Pixel rows run downwards, so outward faces seen from outside turn the other way round.
    return np.flatnonzero(doubled < 0 if is_watertight(faces, int(faces.max()) + 1) else doubled != 0)


def _candidates(
    corners: NDArray, drawn: NDArray, size: int
) -> Iterator[tuple[NDArray, NDArray, NDArray[np.float32], NDArray[np.float32]]]:
    """Every (face, pixel) whose centre lies in a face of ``drawn``: faces, pixels, the last two barycentric weights.

    Faces are grouped by the size of their pixel box, rounded up to powers of two, so that each group is one array.
    """
    first = np.clip(np.ceil(corners.min(axis=1) - 0.5), 0, size).astype(np.int64)
    last = np.clip(np.floor(corners.max(axis=1) - 0.5), -1, size - 1).astype(np.int64)
    extent = last - first + 1
    visible = drawn[(extent[drawn] > 0).all(axis=1)]
    level = np.ceil(np.log2(extent[visible])).astype(np.int64) @ np.array([64, 1])
    for code in np.unique(level):
        group = visible[level == code]
        dy, dx = (axis.reshape(-1) for axis in np.mgrid[: 1 << (code % 64), : 1 << (code // 64)])
        per_batch = max(1, _BATCH // len(dx))
        for start in range(0, len(group), per_batch):
            part = group[start : start + per_batch]
            columns, rows = first[part, :1] + dx, first[part, 1:] + dy
            v, w = _barycentric(corners[part][:, None], np.stack([columns, rows], axis=-1) + 0.5)
            hit = (v >= 0) & (w >= 0) & (v + w <= 1) & (columns < size) & (rows < size)
            yield np.broadcast_to(part[:, None], hit.shape)[hit], (rows * size + columns)[hit], v[hit], w[hit]


def _barycentric(corners: NDArray, points: NDArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights of the second and third corner at points (..., 2) in triangles (..., 3, 2) with an area."""
    a = corners[..., 0, :]
    ab, ac = corners[..., 1, :] - a, corners[..., 2, :] - a
    with np.errstate(over="ignore"):  # a sliver whose inverse overflows covers no pixel centre
        inverse = (1.0 / (ab[..., 0] * ac[..., 1] - ab[..., 1] * ac[..., 0])).astype(np.float32)
    ab, ac, ap = ab.astype(np.float32), ac.astype(np.float32), (points - a).astype(np.float32)
    v = (ap[..., 0] * ac[..., 1] - ap[..., 1] * ac[..., 0]) * inverse
    w = (ab[..., 0] * ap[..., 1] - ab[..., 1] * ap[..., 0]) * inverse
    return v, w


def _face_normals(shape: Geometry) -> NDArray[np.float64]:
    """(F, 3), as long as twice the area."""
    a, b, c = (shape.points[shape.faces[:, i]] for i in range(3))  # type: ignore[index]
    return np.cross(b - a, c - a)


def _vertex_normals(shape: Geometry) -> NDArray[np.float64]:
    """(V, 3) area-weighted means of the faces' normals, of any length."""
    faces, normals = shape.faces, _face_normals(shape)
    assert faces is not None
    total = np.empty_like(shape.points)
    for axis in range(3):
        total[:, axis] = sum(
            np.bincount(faces[:, corner], weights=normals[:, axis], minlength=len(total)) for corner in range(3)
        )
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-300)
