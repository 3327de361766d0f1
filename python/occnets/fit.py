# SPDX-License-Identifier: MIT
"""Moves an extracted surface onto the measured points, without changing its topology.

A network decides well what is inside and what is outside, but its surface is blurred by a fraction of a cell. The
points know where the surface is, up to their noise. So each point's signed distance to the surface (its residual) is
averaged over the neighbourhood of each vertex, and the vertex moves by that average along its normal. Averaging
residuals, not positions, leaves a curved surface where it is when the points agree with it (compare moving least
squares, Alexa et al. 2003).

Before that the surface is smoothed over a fraction of the points' spacing: what a network shows below it is not
measured but made up. Smoothing shrinks what is curved; the points put it back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 100_000  # vertices of one neighbour search; bounds the memory
_FADING = 3.0  # point spacings from the nearest point at which smoothing ends; it is in full up to one less
_NEGLIGIBLE = 1e-5  # coefficients of a filter, relative to the largest


@dataclass(frozen=True)
class FitOptions:
    """Options of `fit_to_points`.

    Attributes:
        rounds: how often residuals are measured and vertices moved.
        neighbours: points looked at for each vertex.
        radius: width of the Gaussian that weighs them, in point spacings.
        stiffness: weight of staying in place, in points; where there are no points, nothing moves.
        cutoff: points further away than so many robust standard deviations of the residuals are ignored.
        reach: points further away than this are ignored in any case, in the units of the vertices; the default is for
            the unit cube, two to three cells of a 128-cell lattice.
        smoothing: rounds of averaging the displacement over the mesh.
        blur: standard deviation of the smoothing of the surface before anything is measured, in point spacings; 0 for
            none. It does not depend on how fine the mesh is, and where there are no points there is none.
    """

    rounds: int = 2
    neighbours: int = 16
    radius: float = 1.5
    stiffness: float = 1.0
    cutoff: float = 4.0
    reach: float = 0.02
    smoothing: int = 3
    blur: float = 0.35


def vertex_normals(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> NDArray[np.float64]:
    """Area-weighted unit normals (V, 3) of a triangle mesh; zero for a vertex without area."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    directions = np.cross(b - a, c - a)
    normals = np.empty_like(vertices)
    for axis in range(3):
        normals[:, axis] = sum(np.bincount(faces[:, corner], directions[:, axis], len(vertices)) for corner in range(3))
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)


def fit_to_points(
    vertices: NDArray[np.float64],  # (V, 3)
    faces: NDArray[np.int64],  # (F, 3)
    points: NDArray[np.float64],  # (N, 3)
    options: FitOptions = FitOptions(),  # noqa: B008 - frozen
) -> NDArray[np.float64]:
    """Vertices moved onto the points; faces stay.

    Args:
        vertices: (V, 3) of a closed, outward oriented mesh.
        faces: (F, 3) indices into ``vertices``.
        points: (N, 3) measured points, same frame.
        options: see `FitOptions`.

    Returns:
        (V, 3) new vertices.

    Raises:
        ValueError: a shape is wrong, or there are no points or faces.
    """
    for name, array in (("vertices", vertices), ("faces", faces), ("points", points)):
        if array.ndim != 2 or array.shape[1] != 3 or not len(array):
            raise ValueError(f"fit_to_points: `{name}` must have shape (n > 0, 3), got {array.shape}")
    from scipy.spatial import cKDTree

    count = min(options.neighbours, len(points))
    average = _averaging(len(vertices), faces)
    measured = cKDTree(points)
    spacing = point_spacing(measured, points)
    vertices = np.array(vertices, dtype=np.float64)
    if options.blur:
        support = np.clip(_FADING - measured.query(vertices, workers=-1)[0] / spacing, 0.0, 1.0)[:, None]
        vertices += support * (_blurred(vertices, faces, average, options.blur * spacing) - vertices)
    for _ in range(options.rounds):
        normals = vertex_normals(vertices, faces)
        residuals, owners = _residuals(cKDTree(vertices), vertices, normals, points)
        near = np.abs(residuals) <= options.reach
        if not near.any():
            break
        near &= np.abs(residuals) <= options.cutoff * 1.4826 * np.median(np.abs(residuals[near]))
        tree, residuals, directions = cKDTree(points[near]), residuals[near], normals[owners[near]]
        used = min(count, len(residuals))
        moment, weight = np.empty(len(vertices)), np.empty(len(vertices))
        for start in range(0, len(vertices), _BLOCK):
            part = slice(start, start + _BLOCK)
            distance, index = tree.query(vertices[part], used, workers=-1)
            distance, index = distance.reshape(-1, used), index.reshape(-1, used)
            # Squared agreement of normals: the far side of a thin wall has no say.
            agreement = np.einsum("vc,vkc->vk", normals[part], directions[index]).clip(0.0, 1.0) ** 2
            weights = np.exp(-((distance / (options.radius * spacing)) ** 2)) * agreement
            moment[part], weight[part] = (weights * residuals[index]).sum(axis=1), weights.sum(axis=1)
        for _ in range(options.smoothing):
            moment, weight = average @ moment, average @ weight
        vertices += normals * (moment / (weight + options.stiffness))[:, None]
    return vertices


def _averaging(count: int, faces: NDArray[np.int64]) -> Any:
    """Sparse (V, V) matrix: half of itself, half of the mean of its neighbours."""
    from scipy import sparse

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.concatenate([edges, edges[:, ::-1]])
    links = sparse.coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count)).tocsr()
    links.data[:] = 1.0  # every edge stands in two faces
    degree = np.maximum(np.asarray(links.sum(axis=1)).ravel(), 1.0)
    return sparse.diags(0.5 / degree) @ links + 0.5 * sparse.identity(count)


def _blurred(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], average: Any, width: float
) -> NDArray[np.float64]:
    """Vertices averaged over the mesh with about a Gaussian of standard deviation ``width``.

    Averaging n times is the polynomial ((1 + y) / 2)^n of the neighbours' mean, whose Chebyshev coefficients are
    binomial(2 n, n - k) / 4^n, doubled for k > 0. They vanish beyond a few times sqrt(n / 2), so that wide filters on
    fine meshes take the square root of the n rounds.
    """
    ends = vertices[faces[:, [1, 2, 0]]] - vertices[faces]
    # One round moves half of a vertex to its neighbours: half the mean square edge, over the surface's two dimensions.
    variance = float((ends**2).sum(axis=2).mean()) / 4.0
    rounds = round(width**2 / variance) if variance > 0 else 0
    if rounds < 1:
        return vertices
    share = 1.0  # of coefficient k, relative to that of k = 0
    before, here = vertices, 2.0 * (average @ vertices) - vertices
    total, weight = vertices.copy(), 1.0
    for k in range(1, rounds + 1):
        share *= (rounds - k + 1) / (rounds + k)
        if share < _NEGLIGIBLE:
            break
        total += 2.0 * share * here
        weight += 2.0 * share
        before, here = here, 2.0 * (2.0 * (average @ here) - here) - before
    return total / weight


def point_spacing(tree: Any, points: NDArray[np.float64]) -> float:
    """Side of the square that one point represents, from the median radius that holds six neighbours."""
    sample = points[:: max(1, len(points) // 5000)]
    radius = float(np.median(tree.query(sample, min(7, len(points)))[0].reshape(len(sample), -1)[:, -1]))
    return radius * float(np.sqrt(np.pi / 6.0))


def _residuals(
    tree: Any, vertices: NDArray[np.float64], normals: NDArray[np.float64], points: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Signed distance of every point to the surface (positive outside) and its nearest vertex.

    The mean over the three nearest vertices of the height above the plane half-way between the vertex's tangent plane
    and the one at the point, which is exact on spheres; on a marching-cubes mesh the vertices are one cell away.
    """
    distance, nearest = tree.query(points, min(3, len(vertices)), workers=-1)
    distance, nearest = distance.reshape(len(points), -1), nearest.reshape(len(points), -1)
    closeness = 1.0 / (distance + 1e-12)
    here = np.einsum("nk,nkc->nc", closeness, normals[nearest])
    here /= np.maximum(np.linalg.norm(here, axis=1, keepdims=True), 1e-30)
    between = 0.5 * (normals[nearest] + here[:, None])
    heights = np.einsum("nkc,nkc->nk", points[:, None] - vertices[nearest], between)
    return heights.mean(axis=1), nearest[:, 0]
