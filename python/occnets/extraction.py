# SPDX-License-Identifier: MIT
"""From a field to its surface: the octree's lattice, what an empty result means, surfaces that reach the border."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from occkernels import ExtractOptions, extract
from occnets.ensemble import EnsembleField
from occnets.finish import EmptyReconstructionError, Surface
from occnets.settings import ReconstructionConfig

_COARSEST = 32  # cells along a side of the first lattice: separate parts smaller than a cell need a measured point
_EDGE_MARGIN = 1e-3  # cells; keeps vertices of different edges apart when they are rounded or merged later


def lattice_of(resolution: int) -> tuple[int, int]:
    """First lattice and number of halvings of an octree with at least ``resolution`` cells a side, and few more.

    Returns:
        ``(initial, levels)`` with ``initial`` from 32 to 63 (less only for a small resolution) and
        ``initial * 2**levels`` the next number from ``resolution`` on that is a multiple of ``2**levels``.
    """
    levels = 0
    while -(-resolution // 2 ** (levels + 1)) >= _COARSEST:
        levels += 1
    return -(-resolution // 2**levels), levels


def extract_surface(
    field: EnsembleField,
    settings: ReconstructionConfig,
    level: float,
    box: float,
    near: Tensor,  # (N, 3)
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Surface, dict[str, Any], list[str]]:
    """The surface where a field passes ``level``, closed at the border of the cube.

    Only nodes near the surface are evaluated: those of cells whose corners lie on both sides, of their neighbours, and
    of cells with a point of ``near``, from an octree's coarse lattice down.

    Args:
        field: the logits.
        settings: of the reconstruction.
        level: logit of the surface.
        box: side of the cube, normalised units.
        near: points near the surface; its device is where the field is evaluated.
        progress: called with (nodes done, nodes known to be needed).

    Returns:
        The surface in the unit cube; facts for the report; remarks for the user.

    Raises:
        EmptyReconstructionError: all nodes are on one side.
        ValueError: the field returned NaN.
    """
    initial, levels = lattice_of(settings.resolution)
    kept = not (settings.refine or settings.fit or settings.simplify is not None)
    source = "field" if hasattr(field, "with_gradient") else "volume"
    options = ExtractOptions(
        initial=initial,
        levels=levels,
        threshold=level,
        box=box,
        band=True,
        closed=True,
        # Once vertices have moved, normals come from the triangles.
        normals=source if settings.normals and kept else False,
        edge_margin=_EDGE_MARGIN,
        chunk=settings.chunk,
        memory=None if settings.memory is None else int(settings.memory) // 2,
    )
    found = extract(field, options, device=near.device, seeds=near[None], progress=progress or False)
    mesh = found.mesh(0)
    by_vertex, by_face = _row_major(mesh.vertices, mesh.faces, box, options.cells)
    vertices = mesh.vertices[by_vertex].double().cpu().numpy()
    faces = torch.empty_like(by_vertex).scatter_(0, by_vertex, torch.arange(len(by_vertex), device=by_vertex.device))
    faces = faces[mesh.faces[by_face]].cpu().numpy()
    directions = None if mesh.normals is None else mesh.normals[by_vertex].double().cpu().numpy()
    # Where the field is cut off, vertices lie outside the lattice by the margin.
    outside = np.abs(vertices).max(axis=1, initial=0.0) > 0.5 * box
    if outside.all():
        side, change = ("inside", "higher") if len(vertices) else ("outside", "lower")
        raise EmptyReconstructionError(
            f"no surface found: at threshold {_probability(level):g} the network takes everything for {side}; "
            f"try a {change} --threshold, more points, or another model"
        )
    facts = {
        "resolution": options.cells,
        "nodes": (options.cells + 1) ** 3,
        "evaluated": sum(sum(counts) for counts in found.evaluated),
    }
    border = "the surface reaches the border of the model's cube and was closed there; stray points may spoil the scale"
    return Surface(vertices, faces, directions), facts, [border] if outside.any() else []


def _row_major(vertices: Tensor, faces: Tensor, box: float, cells: int) -> tuple[Tensor, Tensor]:
    """Rows of the vertices and faces in the order in which a dense lattice has them, so that no mesh depends on bricks.

    Vertices are sorted by the lower node of their edge, then by its axis; faces by their cell.
    """
    nodes = cells + 1
    place = (vertices.double() / box + 0.5) * cells
    nearest = place.round()
    axis = (place - nearest).abs().argmax(dim=1, keepdim=True)  # the margin keeps vertices away from nodes
    lower = nearest.scatter(1, axis, place.gather(1, axis).floor()).long()
    key = ((lower[:, 0] * nodes + lower[:, 1]) * nodes + lower[:, 2]) * 3 + axis[:, 0]
    x, y, z = place[faces].mean(dim=1).floor().long().unbind(1)
    # Stable: the faces of a cell keep the order of its table.
    return torch.sort(key, stable=True).indices, torch.sort((x * nodes + y) * nodes + z, stable=True).indices


def _probability(logit: float) -> float:
    return float(1.0 / (1.0 + np.exp(-logit)))
