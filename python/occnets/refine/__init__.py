# SPDX-License-Identifier: MIT
"""Better surfaces of one input: the network adapted to its points, vertices moved to the field, fewer triangles."""

from occnets.refine.presets import PRESETS, OptimizeOptions, optimize_options, options_from_config
from occnets.refine.sign_agnostic import (
    Optimization,
    OptimizeProgress,
    optimize_field,
    optimize_scene,
    unsigned_cross_entropy,
)
from occnets.refine.simplify import Simplified, simplify_mesh
from occnets.refine.vertices import Refinement, RefineOptions, refine_vertices

__all__ = [
    "PRESETS",
    "Optimization",
    "OptimizeOptions",
    "OptimizeProgress",
    "RefineOptions",
    "Refinement",
    "Simplified",
    "optimize_field",
    "optimize_options",
    "optimize_scene",
    "options_from_config",
    "refine_vertices",
    "simplify_mesh",
    "unsigned_cross_entropy",
]
