# SPDX-License-Identifier: MIT
"""The torch operators behind ``occkernels.decode``. They have no derivatives: training runs the unfused composition.

Tensors are "physical": planes (B, P, R, R, C), grid (B, R, R, R, C), packed weights as one vector. ``layout`` is
FeatureLayout.spec() without the padding, then 1 to concatenate maps; ``sizes`` are hidden channels and depth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from occkernels._native import call, dtype_code
from occkernels._registry import define

PRECISIONS = {"float32": 0, "tf32": 1, "bf16": 2}

_Spec = tuple[int, int, int, int, bool, float]


def _dense(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _spec(layout: list[int], padding: float) -> _Spec:
    return (layout[0], layout[1], layout[2], layout[3], bool(layout[4]), padding)


def _features(planes: Tensor | None, grid: Tensor | None) -> Tensor:
    features = grid if planes is None else planes
    assert features is not None
    return features


def _decode_fake(
    planes: Tensor | None,
    grid: Tensor | None,
    query: Tensor,
    bases: Tensor | None,
    scale: Tensor | None,
    weights: Tensor,
    reversed_weights: Tensor | None,
    sizes: list[int],
    leak: float,
    layout: list[int],
    padding: float,
    precision: int,
) -> tuple[Tensor, Tensor]:
    gradient = (0,) if reversed_weights is None else tuple(query.shape)
    return query.new_empty(query.shape[:2]), query.new_empty(gradient)


def _decode_native(
    planes: Tensor | None,
    grid: Tensor | None,
    query: Tensor,
    bases: Tensor | None,
    scale: Tensor | None,
    weights: Tensor,
    reversed_weights: Tensor | None,
    sizes: list[int],
    leak: float,
    layout: list[int],
    padding: float,
    precision: int,
) -> tuple[Tensor, Tensor]:
    features = _features(planes, grid)
    tensors = _dense(planes, grid, query, bases, scale, weights, reversed_weights)
    logits, gradient = query.new_empty(query.shape[:2]), None
    if reversed_weights is not None:
        gradient = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if logits.numel():
        counts = (dtype_code(features, "decode"), query.shape[0], query.shape[1], features.shape[-1], *sizes)
        call("decode", query, *tensors, logits, gradient, *counts, leak, bool(layout[5]), _spec(layout, padding))
    return logits, query.new_empty(0) if gradient is None else gradient


def _bricks_fake(
    planes: Tensor | None,
    grid: Tensor | None,
    bases: Tensor | None,
    scale: Tensor | None,
    weights: Tensor,
    shape: Tensor,
    corner: Tensor,
    mask: Tensor,
    place: list[float],
    sizes: list[int],
    leak: float,
    layout: list[int],
    padding: float,
    precision: int,
) -> Tensor:
    return weights.new_empty((shape.shape[0], 512))


def _bricks_native(
    planes: Tensor | None,
    grid: Tensor | None,
    bases: Tensor | None,
    scale: Tensor | None,
    weights: Tensor,
    shape: Tensor,
    corner: Tensor,
    mask: Tensor,
    place: list[float],
    sizes: list[int],
    leak: float,
    layout: list[int],
    padding: float,
    precision: int,
) -> Tensor:
    features = _features(planes, grid)
    tensors = _dense(planes, grid, bases, scale, weights, shape, corner, mask)
    out = weights.new_empty((shape.shape[0], 512))
    if out.numel():
        counts = (dtype_code(features, "decode_bricks"), shape.shape[0], features.shape[0], features.shape[-1], *sizes)
        call("decode_bricks", out, *tensors, out, *counts, leak, bool(layout[5]), *place, _spec(layout, padding))
    return out


def _conditional_fake(
    query: Tensor,
    weights: Tensor,
    affine: Tensor,
    offset: Tensor | None,
    sizes: list[int],
    leaks: list[float],
    residual: bool,
    precision: int,
) -> Tensor:
    return query.new_empty(query.shape[:2])


def _conditional_native(
    query: Tensor,
    weights: Tensor,
    affine: Tensor,
    offset: Tensor | None,
    sizes: list[int],
    leaks: list[float],
    residual: bool,
    precision: int,
) -> Tensor:
    tensors = _dense(query, weights, affine, offset)
    out = query.new_empty(query.shape[:2])
    if out.numel():
        call("decode_conditional", query, *tensors, out, query.shape[0], query.shape[1], *sizes, *leaks, residual)
    return out


decode = define(
    "decode(Tensor? planes, Tensor? grid, Tensor query, Tensor? bases, Tensor? scale, Tensor weights, "
    "Tensor? reversed_weights, int[] sizes, float leak, int[] layout, float padding, int precision)"
    " -> (Tensor, Tensor)",
    _decode_native,
    _decode_fake,
)
decode_bricks = define(
    "decode_bricks(Tensor? planes, Tensor? grid, Tensor? bases, Tensor? scale, Tensor weights, Tensor shape, "
    "Tensor corner, Tensor mask, float[] place, int[] sizes, float leak, int[] layout, float padding, int precision)"
    " -> Tensor",
    _bricks_native,
    _bricks_fake,
)
decode_conditional = define(
    "decode_conditional(Tensor query, Tensor weights, Tensor affine, Tensor? offset, int[] sizes, float[] leaks, "
    "bool residual, int precision) -> Tensor",
    _conditional_native,
    _conditional_fake,
)
