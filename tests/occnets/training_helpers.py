# SPDX-License-Identifier: MIT
"""A tiny model, a tiny pool and a tiny run for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from occnets.training import TrainConfig, from_dict
from occnets.training.scan import HALF_BOX, Shape

MODEL = {
    "method": "conv_onet",
    "data": {"input_type": "pointcloud", "padding": 0.1, "dim": 3},
    "model": {
        "encoder": "pointnet_local_pool",
        "encoder_kwargs": {
            "hidden_dim": 8,
            "n_blocks": 2,
            "plane_type": "grid",
            "grid_resolution": 8,
            "local_coord": True,
            "unet3d": True,
            "unet3d_kwargs": {"variant": "light", "in_channels": 8, "out_channels": 4, "f_maps": [8, 16], "upscale": 2},
        },
        "decoder": "simple_local",
        "decoder_kwargs": {"hidden_size": 8, "n_blocks": 2},
        "c_dim": 8,
        "registration": "cells",
    },
}


class Ellipsoids:
    """A pool of ellipsoids; ``on_access`` is called with the number of shapes handed out so far."""

    def __init__(self, count: int = 12, on_access: Any = None) -> None:
        self.count, self.on_access, self.handed_out = count, on_access, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Shape:
        self.handed_out += 1
        if self.on_access is not None:
            self.on_access(self.handed_out)
        rng = np.random.default_rng(index)
        axes = rng.uniform(0.2, 0.5, 3)
        axes[index % 3] = 0.5
        sphere = rng.normal(size=(400, 3))
        sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
        normals = sphere / axes
        queries = rng.uniform(-HALF_BOX, HALF_BOX, (500, 3))
        inside = ((queries / axes) ** 2).sum(1) < 1
        return Shape(sphere * axes, normals / np.linalg.norm(normals, axis=1, keepdims=True), queries, inside)

    def refresh(self) -> int:
        return self.count


def make_config(folder: Path, **run: Any) -> TrainConfig:
    return from_dict(
        {
            "model": MODEL,
            "pool": {"held_out": 3, "refresh_seconds": 0.0},
            "batch": {"size": 2, "queries": 128},
            "scan": {"points": 200, "points_range": [50, 300]},
            "optimiser": {"learning_rate": 5e-3, "warmup_steps": 3, "ema_decay": 0.9},
            "run": {
                "output": str(folder),
                "name": "tiny",
                "threads": 2,
                "precision": "fp32",
                "device": "cpu",
                "max_steps": 8,
                "log_steps": 2,
                **run,
            },
        }
    )
