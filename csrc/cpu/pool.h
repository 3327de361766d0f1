// SPDX-License-Identifier: MIT
// Pooling and scattering of point features (B, N, C) over the cells of bins. All arrays are contiguous. `dtype` is
// float32 or float64: the Python layer widens half precision. Points whose index is negative take no part and receive
// zeros.
#pragma once

#include <cstdint>

#include "math/bins.h"

namespace occ::cpu {

// out[b, n, c] = sum over maps of values[b, argmax of selector in n's cell and channel, c]; the lowest point wins a
// tie, a NaN beats every number. The transpose sends values to the chosen point instead: out[b, n, c] = sum over maps
// in which n was chosen of the sum of `values` over its cell. `scratch` holds batch * rows_before(last) * channels
// values; `args` as many int32, or null when selector == values and the transpose is not wanted.
void local_pool_max(const void* selector, const void* values, int dtype, const int32_t* index, const int32_t* order,
                    const int32_t* offsets, const BinShape& shape, bool transpose, void* scratch, int32_t* args,
                    void* out, int threads);

// out[b, n] = sum over maps of the mean of n's cell.
void local_pool_mean(const void* features, int dtype, const int32_t* index, const int32_t* order,
                     const int32_t* offsets, const BinShape& shape, void* scratch, void* out, int threads);

// out[b, k, cell] (B, last - first, target, C) = sum, mean or maximum of the cell's points, 0 without points. argmax,
// same shape, may be null; it is N in empty cells. Sums and ties go by point number whether or not the sorted order is
// given: the result has the same bits.
void scatter_cells(const void* features, int dtype, const int32_t* index, const int32_t* order, const int32_t* offsets,
                   const BinShape& shape, int reduce, void* out, int32_t* argmax, int threads);

// Transpose of scatter_cells for sum and mean: out[b, n] = sum over maps of values[b, k, n's cell], over its count for
// the mean. `offsets` may be null.
void gather_cells(const void* values, int dtype, const int32_t* index, const int32_t* offsets, const BinShape& shape,
                  int reduce, void* out, int threads);

// out[b, k, cell, c] = values[b, argmax[b, k, cell, c], c], 0 where argmax is N.
void pick_points(const void* values, int dtype, const int32_t* argmax, const BinShape& shape, void* out, int threads);

// Its transpose: out[b, n, c] = sum of values[b, k, n's cell, c] over the maps whose argmax there is n.
void unpick_points(const void* values, int dtype, const int32_t* argmax, const int32_t* index, const BinShape& shape,
                   void* out, int threads);

}  // namespace occ::cpu
