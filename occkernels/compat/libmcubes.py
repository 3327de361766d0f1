# SPDX-License-Identifier: MIT
"""``libmcubes.marching_cubes`` as the ONet family calls it, on the operator of this package.

Code runs after one changed import::

    from occkernels.compat import libmcubes

    vertices, triangles = libmcubes.marching_cubes(volume, level)

Same vertices, bit for bit and in the same order: double precision, shifted by half a cell, created cell by cell, and
twice or more along the low sides of the volume. Same number of triangles in every cell, in the same order of cells, and
around each cell's part of the surface the same polygons: both tables separate the outside corners of an ambiguous face.
What differs: a polygon of four and more vertices may be cut along other diagonals, and the triangles of one cell may
come in another order. The original's choice of diagonals follows no rule one could derive; ours never lie in a face of
the cell (csrc/math/generate_marching_cubes.py), which keeps the mesh 2-manifold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from occkernels.marching_cubes import marching_cubes as extract

__all__ = ["marching_cubes"]

# An edge runs along `axis` from the corner whose other two offsets, in axis order, are (p, q). When a cell creates it
# (its place among the cell's new vertices) and whether it is interpolated from its upper end.
_SLOTS = torch.tensor([[[3, 7], [5, 0]], [[6, 8], [4, 1]], [[9, 11], [10, 2]]])
_FAR = 3  # slots before this one are the three farthest edges, which each cell creates
_FROM_UPPER = torch.tensor([[[False, False], [True, True]], [[True, True], [False, False]], [[False] * 2] * 2])
_OTHERS = torch.tensor([[1, 2], [0, 2], [0, 1]])


def marching_cubes(volume: Any, isovalue: float) -> tuple[np.ndarray, np.ndarray]:
    """The surface where a volume passes ``isovalue``.

    Args:
        volume: (X, Y, Z) array, converted to float64. Not padded: the surface is open where it meets the border.
        isovalue: rounded to float32, as the original does. A node is inside when its value is greater.

    Returns:
        vertices: (V, 3) float64, in units of the grid plus 0.5 along every axis.
        triangles: (F, 3) uint64, counter-clockwise seen from outside, towards lower values.

    Raises:
        ValueError: the volume has not three axes or holds NaN, or ``isovalue`` is not finite.

    Example:
        >>> padded = np.pad(logits, 1, constant_values=-1e6)  # closes the surface
        >>> vertices, triangles = marching_cubes(padded, level)
        >>> vertices -= 1.5  # the shift and the padding
    """
    values = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float64))
    if values.dim() != 3:
        raise ValueError(f"occkernels.compat.libmcubes: `volume` must be (X, Y, Z), got {tuple(values.shape)}.")
    level = float(np.float32(isovalue))
    welded = extract(values, level, edge_margin=0.25)  # off the nodes: a position tells its edge
    if not len(welded.faces):
        return np.empty((0, 3)), np.empty((0, 3), dtype=np.uint64)
    low = welded.vertices.floor().long()
    axis = (welded.vertices != low).long().argmax(1)
    keys, edge, upper = _creations(low, axis, torch.tensor(values.shape))
    vertices = _place(values, level, low[edge], axis[edge], upper)
    far = (keys % 12 < _FAR).nonzero().flatten()
    place = torch.full((len(low),), -1).index_put((edge[far],), far)  # of the vertex every cell shares
    triangles = place[welded.faces]
    beside = (triangles < 0).any(1).nonzero().flatten()
    if len(beside):
        faces = welded.faces[beside]
        triangles[beside] = _triangles(keys, low[faces], axis[faces], torch.tensor(values.shape))
    return vertices.numpy(), triangles.numpy().astype(np.uint64)


def _keys(cell: Tensor, axis: Tensor, corner: Tensor, size: Tensor) -> Tensor:
    """When a cell creates its edge: sorts by cell, then by place among the cell's new vertices."""
    linear = (cell[..., 0] * size[1] + cell[..., 1]) * size[2] + cell[..., 2]
    return 12 * linear + _SLOTS[axis, corner[..., 0], corner[..., 1]]


def _creates(cell: Tensor, axis: Tensor, corner: Tensor) -> Tensor:
    """Whether a cell makes a new vertex on its edge: always on the three farthest edges, on others where no cell before
    it has the edge as one of those, that is at a low side of the volume."""
    low_side = cell.gather(-1, _OTHERS[axis]) == 0
    return ((corner == 0) & low_side).any(-1) | (corner == 1).all(-1)


def _creations(low: Tensor, axis: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every new vertex in order: its key, its edge (row of ``low``) and whether it is placed from the upper end."""
    keys, edges, uppers = [], [], []
    at_low_side = (low.gather(1, _OTHERS[axis]) == 0).any(1).nonzero().flatten()
    for p, q in ((0, 0), (0, 1), (1, 0), (1, 1)):
        chosen = torch.arange(len(low)) if p + q == 2 else at_low_side
        corner = torch.tensor([p, q]).expand(len(chosen), 2)
        cell = low[chosen].scatter_add(1, _OTHERS[axis[chosen]], -corner)
        made = ((cell >= 0) & (cell < size - 1)).all(1) & _creates(cell, axis[chosen], corner)
        chosen, cell, corner = chosen[made], cell[made], corner[made]
        keys.append(_keys(cell, axis[chosen], corner, size))
        edges.append(chosen)
        uppers.append(_FROM_UPPER[axis[chosen], p, q])
    ordered, order = torch.cat(keys).sort()
    return ordered, torch.cat(edges)[order], torch.cat(uppers)[order]


def _place(values: Tensor, level: float, low: Tensor, axis: Tensor, upper: Tensor) -> Tensor:
    step = torch.nn.functional.one_hot(axis, 3)
    start, sign = torch.where(upper[:, None], low + step, low), torch.where(upper, -1, 1)
    first, second = values[tuple(start.T)], values[tuple((start + sign[:, None] * step).T)]
    along = (level - first) / (second - first) * sign
    return (start + 0.5) + along[:, None] * step


def _triangles(keys: Tensor, low: Tensor, axis: Tensor, size: Tensor) -> Tensor:
    """Faces (F, 3) as places in ``keys`` from the edges (F, 3) they join; the cell has its own vertices first."""
    # No triangle lies in a face of its cell, so the least node of its edges is the cell's.
    cell = torch.minimum(torch.minimum(low[:, :1], low[:, 1:2]), low[:, 2:]).expand_as(low)
    others = _OTHERS[axis]
    corner = (low - cell).gather(-1, others)
    own = _keys(cell, axis, corner, size)
    earlier = _keys(low.scatter_add(-1, others, -torch.ones_like(others)), axis, torch.ones_like(corner), size)
    return torch.searchsorted(keys, torch.where(_creates(cell, axis, corner), own, earlier))
