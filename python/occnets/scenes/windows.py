# SPDX-License-Identifier: MIT
"""Tiles through the network: cells into windows, blocks into lattice values, values into pieces of the mesh."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from occkernels import marching_cubes
from occnets.scenes.network import WindowNetwork
from occnets.scenes.store import TileResult, TileStore
from occnets.scenes.tiles import BLOCK, Tile, TileLattice

_EDGE_MARGIN = 1e-3  # lattice steps; keeps vertices of different edges apart and tells which edge each is on
_BLOCKS = 8  # blocks decoded at once
_OUTSIDE = -np.inf
_SHIFTS = tuple(itertools.product((0, 1), repeat=3))[1:]


class CellTable:
    """Occupied cells and their features, found by block.

    Args:
        cells: (K, 3) cells, not negative.
        features: (K, C).
    """

    def __init__(self, cells: NDArray[np.int64], features: Tensor) -> None:
        keys = self._key(cells // BLOCK)
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self.cells = cells[order]
        self.features = features[torch.from_numpy(order).to(features.device)]

    @staticmethod
    def _key(blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        side = np.int64(2**20)
        return (blocks[..., 0] * side + blocks[..., 1]) * side + blocks[..., 2]

    def window(self, low: NDArray[np.int64], size: NDArray[np.int64]) -> Tensor:
        """(1, C, X, Y, Z) features of the cells from ``low`` on, zero where there are no points.

        The memory order is that of (Z, Y, X, C), which the networks work in.
        """
        first, last = np.maximum(low // BLOCK, 0), (low + size - 1) // BLOCK
        rows = []
        # Blocks along z follow each other in the table.
        for x, y in itertools.product(range(first[0], last[0] + 1), range(first[1], last[1] + 1)):
            ends = self._key(np.array([[x, y, first[2]], [x, y, last[2] + 1]]))
            rows.append(np.arange(*np.searchsorted(self._keys, ends)))
        found = np.concatenate(rows) if rows else np.empty(0, np.int64)
        place = self.cells[found] - low
        inside = ((place >= 0) & (place < size)).all(axis=1)
        place, chosen = torch.from_numpy(place[inside]), torch.from_numpy(found[inside])
        grid = self.features.new_zeros(1, *size[::-1].tolist(), self.features.shape[1])
        x, y, z = place.to(grid.device).unbind(1)
        grid[0, z, y, x] = self.features[chosen.to(grid.device)]
        return grid.permute(0, 4, 3, 2, 1)


@dataclass(frozen=True)
class TileWork:
    """All it takes to turn a tile into a piece of the mesh.

    Attributes:
        network: with fixed norms.
        table: the occupied cells.
        lattice: the tiles.
        steps: lattice steps in a cell.
        level: logit of the surface.
    """

    network: WindowNetwork
    table: CellTable
    lattice: TileLattice
    steps: int
    level: float

    @property
    def span(self) -> int:
        """Lattice steps along a side of a tile."""
        return self.lattice.side * BLOCK * self.steps

    def values(self, tiles: Sequence[Tile]) -> Iterator[NDArray[np.float32]]:
        """(N, N, N) logits less ``level`` at nodes 1 to N of tiles whose windows have equal sizes."""
        windows = [tile.window(self.network.field.halo) for tile in tiles]
        batch = torch.cat([self.table.window(*window) for window in windows])
        features = self.network.features(batch)
        del batch
        for number, (tile, (low, _)) in enumerate(zip(tiles, windows, strict=True)):
            yield self._tile_values(tile, features[number], low)

    def _tile_values(self, tile: Tile, features: Tensor, low: NDArray[np.int64]) -> NDArray[np.float32]:
        span, step = self.span, BLOCK * self.steps
        values = np.full((span,) * 3, _OUTSIDE, dtype=np.float32)
        for part in range(0, len(tile.blocks), _BLOCKS):
            blocks = tile.blocks[part : part + _BLOCKS]
            corners = (blocks * BLOCK - low - 1).tolist()
            size = BLOCK + 2
            cut = torch.stack([features[:, x : x + size, y : y + size, z : z + size] for x, y, z in corners])
            found = self.network.block_values(cut, self.steps).sub_(self.level).cpu().numpy()
            for (x, y, z), block in zip(((blocks % self.lattice.side) * step).tolist(), found, strict=True):
                values[x : x + step, y : y + step, z : z + step] = block
        if np.isnan(values).any():
            raise ValueError("the network returned NaN; its weights may be damaged")
        return values

    def mesh(self, tile: Tile, values: NDArray[np.float32] | None, store: TileStore) -> TileResult:
        """The tile's piece of the mesh.

        Its first layers of nodes are the last layers of the tiles below, so that neighbours agree on every shared node;
        where nothing was evaluated all is outside.

        Args:
            tile: the tile; those below must be in ``store``.
            values: as :meth:`values` gives them; None for a tile without blocks.
            store: finished tiles.
        """
        span = self.span
        volume = np.full((span + 1,) * 3, _OUTSIDE, dtype=np.float32)
        if values is not None:
            volume[1:, 1:, 1:] = values
        for shift in _SHIFTS:
            planes = store.planes(tuple(i - d for i, d in zip(tile.index, shift, strict=True)))
            axis = shift.index(1)
            if planes is not None and planes[axis].size:
                place = tuple(0 if d else slice(1, None) for d in shift)
                others = tuple(-1 if d else slice(None) for k, d in enumerate(shift) if k != axis)
                volume[place] = planes[axis][others]
        lasts = [] if values is None else [values[-1], values[:, -1], values[:, :, -1]]
        planes = tuple(last.copy() if (last > _OUTSIDE).any() else last[:0] for last in lasts)
        planes = planes or (np.empty((0, span), np.float32),) * 3
        if not (volume > 0).any():
            none = np.empty((0, 3), np.float32)
            return TileResult(none, np.empty(0, np.int64), np.empty((0, 3), np.int32), planes)
        found = marching_cubes(torch.from_numpy(volume), 0.0, edge_margin=_EDGE_MARGIN).mesh(0)
        vertices = found.vertices.numpy()
        keys = self._edge_keys(vertices, np.array(tile.index, dtype=np.int64) * span)
        return TileResult(vertices, keys, found.faces.numpy().astype(np.int32), planes)

    def _edge_keys(self, vertices: NDArray[np.float32], start: NDArray[np.int64]) -> NDArray[np.int64]:
        """(V,) a number for the lattice edge that each vertex lies on: its lower node, row-major, and its axis."""
        nearest = np.rint(vertices)
        axis = np.abs(vertices - nearest).argmax(axis=1)  # the margin keeps vertices away from nodes
        rows = np.arange(len(vertices))
        lower = nearest.astype(np.int64)
        lower[rows, axis] = np.floor(vertices[rows, axis]).astype(np.int64)
        lower += start
        _, ny, nz = (self.lattice.nodes * (BLOCK * self.steps) + 1).tolist()
        return ((lower[:, 0] * ny + lower[:, 1]) * nz + lower[:, 2]) * 3 + axis


def work_through(work: TileWork, store: TileStore, batch: int, progress: Any = None) -> None:
    """Make all tiles that are not in the store yet.

    Args:
        work: what to do.
        store: where results go; interrupted work is continued from it.
        batch: tiles with windows of equal size in one call of the network.
        progress: called with the tiles done and their number.
    """
    tiles = work.lattice.tiles
    missing = [tile for tile in tiles if not store.has(tile.index)]
    done = len(tiles) - len(missing)
    halo = work.network.field.halo
    while missing:
        group = [missing.pop(0)]
        if len(group[0].blocks):
            size = group[0].window(halo)[1].tolist()
            while (
                missing
                and len(group) < batch
                and len(missing[0].blocks)
                and missing[0].window(halo)[1].tolist() == size
            ):
                group.append(missing.pop(0))
            results: Iterator[Any] = work.values(group)
        else:
            results = iter([None])
        for tile, values in zip(group, results, strict=True):
            store.save(tile.index, work.mesh(tile, values, store))
            done += 1
            if progress is not None:
                progress(done, len(tiles))
