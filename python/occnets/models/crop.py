# SPDX-License-Identifier: MIT
"""Crop-trained ("fully convolutional") models: scenes of any size, reconstructed window by window.

Such a model sees one volume at a time. Coordinates are metric; a volume is a pair of corners (2, 3), lower then upper.
The encoder is told the cell of every point, the decoder the position of every query in the same volume.
(Peng et al. 2020, section 3.3 "fully convolutional", supplementary 1.3.)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from occkernels import FeatureLayout, bins_from_index
from occnets.models.blocks import ResnetBlockFC, encode_position, position_channels
from occnets.models.decoders import AXES, check_sample_mode, conditioned_mlp, sample_normalized
from occnets.models.encoders import check_scatter_type, pooled_features
from occnets.models.maps import FeatureMaps, build_unet, build_unet3d, make_layout, map_names, scatter_maps
from occnets.models.options import make_options


@dataclasses.dataclass(frozen=True)
class CropSettings:
    """Geometry of the windows of a crop model, in cells and in the unit of the coordinates.

    Attributes:
        unit_size: side of one cell.
        query_size: side of the cube whose occupancy one window yields.
        input_size: side of the cube whose points it reads, same centre; the difference is the halo.
        resolution: cells along one axis of the input cube.
    """

    unit_size: float
    query_size: float
    input_size: float
    resolution: int


@dataclasses.dataclass(frozen=True)
class PatchLocalPoolOptions:
    """Options of :class:`PatchLocalPoolPointnet`; those not listed are as in ``LocalPoolOptions``.

    Attributes:
        local_coord: the network sees positions inside the cells of the world lattice of side ``unit_size``, in [0, 1).
        pos_encoding: ``"linear"`` or ``"sin_cos"`` (60 channels, :func:`occnets.models.blocks.positional_encoding`).
        unit_size: side of one cell.
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
    pos_encoding: str = "linear"
    unit_size: float = 0.1
    registration: str = "corners"


@dataclasses.dataclass(frozen=True)
class PatchDecoderOptions:
    """Options of :class:`PatchLocalDecoder`; see ``DecoderOptions`` and :class:`PatchLocalPoolOptions`."""

    dim: int = 3
    c_dim: int = 128
    hidden_size: int = 256
    n_blocks: int = 5
    leaky: bool = False
    sample_mode: str = "bilinear"
    padding: float = 0.1
    local_coord: bool = False
    pos_encoding: str = "linear"
    unit_size: float = 0.1
    registration: str = "corners"


def local_coordinates(points: Tensor, unit_size: float) -> Tensor:
    """Position inside the lattice cell of side ``unit_size``: (p mod unit_size) / unit_size, in [0, 1)."""
    return torch.remainder(points, unit_size) / unit_size


class PatchLocalPoolPointnet(nn.Module):
    """Local-pooling PointNet told the cells of its points (``pointnet_crop_local_pool``).

    Args:
        options: see :class:`PatchLocalPoolOptions`; or give its fields as keywords.
    """

    def __init__(self, options: PatchLocalPoolOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(PatchLocalPoolOptions, fields, "PatchLocalPoolPointnet") if options is None else options
        check_scatter_type(o.scatter_type)
        self.options = o
        self.layout = make_layout(
            map_names(o.plane_type, "PatchLocalPoolPointnet"),
            o.plane_resolution,
            o.grid_resolution,
            padding=o.padding,
            registration=o.registration,
            where="PatchLocalPoolPointnet",
        )
        self.blocks = nn.ModuleList(ResnetBlockFC(2 * o.hidden_dim, o.hidden_dim) for _ in range(o.n_blocks))
        self.fc_c = nn.Linear(o.hidden_dim, o.c_dim)
        self.unet = build_unet(o.unet, o.c_dim, o.unet_kwargs)
        self.unet3d = build_unet3d(o.unet3d, o.c_dim, o.unet3d_kwargs)
        self.fc_pos = nn.Linear(position_channels(o.pos_encoding, o.dim), 2 * o.hidden_dim)

    def forward(self, inputs: Mapping[str, Any]) -> FeatureMaps:
        """Map points with known cells to feature maps.

        Args:
            inputs: ``points`` (B, N, 3) and ``index``, a dictionary map name -> (B, 1, N) integer cells; points outside
                the volume carry the number of cells and are pooled together in a cell that no map has. Other keys
                (``mask``) are not used.
        """
        o = self.options
        points, index = inputs["points"], inputs["index"]
        missing = [name for name in self.layout.maps if name not in index]
        if missing:
            raise ValueError(f"PatchLocalPoolPointnet: inputs['index'] lacks {missing}; see crop_inputs()")
        cells = torch.stack([index[name].reshape(points.shape[:2]) for name in self.layout.maps], dim=1)
        bins = bins_from_index(cells, self.layout, extra_cell=True)
        seen = local_coordinates(points, o.unit_size) if o.local_coord else points
        net = self.fc_pos(encode_position(seen, o.pos_encoding))
        features = pooled_features(net, self.blocks, self.fc_c, bins, o.scatter_type)
        return scatter_maps(features, bins, self.unet, self.unet3d)


class PatchLocalDecoder(nn.Module):
    """Local decoder for queries that come with their position in the volume (``simple_local_crop``).

    Args:
        options: see :class:`PatchDecoderOptions`; or give its fields as keywords.
    """

    def __init__(self, options: PatchDecoderOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(PatchDecoderOptions, fields, "PatchLocalDecoder") if options is None else options
        check_sample_mode(o.sample_mode)
        self.options = o
        self.fc_c = nn.ModuleList(nn.Linear(o.c_dim, o.hidden_size) for _ in range(o.n_blocks))
        self.fc_out = nn.Linear(o.hidden_size, 1)
        self.blocks = nn.ModuleList(ResnetBlockFC(o.hidden_size) for _ in range(o.n_blocks))
        self.fc_p = nn.Linear(position_channels(o.pos_encoding, o.dim), o.hidden_size)

    def forward(self, query: Mapping[str, Any], maps: Mapping[str, Tensor]) -> Tensor:
        """Map queries to logits (B, M).

        Args:
            query: ``p`` (B, M, 3) and ``p_n``, a dictionary map name -> normalised position: (B, M, 3) of a grid
                and (B, M, 2) of a plane.
            maps: feature maps of the same volume.
        """
        o = self.options
        # Positions are not clamped to the last thousandth of the box as in the fused sampler, hence grid_sample.
        corners = o.registration == "corners"
        sampled = [
            sample_normalized(query["p_n"][name], values, name, o.sample_mode, align_corners=corners)
            for name, values in maps.items()
        ]
        points = query["p"].to(self.fc_p.weight.dtype)
        seen = local_coordinates(points, o.unit_size) if o.local_coord else points
        net = self.fc_p(encode_position(seen, o.pos_encoding))
        return conditioned_mlp(net, torch.stack(sampled).sum(dim=0), self, o.leaky)


def crop_settings(data: Mapping[str, Any], encoder: Mapping[str, Any], *, whole_scene: bool = False) -> CropSettings:
    """Window geometry from a family configuration.

    The receptive field is 2**(levels + 2) cells, so a window of q cells needs q + field - 1, raised to a multiple of
    the U-Net's total pooling. ``whole_scene`` replaces q by the padded unit cube.

    Args:
        data: the ``data`` section: ``unit_size``, ``query_vol_size`` (cells), ``padding``.
        encoder: the encoder's options: ``unet3d_kwargs.num_levels`` or ``unet_kwargs.depth``.
        whole_scene: one window for everything.

    Raises:
        ValueError: ``unit_size`` or ``query_vol_size`` is missing, or the encoder has no U-Net.
    """
    unit, cells = data.get("unit_size"), data.get("query_vol_size")
    if unit is None or cells is None:
        raise ValueError("data: crop models need unit_size (side of a cell) and query_vol_size (cells)")
    field, multiple = 0, 1
    if encoder.get("unet"):
        field = 2 ** ((encoder.get("unet_kwargs") or {}).get("depth", 5) + 2)
        multiple = 2 ** ((encoder.get("unet_kwargs") or {}).get("depth", 5) - 1)
    if encoder.get("unet3d"):
        levels = (encoder.get("unet3d_kwargs") or {}).get("num_levels", 4)
        field, multiple = max(field, 2 ** (levels + 2)), max(multiple, 2 ** (levels - 1))
    if not field:
        raise ValueError("model.encoder_kwargs: crop models need unet or unet3d, which sets the halo of a window")
    if whole_scene:
        query_size = 1.0 + data.get("padding", 0.1)
        # The added part keeps 1.1 / 0.005 at 220 in floating point.
        wanted = math.floor(query_size / unit + 1e-6) + field - 1
    else:
        query_size = cells * unit
        wanted = cells + field - 1
    resolution = round_up(wanted, multiple)
    return CropSettings(unit, query_size, resolution * unit, resolution)


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


def window_volume(center: Tensor, size: float) -> Tensor:
    """Corners (2, 3) of the cube of side ``size`` around ``center`` (3,)."""
    return torch.stack((center - size / 2, center + size / 2))


def normalize_in_volume(points: Tensor, volume: Tensor) -> Tensor:
    """Position inside a volume, (p - lower) / (upper - lower); not clamped."""
    return (points - volume[0]) / (volume[1] - volume[0])


def crop_inputs(points: Tensor, volume: Tensor, layout: FeatureLayout) -> dict[str, Any]:
    """Prepare a cloud for :meth:`ConvolutionalOccupancyNetwork.encode` of a crop model.

    Args:
        points: (B, N, 3) metric coordinates.
        volume: (2, 3) corners of the input volume; lower inclusive, upper exclusive.
        layout: the encoder's layout.

    Returns:
        ``points``, ``index`` {map: (B, 1, N) int64} with the number of cells for points outside, and ``mask`` (B, N),
        true outside.
    """
    outside = ((points < volume[0]) | (points >= volume[1])).any(dim=-1)
    position = normalize_in_volume(points, volume)
    index = {}
    for name, cells in zip(layout.maps, layout.cells, strict=True):
        resolution = layout.grid_resolution if name == "grid" else layout.plane_resolution
        index[name] = crop_index(position, name, resolution).masked_fill(outside, cells).unsqueeze(1)
    return {"points": points, "index": index, "mask": outside}


def crop_index(position: Tensor, name: str, resolution: int) -> Tensor:
    """Cell of each position (B, N, 3) in map ``name``, first coordinate fastest; capped at the number of cells."""
    axes = AXES[name]
    steps = (position[..., axes] * resolution).long()
    strides = resolution ** torch.arange(len(axes), device=position.device)
    return (steps * strides).sum(dim=-1).clamp(max=resolution ** len(axes))


def crop_query(query: Tensor, volume: Tensor, layout: FeatureLayout) -> dict[str, Any]:
    """Prepare queries (B, M, 3) for a crop model whose maps cover ``volume`` (the input volume, corners (2, 3))."""
    position = normalize_in_volume(query, volume)
    return {"p": query, "p_n": {name: position[..., AXES[name]] for name in layout.maps}}
