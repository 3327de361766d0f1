# SPDX-License-Identifier: MIT
"""Iso-surfaces of lattices stored in compact bricks: memory and time follow the surface, not the volume."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from occkernels._native import call, dtype_code
from occkernels._registry import define
from occkernels.mesh import (
    SCAN_TILE,
    MeshBatch,
    check_attributes,
    check_sparse_extraction,
    coordinate_dtype,
    refuse_keys,
    visible_margin,
)
from occkernels.sparse import BRICK, SparseVolume

NEIGHBOURS = 14
WORDS = 42
"""Workspace of a brick, see csrc/math/marching_cubes_bricks.h."""


def marching_cubes_sparse(
    volume: SparseVolume,
    level: float = 0.0,
    *,
    normals: bool = False,
    attributes: Tensor | None = None,  # (K, 8, 8, 8, A)
    edge_margin: float = 1e-4,
    pad_value: float | None = None,
) -> MeshBatch:
    """Triangle meshes of the surfaces where the known part of sparse lattices passes ``level``.

    The vertices and triangles are those of :func:`occkernels.marching_cubes` on ``volume.to_dense()``, bit for bit, in
    another order, in every cell whose eight corners are known. Other cells hold no triangle, so the surface is open
    where it leaves the known nodes; and an edge carries a vertex only if one of its cells is complete, so every vertex
    belongs to a triangle. Nothing of the size of the lattice is ever stored. Differentiable once in ``volume.values``
    and ``attributes``, as the dense form is.

    Vertices are sorted by the brick that holds the lower node of their edge (by its key), then by that node within the
    brick (row-major), then by axis; triangles by brick, cell and table. The result is the same for any number of
    threads.

    Args:
        volume: values of ``volume.batch`` lattices, float32, float64, float16 or bfloat16; infinite ones are allowed,
            NaN is "not known".
        level: value of the surface, rounded to float32 unless the values are float64.
        normals: also return vertex normals: interpolated differences of the values, central where both neighbours of a
            node along an axis are known, one-sided where one is. (The dense form sees all nodes, so its normals differ
            beside unknown ones.)
        attributes: values of the nodes, of the type and device of ``volume.values``, that vertices interpolate along
            their edge.
        edge_margin: as for :func:`occkernels.marching_cubes`.
        pad_value: None leaves the surface open at the lattice's border. A number imagines one layer of nodes of that
            value around the lattice, known everywhere; vertices then reach from -1 to ``volume.nodes``.

    Returns:
        Meshes with vertices (V, 3) in index units, one mesh a lattice; float64 for float64 values, float32 for all
        others. Faces (F, 3) are local to their mesh and counter-clockwise seen from outside, towards lower values.

    Raises:
        TypeError: ``volume`` is not a SparseVolume of one of the four types.
        ValueError: keys out of range or not ascending, or another argument out of range.

    Example:
        >>> dense = marching_cubes(field)
        >>> sparse = marching_cubes_sparse(SparseVolume.from_dense(field))  # the same triangles, another order
    """
    check_sparse_extraction(volume, level, edge_margin, pad_value)
    check_attributes("marching_cubes_sparse", attributes, volume.values)
    keys, source, side = volume.keys, None, volume.side
    if pad_value is not None:
        keys, source, side = _with_border(volume)
    lattice = [volume.batch, volume.nodes, side, int(side != volume.side)]
    margin = visible_margin(edge_margin, volume.nodes, volume.values.dtype)
    vertices, faces, vertex_offsets, face_offsets, directions, carried, *_ = _marching_cubes_sparse(
        volume.values, attributes, keys, source, lattice, level, pad_value or 0.0, margin, normals
    )
    return MeshBatch(
        *(vertices, faces, vertex_offsets, face_offsets),
        directions.detach() if normals else None,
        None if attributes is None else carried,
    )


def _with_border(volume: SparseVolume) -> tuple[Tensor, Tensor | None, int]:
    """Keys of the bricks and of those that hold only nodes of the layer around the lattice; their sources; the side.

    Keys count two more bricks along every axis. The source of a brick is its row in the values, -1 if all its nodes lie
    outside of the lattice, -2 - row if some do. Without a brick at the border everything is as it was.
    """
    side, whole = volume.side, volume.nodes % BRICK == 0
    lattice, first = volume.places()
    place = first // BRICK
    low, high = place == 0, place == side - 1
    touches = (low | high).any(dim=1)
    if not bool(touches.any()):
        return volume.keys, None, side
    wide = side + 2
    inner = place + 1
    outer = []
    for offset in itertools.product((-1, 0, 1), repeat=3):
        step = torch.tensor(offset, device=place.device)
        beyond = ((step < 0) & low) | ((step > 0) & high & whole)
        chosen = ((step == 0) | beyond).all(dim=1)
        if any(offset):
            outer.append(_keys(lattice[chosen], inner[chosen] + step, wide))
    row = torch.arange(len(volume.keys), device=place.device)
    source = row if whole else torch.where(high.any(dim=1), -2 - row, row)
    added: Tensor = torch.unique(torch.cat(outer))
    keys, order = torch.cat([_keys(lattice, inner, wide), added]).sort()
    return keys, torch.cat([source, added.new_full(added.shape, -1)])[order], wide


def _keys(lattice: Tensor, place: Tensor, side: int) -> Tensor:
    x, y, z = place.unbind(1)
    return ((lattice * side + x) * side + y) * side + z


def _native(
    values: Tensor,
    attributes: Tensor | None,
    keys: Tensor,
    source: Tensor | None,
    lattice: list[int],
    *options: Any,
) -> tuple[Tensor, ...]:
    level, pad_value, edge_margin, normals = options
    bricks = len(keys)
    given = _given(values, keys, source, lattice, (level, pad_value))
    vertex_offsets, face_offsets = keys.new_empty(lattice[0] + 1), keys.new_empty(lattice[0] + 1)
    links = torch.empty((bricks, NEIGHBOURS), dtype=torch.int32, device=keys.device)
    words = keys.new_empty((bricks, WORDS))
    starts, face_starts = keys.new_empty(bricks + 1), keys.new_empty(bricks + 1)
    totals, scratch = keys.new_zeros(3), keys.new_empty(2 * (bricks // SCAN_TILE + 1))
    workspace = (links, words, starts, face_starts, vertex_offsets)
    call("marching_cubes_sparse_count", values, *given, *workspace, face_offsets, totals, scratch)
    vertex_count, face_count, unsorted = totals.tolist()
    if unsorted:
        refuse_keys(keys, lattice[0] * lattice[2] ** 3)
    vertices = values.new_empty((vertex_count, 3), dtype=coordinate_dtype(values))
    faces = keys.new_empty((face_count, 3))
    directions = torch.empty_like(vertices) if normals else vertices.new_empty((0, 3))
    channels = 0 if attributes is None else attributes.shape[-1]
    carried = vertices.new_empty((len(vertices), channels))
    nodes = None if attributes is None else attributes.contiguous()
    output = (vertices, faces, directions if normals else None, None if nodes is None else carried)
    call("marching_cubes_sparse_emit", values, *given, *workspace, edge_margin, nodes, channels, *output)
    return vertices, faces, vertex_offsets, face_offsets, directions, carried, links, words, starts


def _given(
    values: Tensor, keys: Tensor, source: Tensor | None, lattice: list[int], numbers: tuple[float, float]
) -> tuple[Any, ...]:
    """The arguments with which every entry point begins."""
    shape = torch.tensor([len(keys), *lattice])
    code = dtype_code(values, "marching_cubes_sparse")
    return keys.contiguous(), source, shape, values.contiguous(), code, *numbers


def _fake(
    values: Tensor,
    attributes: Tensor | None,
    keys: Tensor,
    source: Tensor | None,
    lattice: list[int],
    *options: Any,
) -> tuple[Tensor, ...]:
    context = torch.library.get_ctx()
    vertices = values.new_empty((context.new_dynamic_size(), 3), dtype=coordinate_dtype(values))
    faces = keys.new_empty((context.new_dynamic_size(), 3))
    offsets = [keys.new_empty(lattice[0] + 1) for _ in range(2)]
    directions = torch.empty_like(vertices) if options[-1] else vertices.new_empty((0, 3))
    carried = vertices.new_empty((vertices.shape[0], 0 if attributes is None else attributes.shape[-1]))
    bricks = keys.shape[0]
    links = keys.new_empty((bricks, NEIGHBOURS), dtype=torch.int32)
    return (
        vertices,
        faces,
        *offsets,
        directions,
        carried,
        links,
        keys.new_empty((bricks, WORDS)),
        keys.new_empty(bricks + 1),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, lattice, level, pad_value, edge_margin, _ = inputs
    ctx.options = (lattice, level, pad_value, edge_margin)
    ctx.save_for_backward(*tensors, *output[6:])


def _backward(ctx: Any, to_vertices: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
    attributes = ctx.saved_tensors[1]
    to_carried = None if attributes is None else others[4]
    to_values, to_attributes = _marching_cubes_sparse_backward(
        *ctx.saved_tensors, to_vertices, to_carried, *ctx.options
    )
    return to_values, None if attributes is None else to_attributes, *(None,) * 7


def _backward_native(values: Tensor, attributes: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    keys, source, links, words, starts, to_vertices, to_carried, lattice, level, pad_value, edge_margin = rest
    to_values, to_attributes = _backward_fake(values, attributes)
    to_values.zero_()
    to_attributes.zero_()
    nodes = None if attributes is None else attributes.contiguous()
    call(
        "marching_cubes_sparse_gather",
        values,
        *_given(values, keys, source, lattice, (level, pad_value)),
        *(links, words, starts, edge_margin, nodes, 0 if nodes is None else nodes.shape[-1]),
        *(to_vertices.contiguous(), None if to_carried is None else to_carried.contiguous()),
        *(to_values, None if nodes is None else to_attributes),
    )
    return to_values, to_attributes


def _backward_fake(values: Tensor, attributes: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    to_attributes = values.new_empty(0) if attributes is None else attributes.new_empty(attributes.shape)
    return values.new_empty(values.shape), to_attributes


_marching_cubes_sparse_backward = define(
    "marching_cubes_sparse_backward(Tensor values, Tensor? attributes, Tensor keys, Tensor? source, Tensor links,"
    " Tensor words, Tensor starts, Tensor to_vertices, Tensor? to_carried, int[] lattice, float level,"
    " float pad_value, float edge_margin) -> (Tensor, Tensor)",
    _backward_native,
    _backward_fake,
)
_marching_cubes_sparse = define(
    "marching_cubes_sparse(Tensor values, Tensor? attributes, Tensor keys, Tensor? source, int[] lattice, float level,"
    " float pad_value, float edge_margin, bool normals)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _native,
    _fake,
    backward=_backward,
    setup_context=_setup,
)
