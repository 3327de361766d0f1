# SPDX-License-Identifier: MIT
"""Every family that reads points is trained, exported and used from the command line.

The smoke version fits one shape with a few steps. The slow version trains a few minutes a family on one thread and
reconstructs a shape that no training saw: a bracket of ``bracket_cases``, a narrow family of solids (its nearest
training shape overlaps it by 0.76), so that the networks with one code for the whole shape can take part as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning.pytorch")
pytest.importorskip("yaml")

from bracket_cases import FAMILIES, HELD, Brackets, bracket, family_run, inside_mesh
from occnets.cli import main
from occnets.io import read_mesh
from occnets.training import runner
from training_helpers import Ellipsoids


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def brackets() -> Brackets:
    return Brackets(300)


def reconstructed_overlap(
    model: Path, points: np.ndarray, inside: Callable[[np.ndarray], np.ndarray], folder: Path, resolution: int
) -> float:
    """Intersection over union of a solid and its reconstruction by ``occnets reconstruct`` from noisy points."""
    np.save(folder / "cloud.npy", points + np.random.default_rng(0).normal(0.0, 0.003, points.shape))
    words = ["reconstruct", folder / "cloud.npy", "-o", folder / "mesh.ply", "--model", model, "--quiet"]
    assert main([str(word) for word in (*words, "--resolution", resolution)]) == 0
    mesh = read_mesh(folder / "mesh.ply")
    assert mesh.faces is not None
    queries = np.random.default_rng(1).uniform(-0.55, 0.55, (40_000, 3))
    found, truth = inside_mesh(mesh.vertices, mesh.faces, queries), inside(queries)
    return float((found & truth).sum() / (found | truth).sum())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_few_steps_on_one_shape_give_a_mesh(name: str, tmp_path: Path) -> None:
    config = family_run(name, tmp_path, smoke=True)
    source = Ellipsoids(1)
    model = runner.train(config, source=source)
    assert model is not None

    def inside(queries: np.ndarray) -> np.ndarray:
        return ((queries / np.abs(source[0].points).max(axis=0)) ** 2).sum(axis=1) < 1

    assert reconstructed_overlap(model, source[0].points, inside, tmp_path, 32) > 0.4


def held_overlap(name: str, folder: Path, source: Brackets) -> float:
    """Overlap with a bracket no training sees, after the training of ``family_run``."""
    model = runner.train(family_run(name, folder), source=source)
    assert model is not None
    held = bracket(HELD)

    def inside(queries: np.ndarray) -> np.ndarray:
        return held.occupancy(torch.from_numpy(queries).float()).numpy()

    return reconstructed_overlap(model, held.surface(3000)[0].numpy(), inside, folder, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "transonet-published"])
def test_a_few_minutes_reconstruct_an_unseen_shape(name: str, tmp_path: Path, brackets: Brackets) -> None:
    assert held_overlap(name, tmp_path, brackets) > 0.8


@pytest.mark.slow
def test_the_published_transonet_learns_slowly(tmp_path: Path, brackets: Brackets) -> None:
    # Its whole plane is a linear function of one token of 32 numbers.
    assert held_overlap("transonet-published", tmp_path, brackets) > 0.4
