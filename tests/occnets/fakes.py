# SPDX-License-Identifier: MIT
"""Networks with a known answer, so that reconstructions can be checked exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

CONFIG = {
    "data": {"input_type": "pointcloud", "padding": 0.1, "pointcloud_n": [300, 3000], "pointcloud_noise": [0.0, 0.01]},
    "test": {"threshold": 0.5},
}


class SphereModel:
    """Encodes a cloud as its least-squares sphere; logits are the signed distance times ``sharpness``."""

    def __init__(self, sharpness: float = 20.0) -> None:
        self.sharpness = sharpness
        self.clouds: list[Tensor] = []

    def encode(self, inputs: Tensor) -> dict[str, Tensor]:
        assert inputs.dtype == torch.float32 and inputs.dim() == 3 and inputs.shape[0] == 1
        self.clouds.append(inputs[0])
        points = inputs[0].double()
        # |p|^2 = 2 c·p + (r^2 - |c|^2) is linear in the unknowns.
        system = torch.cat([2 * points, torch.ones(len(points), 1, dtype=torch.float64)], dim=1)
        solution = torch.linalg.lstsq(system, (points**2).sum(1, keepdim=True)).solution[:, 0]
        return {"center": solution[:3], "radius": (solution[3] + solution[:3] @ solution[:3]).sqrt()}

    def decode(self, query: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        assert query.dtype == torch.float32 and query.dim() == 3 and query.shape[0] == 1
        distance = (query.double() - features["center"]).norm(dim=-1)
        return ((features["radius"] - distance) * self.sharpness).float()


class FieldModel:
    """Ignores the cloud: logits are a given function of the query."""

    def __init__(self, field: Callable[[Tensor], Tensor]) -> None:
        self.field = field

    def encode(self, inputs: Tensor) -> dict[str, Tensor]:
        return {}

    def decode(self, query: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        return self.field(query)


def ball(center: tuple[float, float, float], radius: float) -> Callable[[Tensor], Tensor]:
    """Signed distance to a ball, positive inside."""
    return lambda query: radius - (query - torch.tensor(center, device=query.device)).norm(dim=-1)


def sphere_points(
    count: int = 2000, *, radius: float = 1.0, center: tuple[float, ...] = (0.0, 0.0, 0.0), seed: int = 0
) -> np.ndarray:
    """(N, 3) float64 points on a sphere, its six poles first, so that the bounding box is exact."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points[:6] = np.concatenate([np.eye(3), -np.eye(3)])
    return points * radius + np.array(center)
