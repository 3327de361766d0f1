# SPDX-License-Identifier: MIT
"""The options of a scene's reconstruction, and what is chosen from the cloud and the memory."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from occnets.components import COMPONENT_MODES
from occnets.memory import parse_size
from occnets.refine.presets import OptimizeOptions, optimize_options
from occnets.scenes.tiles import BLOCK

DEFAULT_MEMORY = 4 * 2**30
DEFAULT_CELLS = 1.4
"""Side of a cell over the spacing of the points, for models that do not say (``data.cells_per_spacing``)."""
_MOST_BLOCKS = 12  # larger windows save little: the halo's share falls ever slower


@dataclass(frozen=True)
class SceneConfig:
    """Options of a scene's reconstruction.

    Attributes:
        unit_size: side of a cell, in input units; None chooses it from the spacing of the points.
        window: cells along a side of a tile, a multiple of 16; None takes what fits into ``memory``.
        steps: lattice steps in a cell; the mesh's edges are about ``unit_size / steps`` long.
        reach: the surface is looked for within so many cells of a point, 1 to 16 (and up to 16 more, by blocks).
        trim: cut off what is further from all points than so many times their spacing, which leaves a sheet that is
            open where nothing was measured; None keeps the surface closed.
        threshold: occupancy probability of the surface; None takes the model's.
        optimize: adapt the network to the scene first, by random windows of it, see `occnets.refine.optimize_scene`: a
            number of steps of the preset ``"large-scene"``, the name of a preset, or the options. For crop models.
        fit: move the surface onto the points, see `occnets.fit`.
        components: ``"clean"`` drops crumbs and what the network made up far from all points, ``"largest"`` keeps one
            body, ``"all"`` keeps everything.
        normals: compute vertex normals.
        memory: bytes (or a text such as ``"4G"``) that a window may take.
        batch: tiles of equal shape in one call of the network; more than one pays on GPUs only.
        seed: of the sample that the spacing is measured on.
    """

    unit_size: float | None = None
    window: int | None = None
    steps: int = 2
    reach: int = 8
    trim: float | None = None
    threshold: float | None = None
    optimize: OptimizeOptions | str | int | None = None
    fit: bool = True
    components: str = "clean"
    normals: bool = False
    memory: int | str = DEFAULT_MEMORY
    batch: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("steps", 1, 16), ("reach", 1, BLOCK), ("batch", 1, 4096)):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or not low <= value <= high:
                raise ValueError(f"SceneConfig: `{name}` must be a whole number from {low} to {high}, got {value}")
        for name in ("unit_size", "trim"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ValueError(f"SceneConfig: `{name}` must be a positive number, got {value}")
        if self.window is not None and (self.window < BLOCK or self.window % BLOCK):
            raise ValueError(f"SceneConfig: `window` must be a multiple of {BLOCK} cells, got {self.window}")
        if self.threshold is not None and not 0.0 < self.threshold < 1.0:
            raise ValueError(f"SceneConfig: `threshold` is a probability between 0 and 1, got {self.threshold}")
        if self.components not in COMPONENT_MODES:
            raise ValueError(
                f"SceneConfig: `components` must be one of {', '.join(COMPONENT_MODES)}, got {self.components!r}"
            )
        object.__setattr__(self, "memory", parse_size(self.memory))
        object.__setattr__(self, "optimize", optimize_options(self.optimize, "large-scene"))


def scene_config(config: SceneConfig | None, options: dict[str, Any]) -> SceneConfig:
    """``config`` (or the defaults) with single fields replaced by ``options``.

    Raises:
        ValueError: there is no such field, or its value is out of range.
    """
    known = {entry.name for entry in dataclasses.fields(SceneConfig)}
    if unknown := sorted(set(options) - known):
        raise ValueError(
            f"reconstruct_scene: unknown option {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    return dataclasses.replace(config or SceneConfig(), **options)


def choose_side(memory: int, cell_bytes: int, halo: int, extent: NDArray[np.int64]) -> int:
    """Blocks along a side of the largest tile whose window fits.

    Args:
        memory: bytes for a window.
        cell_bytes: bytes that one cell of a window takes.
        halo: cells around the tile on every side.
        extent: (3,) blocks of the scene along each axis; a tile need not be larger.

    Raises:
        ValueError: not even one block fits; the message says how much is needed.
    """
    for side in range(min(_MOST_BLOCKS, int(extent.max())), 0, -1):
        cells = np.minimum(extent, side) * BLOCK + 2 * halo
        needed = int(cells.prod()) * cell_bytes
        if needed <= memory:
            return side
    raise ValueError(
        f"a window of one block and its halo of {halo} cells needs {needed / 2**20:.0f}M, the limit is "
        f"{memory / 2**20:.0f}M; raise --memory, or use a model with a shallower U-Net"
    )
