# SPDX-License-Identifier: MIT
"""What ``occkernels.extract`` takes and returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from occkernels.mesh import Mesh, MeshBatch

QUERY_BYTES = 4096
"""Memory assumed for the evaluation of one point by a field that does not say (``bytes_per_query``)."""


@dataclass(frozen=True)
class ExtractOptions:
    """How surfaces are searched for and cut out.

    Attributes:
        initial: cells along a side of the coarsest lattice.
        levels: how often a cell is halved: the mesh has ``initial * 2**levels`` cells a side.
        threshold: the field's value on the surface; greater is inside.
        box: side of the cube that the lattice covers, centred at 0.
        band: also refine the cells next to those in which the surface was found, at every level.
        closed: everything outside the box is outside, so that every mesh is closed.
        normals: False; "volume": from differences of the lattice's values; "field": from the field's own gradient.
        edge_margin: see ``marching_cubes``.
        dtype: float32 or float64, of the lattice's values and so of the mesh.
        chunk: most points evaluated at once.
        memory: most bytes for the evaluation of points at once, or None. A point is taken to need
            ``field.bytes_per_query`` or, for fields that do not say, 4096.

    Raises:
        ValueError: an option is out of range; ``Octree`` and ``marching_cubes`` check the others.
    """

    initial: int = 32
    levels: int = 2
    threshold: float = 0.0
    box: float = 1.1
    band: bool = False
    closed: bool = True
    normals: bool | str = False
    edge_margin: float = 1e-4
    dtype: torch.dtype = torch.float32
    chunk: int = 100_000
    memory: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.box) and self.box > 0):
            raise ValueError(f"occkernels.extract: `box` must be a positive number, got {self.box}.")
        if self.normals not in (False, "volume", "field"):
            raise ValueError(f'occkernels.extract: `normals` must be False, "volume" or "field", got {self.normals!r}.')
        if self.chunk < 1:
            raise ValueError(f"occkernels.extract: `chunk` must be at least 1 point, got {self.chunk}.")
        if self.memory is not None and self.memory < 1:
            raise ValueError(f"occkernels.extract: `memory` must be positive or None, got {self.memory}.")

    @property
    def cells(self) -> int:
        """Cells along a side of the finest lattice."""
        return self.initial << self.levels

    def coordinates(self, device: torch.device | str = "cpu") -> Tensor:
        """(cells + 1,) float32 position of every node along an axis, rounded once from float64."""
        steps = torch.arange(self.cells + 1, dtype=torch.float64, device=device)
        return (self.box * (steps / self.cells - 0.5)).float()

    def to_world(self, vertices: Tensor) -> Tensor:
        """Positions in index units to the field's coordinates; computed in float64."""
        place = vertices.to(torch.float64, copy=True)  # and in place: fresh pages cost more than the arithmetic
        return place.div_(self.cells).sub_(0.5).mul_(self.box).to(vertices.dtype)


class Extraction(NamedTuple):
    """Meshes and what they cost.

    Attributes:
        meshes: one mesh a shape, in the field's coordinates.
        evaluated: nodes evaluated: a row for every round of the search, a column for every level, coarsest first.
    """

    meshes: MeshBatch
    evaluated: list[list[int]]

    def mesh(self, index: int) -> Mesh:
        """Mesh of shape ``index``."""
        return self.meshes.mesh(index)
