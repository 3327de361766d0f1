# SPDX-License-Identifier: MIT
"""Pure-PyTorch twin of ``occkernels.marching_cubes``: the specification, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from occkernels._marching_cubes_table import CASES
from occkernels.mesh import MeshBatch, check_attributes, check_extraction, refuse_nan, visible_margin


def marching_cubes(
    volume: Tensor,  # (B, X, Y, Z) or (X, Y, Z)
    level: float = 0.0,
    *,
    normals: bool = False,
    attributes: Tensor | None = None,  # (B, X, Y, Z, A) or (X, Y, Z, A)
    edge_margin: float = 1e-4,
    pad_value: float | None = None,
) -> MeshBatch:
    """Twin of :func:`occkernels.marching_cubes`, same arguments, result and order of vertices and faces."""
    check_extraction(volume, level, edge_margin, pad_value)
    check_attributes("marching_cubes", attributes, volume)
    refuse_nan(volume)
    values = volume if volume.dim() == 4 else volume[None]
    values = values.to(torch.float64 if volume.dtype == torch.float64 else torch.float32)
    pad = int(pad_value is not None and values.numel() > 0)
    if pad:
        values = F.pad(values, (1, 1, 1, 1, 1, 1), value=pad_value)
    bound = torch.tensor(level, dtype=values.dtype, device=values.device)
    inside = values > bound
    margin = visible_margin(edge_margin, max(volume.shape[-3:]), values.dtype)
    # A crossed edge's key is 3 * (its lower node, row-major) + axis: sorted keys are the order of the vertices.
    keys = crossed_edges(inside)
    starts = torch.arange(values.shape[0] + 1, device=values.device) * (3 * inside[:1].numel())
    vertex_offsets = torch.searchsorted(keys, starts)
    faces, _, face_offsets = triangles(inside, keys)
    vertices = place(values, keys, bound, margin, pad)
    directions = outward(values.detach(), keys, bound, margin) if normals else None
    mesh = torch.repeat_interleave(torch.arange(values.shape[0], device=values.device), face_offsets.diff())
    faces = faces - vertex_offsets[mesh, None]
    carried = None
    if attributes is not None:
        nodes = attributes if volume.dim() == 4 else attributes[None]
        carried = carry(nodes, values, keys, bound, margin)
    return MeshBatch(vertices, faces, vertex_offsets, face_offsets, directions, carried)


def crossed_edges(inside: Tensor) -> Tensor:
    """Sorted keys of the grid edges whose two nodes differ."""
    crossed = inside.new_zeros((*inside.shape, 3))
    crossed[:, :-1, :, :, 0] = inside[:, :-1] ^ inside[:, 1:]
    crossed[:, :, :-1, :, 1] = inside[:, :, :-1] ^ inside[:, :, 1:]
    crossed[:, :, :, :-1, 2] = inside[:, :, :, :-1] ^ inside[:, :, :, 1:]
    return crossed.flatten().nonzero().flatten()


def triangles(inside: Tensor, keys: Tensor, complete: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Faces (F, 3) as ranks in ``keys``, sorted by cell; the lowest node of each face's cell; and the (B + 1,) first
    face of each volume. ``complete`` (B, X - 1, Y - 1, Z - 1) says which cells hold any."""
    batch, nx, ny, nz = inside.shape
    device = inside.device
    if min(nx, ny, nz) < 2:
        empty = torch.zeros(batch + 1, dtype=torch.int64, device=device)
        return empty.new_zeros((0, 3)), empty[:0], empty
    code = torch.zeros((batch, nx - 1, ny - 1, nz - 1), dtype=torch.uint8, device=device)
    for corner in range(8):
        dx, dy, dz = corner >> 2, corner >> 1 & 1, corner & 1
        part = inside[:, dx : nx - 1 + dx, dy : ny - 1 + dy, dz : nz - 1 + dz]
        code |= part.to(torch.uint8) << corner
    active = (code != 0) & (code != 255)
    cells = (active if complete is None else active & complete).nonzero()
    case = code[tuple(cells.T)].long()
    counts, edges = case_table(device)
    count = counts[case]
    first = torch.cat([count.new_zeros(1), count.cumsum(0)])
    face_offsets = first[torch.searchsorted(cells[:, 0].contiguous(), torch.arange(batch + 1, device=device))]
    owner = torch.repeat_interleave(torch.arange(case.numel(), device=device), count)
    slot = torch.arange(owner.numel(), device=device) - first[owner]
    edge = edges[case[owner], slot]
    strides = torch.tensor([nx * ny * nz, ny * nz, nz, 1], device=device)
    node = (cells * strides).sum(1)
    faces = torch.searchsorted(keys, 3 * node[owner, None] + edge_keys(strides)[edge])
    return faces, node[owner], face_offsets


def case_table(device: torch.device) -> tuple[Tensor, Tensor]:
    """Triangles of the 256 cases: counts (256,) and edges (256, 5, 3), padded with 0."""
    words = [word.strip("-") for word in CASES]
    edges = torch.tensor([[int(digit, 16) for digit in word.ljust(15, "0")] for word in words], device=device)
    return torch.tensor([len(word) // 3 for word in words], device=device), edges.view(256, 5, 3)


def edge_keys(strides: Tensor) -> Tensor:
    """Key (12,) of a cell's edges, relative to three times the cell's lowest node."""
    keys = []
    for edge in range(12):
        axis, p, q = edge // 4, edge // 2 % 2, edge % 2
        others = [strides[1 + other] for other in range(3) if other != axis]
        keys.append(3 * (p * others[0] + q * others[1]) + axis)
    return torch.stack(keys)


def ends(values: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper nodes (V, 4) of crossed edges, and the unit steps (V, 3) between them."""
    step = F.one_hot(keys % 3, 3)
    low = torch.stack(torch.unravel_index(torch.div(keys, 3, rounding_mode="floor"), values.shape), -1)
    return low, low + F.pad(step, (1, 0)), step


def place(values: Tensor, keys: Tensor, level: Tensor, edge_margin: float, pad: int) -> Tensor:
    """Positions (V, 3) in index units; node ``pad`` of ``values`` is at 0."""
    low, high, step = ends(values, keys)
    t = crossing(values[tuple(low.T)], values[tuple(high.T)], level, edge_margin)
    return (low[:, 1:] - pad).to(values.dtype) + step * t[:, None]


def carry(attributes: Tensor, values: Tensor, keys: Tensor, level: Tensor, edge_margin: float) -> Tensor:
    """Attributes (V, A) along the edges; a node of the padding takes those of the edge's other node."""
    low, high, _ = ends(values, keys)
    t = crossing(values[tuple(low.T)], values[tuple(high.T)], level, edge_margin)[:, None]
    size = torch.tensor(attributes.shape[:4], device=low.device)
    shift = torch.div(torch.tensor(values.shape, device=low.device) - size, 2, rounding_mode="floor")
    zero = torch.zeros_like(size)
    first, second = (
        attributes[tuple((node - shift).clamp(zero, (size - 1).clamp(min=0)).T)].to(values.dtype)
        for node in (low, high)
    )
    return first * (1 - t) + second * t


def outward(values: Tensor, keys: Tensor, level: Tensor, edge_margin: float) -> Tensor:
    """Outward unit normals (V, 3)."""
    low, high, step = ends(values, keys)
    a, b = values[tuple(low.T)], values[tuple(high.T)]
    t = crossing(a, b, level, edge_margin)[:, None]
    return normalized(gradient(values, low) * (1 - t) + gradient(values, high) * t, step, b > a)


def normalized(slope: Tensor, step: Tensor, rising: Tensor) -> Tensor:
    """Unit vectors against the slopes (V, 3) of edges along ``step``; ``rising`` edges end inside."""
    size = slope.abs().amax(1, keepdim=True)
    # A flat slope (as in a checkerboard) still has an outside: along the edge, away from its inside node.
    slope = torch.where(size > 0, slope / torch.where(size > 0, size, 1), step * torch.where(rising, 1, -1)[:, None])
    return -slope / slope.square().sum(1, keepdim=True).sqrt()


def crossing(a: Tensor, b: Tensor, level: Tensor, edge_margin: float) -> Tensor:
    """Where the linear function from ``a`` to ``b`` meets ``level``, kept ``edge_margin`` away from both ends.

    An infinite value draws nothing towards itself: the crossing sits at the finite end, or half-way between two.
    """
    finite = a.isfinite() & b.isfinite()
    low, high = torch.where(finite, a, 0), torch.where(finite, b, 1)  # keeps NaN out of the derivatives
    t = (level - low) / (high - low)
    halves = (level * 0.5 - low * 0.5) / (high * 0.5 - low * 0.5)  # where b - a overflows
    t = torch.where((high - low).isinf(), halves.detach(), t)
    t = torch.where(a.isinf(), torch.where(b.isinf(), 0.5, 1.0), torch.where(b.isinf(), 0.0, t)).to(a.dtype)
    margin = torch.tensor(edge_margin, dtype=a.dtype, device=a.device)
    return torch.minimum(torch.maximum(t, margin), 1 - margin)


def gradient(values: Tensor, nodes: Tensor) -> Tensor:
    """Central differences (V, 3) of ``values`` at ``nodes`` (V, 4), one-sided at the border, infinities bounded."""
    slopes = []
    for axis in range(1, 4):
        after, before = nodes.clone(), nodes.clone()
        after[:, axis] = (after[:, axis] + 1).clamp(max=values.shape[axis] - 1)
        before[:, axis] = (before[:, axis] - 1).clamp(min=0)
        scale = torch.where(after[:, axis] - before[:, axis] == 2, 0.5, 1.0).to(values.dtype)
        slopes.append((values[tuple(after.T)] - values[tuple(before.T)]) * scale)
    largest = torch.finfo(values.dtype).max / 4
    return torch.stack(slopes, -1).nan_to_num(nan=0.0).clamp(-largest, largest)
