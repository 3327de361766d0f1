# SPDX-License-Identifier: MIT
"""Sampling against the pure-PyTorch path, on the same inputs, outputs compared first.

python -m pytest benchmarks/bench_sample.py                     tables of pytest-benchmark
python benchmarks/bench_sample.py [--repeats 30] [--threads 2]  ratios, both sides taking turns in one run
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from turns import Run, bench_pair, measure

import occkernels as occ
from occkernels import FeatureLayout

QUERIES, CHANNELS = 100_000, 32
AXES = ((0, 2), (0, 1), (1, 2))


@dataclass
class Inputs:
    """Random queries and features; planes and grid also as F.grid_sample wants them (channels first)."""

    layout: FeatureLayout
    query: Tensor
    features: dict[str, Tensor]

    def sides(self) -> dict[str, Tensor]:
        """Contiguous in the order PyTorch's path reads them."""
        return {key: value.contiguous() for key, value in self.features.items()}


def make_inputs(layout: FeatureLayout, queries: int = QUERIES, channels: int = CHANNELS) -> Inputs:
    random = torch.Generator().manual_seed(0)
    features = {}
    if layout.num_planes:
        side = layout.plane_resolution
        planes = torch.randn(1, layout.num_planes, side, side, channels, generator=random)
        features["planes"] = planes.permute(0, 1, 4, 2, 3)  # channels-last, as scatter_planes and a U-Net leave it
    if layout.grid_resolution:
        features["grid"] = torch.randn(1, *(layout.grid_resolution,) * 3, channels, generator=random).permute(
            0, 4, 1, 2, 3
        )
    return Inputs(layout, torch.rand(1, queries, 3, generator=random) - 0.5, features)


def torch_coordinates(inputs: Inputs) -> list[Tensor]:
    """Sampling positions in [-1, 1] as the original systems compute them."""
    maps = []
    if inputs.layout.num_planes:
        for axes in AXES:
            t = inputs.query[..., axes] / (1 + 0.1 + 1e-5) + 0.5
            t = torch.where(t >= 1, 1 - 1e-5, t)
            maps.append(2 * torch.where(t < 0, 0.0, t)[:, :, None] - 1)
    if inputs.layout.grid_resolution:
        t = inputs.query / (1 + 0.1 + 1e-3) + 0.5
        t = torch.where(t >= 1, 1 - 1e-3, t)
        maps.append(2 * torch.where(t < 0, 0.0, t)[:, :, None, None] - 1)
    return maps


def torch_samples(maps: list[Tensor], features: dict[str, Tensor]) -> list[Tensor]:
    """F.grid_sample of every map, (B, C, M) each."""
    values = [*features["planes"].unbind(1)] if "planes" in features else []
    values += [features["grid"]] if "grid" in features else []
    return [
        F.grid_sample(value, at, padding_mode="border", align_corners=True, mode="bilinear").flatten(2)
        for value, at in zip(values, maps, strict=True)
    ]


def torch_path(inputs: Inputs, features: dict[str, Tensor]) -> Tensor:
    parts = torch_samples(torch_coordinates(inputs), features)
    return torch.stack(parts).sum(0).mT if len(parts) > 1 else parts[0].mT


def forward_pair(layout: FeatureLayout, only_samples: bool = False) -> tuple[Run, Run]:
    """(PyTorch, ours), outputs compared."""
    inputs = make_inputs(layout)
    sides, maps = inputs.sides(), torch_coordinates(inputs)

    def ours() -> Tensor:
        return occ.sample_features(inputs.query, layout, **inputs.features)

    torch.testing.assert_close(ours(), torch_path(inputs, sides), rtol=1e-4, atol=1e-4)
    if only_samples:
        return lambda: torch_samples(maps, sides), ours
    return lambda: torch_path(inputs, sides), ours


def backward_pair(layout: FeatureLayout) -> tuple[Run, Run]:
    """Forward and backward to the features."""
    inputs = make_inputs(layout)
    sides = {key: value.requires_grad_() for key, value in inputs.sides().items()}
    own = {key: value.requires_grad_() for key, value in inputs.features.items()}
    weights = torch.randn(1, QUERIES, CHANNELS)

    def theirs() -> tuple[Tensor, ...]:
        return torch.autograd.grad(torch_path(inputs, sides), list(sides.values()), weights)

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(occ.sample_features(inputs.query, layout, **own), list(own.values()), weights)

    for one, other in zip(ours(), theirs(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2)
    return theirs, ours


PLANES = FeatureLayout(("xz", "xy", "yz"), 64)
CASES: dict[str, Callable[[], tuple[Run, Run]]] = {
    "3 planes 64, whole path": lambda: forward_pair(PLANES),
    "3 planes 64, grid_sample alone": lambda: forward_pair(PLANES, only_samples=True),
    "3 planes 128, whole path": lambda: forward_pair(FeatureLayout(("xz", "xy", "yz"), 128)),
    "grid 32": lambda: forward_pair(FeatureLayout(grid_resolution=32)),
    "grid 64": lambda: forward_pair(FeatureLayout(grid_resolution=64)),
    "3 planes 64, forward + backward": lambda: backward_pair(PLANES),
    "grid 32, forward + backward": lambda: backward_pair(FeatureLayout(grid_resolution=32)),
    "grid 64, forward + backward": lambda: backward_pair(FeatureLayout(grid_resolution=64)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("side", ["torch", "occkernels"])
def test_sample(benchmark: Any, name: str, side: str) -> None:
    benchmark.group = name
    bench_pair(benchmark, CASES[name](), side, rounds=15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'case':34}{'torch ms':>18}{'ours ms':>18}{'ratio':>16}   median (least)")
    for name, make in CASES.items():
        if options.only in name:
            theirs, ours = measure(make(), options.repeats)
            middle = [1e3 * statistics.median(each) for each in (theirs, ours)]
            least = [1e3 * min(each) for each in (theirs, ours)]
            cells = [f"{a:.2f} ({b:.2f})" for a, b in zip(middle, least, strict=True)]
            ratio = f"{middle[0] / middle[1]:.1f} ({least[0] / least[1]:.1f})"
            print(f"{name:34}{cells[0]:>18}{cells[1]:>18}{ratio:>16}", flush=True)


if __name__ == "__main__":
    main()
