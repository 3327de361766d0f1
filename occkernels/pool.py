# SPDX-License-Identifier: MIT
"""Local pooling: reduce the points of a cell, hand the result back to them, add up over the maps; one operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from occkernels._checks import check_tensor
from occkernels._native import call, dtype_code, stores_half
from occkernels._registry import define, fold_channels
from occkernels.layout import Bins


def local_pool(
    features: Tensor,  # (B, N, C)
    bins: Bins,
    reduce: str = "max",
) -> Tensor:
    """Reduce the features of the points in each cell, gather the result back to them, and sum over the maps.

    Replaces scatter + gather per map (and their dense intermediate maps) by two passes over the sorted points. Results
    and gradients have the same bits on every run and for any number of threads; nothing is added atomically.

    Args:
        features: (B, N, C) floating; half precision is accumulated in float32.
        bins: the points' cells, with B and N of the features; they are sorted on first use, once for all calls.
        reduce: ``"max"`` or ``"mean"``.

    Returns:
        (B, N, C), dtype of the features. Points with index -1 take no part and get zeros.

    The maximum of a cell with a NaN is NaN, infinities are kept. Its whole gradient goes to one point: the lowest
    number among ties, as in the original systems (``torch.scatter_reduce`` would split it). Twice differentiable.

    Raises:
        ValueError, TypeError: a shape, dtype or device is wrong, or ``reduce`` is unknown.

    Source: Peng et al., Convolutional Occupancy Networks, ECCV 2020, §3.1 (locally pooled PointNet).
    """
    check_features("local_pool", features, bins)
    check_reduce("local_pool", reduce, ("max", "mean"))
    cells = list(bins.cells)
    if reduce == "mean":
        return _local_pool_mean(features, bins.index, bins.order, bins.offsets, cells)  # type: ignore[no-any-return]
    order, offsets = bins.order, bins.offsets
    return _local_pool_max(features.detach(), features, bins.index, order, offsets, cells, False)  # type: ignore[no-any-return]


def check_features(where: str, features: Tensor, bins: Bins) -> None:
    """Raises when features and bins do not go together."""
    sizes = {"B": bins.index.shape[0], "N": bins.index.shape[2]}
    check_tensor(where, "features", features, "B N C", sizes, like=bins.index)


def check_reduce(where: str, reduce: str, known: tuple[str, ...]) -> None:
    """Raises when ``reduce`` is not one of ``known``."""
    if reduce not in known:
        raise ValueError(f"occkernels.{where}: `reduce` must be one of {', '.join(map(repr, known))}, got {reduce!r}.")


def working(tensor: Tensor) -> Tensor:
    """The tensor as the native code takes it: contiguous, and float32 for half precision where it knows no half."""
    if tensor.dtype.itemsize == 2 and not stores_half(tensor):
        tensor = tensor.float()
    return tensor.contiguous()


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type in which values of ``dtype`` are accumulated."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# The CPU reduces clouds with at least as many points as any map has cells in one pass without the sorted order, onto
# cells that fit into the cache; others without scratch (csrc/cpu/pool.isa.cpp).
_STREAM_VALUES = 1 << 22


def _scratch(values: Tensor, cells: Sequence[int], argument: bool) -> tuple[Tensor | None, int]:
    """Room for one row of channels per cell that may have points: see rows_before in csrc/math/bins.h. None: not used.

    Args:
        argument: whether the numbers of the chosen points are kept too.
    """
    batch, count, channels = values.shape
    size = batch * sum(min(count, number) for number in cells) * channels
    if not argument and not stores_half(values):
        streamed = all(number <= count for number in cells) and size <= _STREAM_VALUES * batch
        if not streamed:
            return None, 0
    return values.new_empty(size, dtype=wide_dtype(values.dtype)), size


# out = Σ_maps values[argmax of selector over the point's cell]: linear in values. With transpose, the transposed linear
# map; so each is the other's gradient, of any order, and the selector has none. Only the selector need be kept: finding
# the argmax again costs less than storing one index per cell and channel.
def _local_pool_max_native(
    selector: Tensor,
    values: Tensor,
    index: Tensor,
    order: Tensor,
    offsets: Tensor,
    cells: Sequence[int],
    transpose: bool,
) -> Tensor:
    batch, count, channels = values.shape
    same = selector.data_ptr() == values.data_ptr() and selector.stride() == values.stride()
    source = working(values)
    chooser = source if same else working(selector)
    out = torch.empty_like(source)
    if out.numel():
        argument = not same or transpose
        scratch, size = _scratch(source, cells, argument)
        args = index.new_empty(size) if argument else None
        index, order, offsets = index.contiguous(), order.contiguous(), offsets.contiguous()
        shape = (batch, count, channels, tuple(cells), 0, len(cells), 0)
        code = dtype_code(source, "local_pool")
        call("local_pool_max", out, chooser, source, code, index, order, offsets, shape, transpose, scratch, args, out)
    return out.to(values.dtype)


def _local_pool_max_fake(selector: Tensor, values: Tensor, *_: Any) -> Tensor:
    return values.new_empty(values.shape)


def _local_pool_max_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    selector, _, index, order, offsets, ctx.cells, ctx.transpose = inputs
    ctx.save_for_backward(selector, index, order, offsets)


def _local_pool_max_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    selector, index, order, offsets = ctx.saved_tensors
    moved = _local_pool_max(selector, grad, index, order, offsets, ctx.cells, not ctx.transpose)
    return (None, moved, None, None, None, None, None)


def _local_pool_mean_native(
    features: Tensor, index: Tensor, order: Tensor, offsets: Tensor, cells: Sequence[int]
) -> Tensor:
    batch, count, channels = features.shape
    source = working(features)
    out = torch.empty_like(source)
    if out.numel():
        scratch, _ = _scratch(source, cells, False)
        index, order, offsets = index.contiguous(), order.contiguous(), offsets.contiguous()
        shape = (batch, count, channels, tuple(cells), 0, len(cells), 0)
        code = dtype_code(source, "local_pool")
        call("local_pool_mean", out, source, code, index, order, offsets, shape, scratch, out)
    return out.to(features.dtype)


def _local_pool_mean_fake(features: Tensor, *_: Any) -> Tensor:
    return features.new_empty(features.shape)


def _local_pool_mean_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, index, order, offsets, ctx.cells = inputs
    ctx.save_for_backward(index, order, offsets)


def _local_pool_mean_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # The linear map is symmetric: Σ_maps Sᵀ D⁻¹ S with S the 0/1 matrix of the cells and D their counts.
    return (_local_pool_mean(grad, *ctx.saved_tensors, ctx.cells), None, None, None, None)


_local_pool_max: Any = define(
    "local_pool_max(Tensor selector, Tensor values, Tensor index, Tensor order, Tensor offsets, SymInt[] cells, "
    "bool transpose) -> Tensor",
    _local_pool_max_native,
    _local_pool_max_fake,
    backward=_local_pool_max_backward,
    setup_context=_local_pool_max_context,
    vmap=lambda info, dims, *args: fold_channels(_local_pool_max, info, dims, args, channels=(0, 1)),
)
_local_pool_mean: Any = define(
    "local_pool_mean(Tensor features, Tensor index, Tensor order, Tensor offsets, SymInt[] cells) -> Tensor",
    _local_pool_mean_native,
    _local_pool_mean_fake,
    backward=_local_pool_mean_backward,
    setup_context=_local_pool_mean_context,
    vmap=lambda info, dims, *args: fold_channels(_local_pool_mean, info, dims, args, channels=(0,)),
)
