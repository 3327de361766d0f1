// SPDX-License-Identifier: MIT
// How the arrays of occkernels.Bins are laid out, and where reduced cells are kept between the two steps of pooling.
#pragma once

#include <cstdint>

#include "math/layout.h"

namespace occ {

enum Reduce : int { kSum = 0, kMean = 1, kMax = 2 };

// Sizes that go with index (B, K, N), order (B, K, N) and offsets (B, sum of cells[k] + 1); see cpu/bins.h.
// Passed from Python as a tuple (batch, count, channels, cells, first, last, target): maps first..last-1 take part, and
// scattering keeps their cells below `target` (the extra cell of a crop model lies at `target` and is dropped).
// Data only, so that it is one type for every instruction set.
struct BinShape {
  int64_t batch, count, channels;
  int64_t cells[kMaxMaps];
  int64_t target;
  int maps, first, last;
};

OCC_BEGIN_SHARED

// Where sample b, map k starts in index and order.
OCC_HD OCC_INLINE int64_t points_begin(const BinShape& s, int64_t b, int map) { return (b * s.maps + map) * s.count; }

// Where sample b, map k starts in offsets.
OCC_HD OCC_INLINE int64_t starts_begin(const BinShape& s, int64_t b, int map) {
  int64_t before = 0, all = 0;
  for (int k = 0; k < s.maps; ++k) {
    if (k == map) before = all;
    all += s.cells[k] + 1;
  }
  return b * all + before;
}

// Pooling keeps one row of `channels` values for every cell that has points. A map with more cells than points numbers
// them by the cell's start in the sorted order, which leaves gaps but needs no further table; others by the cell.
OCC_HD OCC_INLINE bool rows_by_start(const BinShape& s, int map) { return s.cells[map] > s.count; }

// Rows of the maps before `map` in one sample; rows of all maps for s.last.
OCC_HD OCC_INLINE int64_t rows_before(const BinShape& s, int map) {
  int64_t before = 0;
  for (int k = s.first; k < map; ++k) before += rows_by_start(s, k) ? s.count : s.cells[k];
  return before;
}

OCC_END_SHARED
}  // namespace occ
