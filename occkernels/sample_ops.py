# SPDX-License-Identifier: MIT
"""The torch operators behind ``occkernels.sample``: gather, scatter and contract.

Let f(F, c) be the sample of the features F at the coordinates c, and D_v its derivative along a direction v of the
coordinates. With a list of directions v1..vn (n may be 0) the three operators are

    gather(F, c; v1..vn)       D_vn .. D_v1 f                       per query
    scatter(g, c; v1..vn)      gradient of <g, gather> to F         its transpose
    contract(F, c, g; v1..vn)  gradient of <g, gather> to c         per query

Differentiating any of them gives these three with at most one direction more, so that every order of derivative exists
and no further native code is needed. With a ``frame`` of three directions shared by all queries of a sample, gather
returns the value and the three derivatives at once, and the other two take gradients of that shape.

Letters: B batch, M queries, K maps, C channels, D = 3 + 2 L coordinates (x, y, z, then two for every dynamic plane,
projected but not clamped), T terms (1, or 4 with a frame), W = C, or K * C when maps are concatenated.
Tensors: planes (B, P, R, R, C), grid (B, R, R, R, C), coords (B, M, D), directions (B, n, M, D), frame (B, 3, D), grad
(B, M, T, W). Features and grad share a dtype; the others have its arithmetic type: float64 for float64, else float32.
A missing planes or grid counts as zeros. ``layout`` is FeatureLayout.spec() without the padding, then 1 to concatenate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from occkernels._native import call, dtype_code
from occkernels._registry import define, fold_batch
from occkernels.bins import sort_bins

Features = tuple[Tensor | None, Tensor | None]
Spec = tuple[list[int], float]  # layout, padding

_MAX_DIRECTIONS = 3  # a multilinear function of three coordinates has no fourth derivative


def _dense(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _planes(layout: list[int]) -> int:
    return layout[0].bit_count() + layout[1]


def _cells(layout: list[int]) -> list[int]:
    return [layout[2] ** 2] * _planes(layout) + [layout[3] ** 3] * (layout[3] > 0)


def _spec(layout: list[int], padding: float) -> tuple[int, int, int, int, bool, float]:
    return (layout[0], layout[1], layout[2], layout[3], bool(layout[4]), padding)


def _present(planes: Tensor | None, grid: Tensor | None) -> Tensor:
    features = grid if planes is None else planes
    assert features is not None
    return features


def _order_vanishes(directions: Tensor | None) -> bool:
    return directions is not None and directions.shape[1] > _MAX_DIRECTIONS


def _sizes(features: Tensor, coords: Tensor, channels: int, directions: Tensor | None) -> tuple[int, ...]:
    count = 0 if directions is None else directions.shape[1]
    return (dtype_code(features, "sample"), coords.shape[0], coords.shape[1], channels, count)


def _gather_fake(
    planes: Tensor | None,
    grid: Tensor | None,
    coords: Tensor,
    directions: Tensor | None,
    frame: Tensor | None,
    layout: list[int],
    padding: float,
) -> Tensor:
    features = _present(planes, grid)
    width = features.shape[-1] * (len(_cells(layout)) if layout[5] else 1)
    return features.new_empty((*coords.shape[:2], 1 if frame is None else 4, width))


def _gather_native(
    planes: Tensor | None,
    grid: Tensor | None,
    coords: Tensor,
    directions: Tensor | None,
    frame: Tensor | None,
    layout: list[int],
    padding: float,
) -> Tensor:
    out = _gather_fake(planes, grid, coords, directions, frame, layout, padding)
    if _order_vanishes(directions):
        return out.zero_()
    if out.numel():
        inputs = _dense(planes, grid, coords, directions, frame)
        sizes = _sizes(out, coords, _present(planes, grid).shape[-1], directions)
        call("sample_gather", out, *inputs, out, *sizes, bool(layout[5]), _spec(layout, padding))
    return out


def _scatter_fake(
    grad: Tensor,
    coords: Tensor,
    directions: Tensor | None,
    frame: Tensor | None,
    layout: list[int],
    padding: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    channels = grad.shape[-1] // (len(_cells(layout)) if layout[5] else 1)
    side, deep = layout[2], layout[3]
    planes = (grad.shape[0], _planes(layout), side, side, channels) if wanted[0] else (0,)
    grid = (grad.shape[0], deep, deep, deep, channels) if wanted[1] else (0,)
    return grad.new_empty(planes), grad.new_empty(grid)


def _scatter_native(
    grad: Tensor,
    coords: Tensor,
    directions: Tensor | None,
    frame: Tensor | None,
    layout: list[int],
    padding: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    planes, grid = _scatter_fake(grad, coords, directions, frame, layout, padding, wanted)
    if not planes.numel() + grid.numel():
        return planes, grid
    if not grad.numel() or _order_vanishes(directions):
        return planes.zero_(), grid.zero_()
    grad, coords, directions, frame = _dense(grad, coords, directions, frame)  # type: ignore[assignment]
    batch, queries = coords.shape[:2]
    spec = _spec(layout, padding)
    index = coords.new_empty((batch, len(_cells(layout)), queries), dtype=torch.int32)
    call("sample_index", coords, coords, index, dtype_code(coords, "sample"), batch, queries, spec)
    order, offsets = sort_bins(index, tuple(_cells(layout)))
    # Sums are kept in the arithmetic type and rounded once.
    wide = [part.new_empty(part.shape, dtype=coords.dtype) for part in (planes, grid)]
    outputs = [part if part.numel() else None for part in wide]
    channels = (planes if planes.numel() else grid).shape[-1]
    sizes = _sizes(grad, coords, channels, directions)
    call(
        "sample_scatter",
        grad,
        coords,
        grad,
        directions,
        frame,
        index,
        order,
        offsets,
        *outputs,
        *sizes,
        bool(layout[5]),
        spec,
    )
    return wide[0].to(grad.dtype), wide[1].to(grad.dtype)


def _contract_fake(
    planes: Tensor | None,
    grid: Tensor | None,
    coords: Tensor,
    grad: Tensor,
    directions: Tensor | None,
    frame: Tensor | None,
    layout: list[int],
    padding: float,
) -> Tensor:
    return coords.new_empty(coords.shape)


def _contract_native(
    planes: Tensor | None,
    grid: Tensor | None,
    coords: Tensor,
    grad: Tensor,
    directions: Tensor | None,
    frame: Tensor | None,
    layout: list[int],
    padding: float,
) -> Tensor:
    out = coords.new_empty(coords.shape)
    if not grad.numel() or _order_vanishes(directions):
        return out.zero_()
    inputs = _dense(planes, grid, coords, grad, directions, frame)
    sizes = _sizes(grad, coords, _present(planes, grid).shape[-1], directions)
    call("sample_contract", grad, *inputs, out, *sizes, bool(layout[5]), _spec(layout, padding))
    return out


def _coordinate_gradients(
    features: Features,
    coords: Tensor,
    grad: Tensor,
    directions: Tensor | None,
    frame: Tensor | None,
    spec: Spec,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of <grad, gather> to the coordinates, to every direction and to the frame."""
    to_coords = to_directions = to_frame = None
    if needs[0]:
        to_coords = contract(*features, coords, grad, directions, frame, *spec)
    if needs[1] and directions is not None:
        count = directions.shape[1]
        others = [[n for n in range(count) if n != left_out] for left_out in range(count)]
        parts = [directions[:, rest] if rest else None for rest in others]
        to_directions = torch.stack([contract(*features, coords, grad, part, frame, *spec) for part in parts], dim=1)
    if needs[2] and frame is not None:
        rows = [contract(*features, coords, grad[:, :, row : row + 1], directions, None, *spec) for row in (1, 2, 3)]
        to_frame = torch.stack([row.sum(dim=1) for row in rows], dim=1)
    return to_coords, to_directions, to_frame


def _feature_gradients(
    grad: Tensor, coords: Tensor, directions: Tensor | None, frame: Tensor | None, spec: Spec, needs: tuple[bool, ...]
) -> Features:
    if not any(needs):
        return None, None
    planes, grid = scatter(grad, coords, directions, frame, *spec, list(needs))
    return planes if needs[0] else None, grid if needs[1] else None


def _gather_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.spec = inputs[5:]


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    planes, grid, coords, directions, frame = ctx.saved_tensors
    needs = ctx.needs_input_grad
    to_features = _feature_gradients(grad, coords, directions, frame, ctx.spec, needs[:2])
    to_others = _coordinate_gradients((planes, grid), coords, grad, directions, frame, ctx.spec, needs[2:5])
    return (*to_features, *to_others, None, None)


def _scatter_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.spec = inputs[4:6]
    ctx.wanted = inputs[6]


def _scatter_backward(ctx: Any, planes: Tensor, grid: Tensor) -> tuple[Any, ...]:
    grad, coords, directions, frame = ctx.saved_tensors
    features = (planes if ctx.wanted[0] else None, grid if ctx.wanted[1] else None)
    to_grad = gather(*features, coords, directions, frame, *ctx.spec) if ctx.needs_input_grad[0] else None
    needs = ctx.needs_input_grad[1:4]
    to_others = _coordinate_gradients(features, coords, grad, directions, frame, ctx.spec, needs)
    return (to_grad, *to_others, None, None, None)


def _contract_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.spec = inputs[6:]


def _contract_backward(ctx: Any, along: Tensor) -> tuple[Any, ...]:
    planes, grid, coords, grad, directions, frame = ctx.saved_tensors
    needs = ctx.needs_input_grad
    along = along[:, None]
    more = along if directions is None else torch.cat([directions, along], dim=1)
    to_features = _feature_gradients(grad, coords, more, frame, ctx.spec, needs[:2])
    to_coords, to_more, to_frame = _coordinate_gradients(
        (planes, grid), coords, grad, more, frame, ctx.spec, (needs[2], needs[4], needs[5])
    )
    to_grad = gather(planes, grid, coords, more, frame, *ctx.spec) if needs[3] else None
    to_directions = None if directions is None or to_more is None else to_more[:, :-1]
    return (*to_features, to_coords, to_grad, to_directions, to_frame, None, None)


def _over_queries(
    operator: Any, info: Any, in_dims: Sequence[int | None], inputs: Sequence[Any], axes: tuple[int, ...]
) -> tuple[Any, Any]:
    """vmap rule of gather and contract: with shared features and frame it means more queries, otherwise more samples.

    Args:
        axes: the dimension of the queries in every tensor, 0 for features and frame, which have none.
    """
    if any(dim is not None for dim, axis in zip(in_dims, axes, strict=False) if axis == 0):
        return fold_batch(operator, info, in_dims, inputs)
    size = info.batch_size

    def fold(tensor: Tensor | None, dim: int | None, axis: int) -> Tensor | None:
        if tensor is None or axis == 0:
            return tensor
        if dim is None:
            repeated = tensor.unsqueeze(axis).expand(*tensor.shape[:axis], size, *tensor.shape[axis:])
        else:
            repeated = tensor.movedim(dim, axis)
        return repeated.flatten(axis, axis + 1)

    tensors = [fold(tensor, dim, axis) for tensor, dim, axis in zip(inputs, in_dims, axes, strict=False)]
    result = operator(*tensors, *inputs[len(axes) :])
    return result.unflatten(1, (size, result.shape[1] // size)), 1


def _gather_vmap(info: Any, in_dims: Sequence[int | None], *inputs: Any) -> tuple[Any, Any]:
    return _over_queries(gather, info, in_dims, inputs, (0, 0, 1, 2, 0))


def _contract_vmap(info: Any, in_dims: Sequence[int | None], *inputs: Any) -> tuple[Any, Any]:
    return _over_queries(contract, info, in_dims, inputs, (0, 0, 1, 1, 2, 0))


def _scatter_vmap(info: Any, in_dims: Sequence[int | None], *inputs: Any) -> tuple[Any, Any]:
    return fold_batch(scatter, info, in_dims, inputs)


_SPEC = "int[] layout, float padding"

gather = define(
    f"sample_gather(Tensor? planes, Tensor? grid, Tensor coords, Tensor? directions, Tensor? frame, {_SPEC}) -> Tensor",
    _gather_native,
    _gather_fake,
    backward=_gather_backward,
    setup_context=_gather_context,
    vmap=_gather_vmap,
)
scatter = define(
    f"sample_scatter(Tensor grad, Tensor coords, Tensor? directions, Tensor? frame, {_SPEC}, bool[] wanted)"
    " -> (Tensor, Tensor)",
    _scatter_native,
    _scatter_fake,
    backward=_scatter_backward,
    setup_context=_scatter_context,
    vmap=_scatter_vmap,
)
contract = define(
    "sample_contract(Tensor? planes, Tensor? grid, Tensor coords, Tensor grad, Tensor? directions, Tensor? frame, "
    f"{_SPEC}) -> Tensor",
    _contract_native,
    _contract_fake,
    backward=_contract_backward,
    setup_context=_contract_context,
    vmap=_contract_vmap,
)
