# SPDX-License-Identifier: MIT
"""What a reconstruction starts from and what it returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from occnets.normalize import Frame

if TYPE_CHECKING:
    import trimesh

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


@dataclass(frozen=True)
class Reconstruction:
    """A mesh and how it came about.

    Attributes:
        mesh: closed triangle mesh in the input's units and frame, vertices in float64.
        stats: numbers of the input, the network and the mesh, ready for JSON.
        timings: seconds of each stage, and ``total``.
        warnings: remarks for the user.
        cloud: (N, 3) float64, the points the network saw, in input units.
    """

    mesh: trimesh.Trimesh
    stats: dict[str, Any]
    timings: dict[str, float]
    warnings: tuple[str, ...]
    cloud: NDArray[np.float64] = field(repr=False)


class Clock:
    """Seconds of each stage."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, {}  # type: ignore[var-annotated]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] = time.perf_counter() - start


@dataclass(frozen=True)
class Source:
    """Where a field comes from.

    Attributes:
        frame: the similarity between the input and the unit cube.
        statistics: of the input, ready for JSON.
        seen: (N, 3) float64, points near the surface that the network saw, in input units; may be none.
        measured: (K, 3) float64, all points the surface may be fitted to.
        notes: remarks for the user.
    """

    frame: Frame
    statistics: dict[str, Any]
    seen: NDArray[np.float64]
    measured: NDArray[np.float64]
    notes: list[str]
