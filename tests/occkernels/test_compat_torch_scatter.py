# SPDX-License-Identifier: MIT
"""The torch_scatter drop-in: every function against a plain loop over the entries, in the ONet family's layouts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import occkernels as occ
from occkernels.compat import torch_scatter
from occkernels.testing import assert_close, random_features

# src shape, index shape, dim: ConvONet's (B, C, T) with (B, 1, T); rows; a full index; one dimension; leading index
CASES = {
    "channels first": ((2, 5, 30), (2, 1, 30), -1),
    "shared by the batch": ((2, 5, 30), (30,), -1),
    "rows": ((30, 4), (30,), 0),
    "batch of rows": ((3, 30, 4), (3, 30), 1),
    "full": ((2, 3, 30), (2, 3, 30), 2),
    "one dimension": ((30,), (30,), 0),
    "middle of four": ((2, 30, 3, 2), (1, 30), 1),
    "empty": ((2, 5, 0), (2, 1, 0), -1),
}
ROWS = 7


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, int]:
    shape, index_shape, dim = CASES[name]
    index = torch.randint(0, ROWS - 1, index_shape, generator=torch.Generator().manual_seed(3))
    return random_features(*shape, dtype=dtype), index, dim


def loop(src: Tensor, index: Tensor, dim: int, reduce: str) -> tuple[Tensor, Tensor]:
    """Entry by entry, in plain Python."""
    dim = dim % src.dim()
    if index.dim() == 1:
        index = index.view(*[1] * dim, -1)
    index = index.view(*index.shape, *[1] * (src.dim() - index.dim())).expand(src.shape)
    lines = src.movedim(dim, -1).reshape(-1, src.shape[dim]).tolist()
    targets = index.movedim(dim, -1).reshape(-1, src.shape[dim]).tolist()
    values, places = [], []
    for line, rows in zip(lines, targets, strict=True):
        members = [[at for at, row in enumerate(rows) if row == number] for number in range(ROWS)]
        for at in members:
            entries = [line[i] for i in at]
            pick = {"min": min, "max": max}.get(reduce)
            if pick is not None:
                values.append(pick(entries) if at else 0.0)
                places.append(at[entries.index(values[-1])] if at else src.shape[dim])
            elif reduce == "mul":
                values.append(math.prod(entries))
            else:
                values.append(sum(entries) / (max(len(at), 1) if reduce == "mean" else 1))
    shape = [*(size for d, size in enumerate(src.shape) if d != dim), ROWS]
    where = torch.tensor(places, dtype=torch.int64).reshape(shape).movedim(-1, dim) if places else torch.empty(0)
    return torch.tensor(values, dtype=torch.float64).reshape(shape).movedim(-1, dim), where


@pytest.mark.parametrize("reduce", ["sum", "add", "mean", "max", "min", "mul"])
@pytest.mark.parametrize("name", CASES)
def test_same_as_a_loop(name: str, reduce: str) -> None:
    src, index, dim = make(name)
    expected, where = loop(src, index, dim, reduce)
    assert_close(torch_scatter.scatter(src, index, dim, dim_size=ROWS, reduce=reduce), expected)
    function = getattr(torch_scatter, f"scatter_{reduce}")
    found = function(src, index, dim, dim_size=ROWS)
    if reduce in ("max", "min"):
        assert torch.equal(found[0], expected) and torch.equal(found[1], where)
    else:
        assert_close(found, expected)


@pytest.mark.parametrize("name", [name for name in CASES if name != "empty"])
def test_size_is_one_more_than_the_largest_index(name: str) -> None:
    src, index, dim = make(name)
    expected = loop(src, index, dim, "mean")[0].narrow(dim, 0, int(index.max()) + 1)
    assert_close(torch_scatter.scatter_mean(src, index, dim), expected)


def test_index_that_was_expanded_already() -> None:
    src, index, _ = make("channels first")
    expected = loop(src, index, -1, "max")
    found = torch_scatter.scatter_max(src, index.expand(-1, 5, -1), dim_size=ROWS)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_out_is_added_to_and_returned() -> None:
    src, index, _ = make("channels first")
    start = random_features(2, 5, ROWS, dtype=torch.float64, seed=4)
    total, count = loop(src, index, -1, "sum")[0], loop(torch.ones_like(src), index, -1, "sum")[0]
    for function, expected in (
        (torch_scatter.scatter_sum, start + total),
        (torch_scatter.scatter_mean, (start + total) / count.clamp(min=1)),
        (torch_scatter.scatter_mul, start * loop(src, index, -1, "mul")[0]),
    ):
        out = start.clone()
        assert function(src, index, out=out) is out
        assert_close(out, expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_out_of_maximum_and_minimum(sign: int) -> None:
    src, index, _ = make("channels first")
    start = random_features(2, 5, ROWS, dtype=torch.float64, seed=4)
    values, where = loop(sign * src, index, -1, "max")
    better = (where < 30) & (values > sign * start)
    out = start.clone()
    function = torch_scatter.scatter_max if sign == 1 else torch_scatter.scatter_min
    found, places = function(src, index, out=out)
    assert found is out
    assert torch.equal(out, torch.where(better, sign * values, start))
    assert torch.equal(places, torch.where(better, where, 30))


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("name", ["channels first", "rows", "full", "middle of four"])
def test_gradcheck(name: str, reduce: str) -> None:
    src, index, dim = make(name)
    src.requires_grad_()
    run = torch_scatter.scatter

    def plain(x: Tensor) -> Tensor:
        return run(x, index, dim, None, ROWS, reduce)

    def into(x: Tensor) -> Tensor:
        return run(x, index, dim, x.new_zeros(plain(x).shape), None, reduce)

    assert torch.autograd.gradcheck(plain, src)
    assert torch.autograd.gradcheck(into, src)


def test_integers_are_summed_and_means_rounded_down() -> None:
    src, index = torch.tensor([[3, 4, -2, 8]]), torch.tensor([[0, 0, 0, 2]])
    assert torch_scatter.scatter_sum(src, index).tolist() == [[5, 0, 8]]
    assert torch_scatter.scatter_mean(src, index).tolist() == [[1, 0, 8]]
    with pytest.raises(TypeError, match="`src` must be floating"):
        torch_scatter.scatter_max(src, index)


@pytest.mark.parametrize("reduce", ["sum", "add", "mean", "max", "min"])
def test_segments(reduce: str) -> None:
    src = random_features(2, 9, 3, dtype=torch.float64).requires_grad_()
    starts = torch.tensor([[1, 4, 4, 9], [0, 0, 5, 7]])
    function = {"sum": torch.sum, "add": torch.sum, "mean": torch.mean, "max": torch.amax, "min": torch.amin}[reduce]
    expected = torch.zeros(2, 3, 3, dtype=torch.float64)
    for b in range(2):
        for s in range(3):
            begin, end = starts[b, s], starts[b, s + 1]
            if begin < end:
                expected[b, s] = function(src.detach()[b, begin:end], dim=0)
    assert_close(torch_scatter.segment_csr(src, starts, reduce=reduce), expected)
    out = torch.ones(2, 3, 3, dtype=torch.float64)
    assert torch_scatter.segment_csr(src.detach(), starts, out, reduce) is out
    assert_close(out, expected)
    shared = torch_scatter.segment_csr(src, starts[:1], reduce=reduce)
    assert_close(shared[0], expected[0])
    assert torch.autograd.gradcheck(lambda x: torch_scatter.segment_csr(x, starts, reduce=reduce), src)


def test_convonet_encoder_code() -> None:
    """The encoder's own lines: a plane of means, and local pooling by scatter and gather."""
    layout = occ.FeatureLayout(("xz",), 8)
    points, features = torch.rand(2, 300, 3) - 0.5, random_features(2, 300, 6)
    bins = occ.bin_points(points, layout)
    index = bins.index.long()  # (B, 1, T)
    c = features.permute(0, 2, 1)
    plane = torch_scatter.scatter_mean(c, index, out=c.new_zeros(2, 6, 64)).reshape(2, 6, 8, 8)
    assert_close(plane, occ.scatter_planes(features, bins)[:, 0])
    pooled = torch_scatter.scatter_max(c, index, dim_size=64)[0].gather(dim=2, index=index.expand(-1, 6, -1))
    assert torch.equal(pooled.permute(0, 2, 1), occ.local_pool(features, bins))


def test_half_precision_is_summed_in_float32() -> None:
    src, index = torch.full((4000,), 0.1, dtype=torch.bfloat16), torch.zeros(4000, dtype=torch.int64)
    assert_close(torch_scatter.scatter_sum(src, index), src.float().sum(0, keepdim=True).bfloat16())


def test_compile() -> None:
    src, index, _ = make("channels first", torch.float32)

    def run(x: Tensor, i: Tensor) -> Any:
        return torch_scatter.scatter_mean(x, i, dim_size=ROWS), *torch_scatter.scatter_max(x, i, dim_size=ROWS)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(src, index), run(src, index), strict=True):
        assert torch.equal(found, expected)


def test_errors() -> None:
    src, index, _ = make("rows")
    with pytest.raises(ValueError, match="`reduce` must be sum, add, mul, mean, min or max, got 'std'"):
        torch_scatter.scatter(src, index, 0, reduce="std")
    with pytest.raises(ValueError, match="`reduce` must be sum, add, mean, min or max, got 'mul'"):
        torch_scatter.segment_csr(src, torch.tensor([0, 3]), reduce="mul")
    with pytest.raises(IndexError, match="`index` reaches"):
        torch_scatter.scatter_sum(src, index, 0, dim_size=2)
