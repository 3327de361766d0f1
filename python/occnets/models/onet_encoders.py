# SPDX-License-Identifier: MIT
"""Encoders of Occupancy Networks for points, voxels and indices: one vector (B, C) for a whole shape.

Every encoder has the attribute ``c_dim``, the channels it returns.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from occnets.models.blocks import ResnetBlockFC
from occnets.models.options import make_options

_VOXELS = 32


@dataclasses.dataclass(frozen=True)
class PointNetOptions:
    """Options of the point encoders; names and defaults are the family's.

    Attributes:
        c_dim: channels of the condition.
        dim: coordinates per point.
        hidden_dim: channels inside the network.
    """

    c_dim: int = 128
    dim: int = 3
    hidden_dim: int = 128


class SimplePointNet(nn.Module):
    """PointNet (Qi et al., CVPR 2017) with the maximum of the points concatenated between layers (``pointnet_simple``).

    Args:
        options: see :class:`PointNetOptions`; or give its fields as keywords.
    """

    def __init__(self, options: PointNetOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(PointNetOptions, fields, "SimplePointNet") if options is None else options
        self.options, self.c_dim = o, o.c_dim
        self.fc_pos = nn.Linear(o.dim, 2 * o.hidden_dim)
        for index in range(4):
            self.add_module(f"fc_{index}", nn.Linear(2 * o.hidden_dim, o.hidden_dim))
        self.fc_c = nn.Linear(o.hidden_dim, o.c_dim)

    def forward(self, points: Tensor) -> Tensor:
        """Map points (B, N, 3) to the condition (B, c_dim)."""
        net = self.fc_pos(points)
        for index in range(4):
            net = self.get_submodule(f"fc_{index}")(functional.relu(net if index == 0 else _with_maximum(net)))
        return self.fc_c(functional.relu(net.amax(dim=1)))


class ResnetPointNet(nn.Module):
    """PointNet of five residual blocks, the maximum concatenated before each but the first (``pointnet_resnet``).

    Args:
        options: see :class:`PointNetOptions`; or give its fields as keywords.
    """

    def __init__(self, options: PointNetOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(PointNetOptions, fields, "ResnetPointNet") if options is None else options
        self.options, self.c_dim = o, o.c_dim
        self.fc_pos = nn.Linear(o.dim, 2 * o.hidden_dim)
        for index in range(5):
            self.add_module(f"block_{index}", ResnetBlockFC(2 * o.hidden_dim, o.hidden_dim))
        self.fc_c = nn.Linear(o.hidden_dim, o.c_dim)

    def forward(self, points: Tensor) -> Tensor:
        """Map points (B, N, 3) to the condition (B, c_dim)."""
        net = self.fc_pos(points)
        for index in range(5):
            net = self.get_submodule(f"block_{index}")(net if index == 0 else _with_maximum(net))
        return self.fc_c(functional.relu(net.amax(dim=1)))


def _with_maximum(net: Tensor) -> Tensor:
    """Concatenate the maximum over the points to every point, (B, N, H) to (B, N, 2H)."""
    return torch.cat((net, net.amax(dim=1, keepdim=True).expand_as(net)), dim=2)


@dataclasses.dataclass(frozen=True)
class VoxelGridOptions:
    """Options of :class:`VoxelEncoder`; names and defaults are the family's.

    Attributes:
        c_dim: channels of the condition.
        dim: coordinates per query; has no effect here, the family's files may give it.
        coordinates: own name for the family's second voxel encoder: the network also sees where each voxel lies.
    """

    c_dim: int = 128
    dim: int = 3
    coordinates: bool = False


class VoxelEncoder(nn.Module):
    """Five 3-D convolutions from 32^3 voxels to 2^3 of 512 channels, and a linear layer (``voxel_simple``).

    Args:
        options: see :class:`VoxelGridOptions`; or give its fields as keywords.
    """

    def __init__(self, options: VoxelGridOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(VoxelGridOptions, fields, "VoxelEncoder") if options is None else options
        self.options, self.c_dim = o, o.c_dim
        self.conv_in = nn.Conv3d(4 if o.coordinates else 1, 32, 3, padding=1)
        for index in range(4):
            self.add_module(f"conv_{index}", nn.Conv3d(32 << index, 64 << index, 3, padding=1, stride=2))
        self.fc = nn.Linear(512 * 2**3, o.c_dim)

    def forward(self, voxels: Tensor) -> Tensor:
        """Map occupancies (B, 32, 32, 32) in [0, 1], axes (x, y, z), to the condition (B, c_dim).

        Raises:
            ValueError: another shape.
        """
        if voxels.dim() != 4 or tuple(voxels.shape[1:]) != (_VOXELS,) * 3:
            raise ValueError(
                f"VoxelEncoder: `voxels` must be (B, {_VOXELS}, {_VOXELS}, {_VOXELS}), got {tuple(voxels.shape)}; "
                f"resample the grid, or use an encoder that takes any size (voxel_simple_local)"
            )
        net = voxels.unsqueeze(1).to(self.conv_in.weight.dtype)
        if self.options.coordinates:
            axis = torch.linspace(-0.5, 0.5, _VOXELS, device=net.device, dtype=net.dtype)
            ramps = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
            net = torch.cat((net, ramps.expand(len(net), -1, -1, -1, -1)), dim=1)
        net = self.conv_in(net)
        for index in range(4):
            net = self.get_submodule(f"conv_{index}")(functional.relu(net))
        return self.fc(functional.relu(net.flatten(1)))


@dataclasses.dataclass(frozen=True)
class IndexOptions:
    """Options of :class:`IndexEncoder`.

    Attributes:
        c_dim: channels of the condition.
        num_shapes: shapes in the training set; the family takes it from the data, here it must be given.
    """

    c_dim: int = 128
    num_shapes: int = 0


class IndexEncoder(nn.Embedding):
    """A learned vector for each shape of the training set (``idx``): how much can the decoder represent?

    Args:
        options: see :class:`IndexOptions`; or give its fields as keywords.

    Raises:
        ValueError: ``num_shapes`` is not positive.
    """

    def __init__(self, options: IndexOptions | None = None, **fields: Any) -> None:
        o = make_options(IndexOptions, fields, "IndexEncoder") if options is None else options
        if o.num_shapes < 1:
            raise ValueError(
                f"IndexEncoder: `num_shapes` must be the number of shapes of the training set, got {o.num_shapes}; "
                f"set model.encoder_kwargs.num_shapes"
            )
        super().__init__(o.num_shapes, o.c_dim)
        self.options, self.c_dim = o, o.c_dim
