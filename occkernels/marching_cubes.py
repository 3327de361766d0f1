# SPDX-License-Identifier: MIT
"""Iso-surfaces of dense volumes: batched, welded, closed and 2-manifold whatever the values."""

from __future__ import annotations

import torch
from torch import Tensor

from occkernels._native import call, dtype_code
from occkernels._registry import define
from occkernels.mesh import MeshBatch, check_extraction, coordinate_dtype, refuse_nan, visible_margin


def marching_cubes(
    volume: Tensor,  # (B, X, Y, Z) or (X, Y, Z)
    level: float = 0.0,
    *,
    normals: bool = False,
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
    for any number of threads. Not differentiable: the result carries no gradient.

    Args:
        volume: (B, X, Y, Z) or (X, Y, Z) float32, float64, float16 or bfloat16. Infinite values are allowed.
        level: value of the surface, rounded to float32 unless the volume is float64.
        normals: also return vertex normals, the interpolated central differences of the volume.
        edge_margin: vertices keep this distance, in units of the grid, from the ends of their edge, in [0, 0.5]. With 0
            the vertices around a node whose value equals the level coincide, and triangles between them have no area.
            Beyond 2048 nodes a side a margin above 0 is widened to 3/4 of the spacing of float32 coordinates
            (1.8e-4 up to 4096), or they would round to the node.
        pad_value: None leaves the surface open at the border. A number surrounds the volume by one layer of nodes of
            that value, without copying it; vertices then reach from -1 to X. With a number of at most ``level``, every
            mesh is closed; ``-math.inf`` puts the caps on the border nodes themselves (``edge_margin`` away).

    Returns:
        Meshes with vertices (V, 3) in index units, (x, y, z) for the volume's axes; float64 for float64 volumes,
        float32 for all others. Faces (F, 3) are local to their mesh and counter-clockwise seen from outside, towards
        lower values. An empty volume, or one all inside or all outside, gives an empty mesh.

    Raises:
        TypeError: ``volume`` is not a floating-point tensor of one of the four types.
        ValueError: wrong number of axes, NaN in ``volume``, or another argument out of range.

    Example:
        >>> axis = torch.linspace(-1, 1, 64)
        >>> ball = 0.7 - torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
        >>> vertices, faces, normals = marching_cubes(ball, normals=True).mesh(0)

    Source: Lorensen and Cline, SIGGRAPH 1987; table and proof of manifoldness: csrc/math/generate_marching_cubes.py;
    row-wise counting: Schroeder et al., "Flying Edges", LDAV 2015.
    """
    check_extraction(volume, level, edge_margin, pad_value)
    batch = volume.detach() if volume.dim() == 4 else volume.detach()[None]
    margin = visible_margin(edge_margin, max(volume.shape[-3:]), volume.dtype)
    vertices, faces, vertex_offsets, face_offsets, directions = _marching_cubes(
        batch, level, normals, margin, pad_value
    )
    return MeshBatch(vertices, faces, vertex_offsets, face_offsets, directions if normals else None)


def _marching_cubes_native(
    volume: Tensor, level: float, normals: bool, edge_margin: float, pad_value: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, *sizes = volume.shape
    wide = coordinate_dtype(volume)
    vertex_offsets = torch.zeros(batch + 1, dtype=torch.int64, device=volume.device)
    face_offsets = torch.zeros_like(vertex_offsets)
    if volume.numel() == 0:
        empty = volume.new_empty((0, 3), dtype=wide)
        return empty, vertex_offsets.new_empty((0, 3)), vertex_offsets, face_offsets, torch.empty_like(empty)
    if volume.stride(-1) != 1:
        volume = volume.contiguous()
    shape = torch.tensor([batch, *sizes, *volume.stride()[:3]])
    source = (volume, dtype_code(volume, "marching_cubes"), shape, level, pad_value is not None, pad_value or 0.0)
    nx, ny, nz = (size + 2 * (pad_value is not None) for size in sizes)
    rows = batch * nx * ny
    signs = vertex_offsets.new_empty(rows * ((nz + 63) // 64))
    vertex_rows, face_rows = vertex_offsets.new_empty(rows + 1), vertex_offsets.new_empty(rows + 1)
    workspace = (signs, vertex_rows, face_rows)
    if call("marching_cubes_count", volume, *source, *workspace, vertex_offsets, face_offsets):
        refuse_nan(volume)
    vertices = volume.new_empty((int(vertex_offsets[-1]), 3), dtype=wide)
    faces = vertex_offsets.new_empty((int(face_offsets[-1]), 3))
    directions = torch.empty_like(vertices) if normals else vertices.new_empty((0, 3))
    output = (vertices, faces, directions if normals else None)
    call("marching_cubes_emit", volume, *source, *workspace, edge_margin, *output)
    return vertices, faces, vertex_offsets, face_offsets, directions


def _marching_cubes_fake(
    volume: Tensor, level: float, normals: bool, edge_margin: float, pad_value: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    vertices = volume.new_empty((context.new_dynamic_size(), 3), dtype=coordinate_dtype(volume))
    faces = volume.new_empty((context.new_dynamic_size(), 3), dtype=torch.int64)
    offsets = [volume.new_empty(volume.shape[0] + 1, dtype=torch.int64) for _ in range(2)]
    directions = torch.empty_like(vertices) if normals else vertices.new_empty((0, 3))
    return vertices, faces, offsets[0], offsets[1], directions


_marching_cubes = define(
    "marching_cubes(Tensor volume, float level, bool normals, float edge_margin, float? pad_value)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _marching_cubes_native,
    _marching_cubes_fake,
)
