# SPDX-License-Identifier: MIT
"""Points to cells: computed and sorted once a cloud, reused by every pooling and scattering step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from occkernels._checks import check_tensor
from occkernels._native import call, dtype_code
from occkernels._registry import define, fold_batch
from occkernels.layout import Bins, FeatureLayout


def bin_points(
    points: Tensor,  # (B, N, 3)
    layout: FeatureLayout,
    *,
    bases: Tensor | None = None,  # (B, L, 3, 3)
    basis_scale: Tensor | None = None,  # (B, L)
    lengths: Tensor | None = None,  # (B,)
) -> Bins:
    """Cell of every point in every map of a layout.

    Args:
        points: (B, N, 3) floating coordinates in the unit cube; others fall into the border cells, NaN into cell 0.
        layout: the maps.
        bases: (B, L, 3, 3) frames of the L dynamic planes; rows 0 and 1 span plane l, in the points' dtype.
        basis_scale: (B, L) divisor of the projected coordinates (DPConvONet: normaliser + 0.05); ones when absent.
        lengths: (B,) number of points that exist in each cloud; the others get index -1 and are never read.

    Returns:
        The bins. Not differentiable: a cell index is piecewise constant.

    Raises:
        ValueError, TypeError: a shape, dtype or device is wrong, or bases are missing or not wanted.

    Source: Peng et al., ECCV 2020, §3.1; Lionar et al., WACV 2021, §3.2.
    """
    sizes = check_tensor("bin_points", "points", points, "B N 3")
    bases, basis_scale = check_bases("bin_points", points, layout, bases, basis_scale)
    if lengths is not None:
        check_tensor("bin_points", "lengths", lengths, "B", sizes, like=points, integer=True)
        lengths = lengths.long()
    mask, dynamic, plane, grid, cells, padding = layout.spec()
    index = _bin_index(points.detach(), bases, basis_scale, lengths, [mask, dynamic, plane, grid, int(cells)], padding)
    return Bins(layout, index, sort_bins)


def bins_from_index(
    index: Tensor,  # (B, K, N)
    layout: FeatureLayout,
    *,
    extra_cell: bool = False,
) -> Bins:
    """Bins from cell indices computed elsewhere, e.g. by a crop-trained model's data loader.

    Args:
        index: (B, K, N) integers, the cell of every point in each of the layout's K maps; -1 leaves a point out.
        layout: the maps.
        extra_cell: every map has one more cell after its last, for points outside the volume. They are pooled together
            there and scattered nowhere.

    Raises:
        ValueError, TypeError: wrong shape or dtype, or an index out of range.
    """
    check_tensor("bins_from_index", "index", index, "B K N", {"K": layout.num_maps}, integer=True)
    cells = tuple(count + int(extra_cell) for count in layout.cells)
    if index.numel():
        highest = index.amax(dim=(0, 2)).tolist()
        for name, top, count in zip(layout.maps, highest, cells, strict=True):
            if top >= count:
                raise ValueError(
                    f"occkernels.bins_from_index: `index` of map {name!r} reaches {top} but the map has {count} cells. "
                    "Clamp the points, leave them out with -1, or pass extra_cell=True for points outside the volume."
                )
    return Bins(layout, index.clamp(min=-1).to(torch.int32).contiguous(), sort_bins, cells)


def check_bases(
    where: str, like: Tensor, layout: FeatureLayout, bases: Tensor | None, basis_scale: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The bases and scales of the dynamic planes in the dtype of ``like``; errors name ``where``."""
    if not layout.dynamic_planes:
        if bases is not None or basis_scale is not None:
            raise ValueError(f"occkernels.{where}: `bases` was given but the layout has no dynamic planes.")
        return None, None
    if bases is None:
        raise ValueError(
            f"occkernels.{where}: the layout has {layout.dynamic_planes} dynamic planes, so `bases` of shape "
            f"(B, {layout.dynamic_planes}, 3, 3) is needed."
        )
    sizes = {"B": like.shape[0], "L": layout.dynamic_planes}
    check_tensor(where, "bases", bases, "B L 3 3", sizes, like=like)
    if basis_scale is None:
        basis_scale = bases.new_ones(bases.shape[:2])
    check_tensor(where, "basis_scale", basis_scale, "B L", sizes, like=like)
    return bases.to(like.dtype), basis_scale.to(like.dtype)


def sort_bins(index: Tensor, cells: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Points sorted by cell (stable) and the cells' starts; see ``Bins.order`` and ``Bins.offsets``."""
    order, offsets = _sort_bins(index, list(cells))
    return order, offsets


def _bin_index_native(
    points: Tensor,
    bases: Tensor | None,
    scales: Tensor | None,
    lengths: Tensor | None,
    layout: list[int],
    padding: float,
) -> Tensor:
    batch, count, _ = points.shape
    index = torch.empty((batch, _num_maps(layout), count), dtype=torch.int32, device=points.device)
    if index.numel():
        points = points.contiguous()
        bases = None if bases is None else bases.contiguous()
        scales = None if scales is None else scales.contiguous()
        lengths = None if lengths is None else lengths.contiguous()
        spec = (*layout[:4], bool(layout[4]), padding)
        call(
            "bin_index",
            points,
            points,
            dtype_code(points, "bin_points"),
            bases,
            scales,
            lengths,
            index,
            batch,
            count,
            spec,
        )
    return index


def _num_maps(layout: list[int]) -> int:
    return layout[0].bit_count() + layout[1] + int(layout[3] > 0)


def _bin_index_fake(
    points: Tensor,
    bases: Tensor | None,
    scales: Tensor | None,
    lengths: Tensor | None,
    layout: list[int],
    padding: float,
) -> Tensor:
    return points.new_empty((points.shape[0], _num_maps(layout), points.shape[1]), dtype=torch.int32)


def _sort_bins_native(index: Tensor, cells: list[int]) -> tuple[Tensor, Tensor]:
    order, offsets = _sort_bins_fake(index, cells)
    batch, maps, count = index.shape
    index = index.contiguous()
    if batch * maps:
        host_cells = torch.tensor(cells, dtype=torch.int64)
        workspace = index.new_empty(call("sort_bins_workspace", index, host_cells, batch, maps, count))
        call("sort_bins", index, index, host_cells, order, offsets, workspace, batch, maps, count)
    return order, offsets


def _sort_bins_fake(index: Tensor, cells: list[int]) -> tuple[Tensor, Tensor]:
    offsets = index.new_empty((index.shape[0], sum(cells) + len(cells)))
    return index.new_empty(index.shape), offsets


_bin_index: Any = define(
    "bin_index(Tensor points, Tensor? bases, Tensor? scales, Tensor? lengths, int[] layout, float padding) -> Tensor",
    _bin_index_native,
    _bin_index_fake,
    vmap=lambda info, dims, *args: fold_batch(_bin_index, info, dims, args),
)
_sort_bins: Any = define(
    "sort_bins(Tensor index, SymInt[] cells) -> (Tensor, Tensor)",
    _sort_bins_native,
    _sort_bins_fake,
    vmap=lambda info, dims, *args: fold_batch(_sort_bins, info, dims, args),
)
