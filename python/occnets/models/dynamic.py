# SPDX-License-Identifier: MIT
"""Planes whose directions the network chooses per cloud: predictor, change of basis and similarity loss.

Source: Lionar, Emtsev, Svilarkovic, Peng, Dynamic Plane Convolutional Occupancy Networks, WACV 2021, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

NORMAL_SHIFT = 1e-6
"""Added to every component of a unit normal: keeps the rotation defined for normals along the z axis."""
SCALE_MARGIN = 0.05
"""Added to a plane's normaliser, so that the cube's corners stay clear of the map's border."""
SIMILARITY_WEIGHT = 10.0
"""Weight of :func:`similarity_loss` in the original training."""


def masked_max(net: Tensor, lengths: Tensor | None) -> Tensor:
    """Maximum over the points that exist.

    Args:
        net: (B, N, C).
        lengths: (B,) number of points of each cloud, ``None`` for all N.

    Returns:
        (B, C).
    """
    if lengths is not None:
        absent = torch.arange(net.shape[1], device=net.device) >= lengths[:, None]
        net = net.masked_fill(absent[..., None], -torch.inf)
    return net.amax(dim=1)


class PlanePredictor(nn.Module):
    """PointNet that sums a cloud up in one vector, from which the planes' normals are read (``FCPlanenet``).

    Args:
        dim: channels of a point.
        hidden: channels inside and of the result.
    """

    def __init__(self, dim: int = 3, hidden: int = 32) -> None:
        super().__init__()
        self.fc_pos = nn.Linear(dim, 2 * hidden)
        self.fc_0 = nn.Linear(2 * hidden, hidden)
        self.fc_1 = nn.Linear(2 * hidden, hidden)
        self.fc_2 = nn.Linear(2 * hidden, hidden)
        self.fc_3 = nn.Linear(2 * hidden, hidden)
        self.fc_c = nn.Linear(hidden, hidden)
        self.mlp0 = nn.Linear(hidden, hidden)
        self.mlp1 = nn.Linear(hidden, hidden)
        self.mlp2 = nn.Linear(hidden, hidden)

    def forward(self, points: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map (encoded) points (B, N, dim) to (B, hidden), without an activation at the end."""
        net = self.fc_0(functional.relu(self.fc_pos(points)))
        for layer in (self.fc_1, self.fc_2, self.fc_3):
            pooled = masked_max(net, lengths)[:, None].expand_as(net)
            net = layer(functional.relu(torch.cat((net, pooled), dim=2)))
        net = self.fc_c(functional.relu(masked_max(net, lengths)))
        for layer in (self.mlp0, self.mlp1, self.mlp2):
            net = layer(functional.relu(net))
        return net


def change_of_basis(normals: Tensor) -> tuple[Tensor, Tensor]:
    """Frames of planes given by their normals.

    The frame of normal n is the rotation that takes the z axis to n on the shortest way (Rodrigues); its inverse takes
    a point to plane coordinates, of which the first two are used. n is normalised, then every component is shifted by
    1e-6 and n is not normalised again, as released weights expect; so the inverse is not quite the transpose. It is
    computed in closed form: with s² = n_x² + n_y² and q = |n|² the plane's own direction (-n_y, n_x, 0) stays, and the
    other two are turned and divided by q.

    Args:
        normals: (..., 3), any length but zero, for which the result is NaN.

    Returns:
        Unit normals (..., 3), and matrices (..., 4, 3) float32 or float64: three rows of the inverse frame, and three
        times the normaliser, the largest plane coordinate a corner of the cube [-1, 1]³ has, between 1 and sqrt(3).
    """
    wide = normals if normals.dtype == torch.float64 else normals.float()
    unit = wide / wide.norm(dim=-1, keepdim=True)
    x, y, z = (unit + NORMAL_SHIFT).unbind(-1)
    across = x * x + y * y
    square = across + z * z
    turn = (1.0 - z / square) / across
    inverse = torch.stack(
        (1.0 - turn * x * x, -turn * x * y, -x / square, -turn * x * y, 1.0 - turn * y * y, -y / square)
        + (x / square, y / square, z / square),
        dim=-1,
    ).unflatten(-1, (3, 3))
    # Columns 0 and 1 of the frame itself, not of its inverse.
    turn = (1.0 - z) / across
    first = torch.stack((1.0 - turn * x * x, -turn * x * y, -x), dim=-1)
    second = torch.stack((-turn * x * y, 1.0 - turn * y * y, -y), dim=-1)
    reach = torch.stack([axis.abs().sum(-1) / axis.norm(dim=-1) for axis in (first, second)])
    normaliser = reach.amax(dim=0)[..., None, None].expand(*inverse.shape[:-2], 1, 3)
    return unit, torch.cat((inverse, normaliser), dim=-2)


def frame_from_axes(raw: Tensor) -> Tensor:
    """Rotation from two raw axes by Gram-Schmidt: continuous, unlike angles or quaternions.

    Args:
        raw: (..., 6), two vectors that are neither zero nor parallel.

    Returns:
        (..., 3, 3) float32 or float64, rows orthonormal and right-handed.

    Source: Zhou, Barnes, Lu, Yang, Li, On the Continuity of Rotation Representations in Neural Networks, CVPR 2019.
    """
    wide = raw if raw.dtype == torch.float64 else raw.float()
    first, second = wide.unflatten(-1, (2, 3)).unbind(-2)
    first = functional.normalize(first, dim=-1)
    second = functional.normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack((first, second, torch.linalg.cross(first, second, dim=-1)), dim=-2)


def coordinate_planes(frames: Tensor) -> Tensor:
    """The planes xz, xy and yz of a turned coordinate frame.

    Args:
        frames: (..., 3, 3), rows are the frame's axes.

    Returns:
        (..., 3, 4, 3): for each plane its two axes, the third one and three times the normaliser, as
        :func:`change_of_basis` gives them.
    """
    rows = frames[..., [[0, 2, 1], [0, 1, 2], [1, 2, 0]], :]
    reach = rows[..., :2, :].abs().sum(-1).amax(-1)
    return torch.cat((rows, reach[..., None, None].expand(*reach.shape, 1, 3)), dim=-2)


def basis_and_scale(c_mat: Tensor, margin: float = SCALE_MARGIN) -> tuple[Tensor, Tensor]:
    """What the operators of :mod:`occkernels` take for dynamic planes.

    Args:
        c_mat: (B, L, 4, 3) of :func:`change_of_basis` or :func:`coordinate_planes`, or a sum of them over planes.
        margin: added to the normaliser.

    Returns:
        ``bases`` (B, L, 3, 3) and ``basis_scale`` (B, L).
    """
    return c_mat[..., :3, :], c_mat[..., 3, 0] + margin


def similarity_loss(normals: Tensor) -> Tensor:
    """Penalty on planes that look the same way: cos(n_i, n_j)^10, summed over pairs, mean over the batch.

    Args:
        normals: (B, L, 3) unit normals.

    Returns:
        A scalar, 0 for mutually orthogonal normals (WACV 2021, section 3.4; weighted by 10 in training).
    """
    cosines = normals @ normals.mT
    first, second = torch.triu_indices(normals.shape[1], normals.shape[1], 1, device=normals.device)
    return cosines[:, first, second].pow(10).sum(-1).mean()
