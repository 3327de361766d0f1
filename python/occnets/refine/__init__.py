# SPDX-License-Identifier: MIT
"""What may be done to a surface after its extraction: moving its vertices to the field, and fewer triangles."""

from occnets.refine.simplify import Simplified, simplify_mesh
from occnets.refine.vertices import Refinement, RefineOptions, refine_vertices

__all__ = ["RefineOptions", "Refinement", "Simplified", "refine_vertices", "simplify_mesh"]
