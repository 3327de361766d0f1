# SPDX-License-Identifier: MIT
"""The torch operators behind ``occkernels.decode``. They have no derivatives: training runs the unfused composition.

Weights are one packed vector, and with a rounding that the device gains by, another of rounded weights
(csrc/math/decode.h, occkernels/decode_weights.py). ``maps`` are the tensors a layout needs, in this order: planes
(B, P, R, R, C), grid (B, R, R, R, C), bases (B, L, 3, 3), scales (B, L). ``integers`` are hidden channels, depth,
precision, 1 to concatenate maps, then FeatureLayout.spec() without the padding; ``numbers`` the slope of the last
activation and the padding.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from occkernels import _native
from occkernels._native import call, dtype_code
from occkernels._registry import define
from occkernels.layout import LayoutSpec

PRECISIONS = {"float32": 0, "tf32": 1, "bf16": 2}


def packing(precision: str, like: Tensor) -> str | None:
    """How the rounded weights are packed where the device of ``like`` gains by rounding, else None."""
    if precision == "float32":
        return None
    if _native.runs_cuda_code(like):
        return precision
    return "pairs" if precision == "bf16" and _native.MULTIPLIES_BF16 else None


def _rounding(rounded: Tensor | None, precision: int) -> tuple[Tensor | None, int]:
    """Rounded weights and the rounding for the kernel."""
    if rounded is None or (_native.runs_cuda_code(rounded) and not _native.has_tensor_cores(rounded)):
        return None, 0
    return rounded.contiguous(), precision


@dataclass(frozen=True)
class _Arguments:
    """``maps``, ``integers`` and ``numbers`` taken apart."""

    planes: Tensor | None
    grid: Tensor | None
    bases: Tensor | None
    scale: Tensor | None
    sizes: tuple[int, int]
    precision: int
    leak: float
    concat: bool
    layout: LayoutSpec

    @classmethod
    def of(cls, maps: list[Tensor], integers: list[int], numbers: list[float]) -> _Arguments:
        hidden, depth, precision, concat, mask, dynamic, side, deep, cells = integers
        left = iter([tensor.contiguous() for tensor in maps])
        planes = next(left) if mask or dynamic else None
        grid = next(left) if deep else None
        bases, scale = (next(left), next(left)) if dynamic else (None, None)
        spec = (mask, dynamic, side, deep, bool(cells), numbers[1])
        return cls(planes, grid, bases, scale, (hidden, depth), precision, numbers[0], bool(concat), spec)


def _decode_fake(
    maps: list[Tensor],
    query: Tensor,
    weights: Tensor,
    rounded_weights: Tensor | None,
    reversed_weights: Tensor | None,
    integers: list[int],
    numbers: list[float],
) -> tuple[Tensor, Tensor]:
    gradient = (0,) if reversed_weights is None else tuple(query.shape)
    return query.new_empty(query.shape[:2]), query.new_empty(gradient)


def _decode_native(
    maps: list[Tensor],
    query: Tensor,
    weights: Tensor,
    rounded_weights: Tensor | None,
    reversed_weights: Tensor | None,
    integers: list[int],
    numbers: list[float],
) -> tuple[Tensor, Tensor]:
    logits, gradient = _decode_fake(maps, query, weights, rounded_weights, reversed_weights, integers, numbers)
    if logits.numel():
        a = _Arguments.of(maps, integers, numbers)
        weights, query = weights.contiguous(), query.contiguous()
        backward = None if reversed_weights is None else reversed_weights.contiguous()
        rounded, rounding = _rounding(rounded_weights, a.precision)
        tensors = (a.planes, a.grid, query, a.bases, a.scale, weights, rounded, backward, logits)
        counts = (dtype_code(maps[0], "decode"), query.shape[0], query.shape[1], maps[0].shape[-1], *a.sizes)
        slopes = None if backward is None else gradient
        call("decode", query, *tensors, slopes, *counts, rounding, a.leak, a.concat, a.layout)
    return logits, gradient


def _bricks_fake(
    maps: list[Tensor],
    weights: Tensor,
    rounded_weights: Tensor | None,
    shape: Tensor,
    corner: Tensor,
    mask: Tensor,
    integers: list[int],
    numbers: list[float],
) -> Tensor:
    return weights.new_empty((shape.shape[0], 512))


def _bricks_native(
    maps: list[Tensor],
    weights: Tensor,
    rounded_weights: Tensor | None,
    shape: Tensor,
    corner: Tensor,
    mask: Tensor,
    integers: list[int],
    numbers: list[float],
) -> Tensor:
    out = _bricks_fake(maps, weights, rounded_weights, shape, corner, mask, integers, numbers)
    if out.numel():
        a = _Arguments.of(maps, integers, numbers)
        nodes = [tensor.contiguous() for tensor in (shape, corner, mask)]
        rounded, rounding = _rounding(rounded_weights, a.precision)
        tensors = (a.planes, a.grid, a.bases, a.scale, weights.contiguous(), rounded, *nodes, out)
        batch, channels = maps[0].shape[0], maps[0].shape[-1]
        counts = (dtype_code(maps[0], "decode_bricks"), shape.shape[0], batch, channels, *a.sizes)
        call("decode_bricks", out, *tensors, *counts, rounding, a.leak, a.concat, *numbers[2:], a.layout)
    return out


def _conditional_fake(
    query: Tensor,
    weights: Tensor,
    rounded_weights: Tensor | None,
    affine: Tensor,
    offset: Tensor | None,
    integers: list[int],
    leaks: list[float],
    residual: bool,
) -> Tensor:
    return query.new_empty(query.shape[:2])


def _conditional_native(
    query: Tensor,
    weights: Tensor,
    rounded_weights: Tensor | None,
    affine: Tensor,
    offset: Tensor | None,
    integers: list[int],
    leaks: list[float],
    residual: bool,
) -> Tensor:
    out = query.new_empty(query.shape[:2])
    if out.numel():
        query, weights, affine = query.contiguous(), weights.contiguous(), affine.contiguous()
        added = None if offset is None else offset.contiguous()
        rounded, rounding = _rounding(rounded_weights, integers[2])
        counts = (query.shape[0], query.shape[1], *integers[:2], rounding)
        call("decode_conditional", query, query, weights, rounded, affine, added, out, *counts, *leaks, residual)
    return out


decode = define(
    "decode(Tensor[] maps, Tensor query, Tensor weights, Tensor? rounded_weights, Tensor? reversed_weights, "
    "int[] integers, float[] numbers) -> (Tensor, Tensor)",
    _decode_native,
    _decode_fake,
)
decode_bricks = define(
    "decode_bricks(Tensor[] maps, Tensor weights, Tensor? rounded_weights, Tensor shape, Tensor corner, Tensor mask, "
    "int[] integers, float[] numbers) -> Tensor",
    _bricks_native,
    _bricks_fake,
)
decode_conditional = define(
    "decode_conditional(Tensor query, Tensor weights, Tensor? rounded_weights, Tensor affine, Tensor? offset, "
    "int[] integers, float[] leaks, bool residual) -> Tensor",
    _conditional_native,
    _conditional_fake,
)
