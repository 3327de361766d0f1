# SPDX-License-Identifier: MIT
"""From trained features to a mesh, against the dense grids and meshes that the original code made."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.spatial
import torch
from torch import Tensor

from convonet_cases import golden, golden_config
from occkernels import ExtractOptions, Octree, extract
from occnets.models import build_model

LOGIT = float(np.log(0.2) - np.log(0.8))


@pytest.mark.parametrize("name", ["convonet_3plane", "convonet_grid32"])
def test_search_and_mesh_are_the_originals(name: str) -> None:
    run, note = golden(name)
    model = build_model(golden_config(note)).eval()
    model.load_state_dict({key[3:]: torch.from_numpy(run[key]) for key in run.files if key.startswith("sd/")})
    with torch.no_grad():
        maps = model.encode(torch.from_numpy(run["in/inputs"][1:2]))

        def field(query: Tensor) -> Tensor:
            with torch.no_grad():
                return model.decode(query, maps)

        assert_same_grid(field, run["mise/r32u2/values"])
    options = ExtractOptions(32, 2, threshold=LOGIT)
    found = extract(field, options).mesh(0).vertices.numpy()
    expected = run["mesh/r32u2/vertices"]
    assert len(found) == len(expected)
    voxel = options.box / options.cells
    for one, other in ((found, expected), (expected, found)):
        assert scipy.spatial.cKDTree(one).query(other)[0].max() < 1e-3 * voxel


def assert_same_grid(field: Callable[[Tensor], Tensor], expected: np.ndarray) -> None:
    """The same nodes evaluated and the same filling: one other node would leave a constant block somewhere."""
    tree, table = Octree(32, 2, LOGIT), ExtractOptions(32, 2).coordinates()
    while len(index := tree.query()[0]):
        tree.update(field(table[index.long()][None])[0])
    assert len(tree.rounds) > 3  # hanging nodes took part
    np.testing.assert_allclose(tree.to_dense()[0].numpy(), expected, atol=5e-4, rtol=1e-5)
