# SPDX-License-Identifier: MIT
"""Properties of every extracted surface: closed, oriented, 2-manifold, whatever the values and sizes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from mesh_checks import assert_manifold, half_edges, packed, random_fields, signed_volume

from occkernels import SparseVolume, marching_cubes, marching_cubes_sparse


@pytest.mark.parametrize("kind", ["normal", "binary", "with equal"])
@pytest.mark.parametrize("size", [3, 4, 5])
def test_random_fields_give_closed_manifolds(kind: str, size: int) -> None:
    fields = random_fields(kind, (300, size, size, size), size)
    batch = marching_cubes(fields, pad_value=-1.0)
    assert_manifold(batch, closed=True)
    assert batch.faces.shape[0] > 300
    assert_manifold(marching_cubes(fields), closed=False)
    assert_manifold(marching_cubes(fields, pad_value=2.0), closed=True)


def test_every_case_is_manifold_between_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    fields = (torch.rand((256, 4, 4, 4, 4), generator=generator) > 0.5).float()
    codes = torch.arange(256)[:, None] >> torch.arange(8) & 1
    fields[:, :, 1:3, 1:3, 1:3] = codes.float().view(256, 1, 2, 2, 2)
    assert_manifold(marching_cubes(fields.flatten(0, 1), 0.5, pad_value=0.0), closed=True)


def test_open_only_where_the_surface_meets_the_border() -> None:
    batch = marching_cubes(random_fields("normal", (20, 5, 6, 7), 1))
    forward, backward = half_edges(packed(batch), batch.vertices.shape[0])
    alone = ~torch.isin(backward, forward)
    ends = packed(batch).flatten()[alone]
    position = batch.vertices[ends]
    top = torch.tensor([4.0, 5.0, 6.0])
    assert bool(((position == 0) | (position == top)).any(1).all())


def test_the_inside_stays_connected_across_an_ambiguous_face() -> None:
    volume = torch.zeros(4, 4, 3)
    volume[1, 1, 1] = volume[2, 2, 1] = 1
    mesh = marching_cubes(volume, 0.5).mesh(0)
    edges = torch.cat([mesh.faces, mesh.faces.roll(-1, 1)], 0).sort(1).values
    euler = mesh.vertices.shape[0] - mesh.faces.shape[0] * 3 // 2 + mesh.faces.shape[0]
    assert edges.numel() > 0 and euler == 2  # one sphere; two apart would make 4


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("pad_value", [-1.0, 2.0])
def test_all_pairs_of_neighbouring_cells_are_closed_manifolds(axis: int, pad_value: float) -> None:
    shape = [2, 2, 2]
    shape[axis - 1] = 3
    fields = (torch.arange(1 << 12)[:, None] >> torch.arange(12) & 1).float().view(-1, *shape) - 0.5
    batch = marching_cubes(fields, pad_value=pad_value)
    assert_manifold(batch, closed=True)
    assert int((batch.face_offsets.diff() == 0).sum()) == 1  # all nodes as the padding


@pytest.mark.parametrize("kind", ["normal", "binary", "with equal"])
def test_fuzzed_sizes_are_closed_oriented_and_the_same_sparse(kind: str) -> None:
    sizes = list(itertools.product((1, 2, 3, 8, 9), repeat=3))
    for index in range(0, len(sizes), 9):
        shape = sizes[index]
        fields = random_fields(kind, (2, *shape), index)
        batch = marching_cubes(fields, pad_value=-1.0)
        assert_manifold(batch, closed=True)
        for mesh, field in zip((batch.mesh(0), batch.mesh(1)), fields, strict=True):
            assert (signed_volume(mesh.vertices, mesh.faces) > 0) == bool((field > 0).any())
            assert bool(((mesh.vertices > -1) & (mesh.vertices < torch.tensor(shape))).all())
        if len(set(shape)) == 1:
            sparse = marching_cubes_sparse(SparseVolume.from_dense(fields), pad_value=-1.0)
            assert_manifold(sparse, closed=True)
            assert torch.equal(sparse.face_offsets, batch.face_offsets)


@pytest.mark.parametrize("nodes", [9, 17, 20])
def test_sparse_is_manifold_and_open_beside_unknown_nodes_only(nodes: int) -> None:
    for seed in range(2):
        fields = random_fields("normal", (2, nodes, nodes, nodes), seed)
        holes = torch.rand(fields.shape, generator=torch.Generator().manual_seed(seed)) < 0.01
        batch = marching_cubes_sparse(SparseVolume.from_dense(fields.masked_fill(holes, math.nan)), pad_value=-1.0)
        forward, backward = half_edges(packed(batch), batch.vertices.shape[0])
        assert forward.unique().numel() == forward.numel()  # no side twice: oriented
        ends = packed(batch).flatten()[~torch.isin(backward, forward)]
        lattice = (ends >= batch.vertex_offsets[1]).long()
        around = torch.nn.functional.pad(holes, (2,) * 6)
        low = batch.vertices[ends].floor().long()
        near = torch.zeros(len(ends), dtype=torch.bool)
        for step in itertools.product((-1, 0, 1, 2), repeat=3):
            x, y, z = (low + torch.tensor(step) + 2).clamp(0, nodes + 3).unbind(1)
            near |= around[lattice, x, y, z]
        assert len(ends) > 0 and bool(near.all())


def test_vertices_stay_apart_on_lattices_of_4096_cells() -> None:
    nodes, side = 4097, 513
    values = torch.full((1, 8, 8, 8), -1.0)
    values[0, 3, 3, 3] = 1e6  # crossings a millionth away from the neighbours
    first = 511 * 8
    volume = SparseVolume(torch.tensor([(511 * side + 511) * side + 511]), values, nodes, 1)
    batch = marching_cubes_sparse(volume)
    assert_manifold(batch, closed=True)
    assert batch.vertices.unique(dim=0).shape == (6, 3)
    moved = batch.vertices - first
    assert bool(((moved == 3) | ((moved > 2) & (moved < 4))).all())
    assert signed_volume(moved, batch.faces) > 0
