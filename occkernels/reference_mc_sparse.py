# SPDX-License-Identifier: MIT
"""Pure-PyTorch twin of ``occkernels.marching_cubes_sparse``: the specification, by way of the dense lattice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from occkernels.mesh import MeshBatch, check_attributes, check_sparse_extraction, refuse_keys, visible_margin
from occkernels.reference_mc import carry, crossed_edges, crossing, ends, normalized, place, triangles
from occkernels.sparse import BRICK, SparseVolume


def marching_cubes_sparse(
    volume: SparseVolume,
    level: float = 0.0,
    *,
    normals: bool = False,
    attributes: Tensor | None = None,  # (K, 8, 8, 8, A)
    edge_margin: float = 1e-4,
    pad_value: float | None = None,
) -> MeshBatch:
    """Twin of :func:`occkernels.marching_cubes_sparse`, same arguments, result and order of vertices and faces."""
    check_sparse_extraction(volume, level, edge_margin, pad_value)
    check_attributes("marching_cubes_sparse", attributes, volume.values)
    refuse_keys(volume.keys, volume.batch * volume.side**3)
    dense = volume.to_dense()
    dense = dense.to(torch.float64 if dense.dtype == torch.float64 else torch.float32)
    pad = int(pad_value is not None and dense.numel() > 0)
    if pad:
        dense = F.pad(dense, (1,) * 6, value=pad_value)
    margin = visible_margin(edge_margin, volume.nodes, dense.dtype)
    bound = torch.tensor(level, dtype=dense.dtype, device=dense.device)
    inside = dense > bound
    complete = complete_cells(dense)
    keys = crossed_edges(inside)
    keys = keys[beside_complete(complete, keys, dense.shape)]
    faces, cells, _ = triangles(inside, keys, complete)
    # From the order of the dense form to that of the bricks.
    order = brick_order(torch.div(keys, 3, rounding_mode="floor"), dense.shape, pad).argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    keys, face_order = keys[order], brick_order(cells, dense.shape, pad).argsort(stable=True)
    faces, cells = rank[faces[face_order]], cells[face_order]
    size = dense[:1].numel()
    starts = torch.arange(volume.batch + 1, device=keys.device) * size
    vertex_offsets = torch.searchsorted(torch.div(keys, 3 * max(size, 1), rounding_mode="floor") * size, starts)
    face_offsets = torch.searchsorted(torch.div(cells, max(size, 1), rounding_mode="floor") * size, starts)
    mesh = torch.repeat_interleave(torch.arange(volume.batch, device=keys.device), face_offsets.diff())
    faces = faces - vertex_offsets[mesh, None]
    directions = outward(dense.detach(), keys, bound, margin) if normals else None
    vertices, carried = place(dense, keys, bound, margin, pad), None
    if attributes is not None:
        channels = [
            SparseVolume(volume.keys, part, volume.nodes, volume.batch).to_dense() for part in attributes.unbind(-1)
        ]
        nodes = torch.stack(channels, -1) if channels else attributes.new_zeros((*volume.to_dense().shape, 0))
        carried = carry(nodes, dense, keys, bound, margin)
    return MeshBatch(vertices, faces, vertex_offsets, face_offsets, directions, carried)


def complete_cells(values: Tensor) -> Tensor:
    """Whether each cell (B, X - 1, Y - 1, Z - 1) has no NaN corner."""
    known = ~values.isnan()
    for axis in (1, 2, 3):
        size = max(known.shape[axis] - 1, 0)
        known = known.narrow(axis, 0, size) & known.narrow(axis, known.shape[axis] - size, size)
    return known


def beside_complete(complete: Tensor, keys: Tensor, shape: torch.Size) -> Tensor:
    """Whether any cell around each edge is complete."""
    around = F.pad(complete, (1,) * 6)  # cell c is at c + 1: the cells around node n are at n and n + 1
    found = torch.zeros_like(keys, dtype=torch.bool)
    b, x, y, z = torch.unravel_index(torch.div(keys, 3, rounding_mode="floor"), shape)
    axis = keys % 3
    for first in (0, 1):
        for second in (0, 1):
            dx = torch.where(axis == 0, 1, first)
            dy = torch.where(axis == 1, 1, torch.where(axis == 0, first, second))
            dz = torch.where(axis == 2, 1, second)
            found |= around[b, x + dx, y + dy, z + dz]
    return found


def brick_order(nodes: Tensor, shape: torch.Size, pad: int) -> Tensor:
    """A number for each node (row-major index) that sorts by lattice, brick, and place within the brick."""
    place = torch.unravel_index(nodes, shape)
    shifted = [index + (BRICK - 1) * pad for index in place[1:]]
    side = (max(shape[1:]) + (BRICK - 1) * pad) // BRICK + 1
    order = place[0]
    for index in shifted:
        order = order * side + torch.div(index, BRICK, rounding_mode="floor")
    for index in shifted:
        order = order * BRICK + index % BRICK
    return order


def outward(values: Tensor, keys: Tensor, level: Tensor, edge_margin: float) -> Tensor:
    """Outward unit normals (V, 3)."""
    low, high, step = ends(values, keys)
    a, b = values[tuple(low.T)], values[tuple(high.T)]
    t = crossing(a, b, level, edge_margin)[:, None]
    return normalized(gradient(values, low) * (1 - t) + gradient(values, high) * t, step, b > a)


def gradient(values: Tensor, nodes: Tensor) -> Tensor:
    """Differences (V, 3) at ``nodes`` (V, 4): central where both neighbours are known, one-sided where one is."""
    slopes = []
    around = F.pad(values, (1,) * 6, value=float("nan"))
    centre = nodes + torch.tensor([0, 1, 1, 1], device=nodes.device)
    here = around[tuple(centre.T)]
    for axis in range(1, 4):
        step = F.one_hot(torch.tensor(axis, device=nodes.device), 4)
        after, before = around[tuple((centre + step).T)], around[tuple((centre - step).T)]
        both = ~after.isnan() & ~before.isnan()
        slope = torch.where(after.isnan(), here, after) - torch.where(before.isnan(), here, before)
        slopes.append(slope * torch.where(both, 0.5, 1.0).to(values.dtype))
    largest = torch.finfo(values.dtype).max / 4
    return torch.stack(slopes, -1).nan_to_num(nan=0.0).clamp(-largest, largest)
