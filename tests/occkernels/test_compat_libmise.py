# SPDX-License-Identifier: MIT
"""compat.libmise: the original's points in the original's order, and its dense grid."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from occkernels.compat.libmise import MISE

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(os.environ.get("OCC_SHARED", ROOT.parent / "shared")) / "golden" / "mise_analytic.npz"


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, Any], Any]:
    if not GOLDEN.exists():
        pytest.skip("no golden files; set OCC_SHARED to the folder that holds golden/mise_analytic.npz")
    return json.loads(GOLDEN.with_suffix(".json").read_text())["cases"], np.load(GOLDEN)


@pytest.mark.parametrize("case", ["sphere", "torus", "twoballs", "border_binary", "ties", "depth1"])
def test_rounds_order_and_dense_grid_are_the_originals(golden: tuple[dict[str, Any], Any], case: str) -> None:
    spec, arrays = golden[0][case], golden[1]
    mise = MISE(spec["resolution0"], spec["depth"], spec["threshold"])
    assert mise.resolution == spec["resolution"]
    for number, count in enumerate(spec["points_per_round"]):
        points = mise.query()
        assert points.dtype == np.int64 and len(points) == count
        np.testing.assert_array_equal(points, arrays[f"{case}/round{number}/points"])
        mise.update(points, arrays[f"{case}/round{number}/values"])
    assert mise.query().shape == (0, 3)
    np.testing.assert_array_equal(mise.to_dense(), arrays[f"{case}/dense"])
    np.testing.assert_array_equal(mise.get_points(), arrays[f"{case}/grid_points"])


def sphere(points: NDArray[np.int64], resolution: int) -> NDArray[np.float64]:
    """10 (0.3 - |p|), points rounded to float32 as ConvONet does."""
    p = (1.1 * (points / resolution - 0.5)).astype(np.float32).astype(np.float64)
    return 10 * (0.3 - np.sqrt((p**2).sum(1)))


def box(points: NDArray[np.int64], resolution: int) -> NDArray[np.float64]:
    p = (1.1 * (points / resolution - 0.5)).astype(np.float32).astype(np.float64)
    return -20 * (np.abs(p) - [0.3, 0.2, 0.1]).max(1)


LOGIT = float(np.log(0.2) - np.log(0.8))


@pytest.mark.parametrize(
    ("field", "size", "threshold", "rounds", "mean"),
    [
        (sphere, (32, 2), 0.0, [35937, 14498, 56978], -2.120628),
        (sphere, (32, 2), LOGIT, [35937, 30542, 123218], -2.336595),
        (sphere, (16, 3), LOGIT, [4913, 7706, 30542, 123218], -2.325805),
        (box, (32, 2), LOGIT, [35937, 12818, 54818], -4.726346),
    ],
)
def test_numbers_recorded_from_the_original(
    field: Any, size: tuple[int, int], threshold: float, rounds: list[int], mean: float
) -> None:
    mise, found = MISE(*size, threshold), []
    while len(points := mise.query()):
        found.append(len(points))
        mise.update(points, field(points, mise.resolution))
    assert found == rounds and len(mise.get_points()) == sum(rounds)
    assert abs(mise.to_dense().mean() - mean) < 1e-6


def test_one_cell() -> None:
    mise, found = MISE(1, 2, 0.0), []
    assert (mise.voxel_size_0, mise.resolution_0, mise.depth, mise.threshold) == (4, 1, 2, 0.0)
    while len(points := mise.query()):
        found.append(len(points))
        mise.update(points, 2.0 * (points.sum(1) > 2) - 1)
    assert found == [8, 19, 61]


def test_values_in_parts_and_in_any_order_lead_to_the_same_grid() -> None:
    whole, parts = MISE(4, 2, 0.0), MISE(4, 2, 0.0)
    while len(points := whole.query()):
        whole.update(points, sphere(points, 16))
    random = np.random.default_rng(0)
    while len(points := parts.query()):
        some = random.permutation(len(points))[: max(1, len(points) // 2)]
        parts.update(points[some], sphere(points[some], 16))
        parts.update(points[some[:3]], sphere(points[some[:3]], 16))  # the same again is allowed
    np.testing.assert_array_equal(parts.to_dense(), whole.to_dense())
    np.testing.assert_array_equal(parts.get_points(), whole.get_points())


def test_wrong_calls_are_explained() -> None:
    mise = MISE(2, 1, 0.0)
    for points in ([[1, 0, 0]], [[0, 0, 6]], [[-2, 0, 0]]):
        with pytest.raises(ValueError, match="not in grid"):
            mise.update(np.array(points), np.zeros(1))
    with pytest.raises(ValueError, match=r"\(n, 3\)"):
        mise.update(mise.query(), np.zeros(3))
    mise.update(mise.query()[:1], np.zeros(1))
    with pytest.raises(ValueError, match="another value"):
        mise.update(np.zeros((1, 3), np.int64), np.ones(1))
