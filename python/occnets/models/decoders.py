# SPDX-License-Identifier: MIT
"""Decoders: occupancy logits at query points from feature maps or point features (Peng et al. 2020, section 3.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from occkernels import sample_features
from occnets.models.blocks import ResnetBlockFC
from occnets.models.maps import PLANES, layout_of, stack_planes
from occnets.models.options import make_options


@dataclasses.dataclass(frozen=True)
class DecoderOptions:
    """Options of :class:`LocalDecoder`; names and defaults are the family's unless said.

    Attributes:
        dim: coordinates per query.
        c_dim: channels of one feature map.
        hidden_size: channels of the residual blocks.
        n_blocks: residual blocks.
        leaky: leaky ReLU (0.2) instead of ReLU before the last layer.
        sample_mode: ``"bilinear"`` (trilinear in grids) or ``"nearest"``.
        padding: relative widening of the unit cube.
        concat_feat: own extension: concatenate the features of the maps (in the order xz, xy, yz, grid) instead of
            adding them; ``fc_c`` then takes ``c_dim * num_maps`` channels.
        num_maps: number of maps, needed by ``concat_feat`` only.
        registration: own extension, as in :class:`occnets.models.encoders.LocalPoolOptions`.
        position: own extension: false hides the query's coordinates from the network, which then sees features only,
            and so says the same of the same surroundings wherever they are. ``fc_p.weight`` is zero and stays so.
    """

    dim: int = 3
    c_dim: int = 128
    hidden_size: int = 256
    n_blocks: int = 5
    leaky: bool = False
    sample_mode: str = "bilinear"
    padding: float = 0.1
    concat_feat: bool = False
    num_maps: int = 1
    registration: str = "corners"
    position: bool = True


def check_sample_mode(sample_mode: str, known: tuple[str, ...] = ("bilinear", "nearest")) -> None:
    """Refuse an unknown ``sample_mode``.

    Raises:
        ValueError: with the accepted names.
    """
    if sample_mode not in known:
        raise ValueError(f"sample_mode must be one of {', '.join(known)}, got {sample_mode!r}")


def conditioned_mlp(net: Tensor, features: Tensor, decoder: nn.Module, leaky: bool) -> Tensor:
    """The decoder network: before each block the features are added through that block's own linear layer.

    Args:
        net: (B, M, hidden) embedded queries.
        features: (B, M, C) features at the queries.
        decoder: module with ``fc_c``, ``blocks`` and ``fc_out``.
        leaky: leaky ReLU (0.2) before the last layer.

    Returns:
        Logits (B, M).
    """
    for linear, block in zip(decoder.fc_c, decoder.blocks, strict=True):
        net = block(net + linear(features))
    return decoder.fc_out(functional.leaky_relu(net, 0.2) if leaky else functional.relu(net)).squeeze(-1)


class LocalDecoder(nn.Module):
    """Samples all maps at the query, sums (or concatenates) and runs the MLP (``simple_local``).

    Args:
        options: see :class:`DecoderOptions`; or give its fields as keywords.
    """

    def __init__(self, options: DecoderOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(DecoderOptions, fields, "LocalDecoder") if options is None else options
        check_sample_mode(o.sample_mode)
        self.options = o
        channels = o.c_dim * o.num_maps if o.concat_feat else o.c_dim
        self.fc_c = nn.ModuleList(nn.Linear(channels, o.hidden_size) for _ in range(o.n_blocks))
        self.fc_p = nn.Linear(o.dim, o.hidden_size)
        if not o.position:
            nn.init.zeros_(self.fc_p.weight).requires_grad_(False)
        self.blocks = nn.ModuleList(ResnetBlockFC(o.hidden_size) for _ in range(o.n_blocks))
        self.fc_out = nn.Linear(o.hidden_size, 1)

    def forward(self, query: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
        """Map queries (B, M, 3) and feature maps to logits (B, M)."""
        return conditioned_mlp(self.fc_p(query), self.sample(query, maps), self, self.options.leaky)

    def sample(self, query: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
        """Features of all maps at the queries, (B, M, C), or (B, M, maps * C) with ``concat_feat``."""
        o = self.options
        reduce = "concat" if o.concat_feat else "sum"
        layout = layout_of(maps, o.padding, o.registration)
        if o.sample_mode == "nearest":
            return _sample_nearest(query, maps, o)
        return sample_features(query, layout, planes=stack_planes(maps), grid=maps.get("grid"), reduce=reduce)


def _sample_nearest(query: Tensor, maps: Mapping[str, Tensor], options: DecoderOptions) -> Tensor:
    """Value of the nearest node of each map; an option of the family that no released model uses."""
    sampled = []
    for name in (*PLANES, "grid"):
        if name not in maps:
            continue
        epsilon = 1e-3 if name == "grid" else 1e-5
        position = (query / (1.0 + options.padding + epsilon) + 0.5).clamp(0.0, 1.0 - epsilon)
        corners = options.registration == "corners"
        sampled.append(sample_normalized(position, maps[name], name, "nearest", align_corners=corners))
    return torch.cat(sampled, dim=-1) if options.concat_feat else torch.stack(sampled).sum(dim=0)


AXES = {"xz": (0, 2), "xy": (0, 1), "yz": (1, 2), "grid": (0, 1, 2)}
"""Coordinates each map reads; the first one runs along the last tensor axis."""


def sample_normalized(
    position: Tensor, values: Tensor, name: str, mode: str = "bilinear", *, align_corners: bool = True
) -> Tensor:
    """Sample one map at positions that are already normalised, border values continued outside.

    Args:
        position: (B, M, 3) with [0, 1] spanning the map; for a plane also (B, M, 2), already reduced to its axes.
        values: (B, C, R, R) or (B, C, R, R, R).
        name: the map's name.
        mode: ``"bilinear"`` or ``"nearest"``.
        align_corners: node i lies at i / (R - 1); otherwise at (i + 0.5) / R.

    Returns:
        (B, M, C).
    """
    if position.shape[-1] == 3:
        position = position[..., AXES[name]]
    where = 2.0 * position.to(values.dtype) - 1.0
    where = where[:, :, None, None] if name == "grid" else where[:, :, None]
    sampled = functional.grid_sample(values, where, mode=mode, padding_mode="border", align_corners=align_corners)
    return sampled.flatten(2).transpose(1, 2)


@dataclasses.dataclass(frozen=True)
class PointDecoderOptions:
    """Options of :class:`LocalPointDecoder`.

    Attributes:
        sample_mode: ``"gaussian"`` for weights exp(-(d + 1e-5)**2 / gaussian_val**2), any other name for
            1 / (d + 1e-5).
        gaussian_val: width of the Gaussian, in the unit of the coordinates; needed by ``"gaussian"``.
        chunk: queries treated at once; a pure memory limit, results do not depend on it.
    """

    dim: int = 3
    c_dim: int = 128
    hidden_size: int = 256
    n_blocks: int = 5
    leaky: bool = False
    sample_mode: str = "gaussian"
    gaussian_val: float | None = None
    padding: float = 0.1
    chunk: int = 10_000


class LocalPointDecoder(nn.Module):
    """Decoder on point features: distance-weighted mean of all of them (``simple_local_point``, PointConv baseline).

    Weights are normalised without an epsilon, as in the family: a query far from all points (more than about ten times
    ``gaussian_val``) divides zero by zero and gives NaN.

    Args:
        options: see :class:`PointDecoderOptions`; or give its fields as keywords.
    """

    def __init__(self, options: PointDecoderOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(PointDecoderOptions, fields, "LocalPointDecoder") if options is None else options
        if o.sample_mode == "gaussian" and not o.gaussian_val:
            raise ValueError(
                f"LocalPointDecoder: sample_mode 'gaussian' needs a positive gaussian_val, got {o.gaussian_val!r}"
            )
        self.options = o
        self.fc_c = nn.ModuleList(nn.Linear(o.c_dim, o.hidden_size) for _ in range(o.n_blocks))
        self.fc_p = nn.Linear(o.dim, o.hidden_size)
        self.blocks = nn.ModuleList(ResnetBlockFC(o.hidden_size) for _ in range(o.n_blocks))
        self.fc_out = nn.Linear(o.hidden_size, 1)

    def forward(self, query: Tensor, points: Mapping[str, Tensor]) -> Tensor:
        """Map queries (B, M, 3) to logits (B, M).

        Args:
            query: (B, M, 3).
            points: ``points`` (B, N, 3) and their ``features`` (B, N, C), the output of the PointNet++ encoder.
        """
        chunks = query.split(self.options.chunk, dim=1)
        features = torch.cat([self.weighted_mean(c, points["points"], points["features"]) for c in chunks], dim=1)
        return conditioned_mlp(self.fc_p(query), features, self, self.options.leaky)

    def weighted_mean(self, query: Tensor, points: Tensor, features: Tensor) -> Tensor:
        """Distance-weighted mean of the point features at each query, (B, M, C)."""
        o = self.options
        distance = torch.cdist(query, points, compute_mode="donot_use_mm_for_euclid_dist") + 1e-5
        weight = torch.exp(-(distance**2) / o.gaussian_val**2) if o.sample_mode == "gaussian" else 1.0 / distance
        return (weight / weight.sum(dim=2, keepdim=True)) @ features
