# SPDX-License-Identifier: MIT
"""Sparse volumes: bricks and back, keys, refusals."""

from __future__ import annotations

import pytest
import torch

from occkernels import SparseVolume


@pytest.mark.parametrize("nodes", [1, 2, 8, 9, 17])
def test_dense_to_bricks_and_back(nodes: int) -> None:
    volume = torch.randn(2, nodes, nodes, nodes, generator=torch.Generator().manual_seed(nodes))
    volume[torch.rand(volume.shape, generator=torch.Generator().manual_seed(1)) < 0.3] = float("nan")
    sparse = SparseVolume.from_dense(volume)
    torch.testing.assert_close(sparse.to_dense(), volume, equal_nan=True, rtol=0, atol=0)
    assert (sparse.keys.diff() > 0).all()


def test_only_bricks_with_a_value_are_stored_and_places_name_them() -> None:
    volume = torch.full((20, 20, 20), float("nan"))
    volume[3, 9, 17] = 2.0
    sparse = SparseVolume.from_dense(volume)
    assert sparse.keys.tolist() == [(0 * 3 + 1) * 3 + 2] and sparse.values[0, 3, 1, 1] == 2.0
    lattice, first = sparse.places()
    assert lattice.tolist() == [0] and first.tolist() == [[0, 8, 16]]
    assert sparse.to_dense(fill=-1.0).sum() == 2.0 - (20**3 - 1)


def test_wrong_parts_are_refused() -> None:
    with pytest.raises(TypeError, match="int64"):
        SparseVolume(torch.zeros(1, dtype=torch.int32), torch.zeros(1, 8, 8, 8), 8, 1)
    with pytest.raises(ValueError, match="values"):
        SparseVolume(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 9, 9, 9), 8, 1)
