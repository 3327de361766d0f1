// SPDX-License-Identifier: MIT
// What cpu/pool.cpp hands to the code compiled once per instruction set. Data only: one type for all of them.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "math/bins.h"

namespace occ::cpu {

struct PoolJob {  // see local_pool_max and local_pool_mean in cpu/pool.h
  const void *selector, *values;
  const int32_t *index, *order, *offsets;
  void *scratch, *out;
  int32_t* args;
  BinShape shape;
  int threads;
  bool wide, mean, transpose;  // wide: double, else float
};

struct ScatterJob {  // see scatter_cells and the functions after it in cpu/pool.h
  const void* in;
  const int32_t *index, *order, *offsets;
  const int32_t* chosen;  // argmax that is read
  void* out;
  int32_t* argmax;  // argmax that is written
  int32_t* counts;  // (batch, last - first, target)
  BinShape shape;
  int reduce, threads;
  bool wide;
  bool* failed;  // set when memory runs out
};

OCC_DECLARE_ISA(void local_pool(const PoolJob&))
OCC_DECLARE_ISA(void count_cells(const ScatterJob&))
OCC_DECLARE_ISA(void scatter_sorted(const ScatterJob&))
OCC_DECLARE_ISA(void gather_cells(const ScatterJob&))
OCC_DECLARE_ISA(void scatter_streamed(const ScatterJob&))

}  // namespace occ::cpu
