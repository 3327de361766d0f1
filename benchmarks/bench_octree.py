# SPDX-License-Identifier: MIT
"""Bookkeeping of the octree, the field's own cost left out, against the family's serial octree on a map.

``serial_octree.cpp`` re-creates that design; it is compiled here with the system's compiler. Every path gets the values
of the same torus, looked up in a table made beforehand, and must ask for the same nodes.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from occkernels import ExtractOptions, Octree, extract
from occkernels.compat.libmise import MISE

SOURCE = Path(__file__).with_name("serial_octree.cpp")
INITIAL = 32


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """The number of threads asked for."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OCC_BENCH_THREADS", before)))
    yield
    torch.set_num_threads(before)


def torus(points: np.ndarray, cells: int) -> np.ndarray:
    """Distance to a torus of radii 0.3 and 0.12 in a box of 1.1, positive inside."""
    x, y, z = (1.1 * (points.T / cells - 0.5)).astype(np.float32).astype(np.float64)
    return 0.12 - np.hypot(np.hypot(x, y) - 0.3, z)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The serial octree."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    path = tmp_path_factory.mktemp("serial") / "serial_octree.so"
    subprocess.run([compiler, "-O2", "-std=c++17", "-shared", "-fPIC", str(SOURCE), "-o", str(path)], check=True)
    loaded = ctypes.CDLL(str(path))
    loaded.octree_new.restype, loaded.octree_new.argtypes = ctypes.c_void_p, [ctypes.c_int64] * 2 + [ctypes.c_double]
    loaded.octree_count.restype = ctypes.c_int64
    return loaded


class Recorded:
    """Values of each round, in the order a path first asked; later runs are given them without evaluation."""

    def __init__(self, cells: int) -> None:
        self.cells = cells
        self.rounds: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, number: int, points: np.ndarray) -> np.ndarray:
        if number == len(self.rounds):
            self.rounds.append((points.copy(), torus(points, self.cells)))
        assert len(points) == len(self.rounds[number][1])
        return self.rounds[number][1]


def serial(library: ctypes.CDLL, levels: int, values: Recorded) -> np.ndarray:
    tree = ctypes.c_void_p(library.octree_new(INITIAL, levels, 0.0))
    number = 0
    while count := library.octree_count(tree):
        points = np.empty((count, 3), np.int64)
        library.octree_query(tree, points.ctypes.data_as(ctypes.c_void_p))
        given = values(number, points)
        pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (points, given))
        library.octree_update(tree, *pointers, ctypes.c_int64(count))
        number += 1
    dense = np.empty((values.cells + 1,) * 3)
    library.octree_dense(tree, dense.ctypes.data_as(ctypes.c_void_p))
    library.octree_delete(tree)
    return dense


def ours(levels: int, values: Recorded, dense: bool = False) -> np.ndarray:
    """Bricks for marching cubes, or the dense grid."""
    tree, number = Octree(INITIAL, levels), 0
    while len(index := tree.query()[0]):
        tree.update(torch.from_numpy(values(number, index.numpy())))
        number += 1
    return (tree.to_dense()[0] if dense else tree.volume().values).numpy()


def drop_in(levels: int, values: Recorded) -> np.ndarray:
    mise, number = MISE(INITIAL, levels, 0.0), 0
    while len(points := mise.query()):
        mise.update(points, values(number, points))
        number += 1
    return mise.to_dense()


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("path", ["occkernels", "occkernels, dense grid", "compat.libmise", "serial octree"])
def test_torus(benchmark: Any, library: ctypes.CDLL, levels: int, path: str) -> None:
    cells = INITIAL << levels
    paths: dict[str, Callable[[Recorded], np.ndarray]] = {
        "occkernels": lambda values: ours(levels, values),
        "occkernels, dense grid": lambda values: ours(levels, values, dense=True),
        "compat.libmise": lambda values: drop_in(levels, values),
        "serial octree": lambda values: serial(library, levels, values),
    }
    expected_values, values = Recorded(cells), Recorded(cells)
    expected, found = serial(library, levels, expected_values), paths[path](values)
    for (one, _), (two, _) in zip(expected_values.rounds, values.rounds, strict=True):
        assert {tuple(row) for row in one.tolist()} == {tuple(row) for row in two.tolist()}
    if found.shape == expected.shape:
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    benchmark.group = f"octree, torus, {INITIAL} to {cells} cells, without the field's cost"
    benchmark.extra_info["path"] = path
    benchmark.extra_info["nodes"] = sum(len(points) for points, _ in values.rounds)
    rounds = 15 if path.startswith("occkernels") else 3
    benchmark.pedantic(paths[path], args=(values,), rounds=rounds, warmup_rounds=1)


@pytest.mark.parametrize("levels", [3, 5])
def test_extract(benchmark: Any, levels: int) -> None:
    def field(query: torch.Tensor) -> torch.Tensor:
        x, y, z = query.unbind(-1)
        return 0.12 - torch.hypot(torch.hypot(x, y) - 0.3, z)

    benchmark.group = "extract, torus, an analytic field"
    benchmark.extra_info["path"] = f"{INITIAL} to {INITIAL << levels} cells"
    benchmark.pedantic(extract, args=(field, ExtractOptions(INITIAL, levels)), rounds=3, warmup_rounds=1)
