# SPDX-License-Identifier: MIT
"""Occupancy networks: models, training and mesh reconstruction on top of ``occkernels``.

Names are imported when first used, so that ``import occnets`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from occnets.io import read_points, write_mesh
    from occnets.reconstruct import ReconstructionConfig, Reconstructor
    from occnets.zoo import create_model, list_models, model_info

_HOMES = {
    "ReconstructionConfig": "occnets.reconstruct",
    "Reconstructor": "occnets.reconstruct",
    "create_model": "occnets.zoo",
    "list_models": "occnets.zoo",
    "model_info": "occnets.zoo",
    "read_points": "occnets.io",
    "write_mesh": "occnets.io",
}

__all__ = [
    "ReconstructionConfig",
    "Reconstructor",
    "__version__",
    "create_model",
    "list_models",
    "model_info",
    "read_points",
    "write_mesh",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'occnets' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("occkernels")
    except metadata.PackageNotFoundError:  # used from a source tree that is not installed
        from occkernels import __version__

        return __version__
