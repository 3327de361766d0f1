# SPDX-License-Identifier: MIT
"""extract: the mesh of the dense lattice wherever the octree looked, closed, the same for any chunk and path."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from occkernels import Extraction, ExtractOptions, MeshBatch, extract, marching_cubes, reference

EXAMPLES = 8 if os.environ.get("OCC_CUDA_HOST") else 25  # the sanitized host build is slow


class Waves:
    """A sum of random waves a shape; `ties` rounds it so that many values equal 0; `sign` makes shape 1 constant."""

    def __init__(self, batch: int = 1, seed: int = 0, ties: bool = False, scale: float = 6.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.direction = torch.randn(batch, 4, 3, generator=generator) * scale
        self.phase = torch.rand(batch, 4, generator=generator) * 6
        self.offset = torch.tensor([0.2, -9.0, 9.0, 0.0])[:batch]
        self.ties = ties
        self.largest = 0

    def __call__(self, query: Tensor) -> Tensor:
        self.largest = max(self.largest, query.shape[0] * query.shape[1])
        batch = query.shape[0]
        direction, phase, offset = (part[:batch].to(query) for part in (self.direction, self.phase, self.offset))
        # Coordinates one by one: the order of additions must not depend on the number of points.
        angle = phase[:, None]
        for axis in range(3):
            angle = angle + query[..., axis, None] * direction[:, None, :, axis]
        waves = angle.sin()
        value = waves[..., 0] + waves[..., 1] + waves[..., 2] + waves[..., 3] + offset[:, None]
        return (2 * value).round() if self.ties else value

    def with_gradient(self, query: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            query = query.detach().requires_grad_()
            value = self(query)
            (gradient,) = torch.autograd.grad(value.sum(), query)
        return value.detach(), gradient


class Bricked(Waves):
    """The same field with the interface for bricks."""

    def bricks(self, shape: Tensor, corner: Tensor, mask: Tensor, spacing: float, origin: float) -> Tensor:
        axis = torch.arange(8, device=corner.device)
        local = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)
        points = (origin + spacing * (corner[:, None] + local).double()).float()
        wanted = (mask[:, :, None] >> torch.arange(64, device=mask.device) & 1).flatten(1).bool()
        assert corner.dtype == torch.int32 and mask.dtype == shape.dtype == torch.int64
        values = torch.stack([self(points[None, r].expand(len(self.phase), -1, 3))[s] for r, s in enumerate(shape)])
        return values.masked_fill(~wanted, math.nan)


def edges_of(meshes: MeshBatch) -> list[Tensor]:
    """Directed edges of every mesh."""
    found = []
    for b in range(len(meshes.vertex_offsets) - 1):
        faces = meshes.mesh(b).faces
        found.append(torch.cat([faces[:, [i, (i + 1) % 3]] for i in range(3)]))
    return found


def assert_closed(meshes: MeshBatch) -> None:
    """Every directed edge once, its opposite once."""
    for edges in edges_of(meshes):
        forward, backward = edges.unique(dim=0), edges.flip(1).unique(dim=0)
        assert len(forward) == len(edges) and torch.equal(forward, backward)


def volume_of(meshes: MeshBatch, shape: int) -> float:
    vertices, faces = meshes.mesh(shape)[:2]
    a, b, c = vertices.double()[faces].unbind(1)
    return float((torch.linalg.cross(a, b) * c).sum() / 6)


def equal(found: Extraction, expected: Extraction) -> None:
    assert found.evaluated == expected.evaluated
    for one, two in zip(found.meshes, expected.meshes, strict=True):
        assert (one is None) == (two is None) and (one is None or torch.equal(one.cpu(), two.cpu()))


def triangles(mesh: MeshBatch, shape: int) -> Tensor:
    """Corners of every triangle, sorted, first corner smallest: independent of any order."""
    vertices, faces = mesh.mesh(shape)[:2]
    corners = vertices[faces]
    rolled = torch.stack([corners.roll(k, dims=1) for k in range(3)], dim=1).flatten(2)
    least = [min(row.tolist()) for row in rolled]
    return torch.tensor(sorted(least)).reshape(-1, 9)


SIZES = st.sampled_from([(1, 0), (1, 2), (2, 1), (2, 2), (3, 1), (4, 2), (5, 1), (8, 1), (3, 3)])


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(size=SIZES, batch=st.integers(0, 3), ties=st.booleans(), band=st.booleans(), seed=st.integers(0, 99))
def test_every_mesh_is_closed_and_the_dense_one_where_looked(
    size: tuple[int, int], batch: int, ties: bool, band: bool, seed: int
) -> None:
    """Values at the level, surfaces through the border, empty and full shapes, lattices of one cell."""
    field, options = Waves(batch, seed, ties), ExtractOptions(*size, band=band, box=1.0)
    result = extract(field, options, batch=batch)
    assert_closed(result.meshes)
    table = options.coordinates()
    grid = torch.stack(torch.meshgrid(table, table, table, indexing="ij"), dim=-1).view(1, -1, 3)
    nodes = options.cells + 1
    dense = field(grid.expand(batch, -1, 3)).view(batch, nodes, nodes, nodes)
    whole = marching_cubes(dense, pad_value=-math.inf)
    whole = whole._replace(vertices=options.to_world(whole.vertices))
    for b in range(batch):
        found, expected = triangles(result.meshes, b), triangles(whole, b)
        rows = {tuple(row) for row in expected.tolist()}
        assert {tuple(row) for row in found.tolist()} <= rows
        if not size[1]:
            assert torch.equal(found, expected)
        # Closed and a part of the dense mesh: whole components; all of those that the coarse lattice sees.
        coarse = dense[b, :: 1 << size[1], :: 1 << size[1], :: 1 << size[1]]
        assert len(found) or not bool((coarse > 0).any())
    if batch > 2:
        assert abs(volume_of(result.meshes, 2) - 1.0) < 0.01 and not len(result.meshes.mesh(1).vertices)


@settings(max_examples=EXAMPLES // 2, deadline=None, derandomize=True)
@given(
    size=st.sampled_from([(1, 2), (3, 1), (4, 1), (2, 2)]),
    batch=st.integers(0, 2),
    closed=st.booleans(),
    normals=st.sampled_from([False, "volume", "field"]),
    seed=st.integers(0, 99),
    wide=st.booleans(),
)
def test_same_as_the_twin(
    size: tuple[int, int], batch: int, closed: bool, normals: bool | str, seed: int, wide: bool
) -> None:
    dtype = torch.float64 if wide else torch.float32
    options = ExtractOptions(*size, threshold=0.1, closed=closed, normals=normals, dtype=dtype)
    seeds = torch.rand(batch, 2, 3, generator=torch.Generator().manual_seed(seed)) - 0.5
    field = Waves(batch, seed)
    found = extract(field, options, batch=batch, seeds=seeds)
    expected = reference.extract(field, options, batch=batch, seeds=seeds)
    assert found.evaluated == expected.evaluated and torch.equal(found.meshes.faces, expected.meshes.faces)
    torch.testing.assert_close(found.meshes.vertices, expected.meshes.vertices, rtol=0, atol=2e-6)
    if normals:
        torch.testing.assert_close(found.meshes.normals, expected.meshes.normals, rtol=0, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 3])
def test_chunks_and_bricks_give_the_same_mesh(device: str, batch: int) -> None:
    options = ExtractOptions(6, 2, box=1.0, normals="field")  # box 1: both ways of placing nodes round alike
    expected = extract(Waves(batch), options, batch=batch, device=device)
    assert len(expected.meshes.vertices)
    for chunk in (97, 513, 5000):
        field = Waves(batch)
        equal(extract(field, ExtractOptions(6, 2, box=1.0, normals="field", chunk=chunk), batch=batch), expected)
        assert field.largest <= chunk
    equal(extract(Bricked(batch), options, batch=batch, device=device), expected)
    field = Waves(batch)
    equal(extract(field, ExtractOptions(6, 2, box=1.0, normals="field", memory=4096 * 333), batch=batch), expected)
    assert field.largest <= 333


class Failing(Waves):
    """Fails as allocators do while asked for more than `limit` points."""

    def __init__(self, error: BaseException, limit: int) -> None:
        super().__init__(1)
        self.error, self.limit = error, limit

    def __call__(self, query: Tensor) -> Tensor:
        if query.shape[1] > self.limit:
            raise self.error
        return super().__call__(query)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_a_failed_allocation_is_repeated_in_halves_and_said(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    options = ExtractOptions(6, 1)
    with caplog.at_level(logging.WARNING, logger="occkernels.extract"):
        result = extract(Failing(error, 60), options)
    assert "out of memory with 100000 points at once, going on with 50000" in caplog.text
    equal(result, extract(Waves(1), options))
    with pytest.raises(type(error)):
        extract(Failing(error, 0), options)


def test_other_errors_of_the_field_are_not_repeated() -> None:
    field = Failing(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 0)
    with pytest.raises(RuntimeError, match="mat1"):
        extract(field, ExtractOptions(2, 0))


def test_no_dense_lattice_at_1024(device: str) -> None:
    """A small ball in a lattice whose dense form would take 4 GB."""

    def ball(query: Tensor) -> Tensor:
        return 0.04 - (query - 0.2).norm(dim=-1)

    options = ExtractOptions(32, 5, normals="volume")
    result = extract(ball, options, seeds=torch.full((1, 1, 3), 0.2), device=device)
    vertices, _, normals, _ = result.mesh(0)
    assert sum(map(sum, result.evaluated)) < 700_000 and len(vertices) > 20_000
    assert_closed(result.meshes)
    outward = (vertices - 0.2) / 0.04
    assert float((outward.norm(dim=1) - 1).abs().max()) < 1e-3
    assert float((outward * normals).sum(dim=1).min()) > 0.999
    assert abs(volume_of(result.meshes, 0) / (4 / 3 * math.pi * 0.04**3) - 1) < 1e-3


def test_normals_of_the_field_are_its_gradient(device: str) -> None:
    field = Waves(2, seed=3)
    result = extract(field, ExtractOptions(8, 1, normals="field"), batch=2, device=device)
    vertices, _, normals, _ = result.mesh(0)
    gradient = field.with_gradient(vertices[None].expand(2, -1, 3))[1][0]
    torch.testing.assert_close(normals, -torch.nn.functional.normalize(gradient, dim=1), rtol=0, atol=1e-5)


def test_seeds_find_separate_parts_of_their_own_shape_only() -> None:
    centre = torch.tensor([0.21, 0.19, -0.23])

    def crumbs(query: Tensor) -> Tensor:
        return 0.012 - (query - centre).norm(dim=-1)

    options = ExtractOptions(8, 4)
    assert not len(extract(crumbs, options).meshes.faces)
    far = torch.full((3,), 9.0)  # outside the box: ignored
    found = extract(crumbs, options, batch=2, seeds=torch.stack([torch.stack([far, far]), torch.stack([far, centre])]))
    assert not len(found.mesh(0).faces) and len(found.mesh(1).faces)
    assert float((found.mesh(1).vertices - centre).norm(dim=1).max()) < 0.014


def test_progress_ends_at_the_number_of_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[int, int]] = []
    result = extract(Waves(2), ExtractOptions(5, 1, chunk=50), batch=2, progress=lambda *counts: calls.append(counts))
    total = sum(map(sum, result.evaluated))
    assert calls[-1] == (total, total) and calls == sorted(calls) and all(done <= asked for done, asked in calls)
    extract(Bricked(1), ExtractOptions(5, 1), progress=True)
    assert capsys.readouterr().err.endswith("nodes evaluated\n")


@pytest.mark.parametrize("way", [Waves, Bricked])
def test_bad_fields_and_arguments_are_explained(way: Callable[..., Waves]) -> None:
    field = way(1)
    field.offset = torch.tensor([math.nan])
    with pytest.raises(ValueError, match="NaN at 27 points"):
        extract(field, ExtractOptions(2, 0))
    with pytest.raises(ValueError, match="must return"):
        extract(lambda query: query, ExtractOptions(2, 0))
    with pytest.raises(ValueError, match="with_gradient"):
        extract(lambda query: query[..., 0], ExtractOptions(2, 0, normals="field"))
    with pytest.raises(ValueError, match="seeds"):
        extract(way(1), ExtractOptions(2, 0), seeds=torch.zeros(3, 3))
    for bad in ({"box": 0.0}, {"normals": "yes"}, {"chunk": 0}, {"memory": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ExtractOptions(**bad)
