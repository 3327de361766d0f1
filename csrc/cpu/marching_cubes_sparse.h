// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace occ::cpu {

// Marching cubes of bricks in two calls: count, allocate, emit. `shape` is {bricks, batch, nodes a side of a lattice,
// bricks a side of the key space, pad}. The method is told in math/marching_cubes_bricks.h, as are keys and source.

// Fills neighbours (bricks, 14), words (bricks, 42), vertex_bricks and face_bricks (bricks + 1: first vertex and face
// of each brick), the batch's offsets (batch + 1) and totals {vertices, faces, whether the keys do not ascend within
// their range}, which are 0 before. With wrong keys nothing else is defined. `scratch` (2 * (bricks / 2048 + 1)) is for
// the sums of the CUDA version.
void marching_cubes_sparse_count(const int64_t* keys, const int64_t* source, const int64_t* shape, const void* values,
                                 int dtype, double level, double pad_value, int32_t* neighbours, uint64_t* words,
                                 int64_t* vertex_bricks, int64_t* face_bricks, int64_t* vertex_offsets,
                                 int64_t* face_offsets, int64_t* totals, int64_t* scratch, int threads);

// Fills vertices (V, 3) and, unless null, normals (V, 3) and vertex_attributes (V, channels), all double for double
// values and float for all others, and faces (F, 3), local to each lattice. `attributes` (rows, 8, 8, 8, channels) has
// the type of the values. The workspace is the count's.
void marching_cubes_sparse_emit(const int64_t* keys, const int64_t* source, const int64_t* shape, const void* values,
                                int dtype, double level, double pad_value, int32_t* neighbours, uint64_t* words,
                                const int64_t* vertex_bricks, const int64_t* face_bricks, const int64_t* vertex_offsets,
                                double edge_margin, const void* attributes, int64_t channels, void* vertices,
                                int64_t* faces, void* normals, void* vertex_attributes, int threads);

// Derivatives to the values and the attributes, of the type of the values, from those to the vertices and their
// attributes. Only nodes with a vertex beside them are written: the rest must be 0 before. Without attributes the last
// pointers are null.
void marching_cubes_sparse_gather(const int64_t* keys, const int64_t* source, const int64_t* shape, const void* values,
                                  int dtype, double level, double pad_value, int32_t* neighbours, uint64_t* words,
                                  const int64_t* vertex_bricks, double edge_margin, const void* attributes,
                                  int64_t channels, const void* vertex_gradient, const void* attribute_gradient,
                                  void* value_gradient, void* node_attribute_gradient, int threads);

}  // namespace occ::cpu
