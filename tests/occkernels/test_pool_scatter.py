# SPDX-License-Identifier: MIT
"""Scattering onto planes, grids and rows: the reference's values and gradients, the operator contract, determinism."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import occkernels as occ
from occkernels import Bins, FeatureLayout, pool_scatter, reference
from occkernels.testing import TOL, assert_close, random_bins, random_cloud, random_features

LAYOUTS = {
    "planes": FeatureLayout(("xz", "xy", "yz"), 8),
    "mixed": FeatureLayout(("xy", "yz"), 6, 5),
    "large grid": FeatureLayout(grid_resolution=33),  # beyond STREAM_CELLS
}
SHAPES = [(2, 0, 5), (0, 9, 4), (2, 9, 0), (1, 1, 8), (2, 300, 33), (1, 2500, 7), (3, 70, 48)]
REDUCE = ["sum", "mean", "max"]
NAMES = ("scatter_planes", "scatter_grid")


def names(layout: FeatureLayout) -> list[str]:
    """The functions that a layout's maps allow."""
    return [name for name, has in zip(NAMES, (layout.num_planes, layout.grid_resolution), strict=True) if has]


def sort_state(bins: Bins, is_sorted: bool) -> Bins:
    """Fresh bins, sorted or not: the CPU code adds up points by their number or by the sorted order."""
    fresh = Bins(bins.layout, bins.index, occ.bins.sort_bins, bins.cells)
    if is_sorted:
        fresh.order  # noqa: B018  sorts
    return fresh


def twin(bins: Bins) -> Bins:
    """The same bins for the reference, which runs on the CPU."""
    return Bins(bins.layout, bins.index.cpu(), reference.sort_bins, bins.cells)


def gradient(function: Any, features: Tensor, *args: Any, wide: bool = False) -> tuple[Tensor, Tensor]:
    """Value and gradient in the features' dtype, computed in float64 on request."""
    leaf = (features.double() if wide else features.clone()).detach().requires_grad_()
    out = function(leaf, *args)
    if not out.requires_grad:  # the reference's maximum over no points
        return out.to(features.dtype), torch.zeros_like(features)
    weights = random_features(*out.shape, dtype=features.dtype, seed=5).to(out)
    (grad,) = torch.autograd.grad(out, leaf, weights)
    return out.detach().to(features.dtype), grad.to(features.dtype)


def check(features: Tensor, bins: Bins, reduce: str) -> None:
    """Values and gradients are the reference's, maxima exactly; channels-last; sorted or not gives the same bits."""
    for name in names(bins.layout):
        expected, expected_grad = gradient(getattr(reference, name), features.cpu(), twin(bins), reduce, wide=True)
        results = [gradient(getattr(occ, name), features, sort_state(bins, state), reduce) for state in (False, True)]
        for found, grad in results:
            assert_close(found, expected)
            assert_close(grad, expected_grad)
            assert reduce != "max" or torch.equal(found.cpu().nan_to_num(7.0), expected.nan_to_num(7.0))
            assert found.movedim(2 if name == "scatter_planes" else 1, -1).is_contiguous()
        assert torch.equal(results[0][0].nan_to_num(7.0), results[1][0].nan_to_num(7.0))
        with torch.no_grad():  # no argmax then
            assert_close(getattr(occ, name)(features, sort_state(bins, False), reduce), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduce", REDUCE)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_same_as_reference(layout: FeatureLayout, reduce: str, shape: tuple[int, int, int], device: str) -> None:
    if layout.grid_resolution == 33 and shape[1] * shape[2] > 9000:
        shape = (1, 300, 7)
    check(random_features(*shape).to(device), random_bins(layout, *shape[:2], device), reduce)


@pytest.mark.parametrize("dtype", TOL)
@pytest.mark.parametrize("reduce", REDUCE)
def test_dtypes(reduce: str, dtype: torch.dtype, device: str) -> None:
    features = random_features(2, 200, 20, dtype=dtype).to(device)
    check(features, random_bins(LAYOUTS["mixed"], 2, 200, device), reduce)


@pytest.mark.parametrize("reduce", REDUCE)
def test_all_points_in_one_cell(reduce: str, device: str) -> None:
    points = torch.full((2, 1500, 3), 0.1, device=device)
    check(random_features(2, 1500, 5, dtype=torch.float64).to(device), occ.bin_points(points, LAYOUTS["mixed"]), reduce)


@pytest.mark.parametrize("reduce", REDUCE)
def test_absent_points_and_strided_features(reduce: str, device: str) -> None:
    lengths = torch.tensor([0, 37, 60], device=device)
    bins = occ.bin_points(random_cloud(3, 60).to(device), LAYOUTS["mixed"], lengths=lengths)
    features = random_features(3, 24, 60).to(device).mT[..., ::2]
    features[1, 37:] = torch.nan
    check(features, bins, reduce)


@pytest.mark.parametrize("reduce", REDUCE)
def test_extra_cell_is_scattered_nowhere(reduce: str, device: str) -> None:
    layout = FeatureLayout(("xz", "xy", "yz"), 4)
    index = torch.randint(-1, 17, (2, 3, 90), generator=torch.Generator().manual_seed(2)).to(device)
    check(random_features(2, 90, 6).to(device), occ.bins_from_index(index, layout, extra_cell=True), reduce)


@pytest.mark.parametrize("reduce", REDUCE)
def test_not_finite_values(reduce: str, device: str) -> None:
    features = random_features(1, 200, 6)
    features[0, 3:9, 0] = torch.nan
    features[0, 50:60, 1] = torch.inf
    features[0, :, 2] = -torch.inf
    check(features.to(device), random_bins(FeatureLayout(("xz",), 4), 1, 200, device), reduce)


@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
@pytest.mark.parametrize("reduce", REDUCE)
@pytest.mark.parametrize("rows", [1, 40, 40000])
def test_general_scatter(rows: int, reduce: str, integer: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(4)
    for count, channels in ((0, 4), (1, 1), (500, 19)):
        src = random_features(count, channels)
        index = torch.randint(-1, rows, (count,), generator=generator).to(integer)
        expected, expected_grad = gradient(reference.scatter, src, index, rows, reduce, wide=True)
        found, grad = gradient(occ.scatter, src.to(device), index.to(device), rows, reduce)
        assert_close(found, expected)
        assert_close(grad, expected_grad)


def test_ties_go_to_the_lowest_point(device: str) -> None:
    src = torch.ones(5, 1, device=device, requires_grad=True)
    index = torch.tensor([2, 1, 2, 1, 2], device=device)
    (grad,) = torch.autograd.grad(occ.scatter(src, index, 4, "max").sum(), src)
    assert grad.flatten().tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("reduce", REDUCE)
def test_permutation_of_points(reduce: str) -> None:
    points, features = random_cloud(2, 400), random_features(2, 400, 12)
    permutation = torch.randperm(400, generator=torch.Generator().manual_seed(3))
    for layout in LAYOUTS.values():
        for name in names(layout):
            straight = getattr(occ, name)(features, occ.bin_points(points, layout), reduce)
            moved = occ.bin_points(points[:, permutation], layout)
            permuted = getattr(occ, name)(features[:, permutation], moved, reduce)
            if reduce == "max":
                assert torch.equal(permuted, straight)
            assert_close(permuted, straight)


def test_sums_count_every_point_once(device: str) -> None:
    bins = random_bins(LAYOUTS["mixed"], 2, 700, device)
    ones = torch.ones(2, 700, 1, device=device)
    assert (occ.scatter_planes(ones, bins, "sum").sum((2, 3, 4)) == 700).all()
    assert (occ.scatter_grid(ones, bins, "sum").sum((1, 2, 3, 4)) == 700).all()
    means = occ.scatter_grid(ones, bins, "mean")
    assert torch.equal(means, (occ.scatter_grid(ones, bins, "sum") > 0).float())


def test_same_bits_for_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    features, index = random_features(2, 6000, 37), random_bins(LAYOUTS["mixed"], 2, 6000).index
    results = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            bins = Bins(LAYOUTS["mixed"], index, occ.bins.sort_bins)
            for name in NAMES:
                results.append([part for r in REDUCE for part in gradient(getattr(occ, name), features, bins, r)])
    finally:
        torch.set_num_threads(before)
    for at, other in enumerate(results):
        assert all(torch.equal(a, b) for a, b in zip(results[at % 2], other, strict=True))


@pytest.mark.parametrize("is_sorted", [False, True])
@pytest.mark.parametrize("reduce", REDUCE)
def test_gradcheck_and_gradgradcheck(reduce: str, is_sorted: bool, device: str) -> None:
    features = random_features(2, 9, 5, dtype=torch.float64).to(device).requires_grad_()
    bins = sort_state(random_bins(FeatureLayout(("xz", "xy"), 2, 2), 2, 9, device), is_sorted)
    for name in NAMES:
        function = functools.partial(getattr(occ, name), bins=bins, reduce=reduce)
        assert torch.autograd.gradcheck(function, features)
        assert torch.autograd.gradgradcheck(function, features)


@pytest.mark.parametrize("is_sorted", [False, True])
def test_opcheck(is_sorted: bool, device: str) -> None:
    bins = random_bins(LAYOUTS["mixed"], 2, 30, device)
    order, offsets = (bins.order, bins.offsets) if is_sorted else (None, None)
    features = random_features(2, 30, 4).to(device).requires_grad_()
    cells = random_features(2, 2, 36, 4).to(device).requires_grad_()
    where = (bins.index, order, offsets, list(bins.cells), [0, 2, 36])
    for reduce in (0, 1):
        torch.library.opcheck(pool_scatter._scatter_cells, (features, *where, reduce))
        torch.library.opcheck(pool_scatter._gather_cells, (cells, *where, reduce))
    for with_argmax in (False, True):
        torch.library.opcheck(pool_scatter._scatter_max, (features, *where, with_argmax))
    argmax = pool_scatter._scatter_max(features.detach(), *where, True)[1]
    torch.library.opcheck(pool_scatter._pick_points, (features, argmax, bins.index, list(bins.cells), [0, 2, 36]))
    torch.library.opcheck(pool_scatter._unpick_points, (cells, argmax, bins.index, list(bins.cells), [0, 2, 36]))
    torch.library.opcheck(pool_scatter._scatter_index, (torch.randint(-1, 9, (2, 30)).to(device), 9))


class Scatter(torch.nn.Module):
    def __init__(self, reduce: str) -> None:
        super().__init__()
        self.reduce = reduce

    def forward(self, points: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bins = occ.bin_points(points, LAYOUTS["mixed"])  # made within the compiled function
        rows = occ.scatter(features[0], bins.index[0, 0], 36, self.reduce)
        return occ.scatter_planes(features, bins, self.reduce), occ.scatter_grid(features, bins, self.reduce), rows


@pytest.mark.parametrize("reduce", REDUCE)
def test_compile_and_export(reduce: str) -> None:
    points, features = random_cloud(2, 40), random_features(2, 40, 6).requires_grad_()
    model = Scatter(reduce)

    def run(function: Any) -> list[Tensor]:
        outs = function(points, features)
        return [*outs, *torch.autograd.grad(sum(out.square().sum() for out in outs), features)]

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for found, expected in zip(run(compiled), run(model), strict=True):
        assert_close(found, expected, scale=10)
    with torch.no_grad():
        exported = torch.export.export(model, (points, features)).module()
        for found, expected in zip(exported(points, features), model(points, features), strict=True):
            assert_close(found, expected)


@pytest.mark.parametrize("reduce", REDUCE)
def test_vmap(reduce: str) -> None:
    bins, features = random_bins(LAYOUTS["mixed"], 2, 40), random_features(3, 2, 40, 6)
    expected = torch.stack([occ.scatter_planes(one, bins, reduce) for one in features])
    assert_close(torch.vmap(lambda x: occ.scatter_planes(x, bins, reduce))(features), expected)
    points = random_cloud(3, 80).view(3, 2, 40, 3)
    grids = torch.vmap(lambda p, x: occ.scatter_grid(x, occ.bin_points(p, LAYOUTS["mixed"]), reduce))(points, features)
    for number in range(3):
        alone = occ.scatter_grid(features[number], occ.bin_points(points[number], LAYOUTS["mixed"]), reduce)
        assert_close(grids[number], alone)
    rows = torch.vmap(lambda x, i: occ.scatter(x, i, 36, reduce))(features[:, 0], bins.index[0, 0].expand(3, -1))
    assert_close(rows[2], occ.scatter(features[2, 0], bins.index[0, 0], 36, reduce))


@pytest.mark.parametrize("reduce", REDUCE)
def test_autograd_through_vmap_and_vmap_over_cotangents(reduce: str) -> None:
    bins, leaf = random_bins(LAYOUTS["mixed"], 2, 40), random_features(3, 2, 40, 6).requires_grad_()
    out = torch.vmap(lambda x: occ.scatter_grid(x, bins, reduce))(leaf)
    cotangents = random_features(4, *out.shape, seed=8)
    (grads,) = torch.autograd.grad(out, leaf, cotangents, is_grads_batched=True)
    for number in range(4):
        alone = occ.scatter_grid(leaf[1], bins, reduce)
        (expected,) = torch.autograd.grad(alone, leaf, cotangents[number, 1])
        assert_close(grads[number, 1], expected[1], scale=10)


def test_autocast_sums_in_float32_and_selects_as_is() -> None:
    features, bins = random_features(2, 40, 6, dtype=torch.bfloat16), random_bins(LAYOUTS["mixed"], 2, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for reduce in ("sum", "mean"):
            assert torch.equal(
                occ.scatter_grid(features, bins, reduce), occ.scatter_grid(features.float(), bins, reduce)
            )
        assert occ.scatter_grid(features, bins, "max").dtype == torch.bfloat16


def test_every_value_is_written() -> None:
    """torch fills new memory with NaN here: a value that nobody writes would show."""
    torch.use_deterministic_algorithms(True)
    try:
        for layout in LAYOUTS.values():
            for name in names(layout):
                for reduce in REDUCE:
                    bins = random_bins(layout, 2, 1100)
                    for part in gradient(getattr(occ, name), random_features(2, 1100, 21), bins, reduce):
                        assert part.isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_errors_name_function_argument_and_remedy() -> None:
    planes, grid = random_bins(LAYOUTS["planes"], 2, 30), random_bins(LAYOUTS["large grid"], 2, 30)
    features = random_features(2, 30, 4)
    with pytest.raises(ValueError, match=r"scatter_planes: `features` must have shape \(B, N, C\)"):
        occ.scatter_planes(features[0], planes)
    with pytest.raises(ValueError, match="the layout has no planes. Use scatter_grid"):
        occ.scatter_planes(features, grid)
    with pytest.raises(ValueError, match="the layout has no grid. Use scatter_planes"):
        occ.scatter_grid(features, planes)
    with pytest.raises(ValueError, match="scatter: `reduce` must be one of 'sum', 'mean', 'max', got 'mul'"):
        occ.scatter(features[0], torch.zeros(30, dtype=torch.long), 5, "mul")
    with pytest.raises(IndexError, match="`index` reaches 5 but there are only 5 rows"):
        occ.scatter(features[0], torch.full((30,), 5), 5)
    with pytest.raises(ValueError, match="fewer than 2"):
        occ.scatter(features[0], torch.zeros(30, dtype=torch.long), 2**31)
