// SPDX-License-Identifier: MIT
// Kernels with deliberate faults: the host build must report every one of them.
#include "common/cuda_launch.h"
#include "faulty.h"

namespace occ::cuda {
namespace {

OCC_KERNEL void write_past_end(int32_t* values, int64_t count) {
  OCC_GRID_STRIDE(i, count + 1) { values[i] = 1; }
}

OCC_KERNEL void read_past_shared(int32_t* values) {
  OCC_SHARED(int32_t, shared, 32);
  shared[threadIdx.x] = static_cast<int32_t>(threadIdx.x);
  __syncthreads();
  values[threadIdx.x] = shared[threadIdx.x + 1];
}

OCC_KERNEL void barrier_against_shuffle(int32_t* values) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    values[threadIdx.x] = shuffle(values[threadIdx.x], 0);
  }
}

OCC_KERNEL void two_barriers(int32_t* values) {
  if (threadIdx.x < 32) {
    values[threadIdx.x] = 0;
    __syncthreads();
  } else {
    __syncthreads();
  }
}

}  // namespace

void faulty(int which, int32_t* values, int64_t count, uintptr_t stream) {
  if (which == 0) OCC_LAUNCH(write_past_end, grid_for(count, 32), 32, 0, stream, values, count);
  if (which == 1) OCC_LAUNCH(read_past_shared, 1, 32, 0, stream, values);
  if (which == 2) OCC_LAUNCH(barrier_against_shuffle, 1, 32, 0, stream, values);
  if (which == 3) OCC_LAUNCH(two_barriers, 1, 64, 0, stream, values);
}

}  // namespace occ::cuda
