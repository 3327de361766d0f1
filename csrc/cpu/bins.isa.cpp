// SPDX-License-Identifier: MIT
// Compiled without contraction (CMakeLists.txt): the cell of a point must not depend on the instruction set.
#include "cpu/bins_jobs.h"
#include "math/layout.h"

namespace occ::cpu::OCC_ISA {
namespace {

template <class S>
OCC_INLINE void split(const S* OCC_RESTRICT points, int64_t count, S* OCC_RESTRICT x, S* OCC_RESTRICT y,
                      S* OCC_RESTRICT z) {
  for (int64_t i = 0; i < count; ++i) {
    x[i] = points[3 * i];
    y[i] = points[3 * i + 1];
    z[i] = points[3 * i + 2];
  }
}

template <class S>
OCC_INLINE void divide(const S* OCC_RESTRICT axis, int64_t count, S width, S offset, S* OCC_RESTRICT t) {
  for (int64_t i = 0; i < count; ++i) t[i] = axis[i] / width + offset;
}

template <class S>
OCC_INLINE void project(const S* OCC_RESTRICT x, const S* OCC_RESTRICT y, const S* OCC_RESTRICT z, int64_t count,
                        const S* row, S scale, S* OCC_RESTRICT t) {
  const S a = row[0], b = row[1], c = row[2];
  for (int64_t i = 0; i < count; ++i) {
    const S projected = a * x[i] + b * y[i] + c * z[i];
    t[i] = projected / scale / S(2) + S(0.5);
  }
}

template <class S>
OCC_INLINE void cells_of(const S* OCC_RESTRICT t, int64_t count, S top, int resolution, int32_t* OCC_RESTRICT cells) {
  for (int64_t i = 0; i < count; ++i) cells[i] = cell_of(t[i], top, resolution);
}

}  // namespace

#define OCC_DEFINE_BIN_STEPS(S)                                                                                      \
  void split_points(const S* points, int64_t count, S* x, S* y, S* z) { split(points, count, x, y, z); }             \
  void divide_axis(const S* axis, int64_t count, S width, S offset, S* t) { divide(axis, count, width, offset, t); } \
  void project_axis(const S* x, const S* y, const S* z, int64_t count, const S* row, S scale, S* t) {                \
    project(x, y, z, count, row, scale, t);                                                                          \
  }                                                                                                                  \
  void axis_cells(const S* t, int64_t count, S top, int resolution, int32_t* cells) {                                \
    cells_of(t, count, top, resolution, cells);                                                                      \
  }

OCC_DEFINE_BIN_STEPS(float)
OCC_DEFINE_BIN_STEPS(double)

void join_cells(const int32_t* fast, const int32_t* slow, int64_t count, int resolution, int32_t* index) {
  for (int64_t i = 0; i < count; ++i) index[i] = fast[i] + resolution * slow[i];
}

}  // namespace occ::cpu::OCC_ISA
