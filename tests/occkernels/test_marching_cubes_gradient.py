# SPDX-License-Identifier: MIT
"""Attributes of vertices, and derivatives of both to the values of dense volumes and bricks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from mesh_checks import sparse_to, to_cpu
from torch import Tensor

from occkernels import MeshBatch, SparseVolume, marching_cubes, marching_cubes_sparse, reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
Extract = Callable[..., MeshBatch]


def fields(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Values away from 0.1, so that small steps change no sign, and three attributes."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    values += torch.where(values > 0.1, 0.2, -0.2)
    return values.to(dtype), torch.randn((*shape, 3), generator=generator, dtype=torch.float64).to(dtype)


def bricks(nodes: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[SparseVolume, Tensor]:
    """A lattice with gaps, and attributes of its nodes."""
    dense, _ = fields((2, nodes, nodes, nodes), seed, dtype)
    dense[0, : nodes // 2] = dense[1, nodes // 3] = dense[0, nodes - 1, 0, 0] = math.nan
    sparse = SparseVolume.from_dense(dense)
    return sparse, fields((*sparse.values.shape,), seed + 1, dtype)[1]


def loss(batch: MeshBatch) -> Tensor:
    """A sum in which every coordinate and attribute counts differently."""
    assert batch.attributes is not None
    weights = torch.arange(1, 1 + batch.vertices.numel(), dtype=batch.vertices.dtype).view_as(batch.vertices).sin()
    weights = weights.to(batch.vertices.device)
    return (weights * batch.vertices).sum() + (weights * batch.attributes).square().sum()


def derivatives(extract: Extract, values: Tensor, nodes: Tensor, *others: object, **options: object) -> list[Tensor]:
    """Derivatives of the loss to values and attributes; ``others`` are the rest of a sparse volume."""
    values, nodes = values.clone().requires_grad_(), nodes.clone().requires_grad_()
    volume = values
    if others:
        keys, count, batch = others
        volume = SparseVolume(keys, values, count, batch)  # type: ignore[arg-type, assignment]
    return list(torch.autograd.grad(loss(extract(volume, 0.1, attributes=nodes, **options)), (values, nodes)))


def wider(values: Tensor) -> Tensor:
    """Halves as float32: what the operators compute in. (Autograd of the twin would add up in halves.)"""
    return values.float() if values.dtype.itemsize == 2 else values


def assert_rounded(found: Tensor, exact: Tensor) -> None:
    """``found`` is ``exact``, rounded once to its own type."""
    half = found.dtype.itemsize == 2
    close = {"rtol": torch.finfo(found.dtype).eps, "atol": 1e-5} if half else {}
    torch.testing.assert_close(wider(found.cpu()), exact, **close)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pad_value", [None, -1.0, -math.inf])
@pytest.mark.parametrize("shape", [(2, 4, 3, 5), (1, 2, 2, 66), (2, 1, 3, 1), (1, 1, 1, 130)])
def test_dense_same_as_reference(
    dtype: torch.dtype, pad_value: float | None, shape: tuple[int, ...], device: str
) -> None:
    values, nodes = fields(shape, 1, dtype)
    values[..., 1:2], values[..., -1:] = math.inf, 0.1
    given = (values.to(device), nodes.to(device))
    ours = to_cpu(marching_cubes(given[0], 0.1, attributes=given[1], pad_value=pad_value))
    theirs = reference.marching_cubes(values, 0.1, attributes=nodes, pad_value=pad_value)
    assert torch.equal(ours.vertices, theirs.vertices)
    torch.testing.assert_close(ours.attributes, theirs.attributes)
    found = derivatives(marching_cubes, *given, pad_value=pad_value)
    wide = (wider(values), wider(nodes))
    for a, b in zip(found, derivatives(reference.marching_cubes, *wide, pad_value=pad_value), strict=True):
        assert_rounded(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pad_value", [None, -1.0, -math.inf])
@pytest.mark.parametrize("nodes", [9, 16])
def test_sparse_same_as_reference(dtype: torch.dtype, pad_value: float | None, nodes: int, device: str) -> None:
    sparse, attributes = bricks(nodes, 2, dtype)
    there, values = sparse_to(sparse, device), attributes.to(device)
    ours = to_cpu(marching_cubes_sparse(there, 0.1, attributes=values, pad_value=pad_value))
    theirs = reference.marching_cubes_sparse(sparse, 0.1, attributes=attributes, pad_value=pad_value)
    assert torch.equal(ours.vertices, theirs.vertices)
    torch.testing.assert_close(ours.attributes, theirs.attributes)
    rest = (sparse.keys, sparse.nodes, sparse.batch)
    placed = (there.keys, there.nodes, there.batch)
    found = derivatives(marching_cubes_sparse, there.values, values, *placed, pad_value=pad_value)
    wide = (wider(sparse.values), wider(attributes))
    for a, b in zip(
        found, derivatives(reference.marching_cubes_sparse, *wide, *rest, pad_value=pad_value), strict=True
    ):
        assert_rounded(a, b)


@pytest.mark.parametrize("pad_value", [None, -1.0])
def test_gradcheck(pad_value: float | None) -> None:
    values, nodes = fields((1, 2, 2, 3), 3)

    def extract(values: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        batch = marching_cubes(values, 0.1, attributes=nodes, pad_value=pad_value)
        assert batch.attributes is not None
        return batch.vertices, batch.attributes

    torch.autograd.gradcheck(extract, (values.requires_grad_(), nodes.requires_grad_()))


@pytest.mark.parametrize("pad_value", [None, -1.0])
def test_gradcheck_sparse(pad_value: float | None) -> None:
    dense, _ = fields((1, 9, 9, 9), 4)
    dense[0, 2:8], dense[0, :, 2:8] = math.nan, math.nan
    sparse = SparseVolume.from_dense(dense)
    known = (~sparse.values.isnan()).nonzero()
    known = known[:: len(known) // 10]
    attributes = fields((*sparse.values.shape,), 5)[1]

    def extract(values: Tensor) -> tuple[Tensor, Tensor]:
        changed = sparse.values.index_put(tuple(known.T), values)
        volume = SparseVolume(sparse.keys, changed, sparse.nodes, sparse.batch)
        batch = marching_cubes_sparse(volume, 0.1, attributes=attributes, pad_value=pad_value)
        assert batch.attributes is not None
        return batch.vertices, batch.attributes

    torch.autograd.gradcheck(extract, (sparse.values[tuple(known.T)].requires_grad_(),))


def test_dense_and_sparse_derivatives_are_the_same() -> None:
    values = fields((1, 17, 17, 17), 6, torch.float32)[0].requires_grad_()
    sums = []
    for volume in (values, SparseVolume.from_dense(values)):
        extract = marching_cubes if isinstance(volume, Tensor) else marching_cubes_sparse
        batch = extract(volume, 0.1)  # type: ignore[operator]
        sums.append(torch.autograd.grad(batch.vertices.square().sum(), values)[0])
    assert torch.equal(*sums) and bool((sums[0] != 0).any())


def test_the_margin_holds_vertices_and_infinities_have_no_slope() -> None:
    row = torch.tensor([1.0, 0.0, 1.0, -1e-6, math.inf, -1.0]).view(1, 1, -1).requires_grad_()
    batch = marching_cubes(row, 0.0, edge_margin=0.01)
    batch.vertices.sum().backward()
    assert batch.vertices.shape == (5, 3) and row.grad is not None
    assert row.grad.tolist() == [[[0.0] * 6]]
    assert not marching_cubes(row, normals=True).normals.requires_grad  # type: ignore[union-attr]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_same_bits_for_any_number_of_threads() -> None:
    values, nodes = fields((2, 20, 20, 70), 7, torch.float32)
    sparse, attributes = bricks(40, 8, torch.float32)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found = derivatives(marching_cubes, values, nodes, pad_value=-1.0)
        rest = (sparse.keys, sparse.nodes, sparse.batch)
        found += derivatives(marching_cubes_sparse, sparse.values, attributes, *rest, pad_value=-1.0)
        batch = marching_cubes_sparse(sparse, 0.1, normals=True, attributes=attributes, pad_value=-1.0)
        results.append([*found, *(part for part in batch if part is not None)])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_strided_attributes_and_derivatives() -> None:
    values, nodes = fields((2, 4, 4, 6), 9)
    wide = torch.stack([nodes, nodes], dim=-2)
    expected = derivatives(marching_cubes, values, nodes)
    turned = values.transpose(1, 3).contiguous().transpose(1, 3).requires_grad_()
    batch = marching_cubes(turned, 0.1, attributes=wide[..., 0, :])
    torch.testing.assert_close(torch.autograd.grad(loss(batch), turned)[0], expected[0])
    single = marching_cubes(values[1], 0.1, attributes=nodes[1]).mesh(0)
    assert torch.equal(single.attributes, marching_cubes(values, 0.1, attributes=nodes).mesh(1).attributes)


def test_attributes_that_do_not_fit_are_told() -> None:
    values, nodes = fields((2, 3, 3, 3), 10)
    sparse, attributes = bricks(9, 11)
    for extract, volume, right in ((marching_cubes, values, nodes), (marching_cubes_sparse, sparse, attributes)):
        with pytest.raises(TypeError, match="attributes.*float64.*float32"):
            extract(volume, attributes=right.float())  # type: ignore[operator]
        with pytest.raises(ValueError, match="attributes.*3, A|attributes.*8, A"):
            extract(volume, attributes=right[1:])  # type: ignore[operator]
        empty = extract(volume, attributes=right[..., :0])  # type: ignore[operator]
        assert empty.attributes is not None and empty.attributes.shape == (len(empty.vertices), 0)


def test_opcheck_sparse() -> None:
    sparse, attributes = bricks(9, 12)
    values, source = sparse.values.nan_to_num(nan=-1.0), torch.arange(len(sparse.keys))
    lattice = [2, 9, 2, 0]
    for arguments in (
        (values, None, sparse.keys, None, lattice, 0.1, 0.0, 1e-4, True),
        (values.requires_grad_(), attributes.requires_grad_(), sparse.keys, source, lattice, 0.1, 0.0, 1e-4, False),
    ):
        torch.library.opcheck(torch.ops.occkernels.marching_cubes_sparse.default, arguments)


def test_training_step_compiles_as_one_graph() -> None:
    import torch._dynamo.config as config

    sparse, attributes = bricks(9, 13, torch.float32)

    def step(values: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        volume = SparseVolume(sparse.keys, values, sparse.nodes, sparse.batch)
        batch = torch.ops.occkernels.marching_cubes_sparse(
            volume.values, attributes, volume.keys, None, [2, 9, 2, 0], 0.1, 0.0, 1e-4, False
        )
        return batch[0].square().sum() + batch[5].sum(), marching_cubes(dense, 0.1).vertices.square().sum()

    dense = fields((1, 4, 4, 4), 14, torch.float32)[0]
    with config.patch(capture_dynamic_output_shape_ops=True):
        torch._dynamo.reset()
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        for scale in (1.0, 2.0):
            grads = []
            for function in (step, compiled):
                inputs = [(scale * part).requires_grad_() for part in (sparse.values, dense)]
                grads.append(torch.autograd.grad(sum(function(*inputs)), inputs))
            assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
