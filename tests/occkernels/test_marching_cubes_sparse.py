# SPDX-License-Identifier: MIT
"""Marching cubes on bricks: the dense result in another order, and nothing in cells that are not known."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from mesh_checks import sparse_to, to_cpu
from torch import Tensor

from occkernels import MeshBatch, SparseVolume, marching_cubes, marching_cubes_sparse
from occkernels.reference_mc_sparse import marching_cubes_sparse as reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def random_volume(nodes: int, batch: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values with ties at 0 and infinities."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn((batch, nodes, nodes, nodes), generator=generator)
    kind = torch.randint(0, 20, values.shape, generator=generator)
    values[kind == 0], values[kind == 1], values[kind == 2] = 0, math.inf, -math.inf
    return values.to(dtype)


def sorted_rows(rows: Tensor) -> Tensor:
    """Order that sorts rows lexicographically."""
    order = torch.arange(rows.shape[0])
    for column in reversed(range(rows.shape[1])):
        order = order[rows[order, column].argsort(stable=True)]
    return order


def canonical(batch: MeshBatch, index: int) -> tuple[Tensor, ...]:
    """A mesh with vertices and faces in sorted order, each face from its least vertex on."""
    mesh = batch.mesh(index)
    order = sorted_rows(mesh.vertices)
    rank = order.argsort()
    faces = rank[mesh.faces]
    turn = faces.argmin(1, keepdim=True) if len(faces) else faces[:, :1]
    faces = faces.gather(1, (torch.arange(3) + turn) % 3)
    others = [part[order] for part in (mesh.vertices, mesh.normals) if part is not None]
    return (*others, faces[sorted_rows(faces)])


def assert_same(ours: MeshBatch, theirs: MeshBatch) -> None:
    """Bit for bit but for normals, whose three products may be summed in another order."""
    for name, a, b in zip(ours._fields, ours, theirs, strict=True):
        if a is None or b is None:
            assert a is b, name
        elif name == "normals":
            torch.testing.assert_close(a, b)
        else:
            assert a.dtype == b.dtype and torch.equal(a, b), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nodes", [1, 2, 3, 7, 8, 9, 16, 17])
@pytest.mark.parametrize("pad_value", [None, -1.0, -math.inf, 0.5])
def test_same_as_dense_where_everything_is_known(
    dtype: torch.dtype, nodes: int, pad_value: float | None, device: str
) -> None:
    volume = random_volume(nodes, 2, nodes, dtype)
    dense = marching_cubes(volume, 0.1, normals=True, pad_value=pad_value)
    bricks = SparseVolume.from_dense(volume.to(device))
    sparse = to_cpu(marching_cubes_sparse(bricks, 0.1, normals=True, pad_value=pad_value))
    assert torch.equal(dense.face_offsets, sparse.face_offsets)
    if nodes == 1 and pad_value is None:
        assert sparse.vertices.shape == (0, 3)
        return
    assert torch.equal(dense.vertex_offsets, sparse.vertex_offsets)
    for index in range(2):
        for a, b in zip(canonical(dense, index), canonical(sparse, index), strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("pad_value", [None, -1.0, 0.5])
@pytest.mark.parametrize("nodes", [2, 9, 16, 21, 24])
def test_same_as_reference_on_random_subsets(nodes: int, pad_value: float | None, device: str) -> None:
    for seed, dtype in enumerate(DTYPES):
        volume = random_volume(nodes, 3, seed, dtype)
        generator = torch.Generator().manual_seed(seed)
        side = -(-nodes // 8)
        bricks = torch.rand((3, side, side, side), generator=generator) < 0.7
        for axis in (1, 2, 3):
            bricks = bricks.repeat_interleave(8, axis).narrow(axis, 0, nodes)
        single = torch.rand(volume.shape, generator=generator) < (0.0 if seed == 0 else 0.05)
        volume[~bricks | single] = math.nan
        sparse = SparseVolume.from_dense(volume)
        ours = to_cpu(marching_cubes_sparse(sparse_to(sparse, device), 0.1, normals=True, pad_value=pad_value))
        theirs = reference(sparse, 0.1, normals=True, pad_value=pad_value)
        assert_same(ours, theirs)
        assert len(ours.faces) > 0 or nodes == 2


def test_every_vertex_is_used_and_no_face_needs_an_unknown_node() -> None:
    volume = random_volume(20, 1, 5)
    volume[0, 4:7, :, 9:] = math.nan
    batch = marching_cubes_sparse(SparseVolume.from_dense(volume), 0.1)
    assert torch.equal(batch.faces.unique(), torch.arange(len(batch.vertices)))
    low, high = batch.vertices.floor().long(), batch.vertices.ceil().long()
    assert not bool(volume[0][tuple(low.T)].isnan().any() | volume[0][tuple(high.T)].isnan().any())


@pytest.mark.parametrize("function", [marching_cubes_sparse, reference])
def test_wrong_arguments_are_told(function: object) -> None:
    sparse = SparseVolume.from_dense(random_volume(20, 1, 1))

    def changed(keys: Tensor) -> SparseVolume:
        return SparseVolume(keys, sparse.values, 20, 1)

    cases = [
        (TypeError, "SparseVolume.*Tensor.*marching_cubes", sparse.values, {}),
        (ValueError, "keys.*27.*got 0 at 1", changed(sparse.keys.clone().index_fill_(0, torch.tensor(1), 0)), {}),
        (ValueError, "keys.*27.*got 25 at 1", changed(sparse.keys.flip(0)), {}),
        (ValueError, "keys.*27.*got -1 at 0", changed(sparse.keys - 1), {}),
        (ValueError, "keys.*27.*got 27 at 26", changed(sparse.keys + 1), {}),
        (ValueError, "level.*finite", sparse, {"level": math.nan}),
        (ValueError, "edge_margin", sparse, {"edge_margin": -0.1}),
        (ValueError, "pad_value", sparse, {"pad_value": math.nan}),
    ]
    for error, pattern, volume, options in cases:
        with pytest.raises(error, match=pattern):
            function(volume, **options)  # type: ignore[operator]


@pytest.mark.parametrize("pad_value", [None, -1.0])
def test_no_bricks_give_empty_meshes(pad_value: float | None, device: str) -> None:
    empty = SparseVolume(
        torch.zeros(0, dtype=torch.int64, device=device), torch.zeros(0, 8, 8, 8, device=device), 65, 2
    )
    batch = marching_cubes_sparse(empty, normals=True, pad_value=pad_value)
    assert batch.vertices.shape == batch.faces.shape == (0, 3)
    assert batch.vertex_offsets.tolist() == batch.face_offsets.tolist() == [0, 0, 0]


def test_strided_values() -> None:
    sparse = SparseVolume.from_dense(random_volume(17, 1, 3))
    turned = SparseVolume(sparse.keys, sparse.values.transpose(1, 3), 17, 1)
    copied = SparseVolume(sparse.keys, turned.values.contiguous(), 17, 1)
    assert_same(marching_cubes_sparse(turned), marching_cubes_sparse(copied))


MEMORY = """
import resource, torch
from occkernels import SparseVolume, marching_cubes_sparse
keys = torch.arange(32**3)
height = torch.arange(8.0)[:, None, None] + 8 * (keys // 1024).view(-1, 1, 1, 1) + torch.zeros(8, 8)
volume = SparseVolume(keys, 100.3 - height, 256, 1)
marching_cubes_sparse(SparseVolume(keys[:9], volume.values[:9], 256, 1), 100.0)
bytes_of = lambda tensor: tensor.numel() * tensor.element_size()
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
open("/proc/self/clear_refs", "w").write("5")
batch = marching_cubes_sparse(volume)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
output = sum(bytes_of(part) for part in batch if part is not None)
assert len(batch.vertices) == 256**2
assert peak - before <= 1.25 * output + 0.25 * bytes_of(volume.values), (peak - before, output, bytes_of(volume.values))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs /proc/self/clear_refs (Linux)")
def test_memory_follows_the_bricks() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.cuda
def test_same_bits_on_both_devices() -> None:
    sparse = SparseVolume.from_dense(random_volume(64, 2, 7).masked_fill(torch.rand(2, 64, 64, 64) < 0.01, math.nan))
    cpu = marching_cubes_sparse(sparse, 0.1, normals=True, pad_value=-1.0)
    cuda = marching_cubes_sparse(sparse_to(sparse, "cuda"), 0.1, normals=True, pad_value=-1.0)
    assert_same(to_cpu(cuda), cpu)
    for a, b in zip(cpu[:5], to_cpu(cuda)[:5], strict=True):
        assert torch.equal(a, b)  # type: ignore[arg-type]
