# SPDX-License-Identifier: MIT
"""Checking meshes: every kind of defect is counted as what it is."""

from __future__ import annotations

import numpy as np
import pytest

from occnets.check import MeshCheck, check_mesh

VERTICES = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
FACES = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])


def test_a_good_mesh_has_no_problems() -> None:
    found = check_mesh(VERTICES, FACES)
    assert found.ok and found.closed and found.problems() == ()
    assert found.volume == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("vertices", "faces", "expected", "text"),
    [
        (VERTICES, FACES[:3], {"open_edges": 3}, "3 open edges (holes)"),
        (VERTICES, np.vstack([FACES, [[0, 1, 3]]]), {"duplicate": 1, "crowded_edges": 3}, "1 repeated faces"),
        (VERTICES, np.vstack([FACES[:3], FACES[3:, ::-1]]), {"misoriented_edges": 3}, "3 edges whose two faces"),
        (VERTICES, np.vstack([FACES, [[0, 0, 1]]]), {"degenerate": 1}, "1 faces that use a vertex twice"),
        (np.vstack([VERTICES, [[5, 5, 5]]]), FACES, {"unreferenced": 1}, "1 vertices without a face"),
        (np.where(VERTICES == 1, np.nan, VERTICES), FACES, {"not_finite": 3}, "3 vertices that are NaN"),
        (VERTICES, FACES[:, ::-1], {}, "a signed volume of -0.166667, not positive"),
    ],
)
def test_each_defect_is_counted(vertices: np.ndarray, faces: np.ndarray, expected: dict, text: str) -> None:
    found = check_mesh(vertices, faces)
    assert {name: getattr(found, name) for name in expected} == expected
    assert not found.ok and any(text in problem for problem in found.problems()), found.problems()
    assert found.closed == (not {"open_edges", "crowded_edges", "misoriented_edges", "degenerate"} & set(expected))


def test_two_bodies_on_one_edge_are_crowded() -> None:
    # Two tetrahedra that share the edge 0-3: closed as a chain, but four faces meet there.
    other = np.array([[0.0, 0, 0], [-1, 0, 0], [0, -1, 0], [0, 0, 1]])
    vertices, faces = np.vstack([VERTICES, other]), np.vstack([FACES, FACES + 4])
    assert check_mesh(vertices, faces).ok
    faces = np.where(faces == 4, 0, np.where(faces == 7, 3, faces))
    found = check_mesh(vertices, faces)
    assert (found.crowded_edges, found.open_edges, found.misoriented_edges, found.unreferenced) == (1, 0, 0, 2)


def test_empty_and_wrong_input() -> None:
    nothing = check_mesh(np.empty((0, 3)), np.empty((0, 3), dtype=np.int64))
    assert nothing == MeshCheck(0, 0, 0, 0, 0, 0, 0, 0.0) and not nothing.ok
    with pytest.raises(ValueError, match=r"`vertices` must have shape"):
        check_mesh(VERTICES[:, :2], FACES)
    with pytest.raises(ValueError, match="indices of the 3 vertices, got 0 to 3"):
        check_mesh(VERTICES[:3], FACES)
