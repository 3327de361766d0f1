// SPDX-License-Identifier: MIT
// The CUDA counterparts of cpu/sample.h: same parameters, addresses on the device, a stream last.
#pragma once

#include <cstdint>

#include "math/layout.h"

namespace occ::cuda {

void sample_gather(const void* planes, const void* grid, const void* coords, const void* directions, const void* frame,
                   void* out, int dtype, int64_t batch, int64_t queries, int64_t channels, int num_directions,
                   bool concat, const Layout& layout, uintptr_t stream);

void sample_contract(const void* planes, const void* grid, const void* coords, const void* grad, const void* directions,
                     const void* frame, void* out, int dtype, int64_t batch, int64_t queries, int64_t channels,
                     int num_directions, bool concat, const Layout& layout, uintptr_t stream);

void sample_index(const void* coords, int32_t* index, int dtype, int64_t batch, int64_t queries, const Layout& layout,
                  uintptr_t stream);

// A node gathers from the queries of its up to 2^D cells, in sorted order: every output is written once, without
// atomics.
void sample_scatter(const void* coords, const void* grad, const void* directions, const void* frame,
                    const int32_t* index, const int32_t* order, const int32_t* offsets, void* planes, void* grid,
                    int dtype, int64_t batch, int64_t queries, int64_t channels, int num_directions, bool concat,
                    const Layout& layout, uintptr_t stream);

}  // namespace occ::cuda
