# SPDX-License-Identifier: MIT
"""Local pooling: the reference's values and gradients, the operator contract, determinism."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import occkernels as occ
from occkernels import Bins, FeatureLayout, reference
from occkernels.pool import _local_pool_max, _local_pool_mean
from occkernels.testing import TOL, assert_close, random_bins, random_cloud, random_features

LAYOUTS = {
    "planes": FeatureLayout(("xz", "xy", "yz"), 8),
    "mixed": FeatureLayout(("xy", "yz"), 6, 5),
    "fine grid": FeatureLayout(grid_resolution=24),  # more cells than points
}
# (batch, points, channels): nothing, one point, channels of every width in registers, more than one block of points
SHAPES = [(2, 0, 5), (0, 9, 4), (2, 9, 0), (1, 1, 8), (2, 300, 33), (1, 2500, 7), (3, 70, 96)]
REDUCE = ["max", "mean"]


def twin(bins: Bins) -> Bins:
    """The same bins for the reference, which runs on the CPU."""
    return Bins(bins.layout, bins.index.cpu(), reference.sort_bins, bins.cells)


def gradient(function: Any, features: Tensor, bins: Bins, reduce: str, wide: bool = False) -> tuple[Tensor, Tensor]:
    """Value and gradient in the features' dtype, computed in float64 on request."""
    leaf = (features.double() if wide else features.clone()).detach().requires_grad_()
    out = function(leaf, bins, reduce)
    if not out.requires_grad:  # the reference's maximum over no points
        return out.to(features.dtype), torch.zeros_like(features)
    weights = random_features(*out.shape, dtype=features.dtype, seed=5).to(out)
    (grad,) = torch.autograd.grad(out, leaf, weights)
    return out.detach().to(features.dtype), grad.to(features.dtype)


def check(features: Tensor, bins: Bins, reduce: str) -> None:
    """Value and gradient are the reference's; a maximum over one map exactly."""
    found, found_grad = gradient(occ.local_pool, features, bins, reduce)
    expected, expected_grad = gradient(reference.local_pool, features.cpu(), twin(bins), reduce, wide=True)
    assert_close(found, expected)
    assert_close(found_grad, expected_grad)
    if reduce == "max" and bins.layout.num_maps == 1:
        assert torch.equal(found.cpu().nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduce", REDUCE)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_same_as_reference(layout: FeatureLayout, reduce: str, shape: tuple[int, int, int], device: str) -> None:
    check(random_features(*shape).to(device), random_bins(layout, *shape[:2], device), reduce)


@pytest.mark.parametrize("dtype", TOL)
@pytest.mark.parametrize("reduce", REDUCE)
def test_dtypes(reduce: str, dtype: torch.dtype, device: str) -> None:
    features = random_features(2, 200, 20, dtype=dtype).to(device)
    check(features, random_bins(LAYOUTS["mixed"], 2, 200, device), reduce)


@pytest.mark.parametrize("reduce", REDUCE)
def test_all_points_in_one_cell(reduce: str, device: str) -> None:
    points = torch.full((2, 1500, 3), 0.1, device=device)
    features = random_features(2, 1500, 5, dtype=torch.float64).to(device)
    check(features, occ.bin_points(points, LAYOUTS["planes"]), reduce)


@pytest.mark.parametrize("reduce", REDUCE)
def test_absent_points_take_no_part(reduce: str, device: str) -> None:
    lengths = torch.tensor([0, 37, 60], device=device)
    bins = occ.bin_points(random_cloud(3, 60).to(device), LAYOUTS["mixed"], lengths=lengths)
    features = random_features(3, 60, 9).to(device)
    features[1, 37:] = torch.nan
    check(features, bins, reduce)
    out = occ.local_pool(features, bins, reduce)
    assert not out[0].any() and not out[1, 37:].any() and out[1, :37].isfinite().all()


def test_points_absent_from_some_maps_and_an_extra_cell(device: str) -> None:
    index = torch.randint(-1, 17, (2, 3, 90), generator=torch.Generator().manual_seed(2)).to(device)
    bins = occ.bins_from_index(index, FeatureLayout(("xz", "xy", "yz"), 4), extra_cell=True)
    for reduce in REDUCE:
        check(random_features(2, 90, 6).to(device), bins, reduce)


@pytest.mark.parametrize("reduce", REDUCE)
def test_strided_features(reduce: str, device: str) -> None:
    features = random_features(2, 12, 64).to(device).mT[..., ::2]
    assert not features.is_contiguous()
    check(features, random_bins(LAYOUTS["planes"], 2, 64, device), reduce)


def test_not_finite_values(device: str) -> None:
    features = random_features(1, 200, 6)
    features[0, 3:9, 0] = torch.nan
    features[0, 50:60, 1] = torch.inf
    features[0, :, 2] = -torch.inf
    features[0, 100, 3] = torch.nan
    layout = FeatureLayout(("xz",), 4)
    check(features.to(device), random_bins(layout, 1, 200, device), "max")
    out = occ.local_pool(features.to(device), random_bins(layout, 1, 200, device)).cpu()
    assert out[0, 3:9, 0].isnan().all() and (out[..., 2] == -torch.inf).all() and out[0, 50:60, 1].isposinf().all()


def test_ties_go_to_the_lowest_point(device: str) -> None:
    features = torch.ones(1, 5, 1, device=device, requires_grad=True)
    bins = occ.bins_from_index(torch.tensor([[[2, 1, 2, 1, 2]]], device=device), FeatureLayout(("xz",), 2))
    (grad,) = torch.autograd.grad(occ.local_pool(features, bins).sum(), features)
    assert grad.flatten().tolist() == [3, 2, 0, 0, 0]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_permutation_of_points(layout: FeatureLayout) -> None:
    points, features = random_cloud(2, 400), random_features(2, 400, 12)
    permutation = torch.randperm(400, generator=torch.Generator().manual_seed(3))
    for reduce in REDUCE:
        straight = occ.local_pool(features, occ.bin_points(points, layout), reduce)
        permuted = occ.local_pool(features[:, permutation], occ.bin_points(points[:, permutation], layout), reduce)
        if reduce == "max":
            assert torch.equal(permuted, straight[:, permutation])
        assert_close(permuted, straight[:, permutation])


def test_pooling_twice_over_one_map_changes_nothing() -> None:
    bins = random_bins(FeatureLayout(("xy",), 8), 2, 300)
    for reduce in REDUCE:
        once = occ.local_pool(random_features(2, 300, 10), bins, reduce)
        assert_close(occ.local_pool(once, bins, reduce), once)


def test_same_bits_for_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    features, bins = random_features(2, 6000, 33), random_bins(LAYOUTS["mixed"], 2, 6000)
    results = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append([part for reduce in REDUCE for part in gradient(occ.local_pool, features, bins, reduce)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("reduce", REDUCE)
def test_gradcheck_and_gradgradcheck(reduce: str, device: str) -> None:
    features = random_features(2, 9, 5, dtype=torch.float64).to(device).requires_grad_()
    bins = random_bins(FeatureLayout(("xz", "xy"), 2, 2), 2, 9, device)
    assert torch.autograd.gradcheck(lambda x: occ.local_pool(x, bins, reduce), features)
    assert torch.autograd.gradgradcheck(lambda x: occ.local_pool(x, bins, reduce), features)


@pytest.mark.parametrize("transpose", [False, True])
def test_opcheck_of_maximum(transpose: bool, device: str) -> None:
    bins = random_bins(LAYOUTS["mixed"], 2, 30, device)
    selector = random_features(2, 30, 4).to(device)
    values = random_features(2, 30, 4, seed=2).to(device).requires_grad_()
    args = (selector, values, bins.index, bins.order, bins.offsets, list(bins.cells), transpose)
    torch.library.opcheck(_local_pool_max, args)


def test_opcheck_of_mean(device: str) -> None:
    bins = random_bins(LAYOUTS["mixed"], 2, 30, device)
    features = random_features(2, 30, 4).to(device).requires_grad_()
    torch.library.opcheck(_local_pool_mean, (features, bins.index, bins.order, bins.offsets, list(bins.cells)))


class Pool(torch.nn.Module):
    def __init__(self, reduce: str) -> None:
        super().__init__()
        self.reduce = reduce

    def forward(self, points: Tensor, features: Tensor) -> Tensor:
        bins = occ.bin_points(points, LAYOUTS["mixed"])  # made and sorted within the compiled function
        return occ.local_pool(occ.local_pool(features, bins, self.reduce), bins, self.reduce)


@pytest.mark.parametrize("reduce", REDUCE)
def test_compile_and_export(reduce: str) -> None:
    points, features = random_cloud(2, 40), random_features(2, 40, 6).requires_grad_()
    model = Pool(reduce)
    expected = model(points, features)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), features)
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(points, features)
    (grad,) = torch.autograd.grad(found.square().sum(), features)
    assert_close(found, expected)
    assert_close(grad, expected_grad, scale=10)
    assert_close(torch.export.export(model, (points, features.detach())).module()(points, features), expected)


def test_compile_with_bins_from_outside() -> None:
    bins, features = random_bins(LAYOUTS["mixed"], 2, 40), random_features(2, 40, 6)
    compiled = torch.compile(lambda x, b: occ.local_pool(x, b), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(features, bins), occ.local_pool(features, bins))


@pytest.mark.parametrize("reduce", REDUCE)
def test_vmap(reduce: str) -> None:
    bins = random_bins(LAYOUTS["mixed"], 2, 40)
    features = random_features(3, 2, 40, 6)
    expected = torch.stack([occ.local_pool(one, bins, reduce) for one in features])
    assert_close(torch.vmap(lambda x: occ.local_pool(x, bins, reduce))(features), expected)
    # clouds and features together: bins made under vmap
    points = random_cloud(3, 80).view(3, 2, 40, 3)
    pooled = torch.vmap(lambda p, x: occ.local_pool(x, occ.bin_points(p, LAYOUTS["mixed"]), reduce))(points, features)
    for number in range(3):
        alone = occ.local_pool(features[number], occ.bin_points(points[number], LAYOUTS["mixed"]), reduce)
        assert_close(pooled[number], alone)
    # autograd through vmap, and vmap over cotangents
    leaf, cotangents = features.clone().requires_grad_(), random_features(4, 3, 2, 40, 6, seed=8)
    out = torch.vmap(lambda x: occ.local_pool(x, bins, reduce))(leaf)
    (grads,) = torch.autograd.grad(out, leaf, cotangents, is_grads_batched=True, retain_graph=True)
    for number in range(4):
        (alone,) = torch.autograd.grad(occ.local_pool(leaf[1], bins, reduce), leaf, cotangents[number, 1])
        assert_close(grads[number, 1], alone[1], scale=10)


def test_autocast_leaves_the_dtype() -> None:
    features, bins = random_features(2, 40, 6, dtype=torch.bfloat16), random_bins(LAYOUTS["mixed"], 2, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(occ.local_pool(features, bins), occ.local_pool(features, bins, "max"))
        assert occ.local_pool(features, bins).dtype == torch.bfloat16


def test_every_value_is_written() -> None:
    """torch fills new memory with NaN here: a value that nobody writes would show."""
    torch.use_deterministic_algorithms(True)
    try:
        for layout in LAYOUTS.values():
            bins = random_bins(layout, 2, 1100)
            for reduce in REDUCE:
                out, grad = gradient(occ.local_pool, random_features(2, 1100, 21), bins, reduce)
                assert out.isfinite().all() and grad.isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


CODE = """
import sys, torch, occkernels as occ
from occkernels.testing import random_bins, random_features
bins = random_bins(occ.FeatureLayout(("xz", "xy"), 16, 8), 2, 900)
found = []
for dtype in (torch.float32, torch.float64):
    features = random_features(2, 900, 55, dtype=dtype).requires_grad_()
    for reduce in ("max", "mean", "sum"):
        outs = [occ.scatter_planes(features, bins, reduce), occ.scatter_grid(features, bins, reduce)]
        outs += [] if reduce == "sum" else [occ.local_pool(features, bins, reduce)]
        found += [out.detach() for out in outs] + [torch.autograd.grad(out.square().sum(), features)[0] for out in outs]
torch.save([bins.index, *found], sys.argv[1])
"""


@pytest.mark.skipif("OCC_CUDA_HOST" in os.environ, reason="about the instruction sets of the CPU code")
def test_instruction_sets_agree(tmp_path: Any) -> None:
    results = []
    for simd in ("base", "avx2", "avx512"):
        environment = os.environ | {"OCC_SIMD": simd, "PYTHONPATH": os.pathsep.join(sys.path)}
        target = tmp_path / simd
        subprocess.run([sys.executable, "-c", CODE, str(target)], env=environment, check=True, timeout=300)
        results.append(torch.load(target, weights_only=True))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        for found, expected in zip(other[1:], results[0][1:], strict=True):
            assert_close(found, expected, scale=10)


def test_errors_name_function_argument_and_remedy() -> None:
    bins = random_bins(LAYOUTS["planes"], 2, 30)
    with pytest.raises(ValueError, match=r"local_pool: `features` must have shape \(B, N, C\) with B=2, N=30"):
        occ.local_pool(random_features(2, 31, 4), bins)
    with pytest.raises(TypeError, match="local_pool: `features` must be float32"):
        occ.local_pool(torch.zeros(2, 30, 4, dtype=torch.int64), bins)
    with pytest.raises(ValueError, match="`reduce` must be one of 'max', 'mean', got 'sum'"):
        occ.local_pool(random_features(2, 30, 4), bins, "sum")
