// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace occ::cuda {

// 0 writes past `values` (count int32), 1 reads past a shared array, 2 and 3 diverge at a barrier.
void faulty(int which, int32_t* values, int64_t count, uintptr_t stream);

// Warp functions of common/cuda_launch.h on 64 values of one block, seven results a thread (see test_cuda_host.py).
void warp_functions(const int32_t* values, int64_t* results, uintptr_t stream);

}  // namespace occ::cuda
