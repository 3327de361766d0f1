# SPDX-License-Identifier: MIT
"""Batched multiresolution search for surfaces (MISE): which nodes of a fine lattice have to be evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from occkernels._checks import check_tensor
from occkernels._native import DTYPE_CODES, call
from occkernels.sparse import BRICK, SparseVolume

_MASKS, _UNKNOWN, _ACTIVE = 10, 1, 9  # rows of a brick's masks, csrc/math/octree.h


class BrickQuery(NamedTuple):
    """Nodes to evaluate, as bricks of one level: node (i, j, k) of brick r is ``(corner[r] + (i, j, k)) * stride``.

    Attributes:
        shape: (K,) int64, which lattice of the batch.
        corner: (K, 3) int32, in steps of ``stride``.
        mask: (K, 8) int64; the node is wanted if bit ``8 * j + k`` of word ``i`` is set.
        stride: distance of neighbouring nodes in the finest lattice.
        wanted: number of wanted nodes.
    """

    shape: Tensor
    corner: Tensor
    mask: Tensor
    stride: int
    wanted: int


@dataclass
class _Level:
    """Bricks of one level (csrc/math/octree.h), those with unknown nodes, and how many each has."""

    keys: Tensor  # (K,) int64, ascending
    masks: Tensor  # (K, 10, 8) int64
    values: Tensor  # (K, 512)
    side: int
    stride: int
    pending: Tensor  # (P,) int64, ascending
    sizes: Tensor  # (P,) int64
    starts: Tensor  # (P,) int64, rows of their nodes in the query
    fresh: bool = False  # the last round created leaves

    def shapes(self) -> Tensor:
        """Which lattice every pending brick belongs to."""
        return self.keys[self.pending] // self.side**3


class Octree:
    """The octree of multiresolution iso-surface extraction, for a batch of shapes.

    Every shape has a cubic lattice of ``initial * 2**levels`` cells a side. It begins with the ``initial``**3 coarse
    cells; a cell is split into eight while it is coarser than the finest level and some evaluated node on its boundary
    is at or above the threshold and some at or below. Nodes of finer neighbours count, as in the original. Only nodes
    of cells that come to exist are ever asked for::

        tree = Octree(32, 3, threshold)
        index, offsets = tree.query()
        while len(index):
            tree.update(field(index))
            index, offsets = tree.query()
        mesh = marching_cubes_sparse(tree.volume(), threshold)

    Memory follows the surface: nodes are kept in bricks of 8 x 8 x 8. All shapes share each step. Results, their order
    included, do not depend on the number of threads or the device.

    Args:
        initial: cells along a side of the coarsest lattice, at least 1. A separate part smaller than such a cell can be
            missed; see ``band`` and ``mark``. What is found anywhere is followed to its end, however thin.
        levels: how often a cell is halved, at least 0.
        threshold: value of the surface, rounded to ``dtype``.
        batch: number of shapes.
        device, dtype: where values are kept, and whether as float32 or float64.
        closed: everything outside the lattice counts as below the threshold, so that cells at the border where a shape
            is cut are found too.
        band: also split the cells within one cell, diagonals included, of a cell of the same level in which, or in a
            descendant of which, the sign changes. Finds small parts near what was found.

    Attributes:
        cells: cells along a side of the finest lattice.
        rounds: nodes evaluated so far: a row for every update, a column for every level.

    Raises:
        ValueError, TypeError: an argument is out of range.

    Source: Mescheder et al., "Occupancy Networks", CVPR 2019, section 3.3.
    """

    def __init__(
        self,
        initial: int,
        levels: int,
        threshold: float = 0.0,
        *,
        batch: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        closed: bool = False,
        band: bool = False,
    ) -> None:
        _check(initial, levels, threshold, batch, dtype)
        self.initial, self.levels, self.batch = initial, levels, batch
        self.threshold, self.closed, self.band = threshold, closed, band
        self.dtype, self.device = dtype, torch.device(device)
        self.rounds: list[list[int]] = []
        self._levels = [self._empty(level) for level in range(levels + 1)]
        self._marked = torch.empty((0, 4), dtype=torch.int64, device=self.device)  # shape and finest cell
        self._seeds: list[tuple[Tensor, Tensor]] = []
        first = self._levels[0]
        first.keys = torch.arange(batch * first.side**3, device=self.device)
        first.masks = first.keys.new_empty((first.keys.numel(), _MASKS, BRICK))
        first.values = self._no_values(first.keys.numel())
        call("octree_start", first.masks, first.masks, first.keys.numel(), first.side, initial + 1)
        first.pending, first.sizes = first.keys, torch.empty_like(first.keys)
        call("octree_count", first.masks, first.masks, first.pending, first.sizes, first.pending.numel())
        self._plan()

    @property
    def cells(self) -> int:
        """Cells along a side of the finest lattice."""
        return self.initial << self.levels

    def _empty(self, level: int) -> _Level:
        side = -(-((self.initial << level) + 1) // BRICK)
        none = torch.empty(0, dtype=torch.int64, device=self.device)
        masks = none.new_empty((0, _MASKS, BRICK))
        return _Level(none, masks, self._no_values(0), side, 1 << (self.levels - level), none, none, none)

    def _no_values(self, bricks: int) -> Tensor:
        return torch.full((bricks, BRICK**3), math.nan, dtype=self.dtype, device=self.device)

    def mark(self, points: Tensor, shape: Tensor | None = None) -> None:
        """Have the cells that contain these points split at every level, whatever their signs. Calls add up.

        Args:
            points: (P, 3) in cells of the finest lattice, 0 to ``cells``. Those outside, and NaN, are ignored.
            shape: (P,) which shape each belongs to; all belong to the first by default.

        Raises:
            ValueError: shapes disagree, or evaluation has begun.
        """
        check_tensor("Octree.mark", "points", points, "P 3")
        shape = torch.zeros(len(points), dtype=torch.int64) if shape is None else shape
        check_tensor("Octree.mark", "shape", shape, "P", {"P": len(points)}, integer=True)
        if self.rounds:
            raise ValueError("occkernels.Octree.mark: call it before the first update(), not after.")
        points, shape = points.detach().to(self.device, torch.float64), shape.to(self.device, torch.int64)
        inside = ((points >= 0) & (points <= self.cells)).all(dim=1) & (shape >= 0) & (shape < self.batch)
        cells = points[inside].floor().clamp_max(self.cells - 1).to(torch.int64)
        found = torch.cat([self._marked, torch.cat([shape[inside, None], cells], dim=1)])
        self._marked = torch.unique(found, dim=0)
        self._seeds = []
        for level in range(self.levels):
            coarse = self._marked.clone()
            coarse[:, 1:] >>= self.levels - level
            coarse = torch.unique(coarse, dim=0)
            self._seeds.append((coarse[:, 1:].to(torch.int32).contiguous(), coarse[:, 0].contiguous()))
        if self.levels:
            self._plant(0)

    def _plant(self, number: int) -> None:
        level = self._levels[number]
        if number < len(self._seeds):
            cells, lattice = self._seeds[number]
            call("octree_seed", level.masks, *self._view(level), cells, lattice, lattice.numel())

    @staticmethod
    def _view(level: _Level) -> tuple[Tensor, Tensor, int, int]:
        return level.keys, level.masks, level.keys.numel(), level.side

    def _plan(self) -> None:
        """Rows of every pending brick's nodes in the query: by shape, then level, then brick."""
        waiting = [level for level in self._levels if level.pending.numel()]
        shapes = torch.cat([level.shapes() for level in waiting] or [self._levels[0].pending])
        sizes = torch.cat([level.sizes for level in waiting] or [self._levels[0].sizes])
        counts = torch.zeros(self.batch + 1, dtype=torch.int64, device=self.device)
        self._offsets = counts.index_add_(0, shapes + 1, sizes).cumsum(0)
        self._total = int(self._offsets[-1])
        if len(waiting) > 1 and self.batch > 1:
            order = torch.sort(shapes, stable=True).indices
            starts = torch.empty_like(sizes)
            starts[order] = sizes[order].cumsum(0) - sizes[order]
        else:
            starts = sizes.cumsum(0) - sizes
        for level, own in zip(waiting, torch.split(starts, [level.pending.numel() for level in waiting]), strict=True):
            level.starts = own.contiguous()

    def query(self) -> tuple[Tensor, Tensor]:
        """The nodes whose values are wanted next; none when the search has ended.

        Returns:
            (Q, 3) int32 coordinates in the finest lattice, 0 to ``cells``, and (B + 1,) int64: those of shape ``b`` are
            rows ``offsets[b]`` to ``offsets[b + 1]``. Neighbouring rows are neighbours in space for the most part.
        """
        index = torch.empty((self._total, 3), dtype=torch.int32, device=self.device)
        for level in self._levels:
            if level.pending.numel():
                listed = (level.pending, level.starts, level.pending.numel())
                call("octree_list", index, level.keys, level.masks, level.side, *listed, level.stride, index)
        return index, self._offsets.clone()

    @property
    def fill(self) -> float:
        """Share of the nodes of ``bricks()`` that are wanted; 0 when the search has ended."""
        bricks = sum(len(level.pending) for level in self._levels)
        return self._total / (bricks * BRICK**3) if bricks else 0.0

    def bricks(self) -> list[BrickQuery]:
        """The nodes of ``query()`` as bricks, one entry a level, in the order ``update_bricks`` expects."""
        found = []
        for level in self._levels:
            if level.pending.numel():
                keys, side = level.keys[level.pending], level.side
                place = torch.stack([keys // side**2 % side, keys // side % side, keys % side], dim=1)
                corner, mask = (place * BRICK).to(torch.int32), level.masks[level.pending, _UNKNOWN]
                found.append(BrickQuery(level.shapes(), corner, mask, level.stride, int(level.sizes.sum())))
        return found

    def update(self, values: Tensor) -> None:
        """Give the values of the nodes that ``query()`` returned, and split cells accordingly.

        Args:
            values: (Q,) of any floating type; rounded to the tree's. NaN is neither above nor below.

        Raises:
            ValueError: another number of values.
            TypeError: not a floating-point tensor.
        """
        check_tensor("Octree.update", "values", values, "Q", {"Q": self._total})
        given = values.detach().to(self.device, self.dtype).contiguous()
        for level in self._levels:
            if level.pending.numel():
                self._take(level, level.starts, given)
        self._refine()

    def update_bricks(self, values: Sequence[Tensor]) -> None:
        """Give the values of the nodes that ``bricks()`` returned; as ``update()``.

        Args:
            values: for every entry of ``bricks()`` (K, 512) or (K, 8, 8, 8); nodes not wanted are ignored.
        """
        waiting = [level for level in self._levels if level.pending.numel()]
        if len(values) != len(waiting):
            raise ValueError(
                f"occkernels.Octree.update_bricks: `values` must hold {len(waiting)} tensors, one for every entry of "
                f"bricks(), got {len(values)}."
            )
        for level, own in zip(waiting, values, strict=True):
            given = own.detach().reshape(-1, BRICK**3).to(self.device, self.dtype).contiguous()
            check_tensor("Octree.update_bricks", "values", given, "K 512", {"K": level.pending.numel()})
            self._take(level, None, given)
        self._refine()

    def _take(self, level: _Level, starts: Tensor | None, given: Tensor) -> None:
        border = self.cells // level.stride + 1 if self.closed else 0
        state = (level.keys, level.masks, level.values, DTYPE_CODES[self.dtype], level.side)
        call("octree_take", given, *state, level.pending, starts, level.pending.numel(), given, self.threshold, border)

    def _refine(self) -> None:
        """One round: marks of hanging nodes, then, from the finest level down, choose the cells to split and do it.

        Finest first: a level is marked before its parent level adds nodes without values to it.
        """
        self.rounds.append([int(level.sizes.sum()) if level.sizes.numel() else 0 for level in self._levels])
        self._hang()
        for level in self._levels:
            level.pending = level.sizes = level.starts = level.pending.new_empty(0)
            level.fresh = False
        if self.band:
            self._mark(self.levels)
        for number in range(self.levels - 1, -1, -1):
            if len(self._levels[number].keys):
                self._mark(number)
                self._split(number)
        self._plan()

    def _hang(self) -> None:
        """Nodes of finer levels mark coarser leaves: new nodes all leaves, and all nodes new leaves."""
        for number, coarse in enumerate(self._levels):
            for shift, fine in enumerate(self._levels[number + 1 :], start=1):
                every = torch.arange(fine.keys.numel(), device=self.device) if coarse.fresh else fine.pending
                if every.numel():
                    source = (fine.keys, fine.masks, fine.side, every, every.numel())
                    call("octree_hang", fine.masks, *source, *self._view(coarse), shift)

    def _mark(self, number: int) -> None:
        level = self._levels[number]
        fine = self._levels[number + 1] if self.band and number < self.levels else self._empty(number)
        call("octree_mark", level.masks, *self._view(level), *self._view(fine))

    def _split(self, number: int) -> None:
        level, fine = self._levels[number], self._levels[number + 1]
        ends = torch.zeros(level.keys.numel() + 1, dtype=torch.int64, device=self.device)
        children = torch.empty_like(level.keys)
        call("octree_activate", level.masks, *self._view(level), self.band, children)
        torch.cumsum(children, 0, out=ends[1:])
        total = int(ends[-1])
        if not total:
            return
        needed = level.keys.new_empty(total)
        call("octree_children", level.masks, *self._view(level), ends, fine.side, needed)
        needed = torch.unique(needed)
        self._insert(fine, needed)
        self._plant(number + 1)
        touched = torch.searchsorted(fine.keys, needed)
        sizes = torch.empty_like(touched)
        source = (level.keys, level.masks, level.values, DTYPE_CODES[self.dtype], level.keys.numel(), level.side)
        target = (fine.keys, fine.masks, fine.values, fine.side)
        call("octree_split", level.masks, *source, *target, touched, touched.numel(), sizes)
        some = sizes > 0
        fine.pending, fine.sizes, fine.fresh = touched[some], sizes[some], True

    def _insert(self, level: _Level, needed: Tensor) -> None:
        """Make the bricks of these keys exist."""
        keys = torch.unique(torch.cat([level.keys, needed])) if level.keys.numel() else needed
        if keys.numel() == level.keys.numel():
            return
        masks, values = keys.new_zeros((keys.numel(), _MASKS, BRICK)), self._no_values(keys.numel())
        if level.keys.numel():
            old = torch.searchsorted(keys, level.keys)
            masks[old], values[old] = level.masks, level.values
        level.keys, level.masks, level.values = keys, masks, values

    def last_splits(self) -> list[Tensor]:
        """Cells split by the last update: for every level but the finest (S, 4) int64 shape and place, by brick."""
        found = []
        bits = torch.arange(BRICK**2, device=self.device)
        for level in self._levels[:-1]:
            active = level.masks[:, _ACTIVE]
            brick = active.any(dim=1).nonzero().flatten()
            at, x, bit = (active[brick, :, None] >> bits & 1).nonzero().unbind(1)
            key, side = level.keys[brick][at], level.side
            place = [key // side**2 % side * BRICK + x, key // side % side * BRICK + bit // BRICK]
            found.append(torch.stack([key // side**3, *place, key % side * BRICK + bit % BRICK], dim=1))
        return found

    def volume(self) -> SparseVolume:
        """The finest level's bricks, with every value evaluated in them; NaN elsewhere.

        All corners of the finest cells are among them; the coarser nodes add little. The values are the tree's own, not
        a copy: take the volume when the search has ended.
        """
        finest = self._levels[-1]
        values = finest.values
        for shift, level in enumerate(reversed(self._levels[:-1]), start=1):
            source = (level.keys, level.masks, level.values, DTYPE_CODES[self.dtype], level.keys.numel(), level.side)
            call("octree_add_coarse", values, *source, *self._view(finest), shift, values)
        return SparseVolume(finest.keys, values.view(-1, BRICK, BRICK, BRICK), self.cells + 1, self.batch)

    def to_dense(self) -> Tensor:
        """(B, N + 1, N + 1, N + 1) with N = ``cells``: all nodes, as the original fills them.

        A node that was not evaluated takes the value before it along x, then along y, then along z.
        """
        nodes = self.cells + 1
        dense = torch.empty((self.batch, nodes, nodes, nodes), dtype=self.dtype, device=self.device)
        table = []
        for level in self._levels:
            addresses = [part.data_ptr() for part in (level.keys, level.masks, level.values)]
            table.append([*addresses, level.keys.numel(), level.side, level.stride])
        call("octree_dense", dense, torch.tensor(table), len(table), DTYPE_CODES[self.dtype], self.batch, nodes, dense)
        return dense


def _check(initial: int, levels: int, threshold: float, batch: int, dtype: torch.dtype) -> None:
    for name, value, least in (("initial", initial, 1), ("levels", levels, 0), ("batch", batch, 0)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"occkernels.Octree: `{name}` must be an integer of at least {least}, got {value!r}.")
    if initial << levels > 1 << 20:
        raise ValueError(
            f"occkernels.Octree: `initial` * 2**`levels` must be at most {1 << 20} cells, got {initial << levels}."
        )
    if not math.isfinite(threshold):
        raise ValueError(f"occkernels.Octree: `threshold` must be finite, got {threshold}.")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"occkernels.Octree: `dtype` must be torch.float32 or torch.float64, got {dtype}.")
