# SPDX-License-Identifier: MIT
"""``compat.libmcubes`` against recorded results of the original, and by its own rules."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from occkernels.compat import libmcubes

SHARED = Path(os.environ.get("OCC_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))
GOLDEN = SHARED / "golden" / "marching_cubes.npz"
CASES = ["sphere24", "torus_24_20_28", "random12", "ties10", "box_padded"]


def outline(vertices: np.ndarray, faces: np.ndarray) -> Counter[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Directed sides of triangles that lie in a plane between two cells: what the cut of polygons cannot change."""
    sides: Counter[tuple[tuple[float, ...], tuple[float, ...]]] = Counter()
    for face in np.asarray(faces, dtype=np.int64):
        for k in range(3):
            a, b = vertices[face[k]] - 0.5, vertices[face[(k + 1) % 3]] - 0.5
            if ((a == b) & (a == np.round(a))).any():
                sides[tuple(a), tuple(b)] += 1
    for key in list(sides):  # diagonals that lie in such a plane are passed both ways within a cell
        back = key[::-1]
        both = min(sides[key], sides[back])
        sides[key] -= both
        sides[back] -= both
    return +sides


def volume_of(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = np.moveaxis(vertices[faces.astype(np.int64)], 1, 0)
    return float((np.cross(a, b) * c).sum() / 6)


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs the recorded results (shared/golden)")
@pytest.mark.parametrize("case", CASES)
def test_same_as_the_original(case: str) -> None:
    told = json.loads(GOLDEN.with_suffix(".json").read_text())["cases"][case]
    with np.load(GOLDEN) as data:
        volume, expected, faces = (data[f"{case}/{name}"] for name in ("volume", "vertices", "faces"))
    vertices, triangles = libmcubes.marching_cubes(volume, told["isovalue"])
    assert vertices.dtype == np.float64 and triangles.dtype == np.uint64
    assert np.array_equal(vertices, expected)
    assert triangles.shape == faces.shape
    if case != "ties10":  # where vertices coincide, positions do not tell a side of a polygon
        assert outline(vertices, triangles) == outline(expected, faces)
        assert np.array_equal(cells(vertices, triangles), cells(expected, faces))
    if told["watertight"]:
        # Other diagonals in polygons that are not flat: 6e-4 on the coarse torus.
        assert volume_of(vertices, triangles) == pytest.approx(told["volume"], rel=1e-3)


def cells(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The cell of every face, to its middle."""
    return np.floor(vertices[faces.astype(np.int64)].mean(1) - 0.5 + 1e-9)


def test_one_node() -> None:
    volume = np.full((3, 3, 3), -1.0, dtype=np.float32)
    volume[1, 1, 1] = 1
    vertices, triangles = libmcubes.marching_cubes(volume, 0.0)
    expected = [[1, 1.5, 1.5], [1.5, 1, 1.5], [1.5, 1.5, 1], [1.5, 1.5, 2], [1.5, 2, 1.5], [2, 1.5, 1.5]]
    assert vertices.tolist() == expected
    faces = [[2, 1, 0], [1, 3, 0], [2, 0, 4], [0, 3, 4], [1, 2, 5], [1, 5, 3], [5, 2, 4], [5, 4, 3]]
    turned = [min(face[k:] + face[:k] for k in range(3)) for face in faces]
    assert [min(face[k:] + face[:k] for k in range(3)) for face in triangles.astype(int).tolist()] == turned
    volume[1, 1, 1] = 0
    for empty in (libmcubes.marching_cubes(volume, 0.0), libmcubes.marching_cubes(volume[:1], -5)):
        assert empty[0].shape == empty[1].shape == (0, 3) and empty[1].dtype == np.uint64


@pytest.mark.parametrize("shape", [(2, 2, 2), (5, 3, 4), (2, 9, 3)])
def test_every_vertex_is_on_an_edge_of_its_triangles_cell(shape: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(sum(shape)).normal(size=shape)
    vertices, triangles = libmcubes.marching_cubes(volume, 0.1)
    corners = vertices[triangles.astype(np.int64)] - 0.5
    assert (corners.max(1) - corners.min(1) <= 1 + 1e-12).all()
    assert len(np.unique(triangles)) == len(vertices)
    assert (vertices >= 0.5).all() and (vertices <= np.array(shape) - 0.5).all()


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(ValueError, match=r"\(X, Y, Z\).*\(2, 2\)"):
        libmcubes.marching_cubes(np.zeros((2, 2)), 0.0)
    with pytest.raises(ValueError, match="no NaN"):
        libmcubes.marching_cubes(np.full((2, 2, 2), np.nan), 0.0)
    with pytest.raises(ValueError, match="level.*finite"):
        libmcubes.marching_cubes(np.zeros((2, 2, 2)), np.inf)
