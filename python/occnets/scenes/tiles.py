# SPDX-License-Identifier: MIT
"""The lattice of a scene: cells with points, blocks of cells around them, and tiles of blocks.

All are counted from the same origin, in integers, so that what belongs to a cell does not depend on how the scene is
divided. A block is a cube of ``BLOCK`` cells; the field is evaluated in the blocks that have a point within ``reach``
cells. A tile is a cube of blocks whose feature volume is computed at once; tiles without such a block are skipped.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

BLOCK = 16
"""Cells along a side of a block. A multiple of every U-Net's stride up to five levels."""

Index = NDArray[np.int64]
_LIMIT = 2**20  # lattice nodes along an axis, so that three of them and an axis fit into 63 bits


@dataclass(frozen=True)
class SceneFrame:
    """Cells of a scene: cell i of an axis holds ``origin + [i, i + 1) * unit_size``, in input units.

    Attributes:
        origin: (3,) float64.
        unit_size: side of a cell.
    """

    origin: NDArray[np.float64]
    unit_size: float

    def to_cells(self, points: NDArray) -> NDArray[np.float64]:
        """Coordinates (N, 3) in cells."""
        return (np.asarray(points, dtype=np.float64) - self.origin) / self.unit_size

    def to_input(self, cells: NDArray) -> NDArray[np.float64]:
        """Coordinates (N, 3) in input units."""
        return np.asarray(cells, dtype=np.float64) * self.unit_size + self.origin


def make_frame(points: NDArray[np.float64], unit_size: float, reach: int) -> SceneFrame:
    """A frame in which all points and everything within reach of them have positive cells.

    The origin is a multiple of a block, so that clouds that share an origin of coordinates share blocks.
    """
    side = BLOCK * unit_size
    lowest = np.floor(points.min(axis=0) / unit_size - reach - 1.0) * unit_size
    return SceneFrame(np.floor(lowest / side) * side, unit_size)


@dataclass(frozen=True)
class Tile:
    """A cube of blocks that are evaluated together.

    Attributes:
        index: which tile along each axis.
        blocks: (K, 3) its blocks near points, counted from the scene's first, in row-major order; none in a tile that
            only closes the surface of its lower neighbours.
    """

    index: tuple[int, int, int]
    blocks: Index

    def window(self, halo: int) -> tuple[Index, Index]:
        """First cell and size (3,), in cells, of the box around ``blocks`` with ``halo`` cells on every side."""
        low, high = self.blocks.min(axis=0), self.blocks.max(axis=0) + 1
        return low * BLOCK - halo, (high - low) * BLOCK + 2 * halo


@dataclass(frozen=True)
class TileLattice:
    """Tiles of a scene.

    Attributes:
        blocks: (B, 3) blocks within reach of a point, each once, in row-major order.
        side: blocks along a side of a tile.
    """

    blocks: Index
    side: int

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """The tiles that have blocks, and their upper neighbours, in row-major order: lower neighbours come first."""
        corners = np.array(list(itertools.product((0, 1), repeat=3)))
        # The lattice cells above a block's last nodes belong to the next block, which may have no features of its own.
        near = unique_rows((self.blocks[:, None] + corners).reshape(-1, 3) // self.side)
        places = self.blocks // self.side
        order = np.lexsort((places[:, 2], places[:, 1], places[:, 0]))  # stable: blocks stay in order
        own = {tuple(place): [] for place in near.tolist()}
        for place, block in zip(places[order].tolist(), self.blocks[order], strict=True):
            own[tuple(place)].append(block)
        return tuple(Tile(key, np.array(value, dtype=np.int64).reshape(-1, 3)) for key, value in own.items())  # type: ignore[arg-type]

    @property
    def nodes(self) -> Index:
        """(3,) blocks along each axis, those of closing tiles included."""
        return self.blocks.max(axis=0) + 2


def unique_rows(rows: Index) -> Index:
    """Different rows (K, 3) of integers from -1 to about a million, in row-major order."""
    side = np.int64(2**21)
    keys = np.unique(((rows[:, 0] + 1) * side + rows[:, 1] + 1) * side + rows[:, 2] + 1)
    return np.stack([keys // side**2, keys // side % side, keys % side], axis=1) - 1


def make_tiles(cells: Index, reach: int, side: int, steps: int) -> TileLattice:
    """The tiles around occupied cells.

    Args:
        cells: (K, 3) cells with points, not negative.
        reach: cells around a point in which the field is evaluated, 1 to ``BLOCK``.
        side: blocks along a side of a tile.
        steps: lattice steps in a cell.

    Raises:
        ValueError: the scene has more than a million lattice nodes along an axis.
    """
    place = cells % BLOCK
    # Cells of a block that reach the same of its neighbours are alike: at most 64 kinds a block.
    kinds = unique_rows(4 * (cells // BLOCK) + (place < reach) + 2 * (place + reach >= BLOCK))
    own, low, high = kinds // 4, kinds % 2 == 1, kinds % 4 >= 2
    touched = []
    for move in itertools.product((-1, 0, 1), repeat=3):
        step = np.array(move)
        reaches = np.where(step < 0, low, np.where(step > 0, high, True)).all(axis=1)
        touched.append(own[reaches] + step)
    blocks = unique_rows(np.concatenate(touched))
    longest = int((blocks.max() + 2) * BLOCK * steps)
    if longest >= _LIMIT or blocks.min() < 0:
        raise ValueError(
            f"the scene is {longest:,} lattice steps long; at most {_LIMIT:,} are possible: use a larger --unit-size, "
            "or remove points that lie far away"
        )
    return TileLattice(blocks, side)
