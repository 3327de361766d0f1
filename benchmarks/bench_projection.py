# SPDX-License-Identifier: MIT
"""Projection of a cloud onto three orthogonal planes that turn with it: one point at a time, in torch, and fused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from occkernels import FeatureLayout, bin_points, reference
from occnets.models.dynamic import basis_and_scale, coordinate_planes, frame_from_axes

POINTS = 3000
LAYOUT = FeatureLayout(dynamic_planes=3, plane_resolution=64)


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """The number of threads asked for."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OCC_BENCH_THREADS", before)))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def case() -> tuple[Tensor, Tensor, Tensor]:
    """Points (1, N, 3), bases (1, 3, 3, 3) and scales (1, 3)."""
    torch.manual_seed(0)
    return torch.rand(1, POINTS, 3) - 0.5, *basis_and_scale(coordinate_planes(frame_from_axes(torch.randn(1, 6))))


def one_at_a_time(points: Tensor, bases: Tensor, scale: Tensor) -> Tensor:
    """A Python loop over planes and points, with a matrix product for each."""
    side = LAYOUT.plane_resolution
    index = torch.empty(1, 3, points.shape[1], dtype=torch.int32)
    for plane in range(3):
        for number, point in enumerate(points[0] / ((1 + LAYOUT.padding) / 2)):
            t = ((bases[0, plane, :2] @ point) / scale[0, plane] / 2 + 0.5).clamp(0.0, 1.0 - 1e-5)
            column, row = (t * side).int()
            index[0, plane, number] = column + side * row
    return index


def in_torch(points: Tensor, bases: Tensor, scale: Tensor) -> Tensor:
    """The whole cloud at once, in ordinary torch operations."""
    return reference.bin_points(points, LAYOUT, bases=bases, basis_scale=scale).index


def ours(points: Tensor, bases: Tensor, scale: Tensor) -> Tensor:
    """The operator."""
    return bin_points(points, LAYOUT, bases=bases, basis_scale=scale).index


PATHS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "occkernels": ours,
    "torch": in_torch,
    "one point at a time": one_at_a_time,
}


@pytest.mark.parametrize("path", PATHS)
def test_projection(benchmark: Any, case: tuple[Tensor, Tensor, Tensor], path: str) -> None:
    """Time of one way to find the cells; all find the same ones but for rounding at a border."""
    result = benchmark(PATHS[path], *case)
    assert (result != ours(*case)).float().mean() < 1e-3
