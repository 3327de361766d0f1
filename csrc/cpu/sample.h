// SPDX-License-Identifier: MIT
// Sampling of plane and grid features: one weighted gather, its transpose, and the contraction that gives the gradient
// to the coordinates. Each takes derivative directions, so that every higher derivative is one of the three again.
//
// Sizes: batch B, queries M, channels C, columns D = 3 + 2 * dynamic planes, terms T = 1, or 4 with a frame.
//   planes (B, P, R, R, C), grid (B, R, R, R, C): features; null counts as zeros
//   coords (B, M, D): x, y, z, then the projected coordinates of the dynamic planes; in the arithmetic type of the
//   features directions (B, num_directions, M, D) or null: differentiate once along each frame (B, 3, D) or null: term
//   0 is the value, terms 1 to 3 the derivatives along the frame's rows out, grad (B, M, T, C), or (B, M, T, K * C)
//   with concat: the K maps beside each other instead of summed
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "math/interp.h"
#include "math/layout.h"

namespace occ::cpu {

// The arguments of one call. Plain data: it passes from code of one instruction set to another.
struct SampleJob {
  const void* planes = nullptr;
  const void* grid = nullptr;
  const void* coords = nullptr;
  const void* grad = nullptr;
  const void* directions = nullptr;
  const void* frame = nullptr;
  const int32_t* order = nullptr;
  const int32_t* offsets = nullptr;
  int32_t* index = nullptr;
  void* out = nullptr;
  void* out_planes = nullptr;
  void* out_grid = nullptr;
  int dtype = 0;
  int64_t batch = 0, queries = 0, channels = 0;
  int num_directions = 0;
  bool concat = false;
  int columns = 0, maps = 0, num_planes = 0;
  int threads = 1;
  SampleMap map[kMaxMaps];
};

void sample_gather(const void* planes, const void* grid, const void* coords, const void* directions, const void* frame,
                   void* out, int dtype, int64_t batch, int64_t queries, int64_t channels, int num_directions,
                   bool concat, const Layout& layout, int threads);

// out (B, M, D): gradient of <grad, gather> to the coordinates.
void sample_contract(const void* planes, const void* grid, const void* coords, const void* grad, const void* directions,
                     const void* frame, void* out, int dtype, int64_t batch, int64_t queries, int64_t channels,
                     int num_directions, bool concat, const Layout& layout, int threads);

// index (B, K, M): node at the lower corner of each query's cell.
void sample_index(const void* coords, int32_t* index, int dtype, int64_t batch, int64_t queries, const Layout& layout,
                  int threads);

// Transpose of the gather. order (B, K, M) and offsets (B, sum(cells + 1)) sort the queries by `index`. Outputs are in
// the arithmetic type and written entirely; null ones are left out. Owner computes: a row of cells adds to two rows of
// nodes, even rows in parallel, then odd rows, queries in sorted order, so that the result does not depend on the
// number of threads.
void sample_scatter(const void* coords, const void* grad, const void* directions, const void* frame,
                    const int32_t* index, const int32_t* order, const int32_t* offsets, void* planes, void* grid,
                    int dtype, int64_t batch, int64_t queries, int64_t channels, int num_directions, bool concat,
                    const Layout& layout, int threads);

OCC_DECLARE_ISA(void run_gather(const SampleJob& job))
OCC_DECLARE_ISA(void run_contract(const SampleJob& job))
OCC_DECLARE_ISA(void run_index(const SampleJob& job))
OCC_DECLARE_ISA(void run_scatter(const SampleJob& job))

}  // namespace occ::cpu
