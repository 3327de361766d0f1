// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace occ::cpu {

// Marching cubes in two calls: count, allocate, emit. `shape` is {batch, x, y, z, stride_batch, stride_x, stride_y}
// (elements; z is contiguous). With `pad` a layer of nodes of value `pad_value` is imagined around every volume. Node
// grids then have n = size + 2 * pad nodes a side, R = batch * nx * ny rows and ceil(nz / 64) words a row.
// The method is told in math/marching_cubes.h.

// Fills signs (R * words), vertex_rows and face_rows (R + 1: first vertex and face of each row), the batch's offsets
// (batch + 1) and totals {vertices, faces, whether the volume holds a NaN}, which are 0 before. With a NaN nothing else
// is defined. `scratch` (2 * (R / 2048 + 1)) is for the sums of the CUDA version.
void marching_cubes_count(const void* volume, int dtype, const int64_t* shape, double level, bool pad, double pad_value,
                          uint64_t* signs, int64_t* vertex_rows, int64_t* face_rows, int64_t* vertex_offsets,
                          int64_t* face_offsets, int64_t* totals, int64_t* scratch, int threads);

// Fills vertices (V, 3) and, unless null, normals (V, 3) and vertex_attributes (V, channels), all double for double
// volumes and float for all others, and faces (F, 3), local to each volume. `attributes` (batch, x, y, z, channels) has
// the volume's type and no gaps. The workspace is the count's.
void marching_cubes_emit(const void* volume, int dtype, const int64_t* shape, double level, bool pad, double pad_value,
                         uint64_t* signs, const int64_t* vertex_rows, const int64_t* face_rows, double edge_margin,
                         const void* attributes, int64_t channels, void* vertices, int64_t* faces, void* normals,
                         void* vertex_attributes, int threads);

// Derivatives to the volume (batch, x, y, z) and the attributes, of the volume's type and without gaps, from those to
// the vertices and their attributes. Only nodes with a crossed edge are written: the rest must be 0 before. Without
// attributes the last pointers are null.
void marching_cubes_gather(const void* volume, int dtype, const int64_t* shape, double level, bool pad,
                           double pad_value, uint64_t* signs, const int64_t* vertex_rows, double edge_margin,
                           const void* attributes, int64_t channels, const void* vertex_gradient,
                           const void* attribute_gradient, void* volume_gradient, void* node_attribute_gradient,
                           int threads);

}  // namespace occ::cpu
