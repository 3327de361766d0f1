# SPDX-License-Identifier: MIT
"""A narrow family of procedural solids, on which every network learns something within minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from occnets.config import merge
from occnets.data.draw import cut, place, union
from occnets.data.pool import voxel_centers
from occnets.data.procedural import query_points
from occnets.data.solid import Solid, make_solid
from occnets.training import TrainConfig, from_dict, load
from occnets.training.scan import Shape

HELD = 987_654
"""Seed of the shape that no training sees."""


def bracket(seed: int) -> Solid:
    """A plate with an upright wall and a drilled boss; nine random measures. Longest side 1, centred."""
    rng = np.random.default_rng(seed)
    long, wide, thick = rng.uniform(0.35, 0.5), rng.uniform(0.2, 0.4), rng.uniform(0.07, 0.12)
    radius, tall, shift = rng.uniform(0.11, 0.18), rng.uniform(0.12, 0.25), rng.uniform(-0.12, 0.12)
    wall, high, bore = rng.uniform(0.07, 0.12), rng.uniform(0.15, 0.35), rng.uniform(0.4, 0.65)
    center = np.array([shift - 0.05, 0.0, 0.0])
    up = np.array([0.0, 0.0, 1.0])
    parts = [
        place("box", [long, wide, thick, 0.0], np.zeros(3)),
        place("cylinder", [radius, tall, 0.0], center + up * tall),
        place("box", [wall, wide, high, 0.0], np.array([long - wall, 0.0, high - thick])),
    ]
    return make_solid(cut(union(parts), [place("cylinder", [bore * radius, 2.0, 0.0], center)]), "bracket")


class Brackets:
    """A pool of brackets in RAM; also what ``occnets.training.runner.train`` takes as its source."""

    def __init__(self, count: int, surface: int = 3000, queries: int = 4096, voxels: int = 0) -> None:
        self.shapes = [shape_of(bracket(seed), seed, surface, queries, voxels) for seed in range(count)]

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Shape:
        return self.shapes[index]

    def refresh(self) -> int:
        return len(self.shapes)


def shape_of(solid: Solid, seed: int, surface: int, queries: int, voxels: int = 0) -> Shape:
    """Training arrays of a solid."""
    points, normals = solid.surface(surface, seed)
    query = query_points(points, queries, seed)
    cells = solid.occupancy(voxel_centers(voxels)).view(3 * (voxels,)).numpy() if voxels else None
    return Shape(points.numpy(), normals.numpy(), query.numpy(), solid.occupancy(query).numpy(), cells)


def inside_mesh(vertices: np.ndarray, faces: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whether points (N, 3) lie inside a closed mesh: parity of the faces above each point; (N,) bool."""
    crossings = np.zeros(len(points), dtype=np.int64)
    corners = vertices[faces]
    # Tilted by an irrational amount, so that no ray meets an edge of a regular lattice.
    tilt = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0137, 0.0071, 1.0]])
    corners, points = corners @ np.linalg.inv(tilt), points @ np.linalg.inv(tilt)
    order = np.argsort(points[:, 0])
    sorted_x = points[order, 0]
    for a, b, c in corners:
        low, high = min(a[0], b[0], c[0]), max(a[0], b[0], c[0])
        near = order[np.searchsorted(sorted_x, low) : np.searchsorted(sorted_x, high, side="right")]
        if len(near) == 0:
            continue
        p = points[near]
        u, v, w = b[:2] - a[:2], c[:2] - a[:2], p[:, :2] - a[:2]
        area = u[0] * v[1] - u[1] * v[0]
        if area == 0.0:
            continue
        s = (w[:, 0] * v[1] - w[:, 1] * v[0]) / area
        t = (u[0] * w[:, 1] - u[1] * w[:, 0]) / area
        height = a[2] + s * (b[2] - a[2]) + t * (c[2] - a[2])
        crossings[near[(s >= 0) & (t >= 0) & (s + t <= 1) & (height > p[:, 2])]] += 1
    return crossings % 2 == 1


_CODE = {"encoder_kwargs": {"hidden_dim": 64}, "decoder_kwargs": {"hidden_size": 64}, "c_dim": 64}
_GRID = {"f_maps": [8, 16, 32], "out_channels": 8, "upscale": 2}


def _encoder(**kwargs: Any) -> dict[str, Any]:
    return {"model": {"encoder_kwargs": kwargs}}


def _planes() -> dict[str, Any]:
    return _encoder(plane_resolution=32, unet_kwargs={"depth": 3, "merge_mode": "concat", "start_filts": 16})


FAMILIES: dict[str, dict[str, Any]] = {
    "onet-pointcloud": {
        "model": {"model": _CODE},
        "steps": 2600,
        "smoke": 40,
        "batch": 8,
        "points": 300,
        "queries": 256,
    },
    "onet-latent": {"model": {"model": _CODE}, "steps": 2600, "smoke": 40, "batch": 8, "points": 300, "queries": 256},
    "convonet-3plane": {"model": _planes(), "steps": 800},
    "convonet-grid": {"model": _encoder(grid_resolution=16, unet3d_kwargs=_GRID), "steps": 300},
    "dpconvonet": {"model": _planes(), "steps": 800},
    "transonet": {"model": _encoder(plane_resolution=32, embed_dim=64), "steps": 800},
    "transonet-light": {"model": _planes(), "steps": 800, "smoke": 60, "smoke_rate": 4e-3},
    "transonet-published": {"model": {}, "steps": 1000, "rate": 3e-4, "smoke": 120, "smoke_rate": 6e-4},
}
"""Packaged training configurations of the networks that read points: a smaller network, and how it is trained."""


def family_run(
    name: str, folder: Path, *, smoke: bool = False, model: dict[str, Any] | None = None, held_out: int = 0, **run: Any
) -> TrainConfig:
    """A packaged training configuration with a smaller network, one thread, and clean clouds."""
    case = FAMILIES.get(name, {})
    points = case.get("points", 1500)
    steps = case.get("smoke", 25) if smoke else case.get("steps", 1)
    changes = {
        "model": case["model"] if model is None else model,
        "pool": {"held_out": held_out, "minimum": 1, "refresh_seconds": 0.0},
        "batch": {"size": 1 if smoke else case.get("batch", 4), "queries": 400 if smoke else case.get("queries", 512)},
        "scan": {
            "points": points,
            "points_range": [points, points],
            "noise": [0.0, 0.005],
            "noise_heavy_fraction": 0.0,
            "outlier_fraction": 0.0,
            "uneven_fraction": 0.0,
            "partial_fraction": 0.0,
            "symmetry": False,
            "scale": [0.98, 1.0],
            "shift": 0.005,
        },
        "optimiser": {
            "learning_rate": case.get("smoke_rate", 6e-3) if smoke else case.get("rate", 2e-3),
            "warmup_steps": 5 if smoke else 20,
            "ema_decay": 0.8 if smoke else 0.98,
            "positive_weight": 3.0 if smoke else 1.0,  # a tenth of the cube is inside
        },
        "run": {
            "output": str(folder),
            "name": name,
            "max_steps": steps,
            "max_minutes": 0.0,
            "threads": 1,
            "device": "cpu",
            "precision": "fp32",
            **run,
        },
    }
    return from_dict(merge(load(name).to_dict(), changes))
