# SPDX-License-Identifier: MIT
"""Occupancy networks: surfaces from point clouds. Names load on first use, so that importing this stays cheap."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Reconstruction": "occnets.reconstruct",
    "ReconstructionConfig": "occnets.reconstruct",
    "Reconstructor": "occnets.reconstruct",
    "read_points": "occnets.io",
    "write_mesh": "occnets.io",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'occnets' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
