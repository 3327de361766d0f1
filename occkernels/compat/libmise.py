# SPDX-License-Identifier: MIT
"""``libmise`` of the ONet family (a Cython extension there) on this package's octree: change the import, keep the code.

    from occkernels.compat.libmise import MISE

    mise = MISE(32, 2, threshold)
    points = mise.query()
    while points.shape[0] != 0:
        values = eval_points(box * (points / mise.resolution - 0.5))
        mise.update(points, values.astype(numpy.float64))
        points = mise.query()
    volume = mise.to_dense()

Queries have the original's points in the original's order, and ``to_dense`` its values. Two things differ. ``update``
may be called with a part of the queried points, but cells are split only when the last value of a query has arrived
(the set of points in the end is the same); and a value, once given, cannot be replaced by another.
``occkernels.Octree`` does the same for batches, on either device, and without any dense array.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from occkernels.octree import Octree

__all__ = ["MISE"]

_SUBLATTICE = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), axis=-1).reshape(27, 3)
_CHILDREN = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), axis=-1).reshape(8, 3)


class MISE:
    """Multiresolution iso-surface extraction of one shape, with the original's interface.

    Args:
        resolution_0: cells along a side at first.
        depth: how often a cell may be halved.
        threshold: value of the surface.

    Attributes:
        resolution_0, depth, threshold: as given.
        voxel_size_0: side of a first cell in the finest lattice, ``2**depth``.
        resolution: cells along a side of the finest lattice.

    Source: Mescheder et al., "Occupancy Networks", CVPR 2019, section 3.3.
    """

    def __init__(self, resolution_0: int, depth: int, threshold: float) -> None:
        self._tree = Octree(int(resolution_0), int(depth), float(threshold), dtype=torch.float64)
        self.resolution_0, self.depth, self.threshold = int(resolution_0), int(depth), float(threshold)
        self.voxel_size_0 = 1 << self.depth
        self.resolution = self._tree.cells
        nodes = self.resolution + 1
        # Number of every node in the order of creation, -1 for those that do not exist; and of every cell that can be
        # split, level by level: cells are split in that order, and their new points follow it.
        self._number: NDArray[np.int32] = np.full(nodes**3, -1, np.int32)
        self._rank = [np.zeros((self.resolution_0 << level) ** 3, np.int64) for level in range(self.depth)]
        self._cells = self.resolution_0**3
        if self.depth:
            self._rank[0][:] = np.arange(self._cells)
        index = self._tree.query()[0].numpy()
        keys = self._keys(index)
        order = np.argsort(keys)
        self._points: NDArray[np.int64] = np.empty((0, 3), np.int64)
        self._values = np.empty(0)
        self._ask(index[order], keys[order], order)

    def _keys(self, points: NDArray[Any]) -> NDArray[np.int64]:
        nodes = self.resolution + 1
        x, y, z = points.astype(np.int64).T
        keys: NDArray[np.int64] = (x * nodes + y) * nodes + z
        return keys

    def _ask(self, index: NDArray[Any], keys: NDArray[np.int64], order: NDArray[np.int64]) -> None:
        """Take up new points, in order of creation; row i is row order[i] of the octree's query."""
        self._known = len(self._points)
        self._number[keys] = np.arange(self._known, self._known + len(index))
        self._points = np.concatenate([self._points, index.astype(np.int64)])
        self._values = np.concatenate([self._values, np.full(len(index), np.nan)])
        self._given = np.zeros(len(index), bool)
        self._order = order

    def query(self) -> NDArray[np.int64]:
        """(n, 3) points of the finest lattice whose values are not known, in order of creation."""
        points: NDArray[np.int64] = self._points[self._known :][~self._given]
        return points

    def get_points(self) -> NDArray[np.int64]:
        """(n, 3) all points created so far, in order of creation."""
        return np.array(self._points)

    def update(self, points: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Set the values of points, and split cells when all points have one.

        Args:
            points: (n, 3) integers.
            values: (n,).

        Raises:
            ValueError: shapes disagree, a point does not exist, or it has another value already.
        """
        points, values = np.asarray(points), np.asarray(values, np.float64)
        if points.ndim != 2 or points.shape[1] != 3 or values.shape != points.shape[:1]:
            raise ValueError(
                "occkernels.compat.libmise.MISE.update: expected `points` (n, 3) and `values` (n,), "
                f"got {points.shape} and {values.shape}."
            )
        inside = bool(((points >= 0) & (points <= self.resolution)).all())
        number = self._number[self._keys(points)].astype(np.int64) if inside else np.full(1, -1)
        if (number < 0).any():
            raise ValueError("occkernels.compat.libmise.MISE.update: point not in grid; give points of query().")
        old = number < self._known
        old[~old] = self._given[number[~old] - self._known]
        if not np.array_equal(self._values[number[old]], values[old], equal_nan=True):
            raise ValueError(
                "occkernels.compat.libmise.MISE.update: a point has another value already; give each point once."
            )
        self._values[number] = values
        self._given[number[~old] - self._known] = True
        if self._given.size and self._given.all():
            self._refine()

    def _refine(self) -> None:
        ordered = np.empty(len(self._order))
        ordered[self._order] = self._values[self._known :]
        self._tree.update(torch.from_numpy(ordered))
        index = self._tree.query()[0].numpy()
        keys = self._keys(index)
        if len(index):
            created = self._created()
            self._number[created[::-1]] = np.arange(len(created))[::-1]  # of repetitions the first counts
        order = np.argsort(self._number[keys])
        self._ask(index[order], keys[order], order)

    def _created(self) -> NDArray[np.int64]:
        """Keys of the points that the last splits create, with repetitions, in the order of the cells split."""
        corners, sizes, ranks = [], [], []
        for level, splits in enumerate(self._tree.last_splits()):
            place = splits[:, 1:].numpy()
            side = self.resolution_0 << level
            ranks.append(self._rank[level][(place[:, 0] * side + place[:, 1]) * side + place[:, 2]])
            corners.append(place)
            sizes.append(np.full(len(place), level))
        order = np.argsort(np.concatenate(ranks))
        place, levels = np.concatenate(corners)[order], np.concatenate(sizes)[order]
        for level in range(1, self.depth):
            rows = np.flatnonzero(levels == level - 1)
            x, y, z = (2 * place[rows, None] + _CHILDREN).transpose(2, 0, 1)
            side = self.resolution_0 << level
            self._rank[level][(x * side + y) * side + z] = self._cells + 8 * rows[:, None] + np.arange(8)
        self._cells += 8 * len(place)
        half = (self.voxel_size_0 >> levels)[:, None, None] // 2
        points = (2 * place[:, None] + _SUBLATTICE) * half
        keys = self._keys(points.reshape(-1, 3))
        return keys[self._number[keys] < 0]

    def to_dense(self) -> NDArray[np.float64]:
        """(N + 1, N + 1, N + 1): values, and where there is none the one before along x, then y, then z."""
        dense: NDArray[np.float64] = self._tree.to_dense()[0].numpy()
        return dense
