# SPDX-License-Identifier: MIT
"""Feature maps: how point features become planes and grids, and back into the stacked form the sampler reads.

A set of maps is a dictionary with keys among ``grid``, ``xz``, ``xy``, ``yz`` (that order): planes (B, C, R, R) with
rows = second coordinate, grid (B, C, R, R, R) with axes (z, y, x); both in channels-last memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from occkernels import Bins, FeatureLayout, scatter_grid, scatter_planes
from occnets.models.options import make_options
from occnets.models.unet import UNet
from occnets.models.unet3d import UNet3D
from occnets.models.unet3d_light import UNet3DLight, UNet3DLightOptions

PLANES = ("xz", "xy", "yz")
"""Canonical planes in the order of the feature layout."""

FeatureMaps = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class UNet2DOptions:
    """Keys of ``unet_kwargs``; see :class:`occnets.models.unet.UNet`. Channels default to the encoder's ``c_dim``."""

    depth: int = 5
    start_filts: int = 64
    up_mode: str = "transpose"
    merge_mode: str = "concat"


@dataclasses.dataclass(frozen=True)
class UNet3DOptions:
    """Keys of ``unet3d_kwargs``; see :class:`occnets.models.unet3d.UNet3D`."""

    in_channels: int
    out_channels: int
    final_sigmoid: bool = True
    f_maps: int | Sequence[int] = 64
    layer_order: str = "gcr"
    num_groups: int = 8
    num_levels: int = 4
    is_segmentation: bool = True


def map_names(plane_type: str | Sequence[str], where: str) -> tuple[str, ...]:
    """Parse the option ``plane_type``: one name or a list of names out of xz, xy, yz, grid.

    Returns:
        The names in the family's order of maps: grid, xz, xy, yz.

    Raises:
        ValueError: an unknown name or none at all.
    """
    given = (plane_type,) if isinstance(plane_type, str) else tuple(plane_type)
    unknown = [name for name in given if name not in (*PLANES, "grid")]
    if unknown or not given:
        raise ValueError(f"{where}: plane_type must hold names out of xz, xy, yz, grid, got {plane_type!r}")
    return tuple(name for name in ("grid", *PLANES) if name in given)


def make_layout(
    names: Sequence[str],
    plane_resolution: int | None,
    grid_resolution: int | None,
    *,
    padding: float,
    registration: str,
    where: str,
) -> FeatureLayout:
    """Layout of the maps ``names``; a resolution that no map needs is ignored, as in the family's files.

    Raises:
        ValueError: a resolution that a map needs is missing.
    """
    planes = tuple(name for name in PLANES if name in names)
    for needed, key, value in (
        (planes, "plane_resolution", plane_resolution),
        ("grid" in names, "grid_resolution", grid_resolution),
    ):
        if needed and not value:
            raise ValueError(f"{where}: {key} must be a positive integer for plane_type {list(names)}, got {value!r}")
    return FeatureLayout(
        planes=planes,
        plane_resolution=int(plane_resolution or 0) if planes else 0,
        grid_resolution=int(grid_resolution or 0) if "grid" in names else 0,
        padding=padding,
        registration=registration,
    )


def build_unet(enabled: bool, c_dim: int, kwargs: Mapping[str, Any] | None) -> UNet | None:
    """The shared 2-D U-Net of an encoder (``c_dim`` channels in and out), or ``None``."""
    if not enabled:
        return None
    options = make_options(UNet2DOptions, kwargs or {}, "unet_kwargs")
    return UNet(c_dim, in_channels=c_dim, **dataclasses.asdict(options))


def build_unet3d(enabled: bool, c_dim: int, kwargs: Mapping[str, Any] | None) -> UNet3D | UNet3DLight | None:
    """The 3-D U-Net of an encoder, or ``None``.

    ``variant: light`` selects :class:`UNet3DLight`, ``variant: family`` (the default) :class:`UNet3D`; the other keys
    go to it. ``in_channels`` and ``out_channels`` default to ``c_dim``.

    Raises:
        ValueError: unknown variant or key, or input channels other than ``c_dim``.
    """
    if not enabled:
        return None
    fields = {"in_channels": c_dim, "out_channels": c_dim, **dict(kwargs or {})}
    variant = fields.pop("variant", "family")
    if fields["in_channels"] != c_dim:
        raise ValueError(f"unet3d_kwargs: in_channels must equal c_dim {c_dim}, got {fields['in_channels']}")
    if variant == "light":
        return UNet3DLight(make_options(UNet3DLightOptions, fields, "unet3d_kwargs"))
    if variant != "family":
        raise ValueError(f"unet3d_kwargs: variant must be 'family' or 'light', got {variant!r}")
    return UNet3D(**vars(make_options(UNet3DOptions, fields, "unet3d_kwargs")))


def scatter_maps(features: Tensor, bins: Bins, unet: nn.Module | None, unet3d: nn.Module | None) -> FeatureMaps:
    """Mean of the point features per cell, then the U-Nets. Empty cells are zero before the U-Net.

    Args:
        features: (B, N, C).
        bins: the points' cells.
        unet: network shared by all planes; they go through it as one batch.
        unet3d: network of the grid.
    """
    layout = bins.layout
    maps: FeatureMaps = {}
    if layout.grid_resolution:
        grid = scatter_grid(features, bins, reduce="mean")
        maps["grid"] = grid if unet3d is None else unet3d(grid)
    if layout.planes:
        planes = scatter_planes(features, bins, reduce="mean")
        if unet is not None:
            batch, count = planes.shape[:2]
            planes = unet(planes.flatten(0, 1)).unflatten(0, (batch, count))
        maps.update(zip(layout.planes, planes.unbind(1), strict=True))
    return maps


def stack_planes(maps: Mapping[str, Tensor]) -> Tensor | None:
    """Stack the planes of a set of maps into (B, P, C, R, R), channels-last; ``None`` when there is none."""
    planes = [maps[name] for name in PLANES if name in maps]
    if not planes:
        return None
    if len(planes) == 1:
        return planes[0].unsqueeze(1)
    # Stacked with the channels at the end, so that the result keeps channels-last memory.
    return torch.stack([plane.movedim(1, -1) for plane in planes], dim=1).movedim(-1, 2)


def layout_of(maps: Mapping[str, Tensor], padding: float, registration: str) -> FeatureLayout:
    """Layout of given maps, resolutions read off their shapes (a U-Net may have refined the grid)."""
    planes = tuple(name for name in PLANES if name in maps)
    return FeatureLayout(
        planes=planes,
        plane_resolution=maps[planes[0]].shape[-1] if planes else 0,
        grid_resolution=maps["grid"].shape[-1] if "grid" in maps else 0,
        padding=padding,
        registration=registration,
    )
