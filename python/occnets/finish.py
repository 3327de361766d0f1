# SPDX-License-Identifier: MIT
"""From an extracted surface to a mesh to be kept: parts, refinement, fit, simplification, checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from occnets.check import check_mesh
from occnets.components import compact, find_parts, kept_faces
from occnets.fit import fit_to_points, vertex_normals
from occnets.refine import Refinement, simplify_mesh
from occnets.settings import ReconstructionConfig

Refine = Callable[[NDArray[np.float64], NDArray[np.int64]], Refinement]


class EmptyReconstructionError(ValueError):
    """The network sees no surface, so there is no mesh to return."""


@dataclass
class Surface:
    """A mesh in the unit cube on its way.

    Attributes:
        vertices: (V, 3) float64.
        faces: (F, 3) int64.
        normals: (V, 3) unit normals, or None if not known.
        facts: what the stages did, ready for JSON.
        notes: remarks for the user.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    normals: NDArray[np.float64] | None
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def update(self, vertices: NDArray[np.float64], faces: NDArray[np.int64] | None = None) -> None:
        """Take moved vertices, and perhaps other faces; normals are forgotten."""
        self.vertices = vertices
        self.faces = self.faces if faces is None else faces
        self.normals = None


def finish_surface(
    surface: Surface, settings: ReconstructionConfig, points: NDArray[np.float64], refine: Refine
) -> None:
    """Drop unwanted parts, refine, fit to the points, simplify and check, as the settings say.

    Args:
        surface: changed in place.
        settings: of the reconstruction.
        points: (N, 3) measured points in the unit cube.
        refine: moves vertices into the field; called only if refinement is asked for.

    Raises:
        EmptyReconstructionError: the surface encloses no volume.
        ValueError: the mesh has vertices that are NaN or infinite.
    """
    surface.facts["removed_components"] = _drop_parts(surface, settings.components)
    if settings.refine:
        refined = refine(surface.vertices, surface.faces)
        surface.update(refined.vertices)
        surface.facts["refinement"] = {"before": refined.before, "after": refined.after, "best_step": refined.step}
        if not refined.step:
            surface.notes.append("refinement found nothing better than the extracted surface and left it as it was")
    if settings.fit:
        surface.update(fit_to_points(surface.vertices, surface.faces, points))
    if settings.simplify is not None:
        simplified = simplify_mesh(surface.vertices, surface.faces, settings.simplify)
        surface.facts["simplified_from"] = len(surface.faces)
        surface.update(simplified.vertices, simplified.faces)
        surface.notes += simplified.warnings
    if settings.normals and surface.normals is None:
        surface.normals = vertex_normals(surface.vertices, surface.faces)
    checked = check_mesh(surface.vertices, surface.faces)
    surface.facts["problems"] = list(checked.problems())
    if checked.not_finite:
        raise ValueError(
            f"{checked.not_finite} vertices of the mesh are NaN or infinite; the model's weights may be damaged"
        )
    surface.notes += [f"the mesh is defective: it has {problem}" for problem in checked.problems()]


def _drop_parts(surface: Surface, mode: str) -> int:
    vertices, faces = surface.vertices, surface.faces
    parts = find_parts(vertices, faces)
    keep = kept_faces(vertices, faces, parts, mode)
    if not keep.any() or not (parts.volumes > 0).any():
        raise EmptyReconstructionError("no usable surface found: what the network sees encloses no volume")
    removed = len(parts.faces) - len(np.unique(parts.labels[keep]))
    surface.vertices, surface.faces, (surface.normals,) = compact(vertices, faces[keep], surface.normals)
    return removed
