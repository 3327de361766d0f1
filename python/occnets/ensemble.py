# SPDX-License-Identifier: MIT
"""The field of one cloud: a network's logits as a function of space, averaged over orientations of the cloud."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from occnets.memory import query_bytes
from occnets.models.fused import FusedField, fuse
from occnets.precision import encode

_SIDE = 8  # nodes along a side of a brick
_FUSED_BYTES = 64  # of a query in the fused decoder: coordinates, logits, masks


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


@dataclass(frozen=True)
class Turn:
    """A symmetry of the cube: coordinate a of a turned point is ``signs[a]`` times its old coordinate ``axes[a]``."""

    axes: tuple[int, int, int]
    signs: tuple[int, int, int]

    @classmethod
    def from_matrix(cls, matrix: NDArray[np.float32]) -> Turn:
        """The turn that a row of `cube_symmetries` applies to column vectors."""
        axes = np.abs(matrix).argmax(axis=1)
        x, y, z = ((int(axis), int(matrix[row, axis])) for row, axis in enumerate(axes))
        return cls((x[0], y[0], z[0]), (x[1], y[1], z[1]))

    @property
    def identity(self) -> bool:
        """Nothing is turned."""
        return self == Turn((0, 1, 2), (1, 1, 1))

    def points(self, points: Tensor) -> Tensor:
        """Turned points (..., 3); exact."""
        if self.identity:
            return points
        return points[..., list(self.axes)] * torch.tensor(self.signs, dtype=points.dtype, device=points.device)

    def back(self, vectors: Tensor) -> Tensor:
        """Vectors (..., 3) turned back."""
        if self.identity:
            return vectors
        signs = torch.tensor(self.signs, dtype=vectors.dtype, device=vectors.device)
        return (vectors * signs)[..., np.argsort(self.axes).tolist()]

    def cubes(self, values: Tensor) -> Tensor:
        """Turned arrays (K, n, n, n) of values at nodes."""
        turned = values.permute(0, *(1 + axis for axis in self.axes))
        return turned.flip([1 + row for row, sign in enumerate(self.signs) if sign < 0])

    def cubes_back(self, values: Tensor) -> Tensor:
        """Arrays (K, n, n, n) turned back."""
        flipped = values.flip([1 + row for row, sign in enumerate(self.signs) if sign < 0])
        return flipped.permute(0, *(1 + int(axis) for axis in np.argsort(self.axes)))


class EnsembleField:
    """Mean logits over orientations: each turned cloud is encoded once, queries turn with it.

    Offers what `occkernels.extract` uses where the network's decoder has a fused form: ``bricks`` for regular blocks of
    nodes and ``with_gradient`` for normals.

    Args:
        model: offers ``encode(inputs (1, N, 3)) -> features`` and ``decode(query (1, M, 3), features) -> (1, M)``.
        points: (N, 3) float32 in the unit cube.
        count: orientations, 1 to 48.
        precision: the encoder's, see `occnets.precision`.
    """

    def __init__(self, model: Any, points: Tensor, count: int, *, precision: str = "fp32") -> None:
        turns = [Turn.from_matrix(matrix) for matrix in cube_symmetries()[:count]]
        self._set(model, turns, [encode(model, turn.points(points)[None], precision) for turn in turns])

    @classmethod
    def of_features(cls, model: Any, *features: Any) -> EnsembleField:
        """The field of features that are known already, one for each orientation in the order of `cube_symmetries`."""
        field = cls.__new__(cls)
        field._set(model, [Turn.from_matrix(matrix) for matrix in cube_symmetries()[: len(features)]], list(features))
        return field

    def _set(self, model: Any, turns: list[Turn], features: list[Any]) -> None:
        count = len(turns)
        self.model, self.turns, self.features = model, turns, features
        self.bytes_per_query = query_bytes(model)
        decoder = getattr(model, "decoder", None)
        fused = [None if decoder is None else fuse(decoder, features) for features in self.features]
        self.fused: list[FusedField] = [field for field in fused if field is not None]
        if len(self.fused) == count:
            self.bytes_per_query = _FUSED_BYTES
            self.bricks, self.with_gradient = self._bricks, self._with_gradient

    def __call__(self, query: Tensor) -> Tensor:
        """Logits (1, M) float32 at queries (1, M, 3); differentiable if the model is and gradients are recorded."""
        if len(self.fused) == len(self.turns) and not torch.is_grad_enabled():
            return self._mean(field(turn.points(query)) for turn, field in zip(self.turns, self.fused, strict=True))
        pairs = zip(self.turns, self.features, strict=True)
        return self._mean(self.model.decode(turn.points(query), features).float() for turn, features in pairs)

    def _with_gradient(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (1, M) and their gradient (1, M, 3)."""
        pairs = list(zip(self.turns, self.fused, strict=True))
        found = [field.with_gradient(turn.points(query)) for turn, field in pairs]
        slopes = (turn.back(slope) for (turn, _), (_, slope) in zip(pairs, found, strict=True))
        return self._mean(value for value, _ in found), self._mean(slopes)

    def _bricks(self, shape: Tensor, corner: Tensor, mask: Tensor, spacing: float, origin: float) -> Tensor:
        """(K, 512) logits at the wanted nodes of bricks; see `occkernels.extract`. The lattice must be centred."""
        cells = round(-2.0 * origin / spacing)
        if abs(cells * spacing + 2.0 * origin) > 1e-6 * spacing:
            raise ValueError(
                f"EnsembleField.bricks: the lattice must be centred, got spacing {spacing} and origin {origin}."
            )
        wanted = None
        parts = []
        for turn, field in zip(self.turns, self.fused, strict=True):
            if turn.identity:
                parts.append(field.bricks(shape, corner, mask, spacing, origin))
                continue
            wanted = _unpacked(mask) if wanted is None else wanted
            place = corner[:, list(turn.axes)]
            # A reflected brick begins where the old one ends: node i becomes node cells - i of the lattice.
            mirrored = torch.tensor(turn.signs, device=corner.device) < 0
            place = torch.where(mirrored, cells - (_SIDE - 1) - place, place).to(torch.int32)
            found = field.bricks(shape, place.contiguous(), _packed(turn.cubes(wanted)), spacing, origin)
            parts.append(turn.cubes_back(found.view(-1, _SIDE, _SIDE, _SIDE)).reshape(found.shape))
        return self._mean(parts)

    def _mean(self, parts: Any) -> Tensor:
        # Added one by one: the members' values need not all be kept.
        total = sum(parts)
        assert isinstance(total, Tensor)
        return total if len(self.turns) == 1 else total / len(self.turns)


def _unpacked(mask: Tensor) -> Tensor:
    """(K, 8, 8, 8) bool of masks (K, 8) int64: bit ``8 * j + k`` of word i is node (i, j, k)."""
    bits = torch.arange(_SIDE * _SIDE, device=mask.device)
    return (mask[:, :, None] >> bits & 1).bool().view(-1, _SIDE, _SIDE, _SIDE)


def _packed(wanted: Tensor) -> Tensor:
    """The inverse of `_unpacked`."""
    bits = torch.arange(_SIDE * _SIDE, device=wanted.device)
    return (wanted.reshape(-1, _SIDE, _SIDE * _SIDE).long() << bits).sum(dim=2)
