# SPDX-License-Identifier: MIT
"""Where features live: which planes and grid, their resolution and registration; and the points' cells in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

PLANES = ("xz", "xy", "yz")
MAX_MAPS = 16  # kMaxMaps of csrc/math/layout.h

LayoutSpec = tuple[int, int, int, int, bool, float]
Sorter = Callable[[Tensor, tuple[int, ...]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FeatureLayout:
    """The maps that hold features, and how coordinates fall into them.

    Coordinates are those of the unit cube [-0.5, 0.5]³ enlarged by ``padding``; points outside are clamped to it.
    Maps are numbered canonical planes first, then dynamic planes, then the grid. The rules (Peng et al., Convolutional
    Occupancy Networks, ECCV 2020, §3.1; Lionar et al., Dynamic Plane Convolutional Occupancy Networks, WACV 2021, §3.2)
    are those of the released checkpoints, constants included.

    Args:
        planes: canonical planes, any subset of ("xz", "xy", "yz"); stored in that order.
        plane_resolution: cells per side R of every plane; needed when there are planes.
        grid_resolution: cells per side of the grid; 0 for no grid.
        padding: the cube's side is 1 + padding.
        dynamic_planes: number of planes given per sample by ``bases``.
        registration: where value i of a map lies when it is sampled. ``"corners"``: at i / (R - 1), as in the original
            systems (align_corners=True). ``"cells"``: at (i + 0.5) / R, the centre of the cell points are scattered to.

    Raises:
        ValueError: unknown plane, missing resolution, no map at all, or more than 16 maps.
    """

    planes: tuple[str, ...] = ()
    plane_resolution: int = 0
    grid_resolution: int = 0
    padding: float = 0.1
    dynamic_planes: int = 0
    registration: str = "corners"

    def __post_init__(self) -> None:
        unknown = [plane for plane in self.planes if plane not in PLANES]
        if unknown or len(set(self.planes)) != len(self.planes):
            raise ValueError(
                f"FeatureLayout: `planes` must be distinct names out of {PLANES}, got {tuple(self.planes)}."
            )
        object.__setattr__(self, "planes", tuple(plane for plane in PLANES if plane in self.planes))
        if self.registration not in ("corners", "cells"):
            raise ValueError(f"FeatureLayout: `registration` must be 'corners' or 'cells', got {self.registration!r}.")
        if self.num_planes and self.plane_resolution < 1:
            raise ValueError(f"FeatureLayout: `plane_resolution` must be at least 1, got {self.plane_resolution}.")
        if min(self.grid_resolution, self.dynamic_planes, self.plane_resolution) < 0 or self.padding < 0:
            raise ValueError("FeatureLayout: resolutions, `dynamic_planes` and `padding` must not be negative.")
        if not 1 <= self.num_maps <= MAX_MAPS:
            raise ValueError(f"FeatureLayout: expected 1 to {MAX_MAPS} maps (planes and grid), got {self.num_maps}.")

    @property
    def num_planes(self) -> int:
        """Canonical and dynamic planes."""
        return len(self.planes) + self.dynamic_planes

    @property
    def num_maps(self) -> int:
        """Planes, plus one for the grid."""
        return self.num_planes + (1 if self.grid_resolution else 0)

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the maps in order: canonical planes, "plane0", "plane1", ..., "grid"."""
        dynamic = tuple(f"plane{index}" for index in range(self.dynamic_planes))
        return (*self.planes, *dynamic, *(("grid",) if self.grid_resolution else ()))

    @property
    def cells(self) -> tuple[int, ...]:
        """Number of cells of every map."""
        planes = (self.plane_resolution**2,) * self.num_planes
        return (*planes, *((self.grid_resolution**3,) if self.grid_resolution else ()))

    def spec(self) -> LayoutSpec:
        """The tuple the native code takes (csrc/math/layout.h)."""
        mask = sum(1 << PLANES.index(plane) for plane in self.planes)
        cells = self.registration == "cells"
        return (mask, self.dynamic_planes, self.plane_resolution, self.grid_resolution, cells, self.padding)


class Bins:
    """The points of a batch of clouds, told apart by cell; made by ``bin_points`` or ``bins_from_index``.

    The sort is done when it is first needed and then reused by every pooling step, forward and backward.

    Attributes:
        layout: the maps.
        index: (B, K, N) int32, cell of every point in every map, first coordinate fastest; -1 for absent points.
        cells: number of cells of every map; one more than the layout's with ``extra_cell``.
    """

    def __init__(
        self, layout: FeatureLayout, index: Tensor, sorter: Sorter, cells: tuple[int, ...] | None = None
    ) -> None:
        self.layout = layout
        self.index = index
        self.cells = layout.cells if cells is None else cells
        self._sorter = sorter
        self._sorted: tuple[Tensor, Tensor] | None = None

    def _sort(self) -> tuple[Tensor, Tensor]:
        if self._sorted is None:
            self._sorted = self._sorter(self.index, self.cells)
        return self._sorted

    @property
    def order(self) -> Tensor:
        """(B, K, N) int32: points sorted by cell, ties in input order; points with index -1 last."""
        return self._sort()[0]

    @property
    def offsets(self) -> Tensor:
        """(B, Σ(cells_k + 1)) int32: the maps' cell starts in ``order``, one map after another."""
        return self._sort()[1]

    @property
    def is_sorted(self) -> bool:
        """Whether the points have been sorted already."""
        return self._sorted is not None

    def map_index(self, name: str) -> Tensor:
        """(B, N) int32 cells of one map, e.g. ``"xz"`` or ``"grid"``."""
        return self.index[:, self.layout.maps.index(name)]

    def __repr__(self) -> str:
        batch, maps, count = self.index.shape
        return f"Bins(batch={batch}, maps={self.layout.maps[:maps]}, points={count}, device={self.index.device})"
