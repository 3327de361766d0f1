# SPDX-License-Identifier: MIT
"""Sampling of plane and grid features at query points: all maps, their sum and its gradients in one pass.

The operators behind these functions, and how every order of derivative follows from three of them, are in
``occkernels/sample_ops.py``. They take the coordinates x, y, z and, for dynamic planes, coordinates projected here with
ordinary torch operations, so that bases and scales get their gradients from autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from occkernels._checks import check_tensor
from occkernels.bins import check_bases
from occkernels.layout import FeatureLayout
from occkernels.sample_ops import gather

Bases = tuple[Tensor | None, Tensor | None]


def sample_planes(
    planes: Tensor,  # (B, P, C, R, R)
    query: Tensor,  # (B, M, 3)
    layout: FeatureLayout,
    *,
    bases: Tensor | None = None,  # (B, L, 3, 3)
    basis_scale: Tensor | None = None,  # (B, L)
    reduce: str = "sum",
) -> Tensor:
    """Bilinear samples of the layout's planes, as ``sample_features`` without a grid.

    Args:
        planes: (B, P, C, R, R) features; fastest when channels-last in memory, as ``scatter_planes`` returns them.
        query: (B, M, 3) coordinates in the unit cube.
        layout: the planes; its grid is ignored.
        bases, basis_scale: of the dynamic planes; see ``sample_features``.
        reduce: "sum" over planes, or "concat".

    Returns:
        (B, M, C), or (B, M, P * C) with "concat", in the features' dtype.

    Raises:
        ValueError, TypeError: see ``sample_features``.
    """
    return _sample("sample_planes", query, layout, (planes, None), (bases, basis_scale), reduce, False).squeeze(2)


def sample_grid(
    grid: Tensor,  # (B, C, R, R, R)
    query: Tensor,  # (B, M, 3)
    layout: FeatureLayout,
) -> Tensor:
    """Trilinear samples of the layout's grid, as ``sample_features`` without planes.

    Args:
        grid: (B, C, R, R, R) features, axes (z, y, x); fastest when channels-last in memory.
        query: (B, M, 3) coordinates in the unit cube.
        layout: the grid; its planes are ignored.

    Returns:
        (B, M, C) in the features' dtype.

    Raises:
        ValueError, TypeError: see ``sample_features``.
    """
    return _sample("sample_grid", query, layout, (None, grid), (None, None), "sum", False).squeeze(2)


def sample_features(
    query: Tensor,  # (B, M, 3)
    layout: FeatureLayout,
    *,
    planes: Tensor | None = None,  # (B, P, C, R, R)
    grid: Tensor | None = None,  # (B, C, R, R, R)
    bases: Tensor | None = None,  # (B, L, 3, 3)
    basis_scale: Tensor | None = None,  # (B, L)
    reduce: str = "sum",
) -> Tensor:
    """Multilinear samples of all maps of a layout at the queries.

    Queries outside the padded cube take the border's value and get no gradient; NaN counts as the lower border.
    Differentiable in features, queries, bases and scales, to any order; the gradient to the features adds in a fixed
    order and so is the same for any number of threads and from run to run. Under autocast nothing is cast:
    half-precision features are read as they are and interpolated in float32.

    Args:
        query: (B, M, 3) coordinates in the unit cube, any floating dtype. Positions are computed in float32, or float64
            when queries or features are float64.
        layout: the maps.
        planes: (B, P, C, R, R) features of canonical, then dynamic planes; fastest when channels-last in memory.
        grid: (B, C, R, R, R) features, axes (z, y, x); fastest when channels-last in memory.
        bases: (B, L, 3, 3) frames of the L dynamic planes; rows 0 and 1 span plane l.
        basis_scale: (B, L) divisor of the projected coordinates (DPConvONet: normaliser + 0.05); ones when absent.
        reduce: "sum" over the maps, or "concat" to put them beside each other, planes first.

    Returns:
        (B, M, C), or (B, M, K * C) with "concat" of K maps, in the features' dtype.

    Raises:
        ValueError: a shape or device is wrong, features or bases are missing or not in the layout, or ``reduce`` is
            unknown.
        TypeError: a dtype is not floating, or planes and grid differ in dtype.

    Source: Peng et al., Convolutional Occupancy Networks, ECCV 2020, §3.2; Lionar et al., WACV 2021, §3.2.
    """
    return _sample("sample_features", query, layout, (planes, grid), (bases, basis_scale), reduce, False).squeeze(2)


def sample_features_with_gradient(
    query: Tensor,  # (B, M, 3)
    layout: FeatureLayout,
    *,
    planes: Tensor | None = None,  # (B, P, C, R, R)
    grid: Tensor | None = None,  # (B, C, R, R, R)
    bases: Tensor | None = None,  # (B, L, 3, 3)
    basis_scale: Tensor | None = None,  # (B, L)
    reduce: str = "sum",
) -> tuple[Tensor, Tensor]:
    """Samples and their derivatives with respect to x, y and z, in one pass (forward-mode tangents).

    For normals: multiply the tangents through the decoder instead of building a backward graph. Differentiable like
    ``sample_features``, whose arguments these are. Where a coordinate is clamped its derivative is 0.

    Args:
        query, layout, planes, grid, bases, basis_scale, reduce: see ``sample_features``.

    Returns:
        Values (B, M, C) and gradients (B, M, 3, C), per unit of the query's coordinates, in the features' dtype;
        K * C instead of C with "concat".

    Raises:
        ValueError, TypeError: see ``sample_features``.
    """
    both = _sample("sample_features_with_gradient", query, layout, (planes, grid), (bases, basis_scale), reduce, True)
    # Not by indexing, whose backward would fill two tensors with zeros.
    value, gradient = torch.split(both, [1, 3], dim=2)
    return value.squeeze(2), gradient


def _sample(
    where: str,
    query: Tensor,
    layout: FeatureLayout,
    features: tuple[Tensor | None, Tensor | None],
    bases: Bases,
    reduce: str,
    tangents: bool,
) -> Tensor:
    """(B, M, T, W): see ``occkernels/sample_ops.py``; T = 4 with ``tangents``."""
    planes, grid = _check(where, query, layout, features, reduce)
    dtype = _first(planes, grid).dtype
    wide = torch.float64 if torch.float64 in (dtype, query.dtype) else torch.float32
    query = query.to(wide)
    mask, dynamic, side, deep, cells, padding = layout.spec()
    if planes is None:
        mask = dynamic = side = 0
    else:
        planes = _storage(planes, wide).permute(0, 1, 3, 4, 2).contiguous()
    deep = 0 if grid is None else deep
    grid = None if grid is None else _storage(grid, wide).permute(0, 2, 3, 4, 1).contiguous()
    coords, frame = query, None
    frames, scale = (None, None) if where == "sample_grid" else check_bases(where, query, layout, *bases)
    if frames is not None and scale is not None:
        coords = torch.cat([query, _project(query, frames, scale, padding)], dim=-1)
        frame = _projected_axes(frames, scale, padding) if tangents else None
    elif tangents:
        frame = torch.eye(3, dtype=wide, device=query.device).expand(query.shape[0], 3, 3)
    spec = [mask, dynamic, side, deep, int(cells), int(reduce == "concat")]
    result: Tensor = gather(planes, grid, coords, None, frame, spec, padding)
    return result.to(dtype)


def _check(
    where: str,
    query: Tensor,
    layout: FeatureLayout,
    features: tuple[Tensor | None, Tensor | None],
    reduce: str,
) -> tuple[Tensor | None, Tensor | None]:
    planes, grid = features
    sizes = check_tensor(where, "query", query, "B M 3")
    sizes |= {"P": layout.num_planes, "R": layout.plane_resolution, "G": layout.grid_resolution}
    for name, tensor, pattern, count in (
        ("planes", planes, "B P C R R", layout.num_planes),
        ("grid", grid, "B C G G G", layout.grid_resolution),
    ):
        ignored = where == ("sample_planes" if name == "grid" else "sample_grid")
        if count and tensor is None and not ignored:
            raise ValueError(f"occkernels.{where}: the layout has {name}, so `{name}` of shape ({pattern}) is needed.")
        if tensor is not None:
            if not count:
                raise ValueError(f"occkernels.{where}: `{name}` was given but the layout has no {name}.")
            check_tensor(where, name, tensor, pattern, sizes, like=query)
    if planes is not None and grid is not None and planes.dtype != grid.dtype:
        raise TypeError(
            f"occkernels.{where}: `planes` is {planes.dtype} and `grid` is {grid.dtype}; convert one to the other."
        )
    if reduce not in ("sum", "concat"):
        raise ValueError(f"occkernels.{where}: `reduce` must be 'sum' or 'concat', got {reduce!r}.")
    return planes, grid


def _first(planes: Tensor | None, grid: Tensor | None) -> Tensor:
    features = grid if planes is None else planes
    assert features is not None
    return features


def _storage(features: Tensor, wide: torch.dtype) -> Tensor:
    """Features as the operator takes them: float64 beside float64 coordinates, else as they are."""
    return features.double() if wide == torch.float64 else features


def _project(query: Tensor, bases: Tensor, scale: Tensor, padding: float) -> Tensor:
    """(B, M, 2 L) coordinates in the dynamic planes, [0, 1) inside. Written out: autocast would round a matmul."""
    x, y, z = ((query / ((1 + padding) / 2))[:, :, None, None, axis] for axis in range(3))
    rows = bases[:, None, :, :2]  # (B, 1, L, 2, 3)
    projected = rows[..., 0] * x + rows[..., 1] * y + rows[..., 2] * z
    return (projected / scale[:, None, :, None] / 2 + 0.5).flatten(2)


def _projected_axes(bases: Tensor, scale: Tensor, padding: float) -> Tensor:
    """(B, 3, 3 + 2 L): how the operator's coordinates move with x, y and z."""
    unit = torch.eye(3, dtype=bases.dtype, device=bases.device).expand(bases.shape[0], 3, 3)
    rows = bases[:, :, :2] / ((1 + padding) / 2) / scale[:, :, None, None] / 2
    return torch.cat([unit, rows.flatten(1, 2).mT], dim=-1)
