// SPDX-License-Identifier: MIT
// The CUDA entry points, one line each: for module.cpp and for the host build of the same sources in tests/cuda_host.
#pragma once

#include "bind.h"
#include "cuda/bins.h"

inline void bind_cuda(pybind11::module_& m) {
  using occ::entry;
  m.def("bin_index_cuda", entry(&occ::cuda::bin_index));
  m.def("sort_bins_workspace_cuda", entry(&occ::cuda::sort_bins_workspace));
  m.def("sort_bins_cuda", entry(&occ::cuda::sort_bins));
}
