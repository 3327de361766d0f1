# SPDX-License-Identifier: MIT
"""Encoders and decoders on planes chosen per cloud, alone or beside the canonical ones (Lionar et al., WACV 2021).

Features are a dictionary: ``planes`` (B, P, C, R, R), canonical planes first; ``c_mat`` (B, L, 4, 3) of the L dynamic
planes, see :func:`occnets.models.dynamic.change_of_basis`; ``normals`` (B, P, 3), unit normals of all planes, for
:func:`occnets.models.dynamic.similarity_loss`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from occkernels import Bins, FeatureLayout, bin_points, sample_features, scatter_planes
from occnets.models.blocks import ResnetBlockFC, encode_position, position_channels
from occnets.models.decoders import DecoderOptions, LocalDecoder, check_sample_mode, conditioned_mlp
from occnets.models.dynamic import PlanePredictor, basis_and_scale, change_of_basis
from occnets.models.encoders import LocalPoolOptions, LocalPoolPointnet, check_scatter_type, pooled_features
from occnets.models.maps import PLANES, build_unet, map_names
from occnets.models.options import make_options


def encoding_name(enabled: bool) -> str:
    """Point encoding of the family's switch ``pos_encoding``; it is applied to raw coordinates."""
    return "sin_cos" if enabled else "linear"


@dataclasses.dataclass(frozen=True)
class CanonicalOptions(LocalPoolOptions):
    """Options of :class:`EncodedLocalPoolPointnet`: those of ConvONet's encoder and one more.

    Attributes:
        pos_encoding: sines and cosines of ten octaves of the points instead of the points.
    """

    pos_encoding: bool = False


class EncodedLocalPoolPointnet(LocalPoolPointnet):
    """ConvONet's encoder with positional encoding (``local_pool`` of DPConvONet).

    Args:
        options: see :class:`CanonicalOptions`; or give its fields as keywords.

    Raises:
        ValueError: an option is unknown, or a grid is asked for.
    """

    def __init__(self, options: CanonicalOptions | None = None, **fields: Any) -> None:
        o = make_options(CanonicalOptions, fields, "EncodedLocalPoolPointnet") if options is None else options
        if "grid" in map_names(o.plane_type, "EncodedLocalPoolPointnet"):
            raise ValueError(
                f"EncodedLocalPoolPointnet: plane_type holds planes only, got {o.plane_type!r}; for grids use method "
                f"conv_onet"
            )
        super().__init__(dataclasses.replace(o, dim=position_channels(encoding_name(o.pos_encoding), o.dim)))
        self.options = o

    def point_features(self, points: Tensor, bins: Bins) -> Tensor:
        """Features of each point, (B, N, c_dim), before they are scattered."""
        if not self.options.pos_encoding:
            return super().point_features(points, bins)
        net = self.fc_pos(encode_position(points, "sin_cos"))
        return pooled_features(net, self.blocks, self.fc_c, bins, self.options.scatter_type)


@dataclasses.dataclass(frozen=True)
class DynamicPoolOptions:
    """Options of :class:`DynamicLocalPoolPointnet`; names and defaults are the family's unless said.

    Attributes:
        c_dim: channels of the planes.
        dim: coordinates per point.
        padding: relative widening of the unit cube.
        hidden_dim: channels inside the point network and the plane predictor.
        scatter_type: pooling inside a cell, ``"max"`` or ``"mean"``.
        unet: pass every plane through one shared 2-D U-Net.
        unet_kwargs: its options, :class:`occnets.models.maps.UNet2DOptions`.
        plane_resolution: cells along one axis of a plane.
        n_blocks: residual blocks.
        pos_encoding: sines and cosines of ten octaves of the points instead of the points.
        n_channels: number of planes; the hybrid encoder's first three are the canonical ones.
        plane_net: name of the plane predictor; there is one.
        registration: own extension: where the samplers place the planes' values, ``"corners"`` or ``"cells"``.
    """

    c_dim: int = 128
    dim: int = 3
    padding: float = 0.1
    hidden_dim: int = 128
    scatter_type: str = "max"
    unet: bool = False
    unet_kwargs: Mapping[str, Any] | None = None
    plane_resolution: int = 64
    n_blocks: int = 5
    pos_encoding: bool = False
    n_channels: int = 3
    plane_net: str = "FCPlanenet"
    registration: str = "corners"


class DynamicLocalPoolPointnet(nn.Module):
    """PointNet with pooling inside the cells of planes it chooses itself (``dynamic_pointnet_local_pool``).

    Args:
        options: see :class:`DynamicPoolOptions`; or give its fields as keywords.

    Raises:
        ValueError: an option is unknown or out of range, or there is no plane left to choose.
    """

    canonical: tuple[str, ...] = ()

    def __init__(self, options: DynamicPoolOptions | None = None, **fields: Any) -> None:
        super().__init__()
        name = type(self).__name__
        o = make_options(DynamicPoolOptions, fields, name) if options is None else options
        check_scatter_type(o.scatter_type)
        dynamic = o.n_channels - len(self.canonical)
        if dynamic < 1:
            raise ValueError(
                f"{name}: n_channels counts all planes and must be at least {len(self.canonical) + 1}, "
                f"got {o.n_channels}"
            )
        if o.plane_net != "FCPlanenet":
            raise ValueError(f"{name}: plane_net must be 'FCPlanenet', got {o.plane_net!r}")
        self.options = o
        self.layout = FeatureLayout(
            planes=self.canonical,
            dynamic_planes=dynamic,
            plane_resolution=o.plane_resolution,
            padding=o.padding,
            registration=o.registration,
        )
        channels = position_channels(encoding_name(o.pos_encoding), o.dim)
        self.fc_pos = nn.Linear(channels, 2 * o.hidden_dim)
        self.blocks = nn.ModuleList(ResnetBlockFC(2 * o.hidden_dim, o.hidden_dim) for _ in range(o.n_blocks))
        self.fc_c = nn.Linear(o.hidden_dim, o.c_dim)
        self.fc_plane_net = PlanePredictor(channels, o.hidden_dim)
        self.plane_params = nn.ModuleList(nn.Linear(o.hidden_dim, 3) for _ in range(dynamic))
        self.plane_params_hdim = nn.ModuleList(nn.Linear(3, o.c_dim) for _ in range(dynamic))
        self.unet = build_unet(o.unet, o.c_dim, o.unet_kwargs)

    def forward(self, points: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """Map points (B, N, 3) to features; of sample b only the first ``lengths[b]`` points count."""
        o = self.options
        encoded = encode_position(points, encoding_name(o.pos_encoding))
        raw = self.raw_normals(encoded, lengths)
        normals, c_mat = change_of_basis(raw)
        bases, scale = basis_and_scale(c_mat)
        bins = bin_points(points, self.layout, bases=bases, basis_scale=scale, lengths=lengths)
        features = pooled_features(self.fc_pos(encoded), self.blocks, self.fc_c, bins, o.scatter_type)
        planes = self.refine(self.scatter(features, bins, raw), c_mat)
        return {"planes": planes, "c_mat": c_mat, "normals": self.all_normals(normals)}

    def raw_normals(self, encoded: Tensor, lengths: Tensor | None) -> Tensor:
        """Normals of the dynamic planes as predicted, (B, L, 3), of any length."""
        # Never in half precision: a slightly other plane puts points into other cells.
        with torch.autocast(encoded.device.type, enabled=False):
            net = torch.relu(self.fc_plane_net(encoded, lengths))
            return torch.stack([layer(net) for layer in self.plane_params], dim=1)

    def scatter(self, features: Tensor, bins: Bins, raw: Tensor) -> Tensor:
        """Mean of the point features (B, N, C) per cell, and in filled cells of dynamic planes their own offset.

        Returns:
            (B, P, C, R, R), empty cells 0.
        """
        planes = scatter_planes(features, bins, reduce="mean")
        # Adding to every point before the mean, as the original does, is adding to every cell that has a point.
        filled = scatter_planes(features.new_ones(*features.shape[:2], 1), bins, reduce="max")
        offsets = torch.stack([layer(n) for layer, n in zip(self.plane_params_hdim, raw.unbind(1), strict=True)], dim=1)
        offsets = torch.cat((offsets.new_zeros(len(raw), len(self.canonical), offsets.shape[-1]), offsets), dim=1)
        return torch.addcmul(planes, filled, offsets[..., None, None])

    def refine(self, planes: Tensor, c_mat: Tensor) -> Tensor:
        """Planes (B, P, C, R, R) after the U-Net."""
        return planes if self.unet is None else self.unet(planes.flatten(0, 1)).unflatten(0, planes.shape[:2])

    def all_normals(self, normals: Tensor) -> Tensor:
        """Unit normals of all planes, canonical ones first (as e1, e2, e3)."""
        return normals


class HybridLocalPoolPointnet(DynamicLocalPoolPointnet):
    """The canonical planes xz, xy, yz and chosen ones behind them (``hybrid_pointnet_local_pool``).

    Args:
        options: see :class:`DynamicPoolOptions`; ``n_channels`` counts the canonical planes.
    """

    canonical = PLANES

    def all_normals(self, normals: Tensor) -> Tensor:
        """Unit normals of all planes; the canonical ones stand for their three axes in the order x, y, z."""
        axes = torch.eye(3, dtype=normals.dtype, device=normals.device).expand(len(normals), 3, 3)
        return torch.cat((axes, normals), dim=1)


@dataclasses.dataclass(frozen=True)
class EncodedDecoderOptions(DecoderOptions):
    """Options of the decoders here: those of ConvONet's decoder and one more.

    Attributes:
        pos_encoding: positional encoding of the query that enters the network; sampling is not affected.
    """

    pos_encoding: bool = False


class EncodedLocalDecoder(LocalDecoder):
    """ConvONet's decoder with positional encoding (``simple_local`` of DPConvONet).

    Args:
        options: see :class:`EncodedDecoderOptions`; or give its fields as keywords.
    """

    def __init__(self, options: EncodedDecoderOptions | None = None, **fields: Any) -> None:
        o = make_options(EncodedDecoderOptions, fields, type(self).__name__) if options is None else options
        super().__init__(dataclasses.replace(o, dim=position_channels(encoding_name(o.pos_encoding), o.dim)))
        self.options = o

    def forward(self, query: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
        """Map queries (B, M, 3) and features to logits (B, M)."""
        embedded = self.fc_p(encode_position(query, encoding_name(self.options.pos_encoding)))
        return conditioned_mlp(embedded, self.sample(query, maps), self, self.options.leaky)


class DynamicLocalDecoder(EncodedLocalDecoder):
    """Samples planes through the cloud's own projections, sums and runs the MLP (``dynamic_simple_local``).

    Args:
        options: see :class:`EncodedDecoderOptions`; ``sample_mode`` must be ``"bilinear"``.
    """

    canonical: tuple[str, ...] = ()

    def __init__(self, options: EncodedDecoderOptions | None = None, **fields: Any) -> None:
        super().__init__(options, **fields)
        check_sample_mode(self.options.sample_mode, ("bilinear",))

    def sample(self, query: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
        """Features of all planes at the queries, (B, M, C), or (B, M, P * C) with ``concat_feat``."""
        layout, bases, scale = self.projection(maps)
        reduce = "concat" if self.options.concat_feat else "sum"
        return sample_features(query, layout, planes=maps["planes"], bases=bases, basis_scale=scale, reduce=reduce)

    def projection(self, maps: Mapping[str, Tensor]) -> tuple[FeatureLayout, Tensor, Tensor]:
        """Layout, ``bases`` (B, L, 3, 3) and ``basis_scale`` (B, L) of features, as the operators take them."""
        planes = maps["planes"]
        layout = FeatureLayout(
            planes=self.canonical,
            dynamic_planes=planes.shape[1] - len(self.canonical),
            plane_resolution=planes.shape[-1],
            padding=self.options.padding,
            registration=self.options.registration,
        )
        return layout, *basis_and_scale(maps["c_mat"])


class HybridLocalDecoder(DynamicLocalDecoder):
    """Decoder of the canonical planes and the chosen ones behind them (``hybrid_simple_local``).

    Args:
        options: see :class:`EncodedDecoderOptions`; ``sample_mode`` must be ``"bilinear"``.
    """

    canonical = PLANES
