# SPDX-License-Identifier: MIT
"""Tolerances and inputs shared by the tests and benchmarks of this package and of code built on it."""

from __future__ import annotations

import torch
from torch import Tensor

from occkernels.bins import bin_points
from occkernels.layout import Bins, FeatureLayout

# (relative, absolute) per dtype of the result: rounding of sums of up to some hundred terms of size 1 in the arithmetic
# type, and one rounding of the result in half precision.
TOL = {
    torch.float64: (1e-10, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (2e-3, 1e-3),
    torch.bfloat16: (1.6e-2, 8e-3),
}


def assert_close(found: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    """Same shape, dtype and, within ``scale`` times ``TOL``, values; NaN equals NaN."""
    relative, absolute = TOL.get(expected.dtype, (0.0, 0.0))
    rtol, atol = relative * scale, absolute * scale
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=rtol, atol=atol, equal_nan=True)


def random_cloud(batch: int, count: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """(B, N, 3) points over a cube larger than the padded one, so that some are clamped."""
    points = torch.rand(batch, count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1.4 * points - 0.7).to(dtype)


def random_features(*size: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Normal values of a shape, the same for every dtype up to rounding."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_bins(layout: FeatureLayout, batch: int, count: int, device: str = "cpu", seed: int = 0) -> Bins:
    """Bins of a random cloud."""
    return bin_points(random_cloud(batch, count, seed=seed).to(device), layout)
