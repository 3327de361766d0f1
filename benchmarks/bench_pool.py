# SPDX-License-Identifier: MIT
"""Scattering and local pooling against the pure-PyTorch path, on the same inputs, outputs compared first.

"original layout" is how the ONet family calls torch_scatter: features as (B, C, N), an int64 index for every channel.
With torch_scatter itself where it is installed, and always with torch's own scatter_add and scatter_reduce.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor
from turns import Run, bench

import occkernels as occ
from occkernels import FeatureLayout

CHANNELS, SIDE = 32, 64
LAYOUT = FeatureLayout(planes=("xz", "xy", "yz"), plane_resolution=SIDE)
AXES = ((0, 2), (0, 1), (1, 2))


def make_inputs(count: int) -> tuple[Tensor, Tensor]:
    """Points (1, N, 3) in the unit cube and features (1, N, C)."""
    random = torch.Generator().manual_seed(0)
    return torch.rand(1, count, 3, generator=random) - 0.5, torch.randn(1, count, CHANNELS, generator=random)


def torch_index(points: Tensor) -> list[Tensor]:
    """(B, N) int64 cells of the three planes, as the original systems compute them."""
    cells = []
    for axes in AXES:
        t = points[..., axes] / (1 + 0.1 + 1e-5) + 0.5
        t = torch.where(t >= 1, 1 - 1e-5, t)
        cell = (torch.where(t < 0, 0.0, t) * SIDE).long()
        cells.append(cell[..., 0] + SIDE * cell[..., 1])
    return cells


def original_mean(points: Tensor, features: Tensor) -> Tensor:
    """(B, 3, C, R²) means by scatter_add in the original layout."""
    source = features.mT.contiguous()
    maps = []
    for cell in torch_index(points):
        index = cell[:, None].expand_as(source)
        total = source.new_zeros(*source.shape[:2], SIDE**2).scatter_add_(2, index, source)
        count = source.new_zeros(len(source), 1, SIDE**2).scatter_add_(2, cell[:, None], torch.ones_like(source[:, :1]))
        maps.append(total / count.clamp_(min=1))
    return torch.stack(maps, dim=1)


def torch_scatter_mean(points: Tensor, features: Tensor) -> Tensor:
    """(B, 3, C, R²) means as the original systems compute them."""
    from torch_scatter import scatter_mean

    source = features.mT.contiguous()
    maps = []
    for cell in torch_index(points):
        empty = source.new_zeros(*source.shape[:2], SIDE**2)
        maps.append(scatter_mean(source, cell[:, None], out=empty))
    return torch.stack(maps, dim=1)


def index_add_mean(points: Tensor, features: Tensor) -> Tensor:
    """The best pure-PyTorch form: channels-last rows, index_add_. For one sample."""
    maps = []
    for cell in torch_index(points):
        total = features.new_zeros(SIDE**2, CHANNELS).index_add_(0, cell[0], features[0])
        count = torch.bincount(cell[0], minlength=SIDE**2).clamp_(min=1)
        maps.append((total / count[:, None]).mT)
    return torch.stack(maps)[None]


def fused_mean(points: Tensor, features: Tensor) -> Tensor:
    return occ.scatter_planes(features, occ.bin_points(points, LAYOUT)).flatten(3)


def original_pool(cells: list[Tensor], features: Tensor) -> Tensor:
    """Scatter-max and gather for every plane, summed, in the original layout; (B, N, C)."""
    source = features.mT.contiguous()
    pooled = torch.zeros_like(source)
    for cell in cells:
        index = cell[:, None].expand_as(source)
        best = source.new_zeros(*source.shape[:2], SIDE**2)
        best = best.scatter_reduce(2, index, source, "amax", include_self=False)
        pooled = pooled + best.gather(2, index)
    return pooled.mT


def torch_scatter_pool(cells: list[Tensor], features: Tensor) -> Tensor:
    """As the original systems pool: scatter_max and gather for every plane, summed; (B, N, C)."""
    from torch_scatter import scatter_max

    source = features.mT.contiguous()
    pooled: Any = 0
    for cell in cells:
        best = scatter_max(source, cell[:, None], dim_size=SIDE**2)[0]
        pooled = pooled + best.gather(2, cell[:, None].expand_as(source))
    return pooled.mT


def measure(benchmark: Any, group: str, path: str, run: Run, ours: Run) -> None:
    benchmark.group = group
    benchmark.extra_info["path"] = path
    with torch.inference_mode():
        bench(benchmark, run, None if path == "occkernels" else ours, rounds=25, warmups=3)


MEANS = {
    "occkernels": fused_mean,
    "scatter_add, original layout": original_mean,
    "index_add_, channels-last": index_add_mean,
}
POOLS = {"amax + gather, original layout": original_pool}
if importlib.util.find_spec("torch_scatter"):
    MEANS["torch_scatter, original path"] = torch_scatter_mean
    POOLS["torch_scatter, original path"] = torch_scatter_pool


@pytest.mark.parametrize("path", MEANS)
def test_scatter_mean(benchmark: Any, path: str) -> None:
    points, features = make_inputs(100_000)
    torch.testing.assert_close(MEANS[path](points, features), original_mean(points, features), rtol=1e-4, atol=1e-5)
    measure(
        benchmark,
        "scatter mean, 100,000 points, 3 planes 64^2, bins included",
        path,
        lambda: MEANS[path](points, features),
        lambda: fused_mean(points, features),
    )


@pytest.mark.parametrize("count", [3_000, 100_000])
@pytest.mark.parametrize("path", ["occkernels", "the sort, once a cloud", *POOLS])
def test_local_pool(benchmark: Any, path: str, count: int) -> None:
    points, features = make_inputs(count)
    bins, cells = occ.bin_points(points, LAYOUT), torch_index(points)
    torch.testing.assert_close(occ.local_pool(features, bins), original_pool(cells, features))

    def ours() -> Tensor:
        return occ.local_pool(features, bins)  # sorted above

    run: Run = ours
    if path.startswith("the sort"):
        run = lambda: occ.bin_points(points, LAYOUT).order  # noqa: E731
    elif path in POOLS:
        torch.testing.assert_close(POOLS[path](cells, features), original_pool(cells, features))
        run = lambda: POOLS[path](cells, features)  # noqa: E731
    measure(benchmark, f"local max pooling, {count:,} points, 3 planes 64^2", path, run, ours)
