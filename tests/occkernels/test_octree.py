# SPDX-License-Identifier: MIT
"""Octree: the same rounds as the twin on sets and dictionaries, as bricks and as points, on lattices of any size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from occkernels import Octree, SparseVolume
from occkernels.reference_octree import Octree as Twin

EXAMPLES = 12 if os.environ.get("OCC_CUDA_HOST") else 30  # the sanitized host build is slow


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def values_at(index: Tensor, shape: Tensor, cells: int, kind: str, seed: int) -> Tensor:
    """Values of fields that differ by shape: smooth, many ties, noise, a thin sheet, or one sign only."""
    p = index.double() / cells
    frequency = torch.rand(8, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)[shape] * 9
    smooth = (p * frequency + seed).sin().prod(dim=1) + 0.1 * (shape - 1)
    if kind == "ties":
        return (smooth * 6).round()
    if kind == "noise":
        return ((p * 7919 + seed).sum(dim=1).sin() * 43758.5453).frac()
    if kind == "sheet":  # thinner than coarse cells: found here and there, then followed through hanging nodes
        height = p[:, 0] + 0.3 * (5 * p[:, 1] + shape).sin() * (4 * p[:, 2]).cos() - 0.1 - seed / 2000
        return 0.02 + 0.05 * (shape == 1) - height.abs()
    if kind == "constant":
        return torch.where(shape % 2 == 0, 1.0, -1.0).double()
    if kind == "nan":
        return torch.where(smooth.abs() < 0.1, torch.nan, smooth)
    return smooth


def shape_of(offsets: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff().cpu())


def finish(tree: Octree, kind: str = "smooth", seed: int = 0) -> list[Tensor]:
    """Run to the end; every query."""
    queries = []
    index, offsets = tree.query()
    while len(index):
        queries.append(index)
        tree.update(values_at(index.cpu(), shape_of(offsets), tree.cells, kind, seed))
        index, offsets = tree.query()
    return queries


def same_volume(found: SparseVolume, expected: SparseVolume) -> None:
    assert (found.nodes, found.batch) == (expected.nodes, expected.batch)
    assert torch.equal(found.keys.cpu(), expected.keys)
    torch.testing.assert_close(found.values.cpu(), expected.values, rtol=0, atol=0, equal_nan=True)


# Sizes around a brick's 8 nodes, odd ones, and 1: (initial, levels).
SIZES = st.sampled_from(
    [(1, 0), (1, 1), (1, 3), (2, 2), (3, 1), (3, 2), (4, 1), (5, 1), (7, 0), (8, 0), (9, 0), (2, 3)]
)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(
    size=SIZES,
    batch=st.integers(0, 3),
    kind=st.sampled_from(["smooth", "ties", "noise", "sheet", "constant", "nan"]),
    closed=st.booleans(),
    band=st.booleans(),
    seeds=st.integers(0, 3),
    seed=st.integers(0, 999),
    wide=st.booleans(),
)
def test_every_round_is_the_twins(
    size: tuple[int, int], batch: int, kind: str, closed: bool, band: bool, seeds: int, seed: int, wide: bool
) -> None:
    options = {"batch": batch, "dtype": torch.float64 if wide else torch.float32, "closed": closed, "band": band}
    tree, twin = Octree(*size, 0.05, **options), Twin(*size, 0.05, **options)
    if batch:
        generator = torch.Generator().manual_seed(seed)
        points = (torch.rand(seeds, 3, generator=generator) * 1.2 - 0.1) * tree.cells
        shapes = torch.randint(batch, (seeds,), generator=generator)
        for rows in (slice(0, 1), slice(1, None)):
            tree.mark(points[rows], shapes[rows])
        twin.mark(points, shapes)
    for _ in range(50):
        index, offsets = tree.query()
        expected, starts = twin.query()
        assert torch.equal(index, expected) and torch.equal(offsets, starts)
        if not len(index):
            break
        values = values_at(index, shape_of(offsets), tree.cells, kind, seed)
        tree.update(values)
        twin.update(values)
    assert not len(index)
    torch.testing.assert_close(tree.to_dense(), twin.to_dense(), rtol=0, atol=0, equal_nan=True)
    same_volume(tree.volume(), twin.volume())


def test_late_splits_are_the_twins(device: str) -> None:
    """Sheets followed through hanging nodes: rounds that ask at several levels, cells that come after finer ones."""
    options = {"batch": 3, "closed": False}
    tree, twin = Octree(2, 3, **options, device=device), Twin(2, 3, **options)
    seeds = torch.tensor([[8.0, 2.0, 2.7], [3.3, 13.3, 14.0], [9.3, 9.3, 1.3]])
    tree.mark(seeds, torch.arange(3))
    twin.mark(seeds, torch.arange(3))
    several = 0
    while True:
        index, offsets = tree.query()
        expected, starts = twin.query()
        assert torch.equal(index.cpu(), expected) and torch.equal(offsets.cpu(), starts)
        if not len(index):
            break
        several += len(tree.bricks()) > 1
        values = values_at(expected, shape_of(starts), tree.cells, "sheet", 200)
        tree.update(values)
        twin.update(values)
    assert several >= 2 and len(tree.rounds) > 5
    same_volume(tree.volume(), twin.volume())


@pytest.mark.parametrize("kind", ["smooth", "ties"])
def test_bricks_ask_for_the_nodes_of_the_query(device: str, kind: str) -> None:
    by_point, by_brick = (Octree(5, 2, batch=2, device=device, band=True) for _ in range(2))
    while True:
        index, offsets = by_point.query()
        bricks = by_brick.bricks()
        assert sum(brick.wanted for brick in bricks) == len(index)
        if not bricks:
            break
        found, given = [], []
        for brick in bricks:
            axis = torch.arange(8, device=device)
            local = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)
            nodes = (brick.corner[:, None] + local).to(torch.int32) * brick.stride
            wanted = (brick.mask[:, :, None] >> torch.arange(64, device=device) & 1).flatten(1).bool()
            shape = brick.shape[:, None].expand(wanted.shape)
            values = values_at(nodes.view(-1, 3).cpu(), shape.reshape(-1).cpu(), by_point.cells, kind, 3)
            # What is not asked for must not matter.
            given.append(values.view(wanted.shape).to(device).masked_fill(~wanted, 1e30))
            found.append(torch.cat([shape[wanted][:, None], nodes[wanted]], dim=1))
        shape = shape_of(offsets).to(device)
        asked = torch.cat([shape[:, None], index], dim=1)
        assert torch.equal(torch.cat(found).unique(dim=0), asked.unique(dim=0))
        by_point.update(values_at(index.cpu(), shape.cpu(), by_point.cells, kind, 3))
        by_brick.update_bricks(given)
    found_volume, expected = by_brick.volume(), by_point.volume()
    same_volume(found_volume, SparseVolume(expected.keys.cpu(), expected.values.cpu(), expected.nodes, expected.batch))


def test_number_of_threads_does_not_matter(threads: None) -> None:
    results = []
    for number in (1, 2):
        torch.set_num_threads(number)
        tree = Octree(7, 2, batch=3, closed=True, band=True)
        results.append((finish(tree), tree.volume(), tree.to_dense()))
    for one, two in zip(results[0][0], results[1][0], strict=True):
        assert torch.equal(one, two)
    same_volume(results[0][1], results[1][1])
    assert torch.equal(results[0][2], results[1][2])


def test_devices_agree(device: str) -> None:
    tree, here = (Octree(8, 2, batch=2, device=place, closed=True, band=True) for place in (device, "cpu"))
    for one, two in zip(finish(tree), finish(here), strict=True):
        assert torch.equal(one.cpu(), two)
    same_volume(tree.volume(), here.volume())
    assert torch.equal(tree.to_dense().cpu(), here.to_dense())


@pytest.mark.parametrize("cells", [4096, 65536])
def test_lattices_far_beyond_dense_ones(device: str, cells: int) -> None:
    """Forced cells only: keys beyond 32 bits, memory for a few bricks a level."""
    tree = Octree(4, (cells // 4).bit_length() - 1, batch=2, device=device)
    points = torch.tensor([[0.5, 0.5, 0.5], [cells, cells, cells], [cells / 3, cells / 5, cells / 7]])
    tree.mark(points, torch.tensor([0, 1, 1]))
    asked = []
    while True:
        index, offsets = tree.query()
        if not len(index):
            break
        asked.append(torch.cat([shape_of(offsets)[:, None], index.cpu()], dim=1))
        tree.update(torch.ones(len(index)))
    volume = tree.volume()
    assert len(volume.keys) <= 3 * 8 and int(volume.keys[-1]) > 2**28
    nodes = {tuple(row) for row in torch.cat(asked).tolist()}
    assert len(nodes) == sum(map(len, asked))
    for shape, point in zip((0, 1, 1), points.clamp_max(cells - 1).long().tolist(), strict=True):
        corners = {(shape, *(p + (c >> k & 1) for k, p in enumerate(point))) for c in range(8)}
        assert corners <= nodes
    lattice, first = volume.places()
    known = (~volume.values.isnan()).nonzero()
    stored = torch.cat([lattice[known[:, 0], None], first[known[:, 0]] + known[:, 1:]], dim=1)
    assert {tuple(row) for row in stored.tolist()} <= nodes


def found_part(field: Callable[[Tensor], Tensor], near: tuple[int, int, int], **options: bool) -> bool:
    """Whether a node above 0 was evaluated within two cells of `near`; a seed is put there for "seed"."""
    seed = options.pop("seed", False)
    tree = Octree(8, 3, **options)
    if seed:
        tree.mark(torch.tensor([near]) + 0.1)
    above = []
    while len(index := tree.query()[0]):
        values = field(index)
        above.append(index[values > 0])
        tree.update(values)
    return bool(((torch.cat(above) - torch.tensor(near)).abs() <= 2).all(dim=1).any())


def test_small_parts_are_found_with_a_band_or_a_seed() -> None:
    """A ball, and a crumb of three fine cells in the middle of a coarse cell that is not split for the ball's sake."""

    def field(index: Tensor) -> Tensor:
        ball = 15.5 - (index - 32.0).norm(dim=1)
        return torch.maximum(ball, 1.5 - (index - torch.tensor([52.0, 28.0, 28.0])).norm(dim=1))

    assert not found_part(field, (52, 28, 28))
    assert found_part(field, (52, 28, 28), band=True)
    assert found_part(field, (52, 28, 28), seed=True)


def test_a_thin_spike_is_followed_from_where_it_was_found() -> None:
    """Hanging nodes: the spike passes between all coarse nodes, but the ball it grows from is found."""

    def field(index: Tensor) -> Tensor:
        p = index - torch.tensor([20.0, 29.0, 29.0])
        spike = torch.minimum(1.3 - p[:, 1:].norm(dim=1), torch.minimum(p[:, 0], 36 - p[:, 0]))
        return torch.maximum(10.2 - p.norm(dim=1), spike)

    assert found_part(field, (55, 29, 29))


def test_points_are_evaluated_once_and_values_reported(device: str) -> None:
    tree = Octree(7, 2, device=device)
    rows = torch.cat(finish(tree, "ties", 5))
    assert len(rows.unique(dim=0)) == len(rows) == sum(map(sum, tree.rounds))
    dense = tree.to_dense()[0]
    x, y, z = rows.long().unbind(1)
    expected = values_at(rows.cpu(), torch.zeros(len(rows), dtype=torch.int64), tree.cells, "ties", 5).float()
    assert torch.equal(dense[x, y, z].cpu(), expected)


def test_bad_arguments_are_explained() -> None:
    for options, word in [
        ({"initial": 0}, "initial"),
        ({"levels": -1}, "levels"),
        ({"batch": -1}, "batch"),
        ({"threshold": float("nan")}, "threshold"),
        ({"initial": 2**10, "levels": 11}, "at most"),
    ]:
        with pytest.raises(ValueError, match=word):
            Octree(**({"initial": 4, "levels": 1} | options))
    with pytest.raises(TypeError, match="dtype"):
        Octree(4, 1, dtype=torch.float16)
    tree = Octree(2, 1)
    with pytest.raises(ValueError, match=r"Q=27"):
        tree.update(torch.zeros(26))
    with pytest.raises(TypeError, match="values"):
        tree.update(torch.zeros(27, dtype=torch.int64))
    with pytest.raises(ValueError, match="one for every entry"):
        tree.update_bricks([])
    tree.update(torch.zeros(27))
    with pytest.raises(ValueError, match="before the first"):
        tree.mark(torch.zeros(1, 3))
