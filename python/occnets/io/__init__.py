# SPDX-License-Identifier: MIT
"""Reading point clouds and meshes, writing meshes: own small readers, numpy only, coordinates in float64."""

from occnets.io.files import (
    READERS,
    WRITERS,
    atomic_write,
    check_writable,
    needs_doubles,
    precision_warning,
    read_geometry,
    read_mesh,
    read_points,
    write_mesh,
)
from occnets.io.geometry import FormatError, Geometry, PointCloud, sample_surface

__all__ = [
    "READERS",
    "WRITERS",
    "FormatError",
    "Geometry",
    "PointCloud",
    "atomic_write",
    "check_writable",
    "needs_doubles",
    "precision_warning",
    "read_geometry",
    "read_mesh",
    "read_points",
    "sample_surface",
    "write_mesh",
]
