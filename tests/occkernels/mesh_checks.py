# SPDX-License-Identifier: MIT
"""What tests of surface extraction ask of meshes."""

from __future__ import annotations

import scipy.sparse.csgraph
import torch
from torch import Tensor

from occkernels.mesh import MeshBatch
from occkernels.sparse import SparseVolume


def to_cpu(batch: MeshBatch) -> MeshBatch:
    return MeshBatch(*(None if part is None else part.cpu() for part in batch))


def sparse_to(volume: SparseVolume, device: str) -> SparseVolume:
    return SparseVolume(volume.keys.to(device), volume.values.to(device), volume.nodes, volume.batch)


def packed(batch: MeshBatch) -> Tensor:
    """Faces with indices into all vertices."""
    mesh = torch.repeat_interleave(torch.arange(batch.face_offsets.numel() - 1), batch.face_offsets.diff())
    return batch.faces + batch.vertex_offsets[mesh, None]


def half_edges(faces: Tensor, vertices: int) -> tuple[Tensor, Tensor]:
    """Keys of the directed sides (3F,) and of the same sides walked the other way."""
    start, end = faces.flatten(), faces.roll(-1, 1).flatten()
    return start * vertices + end, end * vertices + start


def assert_manifold(batch: MeshBatch, *, closed: bool) -> None:
    """Every side has one opposite (at most one if open) and the triangles around a vertex form one disc."""
    count = batch.vertices.shape[0]
    faces = packed(batch)
    assert faces.numel() == 0 or (int(faces.min()) >= 0 and int(faces.max()) < count)
    forward, backward = half_edges(faces, count)
    order = forward.argsort()
    keys = forward[order]
    assert keys.unique().numel() == keys.numel(), "a directed edge is used twice"
    place = torch.searchsorted(keys, backward).clamp(max=max(keys.numel() - 1, 0))
    paired = keys[place] == backward if keys.numel() else torch.zeros(0, dtype=torch.bool)
    assert bool(paired.all()) or not closed, "an edge has one triangle only"
    # Corner k starts side k at its vertex; turning about the vertex leads to the corner that starts the opposite of the
    # side before. Rings of corners never leave their vertex, so one ring a vertex means as many rings as vertices.
    corner = faces.flatten()
    before = torch.arange(corner.numel()).view(-1, 3).roll(1, 1).flatten()
    source, target = torch.arange(corner.numel())[paired[before]], order[place][before][paired[before]]
    assert torch.equal(corner[source], corner[target])
    links = scipy.sparse.coo_matrix((torch.ones(source.numel()), (source, target)), shape=(corner.numel(),) * 2)
    rings = scipy.sparse.csgraph.connected_components(links, directed=False)[0] if corner.numel() else 0
    assert corner.unique().numel() == count == rings, "a vertex is unused or joins two sheets"


def random_fields(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "normal":
        return torch.randn(shape, generator=generator)
    top = {"binary": 2, "with equal": 3}[kind]
    return torch.randint(0, top, shape, generator=generator).float() - (top - 1) / 2


def signed_volume(vertices: Tensor, faces: Tensor) -> float:
    a, b, c = (vertices.double()[faces[:, i]] for i in range(3))
    return float((a * torch.linalg.cross(b, c)).sum() / 6)
