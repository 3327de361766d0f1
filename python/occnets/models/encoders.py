# SPDX-License-Identifier: MIT
"""Encoders that turn points or voxels into feature maps (Peng et al. 2020, section 3.1 and supplementary)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from occkernels import Bins, bin_points, local_pool
from occnets.models.blocks import ResnetBlockFC, cell_position
from occnets.models.maps import FeatureMaps, build_unet, build_unet3d, make_layout, map_names, scatter_maps
from occnets.models.options import make_options


@dataclasses.dataclass(frozen=True)
class LocalPoolOptions:
    """Options of :class:`LocalPoolPointnet`; names and defaults are the family's unless said.

    Attributes:
        c_dim: channels of the feature maps.
        dim: coordinates per point.
        padding: relative widening of the unit cube.
        hidden_dim: channels inside the point network.
        scatter_type: pooling inside a cell, ``"max"`` or ``"mean"``.
        unet: pass every plane through one shared 2-D U-Net.
        unet_kwargs: its options, :class:`occnets.models.maps.UNet2DOptions`.
        unet3d: pass the grid through a 3-D U-Net.
        unet3d_kwargs: its options; ``variant: light`` selects :class:`occnets.models.unet3d_light.UNet3DLight`.
        plane_resolution: cells along one axis of a plane.
        grid_resolution: cells along one axis of the grid.
        plane_type: name or list of names out of xz, xy, yz, grid.
        n_blocks: residual blocks.
        local_coord: own extension, grids only: the network sees each point's position inside its grid cell instead of
            the absolute position, which makes it equivariant to translations by whole cells.
        registration: own extension: where the samplers place the map's values, ``"corners"`` or ``"cells"``.
    """

    c_dim: int = 128
    dim: int = 3
    padding: float = 0.1
    hidden_dim: int = 128
    scatter_type: str = "max"
    unet: bool = False
    unet_kwargs: Mapping[str, Any] | None = None
    unet3d: bool = False
    unet3d_kwargs: Mapping[str, Any] | None = None
    plane_resolution: int | None = None
    grid_resolution: int | None = None
    plane_type: str | Sequence[str] = "xz"
    n_blocks: int = 5
    local_coord: bool = False
    registration: str = "corners"


def pooled_features(net: Tensor, blocks: nn.ModuleList, fc_c: nn.Module, bins: Bins, scatter_type: str) -> Tensor:
    """The point network: residual blocks with the pooled features of the point's cells concatenated in between.

    Args:
        net: (B, N, 2 * hidden) embedded points.
        blocks: residual blocks 2 * hidden -> hidden.
        fc_c: last layer, applied without an activation.
        bins: the points' cells; pooled features are summed over all maps.
        scatter_type: ``"max"`` or ``"mean"``.

    Returns:
        (B, N, c_dim).
    """
    net = blocks[0](net)
    for block in list(blocks)[1:]:
        net = block(torch.cat((net, local_pool(net, bins, reduce=scatter_type)), dim=2))
    return fc_c(net)


def check_scatter_type(scatter_type: str) -> None:
    """Refuse a pooling other than max and mean.

    Raises:
        ValueError: with the accepted names.
    """
    if scatter_type not in ("max", "mean"):
        raise ValueError(f"scatter_type must be 'max' or 'mean', got {scatter_type!r}")


class LocalPoolPointnet(nn.Module):
    """PointNet with pooling inside the cells of planes and grids (``pointnet_local_pool``).

    Args:
        options: see :class:`LocalPoolOptions`; or give its fields as keywords.
    """

    def __init__(self, options: LocalPoolOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(LocalPoolOptions, fields, "LocalPoolPointnet") if options is None else options
        check_scatter_type(o.scatter_type)
        self.options = o
        names = map_names(o.plane_type, "LocalPoolPointnet")
        if o.local_coord and names != ("grid",):
            raise ValueError(f"LocalPoolPointnet: local_coord needs plane_type 'grid', got {o.plane_type!r}")
        self.layout = make_layout(
            names,
            o.plane_resolution,
            o.grid_resolution,
            padding=o.padding,
            registration=o.registration,
            where="LocalPoolPointnet",
        )
        self.fc_pos = nn.Linear(o.dim, 2 * o.hidden_dim)
        self.blocks = nn.ModuleList(ResnetBlockFC(2 * o.hidden_dim, o.hidden_dim) for _ in range(o.n_blocks))
        self.fc_c = nn.Linear(o.hidden_dim, o.c_dim)
        self.unet = build_unet(o.unet, o.c_dim, o.unet_kwargs)
        self.unet3d = build_unet3d(o.unet3d, o.c_dim, o.unet3d_kwargs)

    def forward(self, points: Tensor, lengths: Tensor | None = None, bins: Bins | None = None) -> FeatureMaps:
        """Map points (B, N, 3) to feature maps; of sample b only the first ``lengths[b]`` points count.

        ``bins`` are the points' cells, where they are known already (``lengths`` then has no effect).
        """
        if bins is None:
            bins = bin_points(points, self.layout, lengths=lengths)
        return scatter_maps(self.point_features(points, bins), bins, self.unet, self.unet3d)

    def point_features(self, points: Tensor, bins: Bins) -> Tensor:
        """Features of each point, (B, N, c_dim), before they are scattered."""
        o = self.options
        seen = cell_position(points, self.layout.grid_resolution, o.padding) if o.local_coord else points
        return pooled_features(self.fc_pos(seen), self.blocks, self.fc_c, bins, o.scatter_type)


@dataclasses.dataclass(frozen=True)
class VoxelOptions:
    """Options of :class:`LocalVoxelEncoder`; meanings as in :class:`LocalPoolOptions`.

    Attributes:
        kernel_size: of the one convolution, 3 or 1.
    """

    c_dim: int = 128
    dim: int = 3
    padding: float = 0.1
    unet: bool = False
    unet_kwargs: Mapping[str, Any] | None = None
    unet3d: bool = False
    unet3d_kwargs: Mapping[str, Any] | None = None
    plane_resolution: int | None = 512
    grid_resolution: int | None = None
    plane_type: str | Sequence[str] = "xz"
    kernel_size: int = 3
    registration: str = "corners"


class LocalVoxelEncoder(nn.Module):
    """One 3-D convolution, then every voxel is a point whose feature is scattered (``voxel_simple_local``).

    Voxel i of n lies at ``linspace(-0.5, 0.5, n)[i]``, end points included; array axes are (x, y, z).

    Args:
        options: see :class:`VoxelOptions`; or give its fields as keywords.

    Raises:
        ValueError: planes and grid together, which this encoder does not have.
    """

    def __init__(self, options: VoxelOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(VoxelOptions, fields, "LocalVoxelEncoder") if options is None else options
        self.options = o
        names = map_names(o.plane_type, "LocalVoxelEncoder")
        if "grid" in names and len(names) > 1:
            raise ValueError(f"LocalVoxelEncoder: plane_type takes planes or the grid, not both, got {o.plane_type!r}")
        self.layout = make_layout(
            names,
            o.plane_resolution,
            o.grid_resolution,
            padding=o.padding,
            registration=o.registration,
            where="LocalVoxelEncoder",
        )
        self.conv_in = nn.Conv3d(1, o.c_dim, o.kernel_size, padding=0 if o.kernel_size == 1 else 1)
        self.unet = build_unet(o.unet, o.c_dim, o.unet_kwargs)
        self.unet3d = build_unet3d(o.unet3d, o.c_dim, o.unet3d_kwargs)

    def forward(self, voxels: Tensor) -> FeatureMaps:
        """Map occupancies (B, X, Y, Z) in [0, 1] to feature maps."""
        features = functional.relu(self.conv_in(voxels.unsqueeze(1).to(self.conv_in.weight.dtype)))
        axes = [torch.linspace(-0.5, 0.5, n, device=voxels.device, dtype=features.dtype) for n in features.shape[2:]]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)
        bins = bin_points(points.expand(len(voxels), -1, -1), self.layout)
        return scatter_maps(features.flatten(2).transpose(1, 2), bins, self.unet, self.unet3d)
