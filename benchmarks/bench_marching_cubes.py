# SPDX-License-Identifier: MIT
"""marching_cubes on a 256 cubed torus against scikit-image, PyMCubes and the pure-PyTorch twin."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from occkernels.marching_cubes import marching_cubes
from occkernels.reference_mc import marching_cubes as reference

SIZE = 256


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """The number of threads asked for."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OCC_BENCH_THREADS", before)))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def torus() -> Tensor:
    """Distance to a torus of radii 0.3 and 0.12 in the unit cube, positive inside."""
    axis = torch.linspace(-0.5, 0.5, SIZE)
    ring = (axis[:, None, None] ** 2 + axis[:, None] ** 2).sqrt() - 0.3
    return 0.12 - (ring**2 + axis**2).sqrt()


def scikit_image(volume: Tensor) -> np.ndarray:
    return pytest.importorskip("skimage.measure").marching_cubes(volume.numpy(), 0.0)[0]


def pymcubes(volume: Tensor) -> np.ndarray:
    return pytest.importorskip("mcubes").marching_cubes(volume.numpy(), 0.0)[0]


def ours(volume: Tensor, **options: Any) -> np.ndarray:
    return marching_cubes(volume, **options).vertices.numpy()


def with_normals(volume: Tensor) -> np.ndarray:
    return ours(volume, normals=True)


def twin(volume: Tensor) -> np.ndarray:
    return reference(volume).vertices.numpy()


PATHS = {
    "occkernels": ours,
    "occkernels, with normals": with_normals,
    "scikit-image": scikit_image,
    "PyMCubes": pymcubes,
    "reference (PyTorch)": twin,
}


@pytest.mark.parametrize("path", PATHS)
def test_torus(benchmark: Any, torus: Tensor, path: str) -> None:
    function: Callable[[Tensor], np.ndarray] = PATHS[path]
    expected, found = (np.sort(run(torus).astype(np.float64), axis=0) for run in (ours, function))
    # Same vertices up to the margin of 1e-4 and float32 rounding; sorted by coordinate because orders differ.
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-4)
    benchmark.group = f"marching cubes, torus, {SIZE} cubed float32"
    benchmark.extra_info["path"] = path
    benchmark.pedantic(function, args=(torus,), rounds=15 if path.startswith("occkernels") else 3, warmup_rounds=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types(benchmark: Any, torus: Tensor, dtype: torch.dtype) -> None:
    benchmark.group = f"marching cubes, torus, {SIZE} cubed, other types"
    benchmark.extra_info["path"] = str(dtype).removeprefix("torch.")
    benchmark.pedantic(marching_cubes, args=(torus.to(dtype),), rounds=7, warmup_rounds=1)
