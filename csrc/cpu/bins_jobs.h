// SPDX-License-Identifier: MIT
// The vectorised steps of bin_index over a block of points, one coordinate an array; declared per instruction set and
// for both arithmetic types. They use the expressions of math/layout.h: results have the same bits as its scalar
// functions.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace occ::cpu {

#define OCC_DECLARE_BIN_STEPS(S)                                                                                     \
  OCC_DECLARE_ISA(void split_points(const S* points, int64_t count, S* x, S* y, S* z))                               \
  OCC_DECLARE_ISA(void divide_axis(const S* axis, int64_t count, S width, S offset, S* t))                           \
  OCC_DECLARE_ISA(void project_axis(const S* x, const S* y, const S* z, int64_t count, const S* row, S scale, S* t)) \
  OCC_DECLARE_ISA(void axis_cells(const S* t, int64_t count, S top, int resolution, int32_t* cells))

OCC_DECLARE_BIN_STEPS(float)
OCC_DECLARE_BIN_STEPS(double)
#undef OCC_DECLARE_BIN_STEPS

// index[i] = fast[i] + resolution * slow[i]
OCC_DECLARE_ISA(void join_cells(const int32_t* fast, const int32_t* slow, int64_t count, int resolution,
                                int32_t* index))

}  // namespace occ::cpu
