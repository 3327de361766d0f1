// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "math/layout.h"

namespace occ::cpu {

// index[b, k, n] = cell of points[b, n] in map k, or -1 from lengths[b] on. `bases` (B, L, 3, 3) and `scales` (B, L)
// have the points' type and may be null without dynamic planes; `lengths` (B,) may be null.
void bin_index(const void* points, int dtype, const void* bases, const void* scales, const int64_t* lengths,
               int32_t* index, int64_t batch, int64_t count, const Layout& layout, int threads);

// Stable counting sort of every row of index (rows = B * K). cells[r % maps] cells per row; offsets has, for each
// sample, the maps' CSR starts one after another (cells + 1 each). Points with index -1 come last. `workspace` has the
// number of int32 values that sort_bins_workspace returned; none on the CPU, so it may be null here.
int64_t sort_bins_workspace(const int64_t* cells, int64_t batch, int64_t maps, int64_t count, int threads);
void sort_bins(const int32_t* index, const int64_t* cells, int32_t* order, int32_t* offsets, int32_t* workspace,
               int64_t batch, int64_t maps, int64_t count, int threads);

}  // namespace occ::cpu
