# SPDX-License-Identifier: MIT
"""Iso-surfaces of dense volumes: batched, welded, closed and 2-manifold whatever the values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from occkernels._native import call, dtype_code
from occkernels._registry import define
from occkernels.mesh import (
    SCAN_TILE,
    MeshBatch,
    check_attributes,
    check_extraction,
    coordinate_dtype,
    refuse_nan,
    visible_margin,
)


def marching_cubes(
    volume: Tensor,  # (B, X, Y, Z) or (X, Y, Z)
    level: float = 0.0,
    *,
    normals: bool = False,
    attributes: Tensor | None = None,  # (B, X, Y, Z, A) or (X, Y, Z, A)
    edge_margin: float = 1e-4,
    pad_value: float | None = None,
) -> MeshBatch:
    """Triangle meshes of the surfaces where volumes pass ``level``.

    A node is inside when its value is greater than ``level``; one equal to it is outside. Every grid edge between an
    inside and an outside node carries exactly one vertex, placed by linear interpolation, and triangles follow a table
    in which neighbouring cells agree on every face. So each mesh is an oriented 2-manifold on any field, ambiguous
    cells and values equal to the level included; without padding it is open exactly where the surface meets the
    volume's border. On an ambiguous face the inside stays connected.

    Vertices are sorted by the lower node of their edge (row-major), then by axis, faces by cell; the result is the same
    for any number of threads.

    Differentiable once in ``volume`` and ``attributes``: the vertex between nodes of values ``v`` and ``w`` lies at
    ``t = (level - v) / (w - v)`` of its edge, so its derivative to ``v`` is ``-(1 - t) / (w - v)`` and to ``w`` it is
    ``-t / (w - v)`` (as in MeshSDF, Remelli et al., NeurIPS 2020); 0 where ``edge_margin`` holds the vertex or a value
    is infinite. Nodes gather their derivatives from the edges around them: deterministic, no atomics. Faces and normals
    carry no gradient.

    Args:
        volume: (B, X, Y, Z) or (X, Y, Z) float32, float64, float16 or bfloat16. Infinite values are allowed.
        level: value of the surface, rounded to float32 unless the volume is float64.
        normals: also return vertex normals, the interpolated central differences of the volume.
        attributes: values of the nodes, of the volume's type and device, that vertices interpolate along their edge.
        edge_margin: vertices keep this distance, in units of the grid, from the ends of their edge, in [0, 0.5]. With 0
            the vertices around a node whose value equals the level coincide, and triangles between them have no area.
            Beyond 2048 nodes a side a margin above 0 is widened to 3/4 of the spacing of float32 coordinates
            (1.8e-4 up to 4096), or they would round to the node.
        pad_value: None leaves the surface open at the border. A number surrounds the volume by one layer of nodes of
            that value, without copying it; vertices then reach from -1 to X. With a number of at most ``level``, every
            mesh is closed; ``-math.inf`` puts the caps on the border nodes themselves (``edge_margin`` away). A vertex
            between a node and the padding has the attributes of the node.

    Returns:
        Meshes with vertices (V, 3) in index units, (x, y, z) for the volume's axes; float64 for float64 volumes,
        float32 for all others. Faces (F, 3) are local to their mesh and counter-clockwise seen from outside, towards
        lower values. Attributes (V, A) have the type of the vertices. An empty volume, or one all inside or all
        outside, gives an empty mesh.

    Raises:
        TypeError: ``volume`` is not a floating-point tensor of one of the four types, or ``attributes`` of another.
        ValueError: wrong number of axes, attributes that do not fit, NaN in ``volume``, or another argument out of
            range.

    Example:
        >>> axis = torch.linspace(-1, 1, 64)
        >>> ball = 0.7 - torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
        >>> mesh = marching_cubes(ball, normals=True).mesh(0)

    Source: Lorensen and Cline, SIGGRAPH 1987; table and proof of manifoldness: csrc/math/generate_marching_cubes.py;
    row-wise counting: Schroeder et al., "Flying Edges", LDAV 2015.
    """
    check_extraction(volume, level, edge_margin, pad_value)
    check_attributes("marching_cubes", attributes, volume)
    single = volume.dim() == 3
    margin = visible_margin(edge_margin, max(volume.shape[-3:]), volume.dtype)
    vertices, faces, vertex_offsets, face_offsets, directions, carried, _, _ = _marching_cubes(
        volume[None] if single else volume,
        attributes[None] if single and attributes is not None else attributes,
        *(level, normals, margin, pad_value),
    )
    return MeshBatch(
        *(vertices, faces, vertex_offsets, face_offsets),
        directions.detach() if normals else None,
        None if attributes is None else carried,
    )


def _marching_cubes_native(
    volume: Tensor,
    attributes: Tensor | None,
    level: float,
    normals: bool,
    edge_margin: float,
    pad_value: float | None,
) -> tuple[Tensor, ...]:
    batch, *sizes = volume.shape
    wide = coordinate_dtype(volume)
    rows, words = _workspace(volume, pad_value)
    signs = torch.empty(words, dtype=torch.int64, device=volume.device)
    vertex_rows, face_rows = signs.new_zeros(rows + 1), signs.new_empty(rows + 1)
    vertex_offsets, face_offsets = signs.new_zeros(batch + 1), signs.new_zeros(batch + 1)
    channels = 0 if attributes is None else attributes.shape[-1]
    if volume.numel() == 0:
        empty = volume.new_empty((0, 3), dtype=wide)
        values = empty.new_empty((0, channels))
        faces = signs.new_empty((0, 3))
        return empty, faces, vertex_offsets, face_offsets, torch.empty_like(empty), values, signs.zero_(), vertex_rows
    source = _source(volume, level, pad_value)
    totals, scratch = signs.new_zeros(3), signs.new_empty(2 * (rows // SCAN_TILE + 1))
    counted = (signs, vertex_rows, face_rows, vertex_offsets, face_offsets, totals, scratch)
    call("marching_cubes_count", volume, *source, *counted)
    vertex_count, face_count, has_nan = totals.tolist()  # on CUDA the only wait for the device
    if has_nan:
        refuse_nan(volume)
    vertices = volume.new_empty((vertex_count, 3), dtype=wide)
    faces = signs.new_empty((face_count, 3))
    directions = torch.empty_like(vertices) if normals else vertices.new_empty((0, 3))
    carried = vertices.new_empty((len(vertices), channels))
    given = None if attributes is None else attributes.contiguous()
    output = (vertices, faces, directions if normals else None, None if given is None else carried)
    call("marching_cubes_emit", volume, *source, signs, vertex_rows, face_rows, edge_margin, given, channels, *output)
    return vertices, faces, vertex_offsets, face_offsets, directions, carried, signs, vertex_rows


def _workspace(volume: Tensor, pad_value: float | None) -> tuple[int, int]:
    """Rows of nodes, padding included, and words of signs."""
    nx, ny, nz = (size + 2 * (pad_value is not None) for size in volume.shape[1:])
    rows = volume.shape[0] * nx * ny
    return rows, rows * ((nz + 63) // 64)


def _source(volume: Tensor, level: float, pad_value: float | None) -> tuple[Tensor, int, Tensor, float, bool, float]:
    """The arguments with which every entry point begins."""
    if volume.stride(-1) != 1:
        volume = volume.contiguous()
    shape = torch.tensor([*volume.shape, *volume.stride()[:3]])
    return volume, dtype_code(volume, "marching_cubes"), shape, level, pad_value is not None, pad_value or 0.0


def _marching_cubes_fake(
    volume: Tensor,
    attributes: Tensor | None,
    level: float,
    normals: bool,
    edge_margin: float,
    pad_value: float | None,
) -> tuple[Tensor, ...]:
    context = torch.library.get_ctx()
    vertices = volume.new_empty((context.new_dynamic_size(), 3), dtype=coordinate_dtype(volume))
    faces = volume.new_empty((context.new_dynamic_size(), 3), dtype=torch.int64)
    offsets = [faces.new_empty(volume.shape[0] + 1) for _ in range(2)]
    directions = torch.empty_like(vertices) if normals else vertices.new_empty((0, 3))
    carried = vertices.new_empty((vertices.shape[0], 0 if attributes is None else attributes.shape[-1]))
    rows, words = _workspace(volume, pad_value)
    return vertices, faces, *offsets, directions, carried, faces.new_empty(words), faces.new_empty(rows + 1)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    volume, attributes, *ctx.options = inputs
    ctx.save_for_backward(volume, attributes, *output[6:])


def _backward(ctx: Any, to_vertices: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
    volume, attributes, signs, vertex_rows = ctx.saved_tensors
    level, _, edge_margin, pad_value = ctx.options
    to_carried = None if attributes is None else others[4]
    to_volume, to_attributes = _marching_cubes_backward(
        volume, attributes, signs, vertex_rows, to_vertices, to_carried, level, edge_margin, pad_value
    )
    return to_volume, None if attributes is None else to_attributes, None, None, None, None


def _backward_native(volume: Tensor, attributes: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    signs, vertex_rows, to_vertices, to_carried, level, edge_margin, pad_value = rest
    to_volume, to_attributes = _backward_fake(volume, attributes)
    to_volume.zero_()
    to_attributes.zero_()
    if volume.numel():
        nodes = None if attributes is None else attributes.contiguous()
        call(
            "marching_cubes_gather",
            volume,
            *(*_source(volume, level, pad_value), signs, vertex_rows, edge_margin),
            *(nodes, 0 if nodes is None else nodes.shape[-1], to_vertices.contiguous()),
            None if to_carried is None else to_carried.contiguous(),
            *(to_volume, None if nodes is None else to_attributes),
        )
    return to_volume, to_attributes


def _backward_fake(volume: Tensor, attributes: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    to_attributes = volume.new_empty(0) if attributes is None else attributes.new_empty(attributes.shape)
    return volume.new_empty(volume.shape), to_attributes


_marching_cubes_backward = define(
    "marching_cubes_backward(Tensor volume, Tensor? attributes, Tensor signs, Tensor vertex_rows, Tensor to_vertices,"
    " Tensor? to_carried, float level, float edge_margin, float? pad_value) -> (Tensor, Tensor)",
    _backward_native,
    _backward_fake,
)
_marching_cubes = define(
    "marching_cubes(Tensor volume, Tensor? attributes, float level, bool normals, float edge_margin, float? pad_value)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _marching_cubes_native,
    _marching_cubes_fake,
    backward=_backward,
    setup_context=_setup,
)
