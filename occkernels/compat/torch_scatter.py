# SPDX-License-Identifier: MIT
"""The functions of ``torch_scatter`` that the ONet family uses, on the operators of this package.

Code runs on any torch after one changed import::

    from occkernels.compat.torch_scatter import scatter_max, scatter_mean

Signatures and results are those of torch_scatter 2.1, with these differences: results are deterministic, also on CUDA;
a NaN is the maximum (and minimum) of its row; ties go to the lowest index; half precision is summed in float32; maxima
and minima of integers are not offered. Everything works under ``torch.compile`` when ``dim_size`` or ``out`` is given.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from occkernels.pool_scatter import scatter_rows

__all__ = [
    "scatter",
    "scatter_add",
    "scatter_max",
    "scatter_mean",
    "scatter_min",
    "scatter_mul",
    "scatter_sum",
    "segment_csr",
]


def scatter_sum(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """Sum of the entries of ``src`` along ``dim`` that share an index.

    Args:
        src: any shape, any real dtype.
        index: int64 or int32, broadcast to ``src`` as torch_scatter does: one-dimensional along ``dim``, otherwise by
            its leading dimensions. An index that all channels share, e.g. (B, 1, N) for (B, C, N), is read once.
        dim: the dimension that is reduced.
        out: added to in place and returned.
        dim_size: size of the result along ``dim``; one more than the largest index when absent.

    Raises:
        ValueError, TypeError: shapes do not agree or a dtype is wrong.
        IndexError: on the CPU, an index beyond ``dim_size``.
    """
    if not src.is_floating_point():
        return _integer_sum(src, index, dim, out, dim_size)
    total, _ = _reduce(src, index, dim, _size(index, dim, out, dim_size), "sum")
    return total if out is None else out.add_(total)


def scatter_add(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """Another name of ``scatter_sum``."""
    return scatter_sum(src, index, dim, out, dim_size)


def scatter_mul(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """Product of the entries of ``src`` that share an index (1 without any), by torch's own ``scatter_reduce_``."""
    shape = _shape(src, dim, _size(index, dim, out, dim_size))
    target = src.new_ones(shape) if out is None else out
    return target.scatter_reduce_(dim, _broadcast(index, src, dim).expand(src.shape).long(), src, "prod")


def scatter_mean(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """Mean of the entries of ``src`` that share an index, 0 without any; integers round down.

    With ``out``: (out + sum) / number, as torch_scatter has it. Other arguments as in ``scatter_sum``.
    """
    size = _size(index, dim, out, dim_size)
    if src.is_floating_point() and out is None:
        return _reduce(src, index, dim, size, "mean")[0]
    total = scatter_sum(src, index, dim, out, size)
    own = _broadcast(index, src, dim)
    shape = _shape(own, dim, src.shape[dim])
    ones = torch.ones(shape, dtype=torch.float64, device=src.device)  # counts are exact
    number = _reduce(ones, own, dim, size, "sum")[0].clamp_(min=1)
    rounding = None if src.is_floating_point() else "floor"
    return total.div_(number.to(total.dtype), rounding_mode=rounding)


def scatter_max(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Maximum of the entries of ``src`` that share an index, and where it is.

    Returns:
        The maxima (0 without any entry) and, int64, their positions along ``dim`` (``src.size(dim)`` without any). With
        ``out``: the larger of its values and the maxima, in place; positions where ``out`` was larger are
        ``src.size(dim)``. Arguments as in ``scatter_sum``.

    Raises:
        TypeError: ``src`` is not floating.
    """
    if not src.is_floating_point():
        raise TypeError(
            f"torch_scatter.scatter_max: `src` must be floating, got {src.dtype}. Convert it with .double()."
        )
    largest, where = _reduce(src, index, dim, _size(index, dim, out, dim_size), "max")
    if out is None:
        return largest, where
    count = src.shape[dim]
    better = (where < count) & ((largest > out) | largest.isnan())
    out.copy_(torch.where(better, largest, out))
    return out, torch.where(better, where, count)


def scatter_min(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Minimum of the entries of ``src`` that share an index, and where it is; otherwise as ``scatter_max``."""
    size = _size(index, dim, out, dim_size)
    negative, where = scatter_max(-src, index, dim, None if out is None else -out, size)
    return (-negative if out is None else out.copy_(-negative)), where


def scatter(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> Tensor:
    """One of the functions above by name: "sum", "add", "mul", "mean", "min" or "max" (values only)."""
    if reduce in ("min", "max"):
        return (scatter_max if reduce == "max" else scatter_min)(src, index, dim, out, dim_size)[0]
    named = {"sum": scatter_sum, "add": scatter_sum, "mul": scatter_mul, "mean": scatter_mean}
    if reduce not in named:
        raise ValueError(f"torch_scatter.scatter: `reduce` must be sum, add, mul, mean, min or max, got {reduce!r}.")
    return named[reduce](src, index, dim, out, dim_size)


def segment_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None, reduce: str = "sum") -> Tensor:
    """Reduce the segments of ``src`` along dimension ``indptr.dim() - 1``.

    Args:
        src: floating, any shape.
        indptr: (..., S + 1) int64 or int32, starts of the S segments and the end of the last one, not decreasing;
            leading dimensions are broadcast to those of ``src``.
        out: overwritten with the result and returned.
        reduce: "sum", "add", "mean", "min" or "max".

    Returns:
        The shape of ``src`` with S instead of the reduced dimension; empty segments are 0.

    Raises:
        ValueError, TypeError: ``reduce`` is unknown or a dtype is wrong.
    """
    if reduce not in ("sum", "add", "mean", "min", "max"):
        raise ValueError(f"torch_scatter.segment_csr: `reduce` must be sum, add, mean, min or max, got {reduce!r}.")
    dim = indptr.dim() - 1
    lead, count, segments = src.shape[:dim], src.shape[dim], indptr.shape[-1] - 1
    starts = indptr.expand(*lead, segments + 1).reshape(-1, segments + 1)
    positions = torch.arange(count, dtype=starts.dtype, device=src.device).expand(starts.shape[0], count)
    segment = torch.searchsorted(starts.contiguous(), positions.contiguous(), right=True) - 1
    rows = torch.where(segment < segments, segment, -1)  # -1: before the first start or after the last end
    values = src.reshape(rows.shape[0], count, math.prod(src.shape[dim + 1 :]))
    sign = -1 if reduce == "min" else 1
    named = {"add": "sum", "min": "max"}.get(reduce, reduce)
    result = sign * scatter_rows(sign * values, rows, segments, named)[0]
    result = result.reshape(*lead, segments, *src.shape[dim + 1 :])
    return result if out is None else out.copy_(result)


def _broadcast(index: Tensor, src: Tensor, dim: int) -> Tensor:
    """``index`` with the dimensions of ``src``, of size 1 where torch_scatter would expand it."""
    dim = dim % src.dim()
    if index.dim() == 1:
        index = index.view(*[1] * dim, -1)
    return index.view(*index.shape, *[1] * (src.dim() - index.dim()))


def _shape(src: Tensor, dim: int, size: int) -> list[int]:
    shape = list(src.shape)
    shape[dim] = size
    return shape


def _size(index: Tensor, dim: int, out: Tensor | None, dim_size: int | None) -> int:
    if out is not None:
        return out.shape[dim]
    if dim_size is not None:
        return dim_size
    return int(index.max()) + 1 if index.numel() else 0


def _reduce(src: Tensor, index: Tensor, dim: int, size: int, reduce: str) -> tuple[Tensor, Tensor]:
    """The reduced tensor and, for a maximum, its positions: as a batch of rows whose channels share an index."""
    dim = dim % src.dim()
    index = _broadcast(index, src, dim)
    others = [d for d in range(src.dim()) if d != dim]
    shared = [d for d in others if index.shape[d] == 1 or index.stride(d) == 0]
    order = [*(d for d in others if d not in shared), dim, *shared]
    batch = len(order) - len(shared) - 1
    rows = index.expand([1 if d in shared else src.shape[d] for d in range(src.dim())]).permute(order)
    moved = src.permute(order)
    sizes = list(moved.shape)
    flat = (math.prod(sizes[:batch]), sizes[batch], math.prod(sizes[batch + 1 :]))
    found, where = scatter_rows(moved.reshape(flat), rows.reshape(flat[:2]), size, reduce, reduce == "max")
    sizes[batch] = size
    back = [order.index(d) for d in range(src.dim())]
    result = found.reshape(sizes).permute(back)
    return result, where.reshape(sizes).permute(back).long() if reduce == "max" else where


def _integer_sum(src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None) -> Tensor:
    shape = _shape(src, dim, _size(index, dim, out, dim_size))
    target = src.new_zeros(shape) if out is None else out
    return target.scatter_add_(dim, _broadcast(index, src, dim).expand(src.shape).long(), src)
