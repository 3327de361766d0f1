# SPDX-License-Identifier: MIT
"""Small networks and clouds for the tests of scenes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from convonet_cases import fill_hashed
from occnets.config import load_config
from occnets.models import build_model
from occnets.reconstruct import Reconstructor

NORMLESS: dict[str, Any] = {"variant": "light", "out_channels": 4, "f_maps": [8, 8], "upscale": 2, "norm": "none"}


def scene_model(unet: dict[str, Any] | None = None, seed: int = 0, **encoder: Any) -> Reconstructor:
    """An untrained network that can be used for scenes: its surface is a froth of bubbles and tunnels."""
    config = {
        "method": "conv_onet",
        "data": {"input_type": "pointcloud", "padding": 0.1, "dim": 3},
        "model": {
            "encoder": "pointnet_local_pool",
            "encoder_kwargs": {
                "hidden_dim": 8, "n_blocks": 2, "plane_type": "grid", "grid_resolution": 8, "local_coord": True,
                "unet3d": True, "unet3d_kwargs": unet or NORMLESS, **encoder,
            },
            "decoder": "simple_local",
            "decoder_kwargs": {"hidden_size": 16, "n_blocks": 2, "position": False},
            "c_dim": 8,
            "registration": "cells",
        },
    }  # fmt: skip
    torch.manual_seed(seed)
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.mul_(1.5)
        model.decoder.fc_out.weight.mul_(20.0)
    return Reconstructor(model, config, "cpu", "tiny")


def crop_model() -> Reconstructor:
    """An untrained crop model of the family with a shallow U-Net."""
    config = load_config("convonet-room-crop-grid64")
    config["data"] |= {"unit_size": 0.05, "query_vol_size": 9}
    unet = {"num_levels": 2, "f_maps": 8, "in_channels": 8, "out_channels": 8}
    config["model"]["encoder_kwargs"]["unet3d_kwargs"] = unet
    config["model"]["c_dim"] = 8
    return Reconstructor(fill_hashed(build_model(config)), config, "cpu", "crop")


def spheres(count: int = 2, each: int = 300, seed: int = 0) -> NDArray[np.float64]:
    """Points of spheres of radius 1 in a row with gaps, far from the origin of coordinates."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(count, each, 3))
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    centers = np.stack([3.3 * np.arange(count), 0.7 * np.arange(count), np.zeros(count)], axis=1)
    return (directions + centers[:, None]).reshape(-1, 3) + [1000.0, -50.0, 3.0]


def balanced(reconstructor: Reconstructor, points: NDArray[np.float64], unit: float) -> float:
    """A threshold that some nodes near the points are above and some below: the median probability."""
    from occnets.scenes import reconstruct as scenes

    seen = []
    original = scenes.work_through

    def watch(work: Any, store: Any, batch: int, progress: Any = None) -> None:
        seen.extend(np.concatenate([v.ravel() for t in work.lattice.tiles if len(t.blocks) for v in work.values([t])]))
        original(work, store, batch, progress)

    scenes.work_through = watch
    try:
        scenes.reconstruct_scene(reconstructor, points, unit_size=unit, window=64, fit=False, components="all")
    except ValueError:
        pass
    finally:
        scenes.work_through = original
    values = np.array(seen)
    return float(1.0 / (1.0 + np.exp(-np.median(values[np.isfinite(values)]))))
