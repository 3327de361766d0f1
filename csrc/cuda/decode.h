// SPDX-License-Identifier: MIT
// The CUDA counterparts of cpu/decode.h: same parameters, addresses on the device, a stream last.
#pragma once

#include <cstdint>

#include "math/layout.h"

namespace occ::cuda {

// Rounded weights are packed for tensor cores, of compute capability 8.0 or more. A gradient wants kExact.
// The gradient is carried forward as three tangents beside each value; `reversed` says only that it is wanted.
void decode(const void* planes, const void* grid, const float* query, const float* bases, const float* scale,
            const float* weights, const uint32_t* rounded, const float* reversed, float* out, float* gradient,
            int dtype, int64_t batch, int64_t queries, int64_t channels, int64_t hidden, int64_t depth, int rounding,
            double leak, bool concat, const Layout& layout, uintptr_t stream);

void decode_bricks(const void* planes, const void* grid, const float* bases, const float* scale, const float* weights,
                   const uint32_t* rounded, const int64_t* shape, const int32_t* corner, const int64_t* mask,
                   float* out, int dtype, int64_t bricks, int64_t batch, int64_t channels, int64_t hidden,
                   int64_t depth, int rounding, double leak, bool concat, double spacing, double origin,
                   const Layout& layout, uintptr_t stream);

void decode_conditional(const float* query, const float* weights, const uint32_t* rounded, const float* affine,
                        const float* offset, float* out, int64_t batch, int64_t queries, int64_t hidden, int64_t layers,
                        int rounding, double leak, double inner_leak, bool residual, uintptr_t stream);

}  // namespace occ::cuda
