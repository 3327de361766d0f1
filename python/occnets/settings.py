# SPDX-License-Identifier: MIT
"""The options of a reconstruction."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from occnets.components import COMPONENT_MODES
from occnets.memory import parse_size
from occnets.normalize import OUTLIER_MODES
from occnets.refine.presets import OptimizeOptions, optimize_options
from occnets.refine.simplify import target_faces

SMALLEST_MEMORY = 64 * 2**20

_RANGES = (
    ("resolution", 8, 2048),
    ("ensemble", 1, 48),
    ("refine", 0, 10_000),
    ("chunk", 1, 2**31),
    ("seed", 0, 2**63),
    ("max_points", 32, 2**63),
)


@dataclass(frozen=True)
class ReconstructionConfig:
    """Options of a reconstruction.

    Attributes:
        resolution: lattice cells along a side of the padded cube.
        threshold: occupancy probability of the surface, in (0, 1); None takes the model's.
        max_points: at most so many points are given to the network, drawn at random; None takes the model's maximum.
        seed: of every random choice.
        ensemble: average over so many orientations of the input (1 to 48, cube rotations and reflections); costs
            that many times the network's time. None takes the model's ``test.ensemble``, or 1.
        optimize: adapt the network to the points first, see `occnets.refine.optimize_field`: a number of steps, the
            name of a preset (`occnets.refine.PRESETS`) or options; None or 0 for no. Costs many times the rest.
        refine: steps of moving the surface into the field, see `occnets.refine.refine_vertices`; 0 for none.
        fit: move the surface onto the points afterwards, see `occnets.fit`.
        simplify: reduce to so many faces, or, below 1, to that share of them, see `occnets.refine.simplify_mesh`;
            None keeps all.
        outliers: ``"auto"``, ``"strong"`` or ``"off"``, see `occnets.normalize.clean_cloud`.
        frame: ``"auto"`` scales the cloud's bounding box to the unit cube; ``"unit"`` takes coordinates as they are,
            for clouds that lie in [-0.5, 0.5]³ already, such as a part of an object to be completed.
        components: ``"clean"`` drops crumbs, ``"largest"`` keeps one body, ``"all"`` keeps everything.
        normals: compute vertex normals: from the field's gradient, or from the triangles once vertices have moved.
        memory: bytes (or a text such as ``"4G"``) that evaluating the field may take beside the network; None sets no
            limit. A smaller limit means smaller chunks, not another result.
        chunk: queries in one call of the network; halved when memory runs out.
    """

    resolution: int = 128
    threshold: float | None = None
    max_points: int | None = None
    seed: int = 0
    ensemble: int | None = None
    optimize: OptimizeOptions | str | int | None = None
    refine: int = 0
    fit: bool = True
    simplify: int | float | None = None
    outliers: str = "auto"
    frame: str = "auto"
    components: str = "clean"
    normals: bool = False
    memory: int | str | None = None
    chunk: int = 100_000

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is None and name in ("ensemble", "max_points"):
                continue
            if not isinstance(value, (int, np.integer)) or not low <= value <= high:
                raise ValueError(
                    f"ReconstructionConfig: `{name}` must be a whole number from {low} to {high}, got {value}"
                )
        if self.threshold is not None and not 0.0 < self.threshold < 1.0:
            raise ValueError(
                f"ReconstructionConfig: `threshold` is a probability between 0 and 1, got {self.threshold}"
            )
        modes = (("outliers", OUTLIER_MODES), ("components", COMPONENT_MODES), ("frame", ("auto", "unit")))
        for name, choices in modes:
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"ReconstructionConfig: `{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        object.__setattr__(self, "optimize", optimize_options(self.optimize))
        if self.simplify is not None:
            target_faces(self.simplify, 4)
        if self.memory is not None:
            self._set_memory()

    def _set_memory(self) -> None:
        assert self.memory is not None
        size = parse_size(self.memory)
        if size < SMALLEST_MEMORY:
            raise ValueError(
                f"ReconstructionConfig: `memory` must be at least {SMALLEST_MEMORY // 2**20}M, got {self.memory}"
            )
        object.__setattr__(self, "memory", size)


def settings_from(config: ReconstructionConfig | None, options: dict[str, Any]) -> ReconstructionConfig:
    """``config`` (or the defaults) with single fields replaced by ``options``.

    Raises:
        ValueError: there is no such field, or its value is out of range.
    """
    known = {entry.name for entry in dataclasses.fields(ReconstructionConfig)}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"reconstruct: unknown option {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return dataclasses.replace(config or ReconstructionConfig(), **options)
