# SPDX-License-Identifier: MIT
"""Values of a lattice where they are known: compact bricks. What the octree produces and marching cubes reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BRICK = 8
"""Nodes along a side of a brick."""


@dataclass(frozen=True)
class SparseVolume:
    """Node values of ``batch`` cubic lattices, stored in bricks of 8 x 8 x 8 nodes where any is known.

    Node (x, y, z) of lattice ``b`` lies in the brick (x // 8, y // 8, z // 8), whose key is
    ``((b * side + x // 8) * side + y // 8) * side + z // 8`` with ``side = ceil(nodes / 8)`` bricks along an axis.
    Keys are 64-bit, so lattices of 4096 cells a side and more are in reach.

    Attributes:
        keys: (K,) int64, strictly ascending.
        values: (K, 8, 8, 8) floating point, axes x, y, z; NaN where a node's value is not known, and for places of a
            brick that lie outside the lattice.
        nodes: nodes along a side of a lattice (cells + 1).
        batch: number of lattices.
    """

    keys: Tensor
    values: Tensor
    nodes: int
    batch: int

    def __post_init__(self) -> None:
        if self.keys.dtype != torch.int64 or self.keys.dim() != 1:
            raise TypeError(f"SparseVolume: `keys` must be (K,) int64, got {tuple(self.keys.shape)} {self.keys.dtype}.")
        if self.values.shape != (len(self.keys), BRICK, BRICK, BRICK) or not self.values.is_floating_point():
            raise ValueError(
                f"SparseVolume: `values` must be ({len(self.keys)}, {BRICK}, {BRICK}, {BRICK}) floating point, "
                f"got {tuple(self.values.shape)} {self.values.dtype}."
            )
        if self.nodes < 1 or self.batch < 0:
            raise ValueError(f"SparseVolume: `nodes` must be at least 1, `batch` 0, got {self.nodes} and {self.batch}.")

    @property
    def side(self) -> int:
        """Bricks along an axis of a lattice."""
        return -(-self.nodes // BRICK)

    def places(self) -> tuple[Tensor, Tensor]:
        """Lattice of every brick, (K,) int64, and its first node, (K, 3) int64."""
        side = self.side
        z, rest = self.keys % side, self.keys // side
        y, rest = rest % side, rest // side
        return rest // side, torch.stack([rest % side, y, z], dim=1) * BRICK

    def to_dense(self, fill: float = float("nan")) -> Tensor:
        """(B, nodes, nodes, nodes) with ``fill`` where no value is known."""
        side = self.side
        padded = self.values.new_full((self.batch, side, BRICK, side, BRICK, side, BRICK), float("nan"))
        lattice, first = self.places()
        x, y, z = (first // BRICK).unbind(1)
        padded[lattice, x, :, y, :, z, :] = self.values
        n = self.nodes
        dense = padded.view(self.batch, side * BRICK, side * BRICK, side * BRICK)[:, :n, :n, :n].contiguous()
        return dense if fill != fill else torch.where(dense.isnan(), fill, dense)

    @classmethod
    def from_dense(cls, volume: Tensor) -> SparseVolume:
        """The bricks of a (B, n, n, n) or (n, n, n) volume that hold any value but NaN."""
        volume = volume if volume.dim() == 4 else volume[None]
        if volume.dim() != 4 or len(set(volume.shape[1:])) != 1:
            raise ValueError(f"SparseVolume.from_dense: expected (B, n, n, n) or (n, n, n), got {tuple(volume.shape)}.")
        batch, nodes = volume.shape[:2]
        side = -(-nodes // BRICK)
        padded = volume.new_full((batch, side * BRICK, side * BRICK, side * BRICK), float("nan"))
        padded[:, :nodes, :nodes, :nodes] = volume
        bricks = padded.view(batch, side, BRICK, side, BRICK, side, BRICK).permute(0, 1, 3, 5, 2, 4, 6)
        bricks = bricks.reshape(-1, BRICK, BRICK, BRICK)
        keys = (~bricks.isnan().flatten(1).all(dim=1)).nonzero().flatten()
        return cls(keys, bricks[keys], nodes, batch)
