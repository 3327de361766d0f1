// SPDX-License-Identifier: MIT
// The table of contents of the native module: one line an entry point. No torch header is included anywhere; Python
// passes addresses, sizes and the number of threads (CPU) or the stream (CUDA).
#include <pybind11/pybind11.h>

#include <cstdint>
#include <type_traits>

#include "bind.h"
#include "common/isa.h"
#include "cpu/bins.h"
#include "cpu/decode.h"
#include "cpu/marching_cubes.h"
#include "cpu/marching_cubes_sparse.h"
#include "cpu/octree.h"
#include "cpu/pool.h"
#include "cpu/sample.h"
#if defined(OCC_WITH_CUDA)
#include "bind_cuda.h"
#endif

namespace py = pybind11;
using occ::entry;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = OCC_VERSION;
#if defined(OCC_WITH_CUDA)
  info["cuda_architectures"] = OCC_CUDA_ARCHITECTURES;
  info["cuda_version"] = OCC_CUDA_VERSION;
#else
  info["cuda_architectures"] = py::none();
  info["cuda_version"] = py::none();
#endif
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["compiler"] = OCC_COMPILER;
  info["simd"] = occ::isa_name(occ::active_isa());
  info["bf16"] = occ::bf16_name(occ::active_bf16());
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native code of occkernels. Private: use the functions of the occkernels package.";
  m.def("build_info", &build_info);

  m.def("bin_index_cpu", entry(&occ::cpu::bin_index));
  m.def("sort_bins_workspace_cpu", entry(&occ::cpu::sort_bins_workspace));
  m.def("sort_bins_cpu", entry(&occ::cpu::sort_bins));
  m.def("marching_cubes_count_cpu", entry(&occ::cpu::marching_cubes_count));
  m.def("marching_cubes_emit_cpu", entry(&occ::cpu::marching_cubes_emit));
  m.def("marching_cubes_gather_cpu", entry(&occ::cpu::marching_cubes_gather));
  m.def("marching_cubes_sparse_count_cpu", entry(&occ::cpu::marching_cubes_sparse_count));
  m.def("marching_cubes_sparse_emit_cpu", entry(&occ::cpu::marching_cubes_sparse_emit));
  m.def("octree_start_cpu", entry(&occ::cpu::octree_start));
  m.def("octree_count_cpu", entry(&occ::cpu::octree_count));
  m.def("octree_list_cpu", entry(&occ::cpu::octree_list));
  m.def("octree_take_cpu", entry(&occ::cpu::octree_take));
  m.def("octree_hang_cpu", entry(&occ::cpu::octree_hang));
  m.def("octree_seed_cpu", entry(&occ::cpu::octree_seed));
  m.def("octree_mark_cpu", entry(&occ::cpu::octree_mark));
  m.def("octree_activate_cpu", entry(&occ::cpu::octree_activate));
  m.def("octree_children_cpu", entry(&occ::cpu::octree_children));
  m.def("octree_split_cpu", entry(&occ::cpu::octree_split));
  m.def("octree_add_coarse_cpu", entry(&occ::cpu::octree_add_coarse));
  m.def("octree_dense_cpu", entry(&occ::cpu::octree_dense));
  m.def("marching_cubes_sparse_gather_cpu", entry(&occ::cpu::marching_cubes_sparse_gather));
  m.def("local_pool_max_cpu", entry(&occ::cpu::local_pool_max));
  m.def("local_pool_mean_cpu", entry(&occ::cpu::local_pool_mean));
  m.def("scatter_cells_cpu", entry(&occ::cpu::scatter_cells));
  m.def("gather_cells_cpu", entry(&occ::cpu::gather_cells));
  m.def("pick_points_cpu", entry(&occ::cpu::pick_points));
  m.def("unpick_points_cpu", entry(&occ::cpu::unpick_points));
  m.def("sample_gather_cpu", entry(&occ::cpu::sample_gather));
  m.def("sample_contract_cpu", entry(&occ::cpu::sample_contract));
  m.def("sample_index_cpu", entry(&occ::cpu::sample_index));
  m.def("sample_scatter_cpu", entry(&occ::cpu::sample_scatter));
  m.def("decode_cpu", entry(&occ::cpu::decode));
  m.def("decode_bricks_cpu", entry(&occ::cpu::decode_bricks));
  m.def("decode_conditional_cpu", entry(&occ::cpu::decode_conditional));

#if defined(OCC_WITH_CUDA)
  bind_cuda(m);
#endif
}
