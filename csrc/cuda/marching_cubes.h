// SPDX-License-Identifier: MIT
// The CUDA counterparts of cpu/marching_cubes.h and cpu/marching_cubes_sparse.h: same parameters, addresses on the
// device (`shape` on the host), a stream last.
#pragma once

#include <cstdint>

namespace occ::cuda {

void marching_cubes_count(const void* volume, int dtype, const int64_t* shape, double level, bool pad, double pad_value,
                          uint64_t* signs, int64_t* vertex_rows, int64_t* face_rows, int64_t* vertex_offsets,
                          int64_t* face_offsets, int64_t* totals, int64_t* scratch, uintptr_t stream);

void marching_cubes_emit(const void* volume, int dtype, const int64_t* shape, double level, bool pad, double pad_value,
                         uint64_t* signs, const int64_t* vertex_rows, const int64_t* face_rows, double edge_margin,
                         const void* attributes, int64_t channels, void* vertices, int64_t* faces, void* normals,
                         void* vertex_attributes, uintptr_t stream);

void marching_cubes_gather(const void* volume, int dtype, const int64_t* shape, double level, bool pad,
                           double pad_value, uint64_t* signs, const int64_t* vertex_rows, double edge_margin,
                           const void* attributes, int64_t channels, const void* vertex_gradient,
                           const void* attribute_gradient, void* volume_gradient, void* node_attribute_gradient,
                           uintptr_t stream);

void marching_cubes_sparse_count(const int64_t* keys, const int64_t* source, const int64_t* shape, const void* values,
                                 int dtype, double level, double pad_value, int32_t* neighbours, uint64_t* words,
                                 int64_t* vertex_bricks, int64_t* face_bricks, int64_t* vertex_offsets,
                                 int64_t* face_offsets, int64_t* totals, int64_t* scratch, uintptr_t stream);

void marching_cubes_sparse_emit(const int64_t* keys, const int64_t* source, const int64_t* shape, const void* values,
                                int dtype, double level, double pad_value, int32_t* neighbours, uint64_t* words,
                                const int64_t* vertex_bricks, const int64_t* face_bricks, const int64_t* vertex_offsets,
                                double edge_margin, const void* attributes, int64_t channels, void* vertices,
                                int64_t* faces, void* normals, void* vertex_attributes, uintptr_t stream);

void marching_cubes_sparse_gather(const int64_t* keys, const int64_t* source, const int64_t* shape, const void* values,
                                  int dtype, double level, double pad_value, int32_t* neighbours, uint64_t* words,
                                  const int64_t* vertex_bricks, double edge_margin, const void* attributes,
                                  int64_t channels, const void* vertex_gradient, const void* attribute_gradient,
                                  void* value_gradient, void* node_attribute_gradient, uintptr_t stream);

}  // namespace occ::cuda
