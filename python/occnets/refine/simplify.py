# SPDX-License-Identifier: MIT
"""Fewer triangles: quadric edge collapse, with the result checked and repaired.

Collapsing edges in the fast way may pinch a surface, so that four faces meet in one edge or two sheets in one vertex.
Such places are cut apart again here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from occnets._optional import optional
from occnets.check import check_mesh
from occnets.components import compact, find_parts

_AGGRESSIVENESS = (5.0, 3.0, 7.0)  # the family's first; lower ones keep more of the shape and may miss the target
_CLOSE = 1.05  # a result with so many times the wanted faces is taken
_NUDGE = 1e-3  # share of the way to the neighbours by which vertices are moved where a pinch is cut


@dataclass(frozen=True)
class Simplified:
    """A simplified mesh.

    Attributes:
        vertices: (V, 3) float64.
        faces: (F, 3) int64.
        warnings: what did not turn out as it should.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    warnings: tuple[str, ...] = ()


def target_faces(target: int | float, count: int) -> int:
    """Faces that ``target`` asks for: a share of ``count`` if below 1, else a number; at least 4.

    Raises:
        ValueError: not positive, or a number with a fraction.
    """
    if 0 < target < 1:
        return max(4, round(target * count))
    if target >= 4 and target == int(target):
        return int(target)
    raise ValueError(f"`simplify` must be a share between 0 and 1 or a number of faces from 4, got {target}")


def simplify_mesh(
    vertices: NDArray[np.float64],  # (V, 3)
    faces: NDArray[np.int64],  # (F, 3)
    target: int | float,
) -> Simplified:
    """Reduce a closed mesh to a number of faces by quadric edge collapse.

    The result is as closed and consistently oriented as the input; where the simplifier pinched the surface it is cut
    apart again. What could not be kept is told in the warnings.

    Args:
        vertices: (V, 3), best near the origin: quadrics lose digits far from it.
        faces: (F, 3) indices into ``vertices``.
        target: faces wanted (4 or more), or a share of those given (below 1). A mesh that has no more is returned.

    Raises:
        ValueError: ``target`` is out of range or a shape is wrong.
        ImportError: fast-simplification is not installed.

    Source: Garland and Heckbert, SIGGRAPH 1997.
    """
    wanted = target_faces(target, len(faces))
    closed = check_mesh(vertices, faces).closed
    if len(faces) <= wanted:
        return Simplified(vertices, faces)
    library = optional("fast_simplification", extra="mesh", why="to simplify meshes")
    best: Simplified | None = None
    for aggressiveness in _AGGRESSIVENESS:
        points, corners = library.simplify(
            np.ascontiguousarray(vertices, dtype=np.float64),
            np.ascontiguousarray(faces, dtype=np.int64),
            target_count=wanted,
            agg=aggressiveness,
        )
        found = _cleaned(points.astype(np.float64), corners.astype(np.int64))
        if closed and not check_mesh(found.vertices, found.faces).ok:
            found = separate_pinches(found.vertices, found.faces) or found
        if len(found.faces) and (not closed or check_mesh(found.vertices, found.faces).ok):
            if best is None or len(found.faces) < len(best.faces):
                best = found
            if len(best.faces) <= _CLOSE * wanted:
                break
    if best is None:
        note = f"simplification to {wanted:,} faces would have broken the surface; the mesh keeps its {len(faces):,}"
        return Simplified(vertices, faces, (note,))
    return replace(best, warnings=_remarks(best, wanted, vertices, faces))


def _cleaned(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> Simplified:
    a, b, c = faces.T
    vertices, faces, _ = compact(vertices, faces[(a != b) & (b != c) & (c != a)])
    return Simplified(vertices, faces)


def _remarks(found: Simplified, wanted: int, vertices: NDArray, faces: NDArray) -> tuple[str, ...]:
    notes = []
    if len(found.faces) > _CLOSE * wanted:
        notes.append(f"simplification stopped at {len(found.faces):,} of {wanted:,} faces to keep the surface whole")
    before, after = (len(find_parts(v, f).faces) for v, f in ((vertices, faces), (found.vertices, found.faces)))
    if before != after:
        notes.append(f"simplification changed the number of components from {before} to {after}")
    return tuple(notes)


def separate_pinches(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> Simplified | None:
    """Cut a surface apart where more than two faces meet in an edge, or several sheets in a vertex.

    Faces that lie on each other, turned over, are removed. An edge of more than two faces gets a middle vertex for each
    pair of faces that bound the same piece of the inside. A vertex in which several sheets meet is given to one of
    them, the others get copies; all new vertices are moved a little towards their own faces.

    Args:
        vertices: (V, 3).
        faces: (F, 3) without repeated indices.

    Returns:
        The mesh, closed and 2-manifold, or None if an edge is open or misoriented, which cannot be mended so.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    split = _split_crowded(vertices, _without_folds(faces))
    if split is None:
        return None
    places, faces = split
    halves = _half_edges(faces, len(places))[0]
    one, other = halves.reshape(-1, 2).T
    # Half-edge h leaves corner h of the flattened faces; the two of an edge run against each other.
    after_one, after_other = _next(one), _next(other)
    links = np.concatenate([np.stack([one, after_other]), np.stack([after_one, other])], axis=1)
    graph = coo_matrix((np.ones(links.shape[1], dtype=bool), (links[0], links[1])), shape=(faces.size, faces.size))
    count, owner = connected_components(graph, directed=False)
    source = np.empty(count, dtype=np.int64)
    source[owner] = faces.reshape(-1)
    fresh = (np.bincount(source, minlength=len(places)) > 1)[source] | (source >= len(vertices))
    return _apart(places[source], owner.astype(np.int64).reshape(-1, 3), fresh)


def _next(halves: NDArray[np.int64]) -> NDArray[np.int64]:
    """The half-edges that follow in their faces."""
    return halves - halves % 3 + (halves + 1) % 3


def _half_edges(faces: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], ...]:
    """Half-edges (3 F,) so that those of an edge lie side by side; first place, number and balance of every edge."""
    start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    edge = np.minimum(start, end) * np.int64(count) + np.maximum(start, end)
    halves = np.argsort(edge, kind="stable")
    first = np.flatnonzero(np.diff(edge[halves], prepend=-1))
    along = np.add.reduceat(np.where(start < end, 1, -1)[halves], first) if len(first) else first
    return halves, first, np.diff(np.append(first, len(halves))), along


def _without_folds(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Faces less the pairs that have the same vertices in opposite orders."""
    a, b, c = faces.T
    turn = np.where((a < b).astype(int) + (b < c) + (c < a) == 2, 1, -1)
    corners = np.sort(faces, axis=1)
    order = np.lexsort(corners.T)
    same = (corners[order][1:] == corners[order][:-1]).all(axis=1)
    keep = np.ones(len(faces), dtype=bool)
    group: list[int] = []
    for at in np.flatnonzero(np.append(same, False) | np.append(False, same)):
        if not (at and same[at - 1]):
            group = []
        face = int(order[at])
        opposite = next((other for other in group if turn[other] != turn[face]), None)
        if opposite is None:
            group.append(face)
        else:
            group.remove(opposite)
            keep[[face, opposite]] = False
    return faces[keep]


def _split_crowded(
    vertices: NDArray[np.float64], faces: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
    """The mesh with every edge of more than two faces replaced by pairs of edges through middle vertices."""
    while True:
        halves, first, shares, balance = _half_edges(faces, len(vertices))
        if balance.any():
            return None
        if not (shares > 2).any():
            return vertices, faces
        faces, touched = faces.copy(), set()
        middles: list[NDArray] = []
        more: list[tuple[int, int, int]] = []
        for at, count in zip(first[shares > 2], shares[shares > 2], strict=True):
            around = halves[at : at + count]
            if touched & set(around // 3):
                continue  # its faces have changed; the next round
            touched |= set(around // 3)
            for pair in _pair_around(vertices, faces, around):
                middle = len(vertices) + len(middles)
                for half in pair:
                    a, b, c = np.roll(faces[half // 3], -(half % 3))
                    faces[half // 3] = a, middle, c
                    more.append((middle, b, c))
                middles.append((vertices[a] + vertices[b]) / 2)
        vertices, faces = np.vstack([vertices, middles]), np.vstack([faces, more])


def _pair_around(vertices: NDArray[np.float64], faces: NDArray[np.int64], around: NDArray[np.int64]) -> NDArray:
    """(n, 2) pairs of the 2 n half-edges of one edge: each pair bounds one wedge of the inside."""
    corner = faces.reshape(-1)
    low, high = sorted((corner[around[0]], corner[_next(around[:1])[0]]))
    along = corner[around] == low
    axis = vertices[high] - vertices[low]
    axis /= max(float(np.linalg.norm(axis)), 1e-300)
    arms = vertices[corner[_next(_next(around))]] - vertices[low]
    arms -= (arms @ axis)[:, None] * axis
    angle = np.arctan2(arms @ np.cross(axis, arms[0]), arms @ arms[0])
    order = np.argsort(angle, kind="stable")
    # Counter-clockwise around the edge the inside begins at a face that runs against it and ends at one along it, so
    # they match like brackets; the circle is opened where the depth is least.
    depth = np.cumsum(np.where(along[order], -1, 1))
    waiting: list[int] = []
    pairs = []
    for index in np.roll(order, -int(np.argmin(depth)) - 1):
        if along[index]:
            pairs.append((around[waiting.pop()], around[index]))
        else:
            waiting.append(int(index))
    return np.array(pairs)


def _apart(places: NDArray[np.float64], faces: NDArray[np.int64], fresh: NDArray[np.bool_]) -> Simplified:
    """The mesh with ``fresh`` vertices moved towards the middle of their faces."""
    middle, weight = places[faces].mean(axis=1), np.bincount(faces.reshape(-1), minlength=len(places))
    moved = places.copy()
    for axis in range(3):
        drawn = np.bincount(faces.reshape(-1), np.repeat(middle[:, axis], 3), len(places)) / weight
        moved[fresh, axis] += _NUDGE * (drawn - places[:, axis])[fresh]
    return Simplified(moved, faces)
