# SPDX-License-Identifier: MIT
"""Is a triangle mesh what it should be: closed, 2-manifold, consistently oriented, free of broken parts?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from occnets.components import signed_volumes


@dataclass(frozen=True)
class MeshCheck:
    """Defects of a mesh, counted; all zero and a positive volume in a good one.

    Attributes:
        not_finite: vertices with a coordinate that is NaN or infinite.
        unreferenced: vertices no face uses.
        degenerate: faces that name a vertex twice.
        duplicate: faces whose three vertices an earlier face has, in any order.
        open_edges: edges of one face.
        crowded_edges: edges of more than two faces.
        misoriented_edges: edges of two faces that run through them in the same direction.
        volume: signed volume in cubed units of the vertices; positive when faces look outward.
    """

    not_finite: int
    unreferenced: int
    degenerate: int
    duplicate: int
    open_edges: int
    crowded_edges: int
    misoriented_edges: int
    volume: float

    @property
    def closed(self) -> bool:
        """Every edge joins exactly two faces, which run through it in opposite directions."""
        return not (self.open_edges or self.crowded_edges or self.misoriented_edges)

    @property
    def ok(self) -> bool:
        """No defect at all."""
        return not self.problems()

    def problems(self) -> tuple[str, ...]:
        """One remark for each kind of defect."""
        counted = (
            (self.not_finite, "vertices that are NaN or infinite"),
            (self.unreferenced, "vertices without a face"),
            (self.degenerate, "faces that use a vertex twice"),
            (self.duplicate, "repeated faces"),
            (self.open_edges, "open edges (holes)"),
            (self.crowded_edges, "edges of more than two faces"),
            (self.misoriented_edges, "edges whose two faces are oriented against each other"),
        )
        found = [f"{count:,} {words}" for count, words in counted if count]
        # A NaN coordinate makes the volume NaN, which is told already.
        return (*found, f"a signed volume of {self.volume:g}, not positive") if self.volume <= 0 else tuple(found)


def check_mesh(vertices: NDArray, faces: NDArray) -> MeshCheck:
    """Look for the defects that `MeshCheck` counts.

    Edges and orientation are told from indices alone: vertices at the same place but with different numbers count as
    different.

    Args:
        vertices: (V, 3) coordinates, any unit.
        faces: (F, 3) indices into ``vertices``.

    Raises:
        ValueError: a shape is wrong, or an index is out of range.
    """
    for name, array in (("vertices", vertices), ("faces", faces)):
        if array.ndim != 2 or array.shape[1] != 3:
            raise ValueError(f"check_mesh: `{name}` must have shape (n, 3), got {array.shape}")
    count = len(vertices)
    if faces.size and not 0 <= int(faces.min()) <= int(faces.max()) < count:
        raise ValueError(
            f"check_mesh: `faces` must hold indices of the {count} vertices, got {faces.min()} to {faces.max()}"
        )
    faces = faces.astype(np.int64, copy=False)
    used = np.zeros(count, dtype=bool)
    used[faces.reshape(-1)] = True
    a, b, c = faces.T
    shares, balance = edge_shares(faces, count)
    return MeshCheck(
        not_finite=int((~np.isfinite(vertices)).any(axis=1).sum()),
        unreferenced=int(count - used.sum()),
        degenerate=int(((a == b) | (b == c) | (c == a)).sum()),
        duplicate=_duplicates(faces, count),
        open_edges=int((shares == 1).sum()),
        crowded_edges=int((shares > 2).sum()),
        misoriented_edges=int(((shares == 2) & (balance != 0)).sum()),
        volume=float(signed_volumes(vertices, faces).sum()) if len(faces) else 0.0,
    )


def edge_shares(faces: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For every edge of a mesh of ``count`` vertices: its faces, and those running one way less the others."""
    if not len(faces):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    # One sortable number for an edge and the direction through it; in place, as big meshes have many.
    keys = (np.minimum(start, end) * np.int64(count) + np.maximum(start, end)) * 2 + (start < end)
    keys.sort()
    edges = keys >> 1
    first = np.flatnonzero(np.concatenate([[True], edges[1:] != edges[:-1]]))
    shares = np.diff(np.append(first, len(keys)))
    return shares, np.add.reduceat((keys & 1) * 2 - 1, first)


def _duplicates(faces: NDArray[np.int64], count: int) -> int:
    corners = np.sort(faces, axis=1)
    pair, last = corners[:, 0] * np.int64(count) + corners[:, 1], corners[:, 2]
    order = np.lexsort((last, pair))
    pair, last = pair[order], last[order]
    return int(((pair[1:] == pair[:-1]) & (last[1:] == last[:-1])).sum())
