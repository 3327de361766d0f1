# SPDX-License-Identifier: MIT
"""Fused operators for occupancy networks: scattering, pooling, sampling and iso-surface extraction on CPU and CUDA."""

from occkernels._native import has_cuda
from occkernels.bins import bin_points, bins_from_index
from occkernels.decode import decode, decode_bricks, decode_conditional, decode_with_gradient
from occkernels.decode_weights import ConditionalWeights, DecoderWeights, QueryBricks, fold_conditional_norm
from occkernels.extract import extract
from occkernels.extract_options import Extraction, ExtractOptions
from occkernels.layout import Bins, FeatureLayout
from occkernels.marching_cubes import marching_cubes
from occkernels.marching_cubes_sparse import marching_cubes_sparse
from occkernels.mesh import Mesh, MeshBatch
from occkernels.octree import Octree
from occkernels.pool import local_pool
from occkernels.pool_scatter import scatter, scatter_grid, scatter_planes
from occkernels.sample import sample_features, sample_features_with_gradient, sample_grid, sample_planes
from occkernels.sparse import SparseVolume

__version__ = "0.1.0"

__all__ = [
    "Bins",
    "ConditionalWeights",
    "DecoderWeights",
    "ExtractOptions",
    "Extraction",
    "FeatureLayout",
    "Mesh",
    "MeshBatch",
    "Octree",
    "QueryBricks",
    "SparseVolume",
    "bin_points",
    "bins_from_index",
    "decode",
    "decode_bricks",
    "decode_conditional",
    "decode_with_gradient",
    "extract",
    "fold_conditional_norm",
    "extract",
    "has_cuda",
    "local_pool",
    "marching_cubes",
    "marching_cubes_sparse",
    "sample_features",
    "sample_features_with_gradient",
    "sample_grid",
    "sample_planes",
    "scatter",
    "scatter_grid",
    "scatter_planes",
]
