# SPDX-License-Identifier: MIT
"""Twin of ``occkernels.extract``: the octree on dictionaries, marching cubes by way of the dense lattice."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from occkernels.extract_options import Extraction, ExtractOptions
from occkernels.reference_mc_sparse import marching_cubes_sparse
from occkernels.reference_octree import Octree


def extract(
    field: Callable[[Tensor], Tensor],
    options: ExtractOptions = ExtractOptions(),  # noqa: B008 - frozen
    *,
    batch: int = 1,
    device: torch.device | str = "cpu",
    seeds: Tensor | None = None,
    progress: Callable[[int, int], None] | bool = False,
) -> Extraction:
    """Twin of :func:`occkernels.extract`; evaluates each round at once, never ``field.bricks``, shows no progress."""
    del progress
    size, flags = (options.initial, options.levels, options.threshold), {"closed": options.closed, "band": options.band}
    tree = Octree(*size, batch=batch, dtype=options.dtype, **flags)
    if seeds is not None:
        shape = torch.arange(batch).repeat_interleave(seeds.shape[1])
        tree.mark((seeds.double().cpu() / options.box + 0.5).flatten(0, 1) * options.cells, shape)
    table, evaluated = options.coordinates(), []
    index, offsets = tree.query()
    while len(index):
        evaluated.append(tree.pending())
        values = [
            evaluate(field, table[index[offsets[b] : offsets[b + 1]].long()], b, batch, device) for b in range(batch)
        ]
        tree.update(torch.cat(values))
        index, offsets = tree.query()
    meshes = marching_cubes_sparse(
        tree.volume(),
        options.threshold,
        normals=options.normals == "volume",
        edge_margin=options.edge_margin,
        pad_value=-math.inf if options.closed else None,
    )
    meshes = meshes._replace(vertices=options.to_world(meshes.vertices))
    if options.normals == "field":
        parts = []
        for b in range(batch):
            query = meshes.mesh(b).vertices.float().expand(batch, -1, 3).to(device)
            gradient = field.with_gradient(query)[1]  # type: ignore[attr-defined]
            parts.append(torch.nn.functional.normalize(-gradient[b].detach().cpu(), dim=1))
        meshes = meshes._replace(normals=torch.cat(parts).to(options.dtype))
    moved = [None if part is None else part.to(device) for part in meshes]
    return Extraction(type(meshes)(*moved), evaluated)  # type: ignore[arg-type]


def evaluate(
    field: Callable[[Tensor], Tensor], points: Tensor, shape: int, batch: int, device: torch.device | str
) -> Tensor:
    """Values (M,) of one shape's field at (M, 3)."""
    with torch.no_grad():
        return field(points.expand(batch, -1, 3).to(device))[shape].cpu()
