// SPDX-License-Identifier: MIT
// The CUDA entry points, compiled for the host.
#include <pybind11/pybind11.h>

#include "bind_cuda.h"
#include "faulty.h"
#include "shim/scheduler.h"

PYBIND11_MODULE(_cuda_host, m) {
  bind_cuda(m);
  m.def("faulty", occ::entry(&occ::cuda::faulty));
  m.def("warp_functions", occ::entry(&occ::cuda::warp_functions));
  m.def("launch_count", &cuda_host::launch_count);
}
