# SPDX-License-Identifier: MIT
"""The serial octree of ``serial_octree.cpp`` with the interface of the original extension, compiled when first used."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SOURCE = Path(__file__).resolve().parent / "serial_octree.cpp"


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The compiled octree.

    Raises:
        RuntimeError: there is no C++ compiler.
    """
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise RuntimeError("the serial octree needs a C++ compiler, g++ or clang++")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "serial_octree.so"
        subprocess.run([compiler, "-O2", "-std=c++17", "-shared", "-fPIC", str(SOURCE), "-o", str(path)], check=True)
        loaded = ctypes.CDLL(str(path))
    loaded.octree_new.restype, loaded.octree_new.argtypes = ctypes.c_void_p, [ctypes.c_int64] * 2 + [ctypes.c_double]
    loaded.octree_count.restype = ctypes.c_int64
    return loaded


class SerialOctree:
    """Multiresolution search of one shape, one point and one cell after the other.

    Args:
        initial: cells along a side at first.
        levels: how often a cell may be halved.
        threshold: value of the surface.
    """

    def __init__(self, initial: int, levels: int, threshold: float) -> None:
        self.resolution = initial << levels
        self._tree = ctypes.c_void_p(library().octree_new(initial, levels, threshold))

    def __del__(self) -> None:
        library().octree_delete(self._tree)

    def query(self) -> NDArray[np.int64]:
        """(Q, 3) nodes whose values are wanted next."""
        points = np.empty((library().octree_count(self._tree), 3), np.int64)
        if len(points):
            library().octree_query(self._tree, _pointer(points))
        return points

    def update(self, points: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Give the values (Q,) of the nodes of the last query."""
        library().octree_update(self._tree, _pointer(points), _pointer(values), ctypes.c_int64(len(points)))

    def to_dense(self) -> NDArray[np.float64]:
        """(N + 1, N + 1, N + 1) values, with N = ``resolution``."""
        dense = np.empty((self.resolution + 1,) * 3)
        library().octree_dense(self._tree, _pointer(dense))
        return dense


def _pointer(array: NDArray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous and array.dtype in (np.int64, np.float64)
    return array.ctypes.data_as(ctypes.c_void_p)
