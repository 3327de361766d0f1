# SPDX-License-Identifier: MIT
"""The forward pass of grid models for training: the model's own layers, without its dense intermediate buffers.

Inference wants the whole feature grid; a training step reads it at a few thousand queries. Two identities save half
of the step on a CPU (and change results only by rounding):

* points are sorted by cell once, and pooling works on the occupied cells instead of on all R^3;
* the last layer of ``UNet3DLight`` is linear and interpolation is linear, so that coarse features are gathered,
  weighted and then mapped, and the u^3-times larger output grid is never made.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from occnets.models.blocks import cell_position
from occnets.models.decoders import LocalDecoder, conditioned_mlp
from occnets.models.encoders import LocalPoolPointnet
from occnets.models.unet3d_light import UNet3DLight


def why_not_fast(model: nn.Module) -> str | None:
    """Why ``fast_logits`` cannot compute this model, or None when it can."""
    encoder, decoder = getattr(model, "encoder", None), getattr(model, "decoder", None)
    if not isinstance(encoder, LocalPoolPointnet) or not isinstance(decoder, LocalDecoder):
        return "the encoder is not pointnet_local_pool or the decoder not simple_local"
    if encoder.layout.maps != ("grid",):
        return f"the feature maps are {encoder.layout.maps}, not one grid"
    if not isinstance(encoder.unet3d, UNet3DLight) or encoder.unet3d.options.upscale != 2:
        return "the U-Net is not UNet3DLight with upscale 2"
    if decoder.options.sample_mode != "bilinear":
        return f"sample_mode is {decoder.options.sample_mode}"
    return None


def _unit(points: Tensor, padding: float) -> Tensor:
    """Coordinates in [0, 1) of the grid, with the family's clamping (ConvONet ``normalize_3d_coordinate``)."""
    scaled = points / (1.0 + padding + 1e-3) + 0.5
    return torch.where(scaled >= 1.0, 1.0 - 1e-3, scaled).clamp(min=0.0)


def _scattered_grid(encoder: LocalPoolPointnet, points: Tensor) -> Tensor:
    """Mean point feature per cell, (B, C, R, R, R), channels-last; equals the encoder's grid before its U-Net."""
    options, side = encoder.options, encoder.layout.grid_resolution
    batch, count = points.shape[:2]
    cell = (_unit(points, options.padding) * side).long().clamp(max=side - 1)
    key = (cell[..., 2] * side + cell[..., 1]) * side + cell[..., 0]
    key = key + side**3 * torch.arange(batch, device=points.device)[:, None]
    key, order = key.flatten().sort()
    occupied, segment, lengths = torch.unique_consecutive(key, return_inverse=True, return_counts=True)

    seen = cell_position(points, side, options.padding) if options.local_coord else points
    net = encoder.blocks[0](encoder.fc_pos(seen.flatten(0, 1)[order]))
    for block in list(encoder.blocks)[1:]:
        pooled = _segments(net, lengths, options.scatter_type)
        net = block(torch.cat((net, pooled.index_select(0, segment)), dim=1))
    mean = _segments(encoder.fc_c(net), lengths, "mean")
    grid = mean.new_zeros(batch * side**3, mean.shape[1]).index_copy(0, occupied, mean)
    return grid.view(batch, side, side, side, -1).permute(0, 4, 1, 2, 3)


def _segments(values: Tensor, lengths: Tensor, reduce: str) -> Tensor:
    wide = values if values.dtype == torch.float64 else values.float()
    with torch.autocast(values.device.type, enabled=False):
        return torch.segment_reduce(wide, reduce, lengths=lengths, axis=0, unsafe=True)


def _sampled(unet: UNet3DLight, coarse: Tensor, query: Tensor, padding: float, registration: str) -> Tensor:
    """Features (B, M, C) of the refined grid at the queries, from the coarse features (B, C', R, R, R).

    Of the two nodes next to a query along an axis one has an even and one an odd index, so that of its eight corner
    nodes exactly one belongs to each of the eight sub-voxels, and each sub-voxel has its own rows of the last layer.
    """
    batch, _, side = coarse.shape[:3]
    fine = 2 * side
    t = _unit(query, padding).flatten(0, 1)
    u = t * (fine - 1) if registration == "corners" else (t * fine - 0.5).clamp(0, fine - 1)
    low = u.floor().clamp(0, fine - 2)
    fraction, low = u - low, low.long()
    odd_low = low % 2 == 1
    weight_odd = torch.where(odd_low, 1 - fraction, fraction)
    # (B * M, 3, 2): coarse index and weight of the even and of the odd node along x, y, z.
    index = torch.stack(((low + 1) // 2, low // 2), dim=-1)
    weight = torch.stack((1 - weight_odd, weight_odd), dim=-1)
    x, y, z = index.unbind(1)
    row = (z[:, :, None, None] * side + y[:, None, :, None]) * side + x[:, None, None, :]
    start = side**3 * torch.arange(batch, device=query.device).repeat_interleave(query.shape[1])
    row = row.flatten(1) + start[:, None]
    wx, wy, wz = weight.unbind(1)
    weights = (wz[:, :, None, None] * wy[:, None, :, None] * wx[:, None, None, :]).flatten(1)  # (B * M, 8)

    rows = coarse.permute(0, 2, 3, 4, 1).reshape(batch * side**3, -1)
    gathered = rows.index_select(0, row.flatten()).view(*row.shape, -1) * weights[..., None].to(rows.dtype)
    last = unet.final_conv
    channels = last.out_channels // 8
    matrix = last.weight.view(8, channels, -1).transpose(1, 2).reshape(-1, channels)  # (8 * C', C)
    result = gathered.flatten(1) @ matrix
    if last.bias is not None:
        result = result + weights.to(result.dtype) @ last.bias.view(8, channels)
    return result.view(batch, query.shape[1], channels)


def fast_logits(model: nn.Module, query: Tensor, points: Tensor) -> Tensor:
    """Logits of ``model(query, points)`` for models without a ``why_not_fast``.

    Args:
        model: the network.
        query: (B, M, 3).
        points: (B, N, 3).

    Returns:
        (B, M).
    """
    encoder, decoder = model.encoder, model.decoder
    assert isinstance(encoder, LocalPoolPointnet) and isinstance(decoder, LocalDecoder)
    assert isinstance(encoder.unet3d, UNet3DLight)
    coarse = encoder.unet3d.trunk(_scattered_grid(encoder, points))
    features = _sampled(encoder.unet3d, coarse, query, decoder.options.padding, decoder.options.registration)
    return conditioned_mlp(decoder.fc_p(query), features, decoder, decoder.options.leaky)
