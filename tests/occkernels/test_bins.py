# SPDX-License-Identifier: MIT
"""Cells of points and their sort: exactly the reference's, on every device."""

from __future__ import annotations

import pytest
import torch

import occkernels
from occkernels import FeatureLayout, reference
from occkernels.bins import _bin_index, _sort_bins

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
PLANES = FeatureLayout(("xz", "xy", "yz"), 64)
MIXED = FeatureLayout(("xy", "yz"), 17, 32, padding=0.0)
GRID = FeatureLayout(grid_resolution=128)


def cloud(batch: int, count: int, seed: int = 0) -> torch.Tensor:
    """Points over a cube larger than the padded one, so that some are clamped."""
    return 1.4 * torch.rand(batch, count, 3, generator=torch.Generator().manual_seed(seed)) - 0.7


def same(bins: occkernels.Bins, expected: occkernels.Bins) -> None:
    assert bins.index.dtype == bins.order.dtype == bins.offsets.dtype == torch.int32
    assert torch.equal(bins.index.cpu(), expected.index)
    assert torch.equal(bins.order.cpu(), expected.order)
    assert torch.equal(bins.offsets.cpu(), expected.offsets)


# The reference runs on the CPU: torch on CUDA divides by a scalar through its reciprocal, which rounds otherwise.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [PLANES, MIXED, GRID], ids=["planes", "mixed", "grid"])
def test_same_as_reference(layout: FeatureLayout, dtype: torch.dtype, device: str) -> None:
    points = cloud(2, 300).to(dtype)
    same(occkernels.bin_points(points.to(device), layout), reference.bin_points(points, layout))


@pytest.mark.parametrize("count", [0, 1, 31, 33, 512, 4096, 4097, 9000])
def test_sizes_around_blocks_and_tiles(count: int, device: str) -> None:
    points, lengths = cloud(2, count), torch.tensor([count // 3, count])
    ours = occkernels.bin_points(points.to(device), MIXED, lengths=lengths.to(device))
    same(ours, reference.bin_points(points, MIXED, lengths=lengths))


@pytest.mark.parametrize("count", [100, 5000])
@pytest.mark.parametrize("cell", [0, 9, -1])
def test_all_points_in_one_cell(cell: int, count: int, device: str) -> None:
    layout = FeatureLayout(("xz",), 4, 0)
    index = torch.full((2, 1, count), cell, dtype=torch.int32)
    bins = occkernels.bins_from_index(index.to(device), layout)
    same(bins, reference.bins_from_index(index, layout))
    assert torch.equal(bins.order[0, 0].cpu(), torch.arange(count, dtype=torch.int32))


@pytest.mark.parametrize("count", [700, 6000])
def test_precomputed_index_with_an_extra_cell(count: int, device: str) -> None:
    layout = FeatureLayout(("xz", "xy"), 8, 4)
    generator = torch.Generator().manual_seed(3)
    index = torch.randint(-1, 65, (3, 3, count), generator=generator)
    ours = occkernels.bins_from_index(index.to(device), layout, extra_cell=True)
    same(ours, reference.bins_from_index(index, layout, extra_cell=True))
    assert ours.cells == (65, 65, 65)


def test_not_finite_and_strided_points(device: str) -> None:
    points = cloud(2, 40)
    points[0, 0] = torch.nan
    points[0, 1] = torch.inf
    points[1, 2] = -torch.inf
    strided = torch.empty(2, 40, 6)[..., ::2].copy_(points)
    strided = strided.to(device)
    assert not strided.is_contiguous() or device == "cuda"
    bins = occkernels.bin_points(strided, MIXED)
    same(bins, reference.bin_points(points, MIXED))
    assert int(bins.index[0, 0, 0]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dynamic_planes(dtype: torch.dtype, device: str) -> None:
    layout = FeatureLayout(("xz",), 16, dynamic_planes=2)
    generator = torch.Generator().manual_seed(5)
    bases = torch.linalg.qr(torch.randn(2, 2, 3, 3, generator=generator, dtype=torch.float64))[0]
    scale = 1 + torch.rand(2, 2, generator=generator, dtype=torch.float64)
    points = 0.6 * cloud(2, 400).double()
    # A product summed in another order may cross a cell's border: such points (and clamped ones) are left out.
    coordinates = [t * 16 for t in reference._coordinates(points, layout, bases, scale)]
    clear = torch.stack([((t - t.round()).abs() > 1e-3).all(-1) for t in coordinates]).all(0)
    assert clear.float().mean() > 0.9
    expected = reference.bin_points(points, layout, bases=bases, basis_scale=scale).index
    ours = occkernels.bin_points(
        points.to(device, dtype), layout, bases=bases.to(device, dtype), basis_scale=scale.to(device, dtype)
    )
    keep = clear[:, None].expand_as(expected)
    assert torch.equal(ours.index.cpu()[keep], expected[keep])


def test_order_sorts_and_is_stable(device: str) -> None:
    bins = occkernels.bin_points(cloud(3, 2000).to(device), PLANES)
    keys = bins.index.gather(2, bins.order.long())
    steps = keys.diff(dim=2)
    assert (steps >= 0).all()
    assert (bins.order.diff(dim=2)[steps == 0] > 0).all()
    assert (bins.offsets[:, -1] == 2000).all()


def test_same_for_any_number_of_threads() -> None:
    points = cloud(2, 20000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = occkernels.bin_points(points, MIXED)
        one.order  # noqa: B018  sorted here, with one thread
        torch.set_num_threads(2)
        same(occkernels.bin_points(points, MIXED), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("cells", [[64, 64], [5]])
def test_opcheck_of_sort(cells: list[int], device: str) -> None:
    index = torch.randint(-1, 5, (2, len(cells), 50), dtype=torch.int32).to(device)
    torch.library.opcheck(_sort_bins, (index, cells))


def test_opcheck_of_index(device: str) -> None:
    lengths = torch.tensor([3, 50], device=device)
    torch.library.opcheck(_bin_index, (cloud(2, 50).to(device), None, None, lengths, [7, 0, 16, 8, 0], 0.1))


def test_errors_name_function_argument_and_remedy() -> None:
    points = cloud(1, 10)
    with pytest.raises(ValueError, match=r"bin_points: `points` must have shape \(B, N, 3\)"):
        occkernels.bin_points(points[0], PLANES)
    with pytest.raises(TypeError, match="bin_points: `points` must be float32"):
        occkernels.bin_points(points.long(), PLANES)
    with pytest.raises(ValueError, match="has 2 dynamic planes, so `bases`"):
        occkernels.bin_points(points, FeatureLayout((), 8, dynamic_planes=2))
    with pytest.raises(ValueError, match="the layout has no dynamic planes"):
        occkernels.bin_points(points, PLANES, bases=torch.eye(3).view(1, 1, 3, 3))
    with pytest.raises(ValueError, match="reaches 64 but the map has 64 cells"):
        occkernels.bins_from_index(torch.full((1, 1, 4), 64), FeatureLayout(("xz",), 8))
