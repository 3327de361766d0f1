# SPDX-License-Identifier: MIT
"""Reading point clouds, meshes, voxels and pictures, writing meshes: own small readers, coordinates in float64."""

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
from occnets.io.images import IMAGE_ENDINGS, network_image, read_image, read_pose
from occnets.io.voxels import VoxelGrid, is_voxel_file, read_voxels

__all__ = [
    "IMAGE_ENDINGS",
    "READERS",
    "WRITERS",
    "FormatError",
    "Geometry",
    "PointCloud",
    "VoxelGrid",
    "atomic_write",
    "check_writable",
    "is_voxel_file",
    "needs_doubles",
    "network_image",
    "precision_warning",
    "read_geometry",
    "read_image",
    "read_mesh",
    "read_points",
    "read_pose",
    "read_voxels",
    "sample_surface",
    "write_mesh",
]
