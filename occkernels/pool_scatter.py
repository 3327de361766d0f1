# SPDX-License-Identifier: MIT
"""Scattering of point features onto planes, grids and rows: sum, mean or maximum of the points of every cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from occkernels._checks import check_tensor
from occkernels._native import call, dtype_code, stores_half
from occkernels._registry import define, fold_batch, fold_channels
from occkernels.bins import sort_bins
from occkernels.layout import Bins
from occkernels.pool import check_features, check_reduce, working

REDUCE = {"sum": 0, "mean": 1, "max": 2}  # Reduce of csrc/math/bins.h

# Without a sort, the CPU code keeps 16 channels of a map in the cache; larger maps go by the sorted order.
STREAM_CELLS = 1 << 15


def scatter_planes(
    features: Tensor,  # (B, N, C)
    bins: Bins,
    reduce: str = "mean",
) -> Tensor:
    """Sum, mean or maximum of the points of every cell of every plane.

    Args:
        features: (B, N, C) floating; half precision is accumulated in float32.
        bins: the points' cells, with B and N of the features. An extra cell is left out.
        reduce: ``"mean"``, ``"max"`` or ``"sum"``.

    Returns:
        (B, P, C, R, R), channels-last in memory, dtype of the features (float32 under autocast, as ``torch.sum``). Rows
        are the second coordinate of the plane, columns the first. Empty cells are 0.

    Points are added in the order of their numbers: results have the same bits on every run and any number of threads.
    A cell with a NaN is NaN; the gradient of a maximum goes to the lowest point among ties. Twice differentiable.

    Raises:
        ValueError, TypeError: a shape, dtype or device is wrong, ``reduce`` is unknown, or the layout has no planes.

    Source: Peng et al., Convolutional Occupancy Networks, ECCV 2020, §3.1.
    """
    layout = bins.layout
    check_features("scatter_planes", features, bins)
    check_reduce("scatter_planes", reduce, tuple(REDUCE))
    if not layout.num_planes:
        raise ValueError("occkernels.scatter_planes: the layout has no planes. Use scatter_grid for its grid.")
    side = layout.plane_resolution
    cells = _scatter_bins(features, bins, (0, layout.num_planes, side * side), reduce)
    return cells.view(features.shape[0], layout.num_planes, side, side, features.shape[2]).permute(0, 1, 4, 2, 3)


def scatter_grid(
    features: Tensor,  # (B, N, C)
    bins: Bins,
    reduce: str = "mean",
) -> Tensor:
    """Sum, mean or maximum of the points of every cell of the grid.

    Args:
        features: (B, N, C) floating; half precision is accumulated in float32.
        bins: the points' cells, with B and N of the features. An extra cell is left out.
        reduce: ``"mean"``, ``"max"`` or ``"sum"``.

    Returns:
        (B, C, R, R, R) with axes (z, y, x), channels-last in memory; otherwise as ``scatter_planes``.

    Raises:
        ValueError, TypeError: a shape, dtype or device is wrong, ``reduce`` is unknown, or the layout has no grid.

    Source: Peng et al., Convolutional Occupancy Networks, ECCV 2020, §3.1.
    """
    layout = bins.layout
    check_features("scatter_grid", features, bins)
    check_reduce("scatter_grid", reduce, tuple(REDUCE))
    if not layout.grid_resolution:
        raise ValueError("occkernels.scatter_grid: the layout has no grid. Use scatter_planes for its planes.")
    side = layout.grid_resolution
    cells = _scatter_bins(features, bins, (layout.num_planes, layout.num_maps, side**3), reduce)
    return cells.view(features.shape[0], side, side, side, features.shape[2]).permute(0, 4, 1, 2, 3)


def scatter(
    src: Tensor,  # (N, C)
    index: Tensor,  # (N,)
    dim_size: int,
    reduce: str = "sum",
) -> Tensor:
    """Sum, mean or maximum of the rows of ``src`` that share an index.

    Args:
        src: (N, C) floating; half precision is accumulated in float32.
        index: (N,) int32 or int64, the row of the result; -1 leaves a row of ``src`` out.
        dim_size: number of rows of the result.
        reduce: ``"sum"``, ``"mean"`` or ``"max"``.

    Returns:
        (dim_size, C), dtype of ``src`` (float32 under autocast); rows without an index are 0. Order of summation, NaN
        and gradients as in ``scatter_planes``.

    Raises:
        ValueError, TypeError: a shape, dtype or device is wrong, or ``reduce`` is unknown.
        IndexError: on the CPU, an index of ``dim_size`` or more. On CUDA such rows are left out: looking would wait for
            the device.
    """
    sizes = check_tensor("scatter", "src", src, "N C")
    check_tensor("scatter", "index", index, "N", sizes, like=src, integer=True)
    check_reduce("scatter", reduce, tuple(REDUCE))
    return scatter_rows(src[None], index[None], dim_size, reduce)[0][0]


def scatter_rows(
    src: Tensor,  # (B, N, C)
    index: Tensor,  # (B, N)
    dim_size: int,
    reduce: str,
    with_argmax: bool = False,
) -> tuple[Tensor, Tensor]:
    """A batch of ``scatter``: (B, dim_size, C), and for a maximum on request its int32 row, N if none."""
    if max(dim_size, src.shape[1]) >= 2**31 - 1:
        raise ValueError(
            f"occkernels.scatter: expected fewer than 2**31 - 1 rows, got {src.shape[1]} in `src` and {dim_size} as "
            "`dim_size`. Scatter in parts."
        )
    rows = _scatter_index(index, dim_size)[:, None]
    out, argmax = _scatter_maps(src, rows, None, None, [dim_size], [0, 1, dim_size], reduce, with_argmax)
    return out[:, 0], argmax[:, 0] if with_argmax else argmax


def _scatter_bins(features: Tensor, bins: Bins, span: tuple[int, int, int], reduce: str) -> Tensor:
    """(B, last - first, target, C) for the maps first..last-1 of the bins; ``span`` is (first, last, target)."""
    order = offsets = None
    if bins.is_sorted or features.device.type != "cpu" or span[2] > STREAM_CELLS:
        order, offsets = bins.order, bins.offsets
    return _scatter_maps(features, bins.index, order, offsets, list(bins.cells), list(span), reduce, False)[0]


def _scatter_maps(
    features: Tensor,
    index: Tensor,
    order: Tensor | None,
    offsets: Tensor | None,
    cells: list[int],
    span: list[int],
    reduce: str,
    with_argmax: bool,
) -> tuple[Tensor, Tensor]:
    if reduce != "max":
        return _scatter_cells(features, index, order, offsets, cells, span, REDUCE[reduce]), index
    wanted = with_argmax or (torch.is_grad_enabled() and features.requires_grad)
    out, argmax = _scatter_max(features, index, order, offsets, cells, span, wanted)
    return out, argmax


def _needs_order(like: Tensor, span: Sequence[int], argmax: bool) -> bool:
    return stores_half(like) or argmax or span[2] > STREAM_CELLS


def _reduce_native(
    features: Tensor,
    index: Tensor,
    order: Tensor | None,
    offsets: Tensor | None,
    cells: Sequence[int],
    span: Sequence[int],
    reduce: int,
    with_argmax: bool = False,
) -> tuple[Tensor, Tensor | None]:
    source, index = working(features), index.contiguous()
    batch, count, channels = features.shape
    size = (batch, span[1] - span[0], span[2], channels)
    if not count:
        return features.new_zeros(size), index.new_zeros(size) if with_argmax else None
    out = source.new_empty(size)
    argmax = index.new_empty(size) if with_argmax else None
    if order is None and _needs_order(features, span, with_argmax):
        order, offsets = sort_bins(index, tuple(cells))
    if order is not None and offsets is not None:
        order, offsets = order.contiguous(), offsets.contiguous()
    if out.numel():
        shape = (batch, count, channels, tuple(cells), *span)
        code = dtype_code(source, "scatter")
        call("scatter_cells", out, source, code, index, order, offsets, shape, reduce, out, argmax)
    return out.to(features.dtype), argmax


def _scatter_cells_native(features: Tensor, *arguments: Any) -> Tensor:
    return _reduce_native(features, *arguments)[0]


def _scatter_cells_fake(
    features: Tensor,
    index: Tensor,
    order: Tensor | None,
    offsets: Tensor | None,
    cells: Sequence[int],
    span: Sequence[int],
    reduce: int,
) -> Tensor:
    return features.new_empty((features.shape[0], span[1] - span[0], span[2], features.shape[2]))


def _gather_cells_native(
    values: Tensor,
    index: Tensor,
    order: Tensor | None,
    offsets: Tensor | None,
    cells: Sequence[int],
    span: Sequence[int],
    reduce: int,
) -> Tensor:
    source, index = working(values), index.contiguous()
    batch, count, channels = values.shape[0], index.shape[2], values.shape[3]
    out = source.new_empty((batch, count, channels))
    if offsets is None and reduce == REDUCE["mean"] and stores_half(values):
        offsets = sort_bins(index, tuple(cells))[1]
    offsets = None if offsets is None else offsets.contiguous()
    if out.numel():
        shape = (batch, count, channels, tuple(cells), *span)
        call("gather_cells", out, source, dtype_code(source, "scatter"), index, offsets, shape, reduce, out)
    return out.to(values.dtype)


def _gather_cells_fake(values: Tensor, index: Tensor, *_: Any) -> Tensor:
    return values.new_empty((values.shape[0], index.shape[2], values.shape[3]))


# Scattering a sum or mean and gathering it back are each other's transpose, hence each other's gradient.
def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, index, order, offsets, *ctx.rest = inputs
    ctx.save_for_backward(index, order, offsets)


def _scatter_cells_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (_gather_cells(grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None, None, None)


def _gather_cells_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (_scatter_cells(grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None, None, None)


def _scatter_max_native(
    features: Tensor,
    index: Tensor,
    order: Tensor | None,
    offsets: Tensor | None,
    cells: Sequence[int],
    span: Sequence[int],
    with_argmax: bool,
) -> tuple[Tensor, Tensor]:
    out, argmax = _reduce_native(features, index, order, offsets, cells, span, REDUCE["max"], with_argmax)
    return out, index.new_empty(0) if argmax is None else argmax


def _scatter_max_fake(
    features: Tensor,
    index: Tensor,
    order: Tensor | None,
    offsets: Tensor | None,
    cells: Sequence[int],
    span: Sequence[int],
    with_argmax: bool,
) -> tuple[Tensor, Tensor]:
    out = _scatter_cells_fake(features, index, order, offsets, cells, span, REDUCE["max"])
    return out, index.new_empty(out.shape if with_argmax else (0,))


def _scatter_max_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, index, order, offsets, ctx.cells, ctx.span, ctx.with_argmax = inputs
    ctx.mark_non_differentiable(output[1])
    # Under vmap over autograd nobody can tell that a gradient is wanted: then the backward pass finds the argmax.
    ctx.save_for_backward(output[1] if ctx.with_argmax else features, index, order, offsets)


def _scatter_max_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    argmax, index, order, offsets = ctx.saved_tensors
    if not ctx.with_argmax:
        argmax = _scatter_max(argmax.detach(), index, order, offsets, ctx.cells, ctx.span, True)[1]
    return (_unpick_points(grad, argmax, index, ctx.cells, ctx.span), None, None, None, None, None, None)


# Picking the argmax's values and handing gradients back: transposes again. Every point looks whether it was chosen.
def _unpick_points_native(
    values: Tensor, argmax: Tensor, index: Tensor, cells: Sequence[int], span: Sequence[int]
) -> Tensor:
    source, argmax, index = working(values), argmax.contiguous(), index.contiguous()
    out = source.new_empty((index.shape[0], index.shape[2], values.shape[3]))
    if out.numel():
        shape = (index.shape[0], index.shape[2], values.shape[3], tuple(cells), *span)
        call("unpick_points", out, source, dtype_code(source, "scatter"), argmax, index, shape, out)
    return out.to(values.dtype)


def _unpick_points_fake(values: Tensor, argmax: Tensor, index: Tensor, *_: Any) -> Tensor:
    return values.new_empty((index.shape[0], index.shape[2], values.shape[3]))


def _pick_points_native(
    values: Tensor, argmax: Tensor, index: Tensor, cells: Sequence[int], span: Sequence[int]
) -> Tensor:
    source, argmax = working(values), argmax.contiguous()
    out = source.new_empty(argmax.shape)
    if out.numel():
        shape = (*values.shape, tuple(cells), *span)
        call("pick_points", out, source, dtype_code(source, "scatter"), argmax, shape, out)
    return out.to(values.dtype)


def _pick_points_fake(values: Tensor, argmax: Tensor, *_: Any) -> Tensor:
    return values.new_empty(argmax.shape)


def _pick_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, argmax, index, ctx.cells, ctx.span = inputs
    ctx.save_for_backward(argmax, index)


def _unpick_points_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (_pick_points(grad, *ctx.saved_tensors, ctx.cells, ctx.span), None, None, None, None)


def _pick_points_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (_unpick_points(grad, *ctx.saved_tensors, ctx.cells, ctx.span), None, None, None, None)


def _scatter_index_native(index: Tensor, cells: int) -> Tensor:
    if index.device.type != "cpu":
        return torch.where((index >= 0) & (index < cells), index, -1).int()
    if index.numel() and int(index.max()) >= cells:
        raise IndexError(
            f"occkernels.scatter: `index` reaches {int(index.max())} but there are only {cells} rows (dim_size). "
            "Enlarge dim_size, or leave rows out with -1."
        )
    return index.clamp(min=-1).to(torch.int32, copy=True)


def _scatter_index_fake(index: Tensor, cells: int) -> Tensor:
    return index.new_empty(index.shape, dtype=torch.int32)


_LINEAR = "Tensor index, Tensor? order, Tensor? offsets, SymInt[] cells, SymInt[] span"
_scatter_cells: Any = define(
    f"scatter_cells(Tensor features, {_LINEAR}, int reduce) -> Tensor",
    _scatter_cells_native,
    _scatter_cells_fake,
    backward=_scatter_cells_backward,
    setup_context=_linear_context,
    vmap=lambda info, dims, *args: fold_channels(_scatter_cells, info, dims, args, channels=(0,)),
    autocast=torch.float32,
)
_gather_cells: Any = define(
    f"gather_cells(Tensor values, {_LINEAR}, int reduce) -> Tensor",
    _gather_cells_native,
    _gather_cells_fake,
    backward=_gather_cells_backward,
    setup_context=_linear_context,
    vmap=lambda info, dims, *args: fold_channels(_gather_cells, info, dims, args, channels=(0,)),
)
_scatter_max: Any = define(
    f"scatter_max(Tensor features, {_LINEAR}, bool argmax) -> (Tensor, Tensor)",
    _scatter_max_native,
    _scatter_max_fake,
    backward=_scatter_max_backward,
    setup_context=_scatter_max_context,
    vmap=lambda info, dims, *args: fold_channels(_scatter_max, info, dims, args, channels=(0,)),
)
_pick_points: Any = define(
    "pick_points(Tensor values, Tensor argmax, Tensor index, SymInt[] cells, SymInt[] span) -> Tensor",
    _pick_points_native,
    _pick_points_fake,
    backward=_pick_points_backward,
    setup_context=_pick_context,
    vmap=lambda info, dims, *args: fold_channels(_pick_points, info, dims, args, channels=(0, 1)),
)
_unpick_points: Any = define(
    "unpick_points(Tensor values, Tensor argmax, Tensor index, SymInt[] cells, SymInt[] span) -> Tensor",
    _unpick_points_native,
    _unpick_points_fake,
    backward=_unpick_points_backward,
    setup_context=_pick_context,
    vmap=lambda info, dims, *args: fold_channels(_unpick_points, info, dims, args, channels=(0, 1)),
)
_scatter_index: Any = define(
    "scatter_index(Tensor index, SymInt cells) -> Tensor",
    _scatter_index_native,
    _scatter_index_fake,
    vmap=lambda info, dims, *args: fold_batch(_scatter_index, info, dims, args),
)
