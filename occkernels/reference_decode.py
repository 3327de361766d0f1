# SPDX-License-Identifier: MIT
"""The pure-PyTorch twins of the fused decoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from occkernels import reference  # not its names: it imports this module
from occkernels.decode_weights import ConditionalWeights, DecoderWeights, QueryBricks
from occkernels.decode_weights import fold_conditional_norm as fold_conditional_norm
from occkernels.layout import FeatureLayout


def decode(
    query: Tensor,
    weights: DecoderWeights,
    layout: FeatureLayout,
    *,
    planes: Tensor | None = None,
    grid: Tensor | None = None,
    bases: Tensor | None = None,
    basis_scale: Tensor | None = None,
    precision: str = "float32",
) -> Tensor:
    """See ``occkernels.decode``. Rounds whenever ``precision`` permits it and no gradient is recorded."""
    every = [query, planes, grid, bases, *weights.tensors()]
    wide = torch.float64 if any(t is not None and t.dtype == torch.float64 for t in every) else torch.float32
    query = query.to(wide)
    concat = weights.depth > 0 and weights.features != _channels(planes, grid)
    features = reference.sample_features(
        query,
        layout,
        planes=None if planes is None else planes.to(wide),
        grid=None if grid is None else grid.to(wide),
        bases=bases,
        basis_scale=basis_scale,
        reduce="concat" if concat else "sum",
    )

    rounded = _rounding(precision, every)

    def linear(pair: tuple[Tensor, Tensor], i: int, x: Tensor) -> Tensor:
        return F.linear(rounded(x), rounded(pair[0][i].to(wide)), pair[1][i].to(wide))

    net = F.linear(query, weights.fc_p[0].to(wide), weights.fc_p[1].to(wide))
    for i in range(weights.depth):
        net = net + linear(weights.fc_c, i, features)
        net = net + linear(weights.fc_1, i, F.relu(linear(weights.fc_0, i, F.relu(net))))
    net = F.leaky_relu(net, 0.2) if weights.leaky else F.relu(net)
    return net @ weights.fc_out[0].to(wide) + weights.fc_out[1].to(wide)


def _rounding(precision: str, tensors: Iterable[Tensor | None]) -> Callable[[Tensor], Tensor]:
    """What is done to the operands of the feature and block layers."""
    given = [tensor for tensor in tensors if tensor is not None]
    recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    if precision == "float32" or recorded or any(tensor.dtype == torch.float64 for tensor in given):
        return lambda x: x
    return _round_bf16 if precision == "bf16" else _round_tf32


def _round_bf16(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def _round_tf32(x: Tensor) -> Tensor:
    """To 10 mantissa bits, ties to even; NaN stays."""
    bits = x.contiguous().view(torch.int32)
    nearest = bits + 0xFFF + (bits >> 13 & 1) & ~0x1FFF
    return torch.where(x.isnan(), x, nearest.view(torch.float32))


def _channels(planes: Tensor | None, grid: Tensor | None) -> int:
    features = planes[:, 0] if planes is not None else grid
    assert features is not None
    return features.shape[1]


def decode_with_gradient(
    query: Tensor,
    weights: DecoderWeights,
    layout: FeatureLayout,
    *,
    planes: Tensor | None = None,
    grid: Tensor | None = None,
    bases: Tensor | None = None,
    basis_scale: Tensor | None = None,
    precision: str = "float32",
) -> tuple[Tensor, Tensor]:
    """See ``occkernels.decode_with_gradient``; ``precision`` has no effect."""

    def value(at: Tensor) -> Tensor:
        features = {"planes": planes, "grid": grid, "bases": bases, "basis_scale": basis_scale}
        return decode(at, weights, layout, **features, precision="float32")

    logits, pull = torch.func.vjp(value, query)[:2]
    return logits, pull(torch.ones_like(logits))[0]


def decode_bricks(
    bricks: QueryBricks,
    weights: DecoderWeights,
    layout: FeatureLayout,
    *,
    planes: Tensor | None = None,
    grid: Tensor | None = None,
    bases: Tensor | None = None,
    basis_scale: Tensor | None = None,
    precision: str = "float32",
) -> Tensor:
    """See ``occkernels.decode_bricks``."""
    steps = torch.cartesian_prod(*[torch.arange(8, device=bricks.corner.device)] * 3)  # (512, 3)
    nodes = bricks.corner[:, None] + steps
    query = (bricks.origin + bricks.spacing * nodes.double()).float()  # (K, 512, 3)

    def of_brick(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[bricks.shape]

    features = {"planes": of_brick(planes), "grid": of_brick(grid), "bases": of_brick(bases)}
    values = decode(query, weights, layout, **features, basis_scale=of_brick(basis_scale), precision=precision)
    bits = torch.arange(64, device=bricks.mask.device)
    wanted = (bricks.mask[:, :, None] >> bits & 1).flatten(1).bool()
    return torch.where(wanted, values, torch.nan)


def decode_conditional(
    query: Tensor,
    weights: ConditionalWeights,
    scale: Tensor,
    shift: Tensor,
    offset: Tensor | None = None,
    *,
    precision: str = "float32",
) -> Tensor:
    """See ``occkernels.decode_conditional``."""
    every = [query, scale, shift, *weights.tensors()]
    wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in every) else torch.float32
    rounded = _rounding(precision, [*every, offset])

    def active(i: int, x: Tensor, leaky: bool) -> Tensor:
        x = scale[:, i, None].to(wide) * x + shift[:, i, None].to(wide)
        return F.leaky_relu(x, 0.2) if leaky else F.relu(x)

    def linear(i: int, x: Tensor) -> Tensor:
        return F.linear(rounded(x), rounded(weights.layers[0][i].to(wide)), weights.layers[1][i].to(wide))

    net = F.linear(query.to(wide), weights.fc_p[0].to(wide), weights.fc_p[1].to(wide))
    if offset is not None:
        net = net + offset[:, None].to(wide)
    if weights.residual:
        for i in range(0, weights.count, 2):
            net = net + linear(i + 1, active(i + 1, linear(i, active(i, net, False)), False))
    else:
        for i in range(weights.count):
            net = linear(i, active(i, net, weights.leaky))
    net = active(weights.count, net, weights.leaky)
    return net @ weights.fc_out[0].to(wide) + weights.fc_out[1].to(wide)
