# SPDX-License-Identifier: MIT
"""The field of one cloud: a network's logits as a function of space, averaged over orientations of the cloud."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def cube_symmetries() -> NDArray[np.float32]:
    """(48, 3, 3) orthogonal matrices: the identity, 23 more rotations of the cube, then 24 reflections.

    Each half is in a fixed mixed order, so that any few of them look in different directions.
    """
    matrices = []
    for axes in ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0), (1, 0, 2)):
        for signs in range(8):
            matrix = np.zeros((3, 3), dtype=np.float32)
            for row, axis in enumerate(axes):
                matrix[row, axis] = -1.0 if signs >> row & 1 else 1.0
            matrices.append(matrix)
    proper = [m for m in matrices if np.linalg.det(m) > 0]
    mirrored = [m for m in matrices if np.linalg.det(m) < 0]
    # 7 steps of 24 visit every element once and change axes and signs each time.
    mixed = [group[(7 * i) % 24] for group in (proper, mirrored) for i in range(24)]
    return np.stack(mixed)


class EnsembleField:
    """Mean logits over orientations: each turned cloud is encoded once, queries turn with it.

    Args:
        model: offers ``encode(inputs (1, N, 3)) -> features`` and ``decode(query (1, M, 3), features) -> (1, M)``.
        points: (N, 3) float32 in the unit cube.
        count: orientations, 1 to 48.
    """

    def __init__(self, model: Any, points: Tensor, count: int) -> None:
        self.model = model
        turns = torch.from_numpy(cube_symmetries()[:count]).to(points.device)
        self.members = [(turn, model.encode((points @ turn.T)[None])) for turn in turns]

    def __call__(self, query: Tensor) -> Tensor:
        """Logits (1, M) float32 at queries (1, M, 3); differentiable if the model is."""
        logits = [self.model.decode(query @ turn.T, features).float() for turn, features in self.members]
        return torch.stack(logits).mean(dim=0) if len(logits) > 1 else logits[0]
