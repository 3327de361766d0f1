# SPDX-License-Identifier: MIT
"""Pieces of a mesh to one mesh: welding by lattice edges, removal of what was made up, fit, trimming."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from occnets.components import compact, find_parts, kept_faces
from occnets.fit import FitOptions, fit_to_points
from occnets.scenes.store import TileResult

Mesh = tuple[NDArray[np.float64], NDArray[np.int64]]

_CRUMB = 2.0  # cells; smaller parts are noise of the field
_SUPPORTED = 2.0  # cells; a part no vertex of which is that near to a point was made up
_SLAB = 400_000  # vertices that are fitted at once; bounds the memory
_BAND = 4.0  # cells of the mesh and the cloud around those that have a say


def weld(pieces: Iterable[tuple[NDArray[np.int64], TileResult]]) -> Mesh:
    """One mesh of the pieces of all tiles.

    Args:
        pieces: the tile's lower corner in lattice steps (3,), and its result.

    Returns:
        Vertices (V, 3) in lattice steps, sorted by their lattice edge, and faces (F, 3). Vertices of the same edge are
    """
    places, keys, faces, count = [], [], [], 0
    for corner, piece in pieces:
        places.append(piece.vertices + corner.astype(np.float64))
        keys.append(piece.keys)
        faces.append(piece.faces.astype(np.int64) + count)
        count += len(piece.keys)
    if not count:
        return np.empty((0, 3)), np.empty((0, 3), np.int64)
    _, first, inverse = np.unique(np.concatenate(keys), return_index=True, return_inverse=True)
    vertices, triangles = np.concatenate(places)[first], inverse.reshape(-1)[np.concatenate(faces)]
    cells = np.zeros(len(triangles), np.int64)
    for axis in range(3):
        middle = vertices[:, axis][triangles].mean(axis=1)
        cells = cells * 2**21 + np.floor(middle).astype(np.int64)
    return vertices, triangles[np.argsort(cells, kind="stable")]  # the faces of a cell keep the order of its table


def clean_parts(mesh: Mesh, points: NDArray[np.float64], mode: str) -> tuple[Mesh, int]:
    """Drop parts of a closed mesh; lengths are in cells.

    Args:
        mesh: vertices and faces.
        points: (N, 3) measured points.
        mode: ``"clean"`` drops parts of less than two cells' volume and those far from every point, such as the inner
            side of a solid that is thicker than the network can see; the others are as in
            `occnets.components.kept_faces`.

    Returns:
        The mesh, and the number of parts that were dropped.
    """
    vertices, faces = mesh
    if mode == "all" or not len(faces):
        return mesh, 0
    parts = find_parts(vertices, faces)
    near = cKDTree(points).query(vertices, distance_upper_bound=_SUPPORTED, workers=-1)[0] < np.inf
    supported = np.bincount(parts.labels, near[faces].any(axis=1), len(parts.faces)) > 0
    keep = (supported & (np.abs(parts.volumes) >= _CRUMB))[parts.labels]
    if mode == "largest" and keep.any():
        vertices, faces, _ = compact(vertices, faces[keep])
        keep = kept_faces(vertices, faces, find_parts(vertices, faces), "largest")
    vertices, faces, _ = compact(vertices, faces[keep])
    return (vertices, faces), len(parts.faces) - len(find_parts(vertices, faces).faces)


def fit_scene(mesh: Mesh, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vertices moved onto the points as by `occnets.fit.fit_to_points`, slab by slab; lengths are in cells.

    Args:
        mesh: vertices and faces.
        points: (N, 3) measured points.
    """
    vertices, faces = mesh
    axis = int(np.ptp(vertices, axis=0).argmax())
    slabs = max(1, -(-len(vertices) // _SLAB))
    cuts = np.quantile(vertices[:, axis], np.linspace(0.0, 1.0, slabs + 1))
    cuts[0], cuts[-1] = -np.inf, np.inf
    moved = vertices.copy()
    options = FitOptions(reach=0.6)
    along, reach = points[:, axis], vertices[:, axis]
    for low, high in zip(cuts[:-1], cuts[1:], strict=True):
        own = (reach >= low) & (reach < high)
        around = (reach >= low - _BAND) & (reach < high + _BAND)
        cloud = points[(along >= low - _BAND) & (along < high + _BAND)]
        chosen = faces[around[faces].all(axis=1)]
        if not own.any() or not len(cloud) or not len(chosen):
            continue
        number = np.cumsum(around) - 1
        found = fit_to_points(vertices[around], number[chosen], cloud, options)
        moved[own] = found[own[around]]
    return moved


def trim(mesh: Mesh, points: NDArray[np.float64], distance: float) -> Mesh:
    """Without the faces that have a vertex further than ``distance`` from every point, and without their crumbs.

    Args:
        mesh: vertices and faces, any unit.
        points: (N, 3) measured points.
        distance: in the same unit.
    """
    vertices, faces = mesh
    near = cKDTree(points).query(vertices, distance_upper_bound=distance, workers=-1)[0] < np.inf
    vertices, faces, _ = compact(vertices, faces[near[faces].all(axis=1)])
    if not len(faces):
        return vertices, faces
    parts = find_parts(vertices, faces)
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    area = np.bincount(parts.labels, np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2, len(parts.faces))
    vertices, faces, _ = compact(vertices, faces[(area >= distance**2)[parts.labels]])
    return vertices, faces
