// SPDX-License-Identifier: MIT
// The CUDA counterparts of cpu/pool.h: same parameters, a stream last. `dtype` may be half precision; `scratch` is
// float or, for double, double. order and offsets are always needed.
#pragma once

#include <cstdint>

#include "math/bins.h"

namespace occ::cuda {

void local_pool_max(const void* selector, const void* values, int dtype, const int32_t* index, const int32_t* order,
                    const int32_t* offsets, const BinShape& shape, bool transpose, void* scratch, int32_t* args,
                    void* out, uintptr_t stream);

void local_pool_mean(const void* features, int dtype, const int32_t* index, const int32_t* order,
                     const int32_t* offsets, const BinShape& shape, void* scratch, void* out, uintptr_t stream);

void scatter_cells(const void* features, int dtype, const int32_t* index, const int32_t* order, const int32_t* offsets,
                   const BinShape& shape, int reduce, void* out, int32_t* argmax, uintptr_t stream);

void gather_cells(const void* values, int dtype, const int32_t* index, const int32_t* offsets, const BinShape& shape,
                  int reduce, void* out, uintptr_t stream);

void pick_points(const void* values, int dtype, const int32_t* argmax, const BinShape& shape, void* out,
                 uintptr_t stream);

void unpick_points(const void* values, int dtype, const int32_t* argmax, const int32_t* index, const BinShape& shape,
                   void* out, uintptr_t stream);

}  // namespace occ::cuda
