# SPDX-License-Identifier: MIT
"""Twin of ``occkernels.Octree`` on Python's sets and dictionaries: the specification, one cell and one point a time."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from occkernels.sparse import BRICK, SparseVolume

Cell = tuple[int, int, int, int]  # level and place
Point = tuple[int, int, int]


class _Shape:
    """The octree of one shape."""

    def __init__(self, initial: int, levels: int) -> None:
        self.initial, self.levels = initial, levels
        self.cells = initial << levels
        self.leaves = {(0, x, y, z) for x, y, z in itertools.product(range(initial), repeat=3)}
        self.crossed: set[Cell] = set()
        self.seeds: set[Cell] = set()
        self.values: dict[Point, float | None] = {}
        self.created: dict[Point, int] = {}  # level at which a point came to exist
        for leaf in self.leaves:
            self.add_corners(leaf)

    def add_corners(self, cell: Cell) -> None:
        level, *place = cell
        size = 1 << (self.levels - level)
        for offset in itertools.product((0, 1), repeat=3):
            x, y, z = ((at + o) * size for at, o in zip(place, offset, strict=True))
            if (x, y, z) not in self.values:
                self.values[x, y, z] = None
                self.created[x, y, z] = level

    def unknown(self) -> list[Point]:
        """By level of creation, then brick of that level, then place in the brick."""

        def order(point: Point) -> tuple[int, ...]:
            level = self.created[point]
            at = [c >> (self.levels - level) for c in point]
            return (level, *(a // BRICK for a in at), *(a % BRICK for a in at))

        return sorted((point for point, value in self.values.items() if value is None), key=order)

    def leaf_at(self, x: int, y: int, z: int) -> Cell | None:
        """The leaf that holds a cell of the finest lattice, None outside of it."""
        for up in range(self.levels + 1):
            cell = (self.levels - up, x >> up, y >> up, z >> up)
            if cell in self.leaves:
                return cell
        return None

    def crossings(self, threshold: float, closed: bool) -> set[Cell]:
        """Leaves with a known point above and one below on their boundary."""
        above: set[Cell | None] = set()
        below: set[Cell | None] = set()
        for (x, y, z), value in self.values.items():
            assert value is not None
            around = {self.leaf_at(x - i, y - j, z - k) for i in (0, 1) for j in (0, 1) for k in (0, 1)}
            if value >= threshold:
                above |= around
            if value <= threshold or (closed and not {x, y, z}.isdisjoint((0, self.cells))):
                below |= around
        return {cell for cell in above & below if cell is not None}

    def refine(self, threshold: float, closed: bool, band: bool) -> None:
        found = self.crossings(threshold, closed)
        if band:
            for level, x, y, z in found:
                self.crossed |= {(level - up, x >> up, y >> up, z >> up) for up in range(level + 1)}
            found = set()
            for level, *place in self.crossed:
                for offset in itertools.product((-1, 0, 1), repeat=3):
                    x, y, z = (at + o for at, o in zip(place, offset, strict=True))
                    found.add((level, x, y, z))
        for cell in (found | self.seeds) & self.leaves:
            level, *place = cell
            if level == self.levels:
                continue
            self.leaves.remove(cell)
            for offset in itertools.product((0, 1), repeat=3):
                x, y, z = (2 * at + o for at, o in zip(place, offset, strict=True))
                self.leaves.add((level + 1, x, y, z))
                self.add_corners((level + 1, x, y, z))


class Octree:
    """See ``occkernels.Octree``; slow, on the CPU."""

    def __init__(
        self,
        initial: int,
        levels: int,
        threshold: float = 0.0,
        *,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        closed: bool = False,
        band: bool = False,
    ) -> None:
        self.threshold = torch.tensor(threshold, dtype=dtype).item()
        self.dtype, self.closed, self.band = dtype, closed, band
        self.levels, self.cells = levels, initial << levels
        self.shapes = [_Shape(initial, levels) for _ in range(batch)]

    def mark(self, points: Tensor, shape: Tensor) -> None:
        """See ``occkernels.Octree.mark``."""
        for point, number in zip(points.tolist(), shape.tolist(), strict=True):
            if all(0 <= at <= self.cells for at in point):
                place = [min(math.floor(at), self.cells - 1) for at in point]
                for level in range(self.levels):
                    x, y, z = (at >> (self.levels - level) for at in place)
                    self.shapes[number].seeds.add((level, x, y, z))

    def query(self) -> tuple[Tensor, Tensor]:
        """See ``occkernels.Octree.query``."""
        rows = [shape.unknown() for shape in self.shapes]
        offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
        return torch.tensor(sum(rows, []), dtype=torch.int32).reshape(-1, 3), offsets

    def pending(self) -> list[int]:
        """Numbers of unknown nodes by level."""
        levels = [shape.created[point] for shape in self.shapes for point in shape.unknown()]
        return [levels.count(level) for level in range(self.levels + 1)]

    def update(self, values: Tensor) -> None:
        """See ``occkernels.Octree.update``."""
        given = iter(values.to(self.dtype).tolist())
        for shape in self.shapes:
            for point in shape.unknown():
                shape.values[point] = next(given)
            shape.refine(self.threshold, self.closed, self.band)

    def known(self) -> Tensor:
        """(B, N + 1, N + 1, N + 1) with NaN where a node was not evaluated."""
        nodes = self.cells + 1
        dense = torch.full((len(self.shapes), nodes, nodes, nodes), math.nan, dtype=self.dtype)
        for number, shape in enumerate(self.shapes):
            for (x, y, z), value in shape.values.items():
                dense[number, x, y, z] = math.nan if value is None else value
        return dense

    def to_dense(self) -> Tensor:
        """See ``occkernels.Octree.to_dense``."""
        dense = self.known()
        for axis in (1, 2, 3):
            for at in range(1, self.cells + 1):
                here, before = dense.select(axis, at), dense.select(axis, at - 1)
                here.copy_(torch.where(here.isnan(), before, here))
        return dense

    def volume(self) -> SparseVolume:
        """See ``occkernels.Octree.volume``."""
        kept = torch.full_like(self.known(), math.nan)
        for number, shape in enumerate(self.shapes):
            for level, x, y, z in shape.leaves:
                if level == self.levels:
                    kept[number, x : x + 2, y : y + 2, z : z + 2] = 0
        keys = SparseVolume.from_dense(kept).keys
        padded = kept.new_full((*kept.shape[:1], *(-(-n // BRICK) * BRICK for n in kept.shape[1:])), math.nan)
        nodes = self.cells + 1
        padded[:, :nodes, :nodes, :nodes] = self.known()
        volume = SparseVolume(keys, kept.new_empty(len(keys), BRICK, BRICK, BRICK), nodes, len(self.shapes))
        for row, (lattice, first) in enumerate(zip(*volume.places(), strict=True)):
            x, y, z = first.tolist()
            volume.values[row] = padded[lattice, x : x + BRICK, y : y + BRICK, z : z + BRICK]
        return volume
