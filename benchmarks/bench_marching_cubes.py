# SPDX-License-Identifier: MIT
"""marching_cubes on a 256 cubed torus against scikit-image, PyMCubes and the pure-PyTorch twin; marching_cubes_sparse
on the bricks of the same torus at 256 and 1024 nodes a side; derivatives; the libmcubes drop-in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from occkernels.compat import libmcubes
from occkernels.marching_cubes import marching_cubes
from occkernels.marching_cubes_sparse import marching_cubes_sparse
from occkernels.reference_mc import marching_cubes as reference
from occkernels.sparse import BRICK, SparseVolume

SIZE = 256


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """The number of threads asked for."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OCC_BENCH_THREADS", before)))
    yield
    torch.set_num_threads(before)


def inside_torus(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Distance to a torus of radii 0.3 and 0.12 in the unit cube, positive inside."""
    return 0.12 - (((x**2 + y**2).sqrt() - 0.3) ** 2 + z**2).sqrt()


@pytest.fixture(scope="module")
def torus() -> Tensor:
    axis = torch.linspace(-0.5, 0.5, SIZE)
    return inside_torus(axis[:, None, None], axis[:, None], axis)


def torus_bricks(nodes: int) -> SparseVolume:
    """The bricks within two cells of the torus's surface, as an octree leaves them."""
    side, spacing, axis = -(-nodes // BRICK), 1 / (nodes - 1), torch.linspace(-0.5, 0.5, nodes)
    middle = (torch.arange(side) * BRICK + (BRICK - 1) / 2) * spacing - 0.5
    near = inside_torus(middle[:, None, None], middle[:, None], middle).abs() < ((BRICK - 1) / 2 * 3**0.5 + 2) * spacing
    keys = near.flatten().nonzero().flatten()
    empty = SparseVolume(keys, torch.empty(len(keys), BRICK, BRICK, BRICK), nodes, 1)
    places = [first[:, None] + torch.arange(BRICK) for first in empty.places()[1].unbind(1)]
    x, y, z = (axis[place.clamp(max=nodes - 1)] for place in places)
    values = inside_torus(x[:, :, None, None], y[:, None, :, None], z[:, None, None, :])
    x, y, z = (place >= nodes for place in places)
    values[x[:, :, None, None] | y[:, None, :, None] | z[:, None, None, :]] = float("nan")
    return SparseVolume(keys, values, nodes, 1)


def scikit_image(volume: Tensor) -> np.ndarray:
    return pytest.importorskip("skimage.measure").marching_cubes(volume.numpy(), 0.0)[0]


def pymcubes(volume: Tensor) -> np.ndarray:
    return pytest.importorskip("mcubes").marching_cubes(volume.numpy(), 0.0)[0]


def ours(volume: Tensor, **options: Any) -> np.ndarray:
    return marching_cubes(volume, **options).vertices.numpy()


def drop_in(volume: Tensor) -> np.ndarray:
    return libmcubes.marching_cubes(volume.numpy(), 0.0)[0] - 0.5


def with_normals(volume: Tensor) -> np.ndarray:
    return ours(volume, normals=True)


def twin(volume: Tensor) -> np.ndarray:
    return reference(volume).vertices.numpy()


PATHS = {
    "occkernels": ours,
    "occkernels, with normals": with_normals,
    "occkernels.compat.libmcubes": drop_in,
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
    benchmark.pedantic(function, args=(torus,), rounds=15 if function in (ours, with_normals) else 3, warmup_rounds=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types(benchmark: Any, torus: Tensor, dtype: torch.dtype) -> None:
    benchmark.group = f"marching cubes, torus, {SIZE} cubed, other types"
    benchmark.extra_info["path"] = str(dtype).removeprefix("torch.")
    benchmark.pedantic(marching_cubes, args=(torus.to(dtype),), rounds=7, warmup_rounds=1)


@pytest.mark.parametrize("normals", [False, True])
@pytest.mark.parametrize("nodes", [256, 1024])
def test_sparse(benchmark: Any, torus: Tensor, nodes: int, normals: bool) -> None:
    volume = torus_bricks(nodes)
    batch = marching_cubes_sparse(volume)
    if nodes == SIZE:
        expected, found = (np.sort(part.numpy(), axis=0) for part in (marching_cubes(torus).vertices, batch.vertices))
        np.testing.assert_allclose(found, expected, atol=2e-4)  # sqrt may round differently along other strides
    benchmark.group = f"marching cubes, bricks of a torus, {nodes} cubed float32"
    benchmark.extra_info |= {"bricks": len(volume.keys), "vertices": len(batch.vertices), "normals": normals}
    benchmark.pedantic(marching_cubes_sparse, args=(volume,), kwargs={"normals": normals}, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_derivatives(benchmark: Any, torus: Tensor, form: str) -> None:
    sparse = torus_bricks(SIZE)
    values = (torus if form == "dense" else sparse.values).clone().requires_grad_()

    def step() -> Tensor:
        if form == "dense":
            vertices = marching_cubes(values).vertices
        else:
            vertices = marching_cubes_sparse(SparseVolume(sparse.keys, values, SIZE, 1)).vertices
        return torch.autograd.grad(vertices.sum(), values)[0]

    benchmark.group = f"marching cubes, forward and backward, torus, {SIZE} cubed float32"
    benchmark.extra_info["path"] = form
    benchmark.pedantic(step, rounds=7, warmup_rounds=1)
