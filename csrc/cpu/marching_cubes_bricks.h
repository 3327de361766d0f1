// SPDX-License-Identifier: MIT
// Loops of sparse marching cubes, compiled per instruction set. Bricks [begin, end) of math/marching_cubes_bricks.h.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "math/marching_cubes_bricks.h"

namespace occ::cpu {

// Signs and known nodes.
OCC_DECLARE_ISA(void pack_bricks(const mc::Bricks& bricks, const mc::BrickValues& values, int64_t begin, int64_t end))

// Complete cells; needs the known nodes of all bricks.
OCC_DECLARE_ISA(void complete_bricks(const mc::Bricks& bricks, int64_t begin, int64_t end))

// Crossed edges, vertices and triangles; needs the complete cells of all bricks.
OCC_DECLARE_ISA(void count_bricks(const mc::Bricks& bricks, int64_t* vertices, int64_t* triangles, int64_t begin,
                                  int64_t end))

// Triangles; needs the crossed edges of all bricks.
OCC_DECLARE_ISA(void emit_bricks(const mc::Bricks& bricks, const int64_t* vertex_bricks, const int64_t* face_bricks,
                                 const int64_t* vertex_offsets, int64_t* faces, int64_t begin, int64_t end))

}  // namespace occ::cpu
