# SPDX-License-Identifier: MIT
"""Layers shared by all networks. Letters: B batch, N points, C channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

POSITIONAL_FREQUENCIES = 10
"""Number of octaves of :func:`positional_encoding`."""
POSITIONAL_CHANNELS = 6 * POSITIONAL_FREQUENCIES
"""Channels of an encoded 3-D point."""


class ResnetBlockFC(nn.Module):
    """Fully connected pre-activation residual block (He et al. 2016; Mescheder et al. 2019, supplementary 1.1).

    ``fc_1(relu(fc_0(relu(x)))) + shortcut(x)``; the shortcut is the identity, or a bias-free linear layer when the
    sizes differ. ``fc_1.weight`` starts at zero, so that a new block is (nearly) the shortcut.

    Args:
        size_in: channels of the input.
        size_out: channels of the output; ``None`` = ``size_in``.
        size_h: hidden channels; ``None`` = ``min(size_in, size_out)``.
    """

    def __init__(self, size_in: int, size_out: int | None = None, size_h: int | None = None) -> None:
        super().__init__()
        size_out = size_in if size_out is None else size_out
        size_h = min(size_in, size_out) if size_h is None else size_h
        self.fc_0 = nn.Linear(size_in, size_h)
        self.fc_1 = nn.Linear(size_h, size_out)
        self.shortcut = nn.Linear(size_in, size_out, bias=False) if size_in != size_out else None
        nn.init.zeros_(self.fc_1.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., size_in) to (..., size_out)."""
        net = self.fc_1(functional.relu(self.fc_0(functional.relu(x))))
        return (x if self.shortcut is None else self.shortcut(x)) + net


def positional_encoding(points: Tensor) -> Tensor:
    """Sines and cosines of ten octaves (Mildenhall et al. 2020, eq. 4), in the family's order and scaling.

    With q = 2 * points - 1 and f_k = 2**k * pi the output is sin(f_0 q), cos(f_0 q), sin(f_1 q), ... each of them three
    values, so 60 in total.

    Args:
        points: (..., 3) floating point coordinates.

    Returns:
        (..., 60), same dtype.
    """
    octaves = math.pi * 2.0 ** torch.arange(POSITIONAL_FREQUENCIES, device=points.device, dtype=points.dtype)
    phase = (2.0 * points - 1.0).unsqueeze(-2) * octaves[:, None]  # (..., 10, 3)
    return torch.stack((torch.sin(phase), torch.cos(phase)), dim=-2).flatten(-3)


def encode_position(points: Tensor, encoding: str) -> Tensor:
    """Apply the point encoding named by an option: ``"linear"`` (none) or ``"sin_cos"``."""
    return positional_encoding(points) if encoding == "sin_cos" else points


def position_channels(encoding: str, dim: int = 3) -> int:
    """Channels :func:`encode_position` returns for ``dim`` coordinates.

    Raises:
        ValueError: ``encoding`` is neither ``"linear"`` nor ``"sin_cos"``.
    """
    if encoding == "linear":
        return dim
    if encoding == "sin_cos":
        return POSITIONAL_CHANNELS
    raise ValueError(f"pos_encoding must be 'linear' or 'sin_cos', got {encoding!r}")


def cell_position(points: Tensor, resolution: int, padding: float) -> Tensor:
    """Position of each point inside its grid cell, in [-1, 1).

    The cell is the one the grid binning rule puts the point in (divisor 1 + padding + 1e-3, clamped to the box), so a
    network that sees only this coordinate is equivariant to translations by whole cells.

    Args:
        points: (..., 3) coordinates in the unit cube [-0.5, 0.5] plus padding.
        resolution: cells along one axis.
        padding: relative widening of the box.

    Returns:
        (..., 3), same dtype: -1 at the lower and 1 at the upper face of the cell.
    """
    scaled = (points / (1.0 + padding + 1e-3) + 0.5).clamp(0.0, 1.0 - 1e-3) * resolution
    return 2.0 * (scaled - scaled.floor()) - 1.0
