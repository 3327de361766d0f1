// SPDX-License-Identifier: MIT
// The integer work of marching cubes, row by row; compiled once per instruction set.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "math/marching_cubes.h"

namespace occ::cpu {

// Signs of rows [begin, end); nan[r] = 1 where row r holds a NaN, else 0.
OCC_DECLARE_ISA(void pack_rows(const mc::Volume& volume, const mc::SignGrid& grid, int64_t* nan, int64_t begin,
                               int64_t end))

// Vertices and triangles of rows [begin, end).
OCC_DECLARE_ISA(void count_rows(const mc::SignGrid& grid, int64_t* vertices, int64_t* triangles, int64_t begin,
                                int64_t end))

// Triangles of the cell rows [begin, end).
OCC_DECLARE_ISA(void emit_rows(const mc::SignGrid& grid, const int64_t* vertex_rows, const int64_t* face_rows,
                               int64_t* faces, int64_t begin, int64_t end))

}  // namespace occ::cpu
