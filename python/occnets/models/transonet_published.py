# SPDX-License-Identifier: MIT
"""Encoder and decoder of TransONet as its code was published (Tonti and Amerini, GRAPP 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from occkernels import FeatureLayout, bin_points, scatter_planes
from occnets.models.blocks import encode_position, position_channels
from occnets.models.dynamic import basis_and_scale, change_of_basis
from occnets.models.dynamic_encoders import (
    DynamicLocalDecoder,
    DynamicPoolOptions,
    EncodedDecoderOptions,
    encoding_name,
)
from occnets.models.encoders import check_scatter_type, pooled_features
from occnets.models.options import make_options
from occnets.models.transonet_blocks import PlaneTransformer, SineBlock, SineLayer, SinePlanePredictor

_RESOLUTION = 32  # = channels = hidden width: the published code ties them all, and nothing else runs in it
_HEADS = 8
_SCORERS = 3


class PublishedEncoder(nn.Module):
    """Points to one plane through a vision transformer (``dynamic_pointnet_local_pool`` of TransONet's code).

    Points are pooled on ``n_channels`` planes chosen per cloud, as in DPConvONet. Then the planes' matrices (inverse
    rotations and normalisers) are *added up*, and all points are scattered once through the sum. That is no rotation,
    but it is the same fixed linear map for points and queries, and released weights depend on it.

    What the published code has and this has not, none of it visible in the outputs of a trained network:

    * Token pruning: it is commented out there, so ``score_predictor`` only carries weights.
    * The teacher is random, never trained and never loaded; distilling from it pulls the network towards a random
      function. It is kept for its weights and is not trained; train on :meth:`~occnets.models.transonet.
      TransONet.auxiliary_losses` plainly.
    * In training its attention adds 1e-6 to the softmax, which moves values by about 1e-4.
    * Its meshes lie half a cell off, which is the published mesh extraction's doing.

    ``criterion.teacher_model`` is the teacher again, under the second name it has in checkpoints.

    Args:
        options: see :class:`occnets.models.dynamic_encoders.DynamicPoolOptions`; or give its fields as keywords.

    Raises:
        ValueError: resolution, ``c_dim`` or ``hidden_dim`` is not 32, a U-Net is asked for, or an option is unknown.
    """

    def __init__(self, options: DynamicPoolOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(DynamicPoolOptions, fields, "PublishedEncoder") if options is None else options
        check_scatter_type(o.scatter_type)
        _check_published(o)
        self.options = o
        common = {"plane_resolution": o.plane_resolution, "padding": o.padding, "registration": o.registration}
        self.layout = FeatureLayout(dynamic_planes=o.n_channels, **common)
        self.merged_layout = FeatureLayout(dynamic_planes=1, **common)
        channels = position_channels(encoding_name(o.pos_encoding), o.dim)
        self.fc_pos = nn.Linear(channels, 2 * o.hidden_dim)
        self.blocks = nn.ModuleList(SineBlock(2 * o.hidden_dim, o.hidden_dim) for _ in range(o.n_blocks))
        self.fc_c = nn.Linear(o.hidden_dim, o.c_dim)
        self.fc_plane_net = SinePlanePredictor(channels, o.hidden_dim)
        self.plane_params = nn.ModuleList(nn.Linear(o.hidden_dim, 3) for _ in range(o.n_channels))
        self.plane_params_hdim = nn.ModuleList(nn.Linear(3, o.c_dim) for _ in range(o.n_channels))
        self.actvn = SineLayer(o.hidden_dim, o.hidden_dim, is_first=True)
        self.transformer = PlaneTransformer(o.plane_resolution, o.c_dim, _HEADS, _SCORERS)
        self.teacher_model = PlaneTransformer(o.plane_resolution, o.c_dim, None).requires_grad_(False)
        self.criterion = nn.Module()
        self.criterion.teacher_model = self.teacher_model

    def forward(self, points: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """Map points (B, N, 3) to features; of sample b only the first ``lengths[b]`` points count.

        Returns:
            ``planes`` (B, 1, C, R, R), ``c_mat`` (B, 1, 4, 3), ``normals`` (B, L, 3).
        """
        o = self.options
        encoded = encode_position(points, encoding_name(o.pos_encoding))
        with torch.autocast(points.device.type, enabled=False):
            net = self.actvn(self.fc_plane_net(encoded, lengths))
            raw = torch.stack([layer(net) for layer in self.plane_params], dim=1)
        normals, c_mat = change_of_basis(raw)
        bases, scale = basis_and_scale(c_mat)
        bins = bin_points(points, self.layout, bases=bases, basis_scale=scale, lengths=lengths)
        features = pooled_features(self.fc_pos(encoded), self.blocks, self.fc_c, bins, o.scatter_type)
        merged = c_mat.sum(dim=1, keepdim=True)
        bases, scale = basis_and_scale(merged)
        bins = bin_points(points, self.merged_layout, bases=bases, basis_scale=scale, lengths=lengths)
        plane = scatter_planes(features, bins, reduce="mean")[:, 0]
        filled = scatter_planes(features.new_ones(*features.shape[:2], 1), bins, reduce="max")[:, 0]
        offset = sum(layer(n) for layer, n in zip(self.plane_params_hdim, raw.unbind(1), strict=True))
        plane = self.transformer(torch.addcmul(plane, filled, offset[..., None, None]))
        plane = plane.contiguous(memory_format=torch.channels_last)  # as the samplers read it
        return {"planes": plane.unsqueeze(1), "c_mat": merged, "normals": normals}


def _check_published(options: DynamicPoolOptions) -> None:
    for name in ("plane_resolution", "c_dim", "hidden_dim"):
        if getattr(options, name) != _RESOLUTION:
            raise ValueError(
                f"PublishedEncoder: {name} must be {_RESOLUTION}, the only value the published TransONet runs with, "
                f"got {getattr(options, name)}; 'transonet' and 'transonet-light' take others"
            )
    if options.unet:
        raise ValueError(
            "PublishedEncoder: the published TransONet has no U-Net; set encoder_kwargs.unet to false, or use method "
            "dynamic_planes_conv_onet for a DPConvONet"
        )
    if options.n_channels < 1:
        raise ValueError(f"PublishedEncoder: n_channels must be at least 1, got {options.n_channels}")


class PublishedDecoder(DynamicLocalDecoder):
    """DPConvONet's decoder with sines (``dynamic_simple_local`` of TransONet's code). ``actvn_up`` is never used there.

    Args:
        options: see :class:`occnets.models.dynamic_encoders.EncodedDecoderOptions`; ``leaky`` has no effect.
    """

    def __init__(self, options: EncodedDecoderOptions | None = None, **fields: Any) -> None:
        super().__init__(options, **fields)
        hidden = self.options.hidden_size
        self.blocks = nn.ModuleList(SineBlock(hidden) for _ in range(self.options.n_blocks))
        self.actvn_up = SineLayer(6, 6).requires_grad_(False)
        self.actvn_c = SineLayer(hidden, hidden)

    def forward(self, query: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
        """Map queries (B, M, 3) and features to logits (B, M)."""
        features = self.sample(query, maps)
        net = self.fc_p(encode_position(query, encoding_name(self.options.pos_encoding)))
        for linear, block in zip(self.fc_c, self.blocks, strict=True):
            net = block(net + linear(features))
        return self.fc_out(self.actvn_c(net)).squeeze(-1)
