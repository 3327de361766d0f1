# SPDX-License-Identifier: MIT
"""The pure-PyTorch twin of every public operator: same name, same signature. This is the specification.

Written for reading and for judging the native code, not for speed; differentiable through ordinary autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from occkernels.layout import PLANES, Bins, FeatureLayout
from occkernels.reference_decode import decode as decode
from occkernels.reference_decode import decode_bricks as decode_bricks
from occkernels.reference_decode import decode_conditional as decode_conditional
from occkernels.reference_decode import decode_with_gradient as decode_with_gradient
from occkernels.reference_decode import fold_conditional_norm as fold_conditional_norm
from occkernels.reference_extract import extract as extract
from occkernels.reference_mc import marching_cubes as marching_cubes
from occkernels.reference_mc_sparse import marching_cubes_sparse as marching_cubes_sparse

_AXES = dict(zip(PLANES, ((0, 2), (0, 1), (1, 2)), strict=True))


def _clamp_unit(t: Tensor, top: float) -> Tensor:
    """Values of 1 and above become ``top``, negative ones 0; the derivative is 1 inside and 0 outside."""
    t = torch.where(t >= 1, torch.full_like(t, top), t)
    return torch.where(t > 0, t, torch.zeros_like(t))


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _coordinates(
    points: Tensor, layout: FeatureLayout, bases: Tensor | None = None, basis_scale: Tensor | None = None
) -> list[Tensor]:
    """Clamped coordinates in [0, 1) per map: (B, N, 2) for planes, (B, N, 3) for the grid."""
    points = _wide(points)
    maps = []
    for plane in layout.planes:
        first, second = _AXES[plane]
        t = points[..., [first, second]] / (1 + layout.padding + 1e-5) + 0.5
        maps.append(_clamp_unit(t, 1 - 1e-5))
    for number in range(layout.dynamic_planes):
        assert bases is not None
        projected = (points / ((1 + layout.padding) / 2)) @ _wide(bases)[:, number, :2].mT
        if basis_scale is not None:
            projected = projected / _wide(basis_scale)[:, number, None, None]
        maps.append(_clamp_unit(projected / 2 + 0.5, 1 - 1e-5))
    if layout.grid_resolution:
        maps.append(_clamp_unit(points / (1 + layout.padding + 1e-3) + 0.5, 1 - 1e-3))
    return maps


def bin_points(
    points: Tensor,
    layout: FeatureLayout,
    *,
    bases: Tensor | None = None,
    basis_scale: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Bins:
    """See ``occkernels.bin_points``."""
    rows = []
    for number, t in enumerate(_coordinates(points.detach(), layout, bases, basis_scale)):
        resolution = layout.plane_resolution if number < layout.num_planes else layout.grid_resolution
        cell = (t * resolution).long().clamp(max=resolution - 1)
        row = cell[..., 0] + resolution * cell[..., 1]
        rows.append(row + resolution**2 * cell[..., 2] if cell.shape[-1] == 3 else row)
    index = torch.stack(rows, dim=1).int()
    if lengths is not None:
        missing = torch.arange(points.shape[1], device=points.device) >= lengths[:, None]
        index = index.masked_fill(missing[:, None], -1)
    return Bins(layout, index, sort_bins)


def bins_from_index(index: Tensor, layout: FeatureLayout, *, extra_cell: bool = False) -> Bins:
    """See ``occkernels.bins_from_index``."""
    cells = tuple(count + int(extra_cell) for count in layout.cells)
    return Bins(layout, index.clamp(min=-1).int(), sort_bins, cells)


def sort_bins(index: Tensor, cells: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Stable order by cell, and the cells' starts; points with index -1 last."""
    orders, offsets = [], []
    for k, count in enumerate(cells):
        key = torch.where(index[:, k] < 0, count, index[:, k]).long()
        orders.append(key.argsort(dim=1, stable=True).int())
        sizes = torch.zeros(index.shape[0], count + 1, dtype=torch.long, device=index.device)
        sizes.scatter_add_(1, key, torch.ones_like(key))
        starts = sizes.cumsum(1) - sizes
        offsets.append(starts.int())
    return torch.stack(orders, dim=1), torch.cat(offsets, dim=1)


def _reduce_cells(features: Tensor, index: Tensor, cells: int, reduce: str) -> Tensor:
    """(B, N, C) features to (B, cells, C); empty cells 0; a maximum's gradient goes to the lowest index among ties."""
    batch, _, channels = features.shape
    wide = _wide(features)
    slot = torch.where(index < 0, cells, index).long()[..., None].expand(-1, -1, channels)
    if reduce in ("sum", "mean"):
        total = wide.new_zeros(batch, cells + 1, channels).scatter_add(1, slot, wide)
        if reduce == "mean":
            ones = torch.ones_like(slot[..., :1]).to(wide.dtype)
            total = total / wide.new_zeros(batch, cells + 1, 1).scatter_add(1, slot[..., :1], ones).clamp(min=1)
        return total[:, :cells].to(features.dtype)
    chosen = _arg_max(wide.detach(), slot, cells + 1)[:, :cells]
    picked = (
        wide.gather(1, chosen.clamp(max=max(features.shape[1] - 1, 0)))
        if features.shape[1]
        else wide.new_zeros(chosen.shape)
    )
    return torch.where(chosen < features.shape[1], picked, 0).to(features.dtype)


def _arg_max(wide: Tensor, slot: Tensor, cells: int) -> Tensor:
    """Lowest index of the maximum per cell and channel; N where the cell is empty. A NaN is the maximum of its cell."""
    batch, count, channels = wide.shape
    best = wide.new_full((batch, cells, channels), -torch.inf).scatter_reduce(1, slot, wide, "amax")
    number = torch.arange(count, device=wide.device)[None, :, None].expand_as(slot)
    at_best = torch.where((wide == best.gather(1, slot)) | wide.isnan(), number, count)
    return torch.full_like(best, count, dtype=torch.long).scatter_reduce(1, slot, at_best, "amin")


def local_pool(features: Tensor, bins: Bins, reduce: str = "max") -> Tensor:
    """See ``occkernels.local_pool``."""
    total: Tensor | None = None
    for k, cells in enumerate(bins.cells):
        index = bins.index[:, k]
        reduced = _reduce_cells(_wide(features), index, cells, reduce)
        slot = index.clamp(min=0).long()[..., None].expand(-1, -1, features.shape[2])
        gathered = torch.where((index >= 0)[..., None], reduced.gather(1, slot), 0)
        total = gathered if total is None else total + gathered
    assert total is not None
    return total.to(features.dtype)


def scatter_planes(features: Tensor, bins: Bins, reduce: str = "mean") -> Tensor:
    """See ``occkernels.scatter_planes``."""
    layout, batch, channels = bins.layout, features.shape[0], features.shape[2]
    side = layout.plane_resolution
    maps = [
        _reduce_cells(features, bins.index[:, k], bins.cells[k], reduce)[:, : side**2] for k in range(layout.num_planes)
    ]
    planes = torch.stack(maps, dim=1).view(batch, layout.num_planes, side, side, channels)
    return planes.permute(0, 1, 4, 2, 3)


def scatter_grid(features: Tensor, bins: Bins, reduce: str = "mean") -> Tensor:
    """See ``occkernels.scatter_grid``."""
    side = bins.layout.grid_resolution
    cells = _reduce_cells(features, bins.index[:, -1], bins.cells[-1], reduce)[:, : side**3]
    return cells.reshape(features.shape[0], side, side, side, features.shape[2]).permute(0, 4, 1, 2, 3)


def scatter(src: Tensor, index: Tensor, dim_size: int, reduce: str = "sum") -> Tensor:
    """See ``occkernels.scatter``."""
    return _reduce_cells(src[None], index[None], dim_size, reduce)[0]


def _axis_nodes(t: Tensor, resolution: int, registration: str) -> tuple[Tensor, Tensor, Tensor]:
    """Lower node, upper node and weight of the upper one along one axis."""
    u = t * (resolution - 1) if registration == "corners" else (t * resolution - 0.5).clamp(0, resolution - 1)
    low = u.detach().floor().clamp(0, max(resolution - 2, 0))
    return low.long(), (low.long() + 1).clamp(max=resolution - 1), u - low


def _sample_map(values: Tensor, t: Tensor, registration: str) -> Tensor:
    """Multilinear interpolation; values (B, C, R, R[, R]) with the first coordinate along the last axis."""
    axes = [_axis_nodes(t[..., a], values.shape[-1], registration) for a in range(t.shape[-1])]
    flat = _wide(values).flatten(2).mT  # (B, cells, C)
    total: Tensor | None = None
    for corner in range(2 ** len(axes)):
        slot: Tensor | int = 0
        weight: Tensor | float = 1.0
        for a in reversed(range(len(axes))):
            low, high, upper = axes[a]
            bit = corner >> a & 1
            slot = slot * values.shape[-1] + (high if bit else low)
            weight = weight * (upper if bit else 1 - upper)
        assert isinstance(slot, Tensor) and isinstance(weight, Tensor)
        term = weight[..., None] * flat.gather(1, slot[..., None].expand(-1, -1, flat.shape[2]))
        total = term if total is None else total + term
    assert total is not None
    return total


def sample_features(
    query: Tensor,
    layout: FeatureLayout,
    *,
    planes: Tensor | None = None,
    grid: Tensor | None = None,
    bases: Tensor | None = None,
    basis_scale: Tensor | None = None,
    reduce: str = "sum",
) -> Tensor:
    """See ``occkernels.sample_features``."""
    maps = [] if planes is None else list(planes.unbind(1))
    if grid is not None:
        maps.append(grid)
    coordinates = _coordinates(query, layout, bases, basis_scale)
    terms = [_sample_map(values, t, layout.registration) for values, t in zip(maps, coordinates, strict=True)]
    result = torch.cat(terms, dim=-1) if reduce == "concat" else torch.stack(terms).sum(0)
    return result.to(maps[0].dtype)


def sample_planes(
    planes: Tensor,
    query: Tensor,
    layout: FeatureLayout,
    *,
    bases: Tensor | None = None,
    basis_scale: Tensor | None = None,
    reduce: str = "sum",
) -> Tensor:
    """See ``occkernels.sample_planes``."""
    only = FeatureLayout(
        layout.planes, layout.plane_resolution, 0, layout.padding, layout.dynamic_planes, layout.registration
    )
    return sample_features(query, only, planes=planes, bases=bases, basis_scale=basis_scale, reduce=reduce)


def sample_grid(grid: Tensor, query: Tensor, layout: FeatureLayout) -> Tensor:
    """See ``occkernels.sample_grid``."""
    only = FeatureLayout(
        grid_resolution=layout.grid_resolution, padding=layout.padding, registration=layout.registration
    )
    return sample_features(query, only, grid=grid)


def sample_features_with_gradient(
    query: Tensor,
    layout: FeatureLayout,
    *,
    planes: Tensor | None = None,
    grid: Tensor | None = None,
    bases: Tensor | None = None,
    basis_scale: Tensor | None = None,
    reduce: str = "sum",
) -> tuple[Tensor, Tensor]:
    """See ``occkernels.sample_features_with_gradient``."""

    def value(at: Tensor) -> Tensor:
        return sample_features(
            at, layout, planes=planes, grid=grid, bases=bases, basis_scale=basis_scale, reduce=reduce
        )

    tangents = []
    for axis in range(3):
        direction = torch.zeros_like(query)
        direction[..., axis] = 1
        result, tangent = torch.func.jvp(value, (query,), (direction,))[:2]
        tangents.append(tangent)
    return result, torch.stack(tangents, dim=2)
