// SPDX-License-Identifier: MIT
// The CUDA counterparts of cpu/bins.h: same parameters, addresses on the device unless said otherwise, a stream last.
#pragma once

#include <cstdint>

#include "math/layout.h"

namespace occ::cuda {

void bin_index(const void* points, int dtype, const void* bases, const void* scales, const int64_t* lengths,
               int32_t* index, int64_t batch, int64_t count, const Layout& layout, uintptr_t stream);

// int32 values that sort_bins needs as workspace. `cells` is a host address.
int64_t sort_bins_workspace(const int64_t* cells, int64_t batch, int64_t maps, int64_t count, uintptr_t stream);

// `cells` is a host address, read before this returns.
void sort_bins(const int32_t* index, const int64_t* cells, int32_t* order, int32_t* offsets, int32_t* workspace,
               int64_t batch, int64_t maps, int64_t count, uintptr_t stream);

}  // namespace occ::cuda
