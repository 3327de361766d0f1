# SPDX-License-Identifier: MIT
"""Reconstruction from what is no point cloud: a picture, voxels, a latent code."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from occnets.ensemble import EnsembleField
from occnets.io import VoxelGrid, network_image
from occnets.normalize import Frame
from occnets.precision import encode
from occnets.result import Clock, Progress, Reconstruction, Source
from occnets.settings import ReconstructionConfig

if TYPE_CHECKING:
    from occnets.reconstruct import Reconstructor

_IMAGE_SIZE = 224
_UNSQUARE = 1.05  # longer over shorter side from which on a picture is visibly squeezed
_UNIT = Frame(np.zeros(3), 1.0)
_NOTHING = np.empty((0, 3))


def reconstruct_image(
    owner: Reconstructor,
    image: NDArray,
    pose: NDArray | None,
    settings: ReconstructionConfig,
    progress: Progress | None,
) -> Reconstruction:
    """See `occnets.Reconstructor.reconstruct_image`."""
    size = int((owner.config.get("data") or {}).get("img_size") or _IMAGE_SIZE)
    wants_pose = hasattr(getattr(owner.model, "encoder", None), "fc_pose")
    if wants_pose != (pose is not None):
        words = "needs the camera's pose, a 4 x 4 matrix" if wants_pose else "takes no camera pose"
        raise ValueError(f"Reconstructor.reconstruct_image: model '{owner.name}' {words} (`pose`, --pose)")
    height, width = np.shape(image)[:2] if np.ndim(image) >= 2 else (0, 0)

    def inputs() -> Any:
        picture = torch.from_numpy(network_image(image, size))[None].to(owner.device)
        if pose is None:
            return picture
        matrix = torch.from_numpy(np.asarray(pose, dtype=np.float32))[None].to(owner.device)
        return {"image": picture, "pose": matrix}

    notes = []
    if max(height, width) > _UNSQUARE * min(height, width) > 0:
        notes.append(f"the picture of {width} x {height} pixels was squeezed to a square; crop it to the object")
    statistics = {"picture": [width, height], "network_picture": [size, size], "pose": pose is not None}
    source = Source(_UNIT, statistics, _NOTHING, _NOTHING, notes)
    return _reconstruct(owner, inputs, source, settings, progress)


def reconstruct_voxels(
    owner: Reconstructor, voxels: NDArray | VoxelGrid, settings: ReconstructionConfig, progress: Progress | None
) -> Reconstruction:
    """See `occnets.Reconstructor.reconstruct_voxels`."""
    grid = voxels if isinstance(voxels, VoxelGrid) else VoxelGrid.from_array(voxels)
    count = int((grid.occupancy >= 0.5).sum())
    if not count:
        raise ValueError("Reconstructor.reconstruct_voxels: all voxels are empty")
    frame = Frame(grid.translate + 0.5 * grid.scale, grid.scale)
    statistics = {
        "voxels": list(grid.occupancy.shape),
        "occupied": count,
        "translate": grid.translate.tolist(),
        "scale": grid.scale,
    }
    near = frame.to_input(grid.border_voxels())

    def inputs() -> Any:
        return torch.from_numpy(grid.occupancy)[None].to(owner.device)

    return _reconstruct(owner, inputs, Source(frame, statistics, near, _NOTHING, []), settings, progress)


def reconstruct_latent(
    owner: Reconstructor, code: NDArray | torch.Tensor, settings: ReconstructionConfig, progress: Progress | None
) -> Reconstruction:
    """See `occnets.Reconstructor.reconstruct_latent`."""
    if not hasattr(owner.model, "from_latent"):
        raise ValueError(
            f"Reconstructor.reconstruct_latent: model '{owner.name}' has no latent code; unconditional ones do, see "
            f"'occnets models'"
        )
    z = torch.as_tensor(code, dtype=torch.float32).to(owner.device)
    features = owner.model.from_latent(z[None])
    source = Source(_UNIT, {"latent_channels": len(z)}, _NOTHING, _NOTHING, [])
    return _reconstruct(owner, None, source, settings, progress, features)


def _reconstruct(
    owner: Reconstructor,
    inputs: Callable[[], Any] | None,
    source: Source,
    settings: ReconstructionConfig,
    progress: Progress | None,
    features: Any = None,
) -> Reconstruction:
    if settings.ensemble not in (None, 1):
        raise ValueError(
            f"Reconstructor: `ensemble` turns point clouds; model '{owner.name}' reads {owner.reads}, got "
            f"ensemble={settings.ensemble}"
        )
    # There are no measured points to fit to.
    settings = dataclasses.replace(settings, fit=False, ensemble=1)
    start, clock = time.perf_counter(), Clock(owner.device)
    with torch.no_grad():
        with clock.stage("encode"):
            features = encode(owner.model, inputs(), owner.precision) if inputs is not None else features
            field = EnsembleField.of_features(owner.model, features)
        result = owner._surface(field, source, settings, clock, progress)
    result.timings["total"] = time.perf_counter() - start
    return result
