# SPDX-License-Identifier: MIT
"""From features, and from the cloud, to a mesh: ours against the original design, with the same trained weights.

Weights and clouds are those of recorded runs of the original systems, which lie outside the repository (OCC_SHARED).
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "occnets")]

import original  # noqa: E402
from original_octree import SerialOctree  # noqa: E402
from turns import bench  # noqa: E402

from convonet_cases import golden, golden_config  # noqa: E402
from occkernels import ExtractOptions, extract  # noqa: E402
from occnets.models import build_model  # noqa: E402
from occnets.models.fused import fuse  # noqa: E402

THRESHOLD = 0.2
LEVEL = math.log(THRESHOLD) - math.log(1.0 - THRESHOLD)
INITIAL = 32
SYSTEMS = {"3 planes 64^2": "convonet_3plane", "grid 32^3": "convonet_grid32"}


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """The number of threads asked for."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OCC_BENCH_THREADS", before)))
    yield
    torch.set_num_threads(before)


@lru_cache(maxsize=1)
def load(system: str) -> tuple[nn.Module, Tensor]:
    """A trained network and a cloud (1, 3000, 3) of a torus."""
    run, note = golden(SYSTEMS[system])
    model = build_model(golden_config(note)).eval()
    state = {key[3:]: torch.from_numpy(run[key]) for key in run.files if key.startswith("sd/")}
    model.load_state_dict(state, strict=True)
    return model, torch.from_numpy(run["in/inputs"])[1:2].clone()


class Ours:
    """Fused decoder, batched octree, sparse marching cubes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def encode(self, cloud: Tensor) -> Any:
        return self.model.encode(cloud)

    def mesh(self, maps: Any, levels: int) -> tuple[np.ndarray, np.ndarray]:
        options = ExtractOptions(initial=INITIAL, levels=levels, threshold=LEVEL, box=1.1)
        field = fuse(self.model.decoder, maps)
        assert field is not None
        found = extract(field, options).mesh(0)
        return found.vertices.numpy(), found.faces.numpy()


class Original:
    """Torch operations, a serial octree with a map, a dense grid, serial marching cubes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = original.OriginalConvONet(model)

    def encode(self, cloud: Tensor) -> Any:
        return self.model.encode(cloud)

    def mesh(self, maps: Any, levels: int) -> tuple[np.ndarray, np.ndarray]:
        return original.extract(self.model, maps, SerialOctree, INITIAL, levels, THRESHOLD)


PATHS = {"occkernels": Ours, f"original design ({original.SCATTER}, PyMCubes)": Original}


def same_surface(found: np.ndarray, expected: np.ndarray, cells: int) -> None:
    """Both ways, every vertex has one of the other mesh within a thousandth of a voxel."""
    voxel = 1.1 / cells
    assert len(expected) > 1000
    for one, other in ((found, expected), (expected, found)):
        assert cKDTree(one).query(other)[0].max() < 1e-3 * voxel


@lru_cache(maxsize=1)
def expected_mesh(system: str, levels: int) -> np.ndarray:
    model, cloud = load(system)
    reference = Original(model)
    with torch.inference_mode():
        return reference.mesh(reference.encode(cloud), levels)[0]


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("with_encoder", [False, True], ids=["decode", "encode"])
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("path", PATHS)
def test_pipeline(benchmark: Any, system: str, with_encoder: bool, levels: int, path: str) -> None:
    pytest.importorskip("mcubes")
    model, cloud = load(system)
    pipeline = PATHS[path](model)
    with torch.inference_mode():
        maps = pipeline.encode(cloud)
        vertices, _ = pipeline.mesh(maps, levels)
        same_surface(vertices, expected_mesh(system, levels), INITIAL << levels)

        def run() -> Any:
            return pipeline.mesh(pipeline.encode(cloud) if with_encoder else maps, levels)

        first = "cloud" if with_encoder else "features"
        benchmark.group = f"{first} to mesh, {system}, {INITIAL}^3 to {INITIAL << levels}^3"
        benchmark.extra_info["path"] = path
        if path == "occkernels":
            bench(benchmark, run, None, rounds=9)
        else:
            ours = Ours(model)
            own = ours.encode(cloud)
            bench(benchmark, run, lambda: ours.mesh(ours.encode(cloud) if with_encoder else own, levels), rounds=5)
