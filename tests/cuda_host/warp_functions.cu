// SPDX-License-Identifier: MIT
// What the shim must get right for the kernels' sake: warp functions, partly exited warps, barriers after an early
// exit.
#include "common/cuda_launch.h"
#include "faulty.h"

namespace occ::cuda {
namespace {

constexpr int kResults = 7;

OCC_KERNEL void warp_functions_kernel(const int32_t* values, int64_t* results) {
  OCC_SHARED(int32_t, turned, 64);
  OCC_DYNAMIC_SHARED(int64_t, sums);
  const int thread = static_cast<int>(threadIdx.x);
  int64_t* own = results + thread * kResults;
  if (thread >= 64) return;  // the third warp leaves before any barrier
  const int32_t value = values[thread];
  own[0] = shuffle_up(value, 3);
  own[1] = warp_inclusive_sum<int64_t>(value);
  own[2] = ballot(value % 2 == 0);
  own[3] = match_any(static_cast<uint32_t>(value));
  turned[63 - thread] = value;
  if (lane_id() == 0) sums[thread / kWarp] = 0;
  __syncthreads();
  own[4] = turned[thread];
  if (thread % 2 == 1) {
    own[5] = shuffle_xor(value, 2, 0xaaaaaaaau);
  } else {
    own[5] = -1;
  }
  sync_warp();
  const int64_t total = warp_sum<int64_t>(value);
  if (lane_id() == 0) sums[thread / kWarp] = total;
  __syncthreads();
  own[6] = sums[0] + sums[1];
}

}  // namespace

void warp_functions(const int32_t* values, int64_t* results, uintptr_t stream) {
  OCC_LAUNCH(warp_functions_kernel, 1, 96, 2 * sizeof(int64_t), stream, values, results);
}

}  // namespace occ::cuda
