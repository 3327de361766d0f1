// SPDX-License-Identifier: MIT
// The CUDA entry points, one line each: for module.cpp and for the host build of the same sources in tests/cuda_host.
#pragma once

#include "bind.h"
#include "cuda/bins.h"
#include "cuda/decode.h"
#include "cuda/marching_cubes.h"
#include "cuda/octree.h"
#include "cuda/pool.h"
#include "cuda/sample.h"

inline void bind_cuda(pybind11::module_& m) {
  using occ::entry;
  m.def("bin_index_cuda", entry(&occ::cuda::bin_index));
  m.def("sort_bins_workspace_cuda", entry(&occ::cuda::sort_bins_workspace));
  m.def("sort_bins_cuda", entry(&occ::cuda::sort_bins));
  m.def("octree_start_cuda", entry(&occ::cuda::octree_start));
  m.def("octree_count_cuda", entry(&occ::cuda::octree_count));
  m.def("octree_list_cuda", entry(&occ::cuda::octree_list));
  m.def("octree_take_cuda", entry(&occ::cuda::octree_take));
  m.def("octree_hang_cuda", entry(&occ::cuda::octree_hang));
  m.def("octree_seed_cuda", entry(&occ::cuda::octree_seed));
  m.def("octree_mark_cuda", entry(&occ::cuda::octree_mark));
  m.def("octree_activate_cuda", entry(&occ::cuda::octree_activate));
  m.def("octree_children_cuda", entry(&occ::cuda::octree_children));
  m.def("octree_split_cuda", entry(&occ::cuda::octree_split));
  m.def("octree_add_coarse_cuda", entry(&occ::cuda::octree_add_coarse));
  m.def("octree_dense_cuda", entry(&occ::cuda::octree_dense));
  m.def("marching_cubes_count_cuda", entry(&occ::cuda::marching_cubes_count));
  m.def("marching_cubes_emit_cuda", entry(&occ::cuda::marching_cubes_emit));
  m.def("marching_cubes_gather_cuda", entry(&occ::cuda::marching_cubes_gather));
  m.def("marching_cubes_sparse_count_cuda", entry(&occ::cuda::marching_cubes_sparse_count));
  m.def("marching_cubes_sparse_emit_cuda", entry(&occ::cuda::marching_cubes_sparse_emit));
  m.def("marching_cubes_sparse_gather_cuda", entry(&occ::cuda::marching_cubes_sparse_gather));
  m.def("local_pool_max_cuda", entry(&occ::cuda::local_pool_max));
  m.def("local_pool_mean_cuda", entry(&occ::cuda::local_pool_mean));
  m.def("scatter_cells_cuda", entry(&occ::cuda::scatter_cells));
  m.def("gather_cells_cuda", entry(&occ::cuda::gather_cells));
  m.def("pick_points_cuda", entry(&occ::cuda::pick_points));
  m.def("unpick_points_cuda", entry(&occ::cuda::unpick_points));
  m.def("sample_gather_cuda", entry(&occ::cuda::sample_gather));
  m.def("sample_contract_cuda", entry(&occ::cuda::sample_contract));
  m.def("sample_index_cuda", entry(&occ::cuda::sample_index));
  m.def("sample_scatter_cuda", entry(&occ::cuda::sample_scatter));
  m.def("decode_cuda", entry(&occ::cuda::decode));
  m.def("decode_bricks_cuda", entry(&occ::cuda::decode_bricks));
  m.def("decode_conditional_cuda", entry(&occ::cuda::decode_conditional));
}
