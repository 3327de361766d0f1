// SPDX-License-Identifier: MIT
// The entry points of cpu/octree.h on CUDA; the same masks, values and order, bit for bit.
#pragma once

#include <cstdint>

namespace occ::cuda {

void octree_start(uint64_t* masks, int64_t count, int64_t side, int64_t nodes, uintptr_t stream);
void octree_count(uint64_t* masks, const int64_t* bricks, int64_t* sizes, int64_t listed, uintptr_t stream);
void octree_list(const int64_t* keys, uint64_t* masks, int64_t side, const int64_t* bricks, const int64_t* starts,
                 int64_t listed, int64_t stride, int32_t* points, uintptr_t stream);
void octree_take(const int64_t* keys, uint64_t* masks, void* values, int dtype, int64_t side, const int64_t* bricks,
                 const int64_t* starts, int64_t listed, const void* given, double threshold, int64_t border_nodes,
                 uintptr_t stream);
void octree_hang(const int64_t* fine_keys, uint64_t* fine_masks, int64_t fine_side, const int64_t* bricks,
                 int64_t listed, const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, int shift,
                 uintptr_t stream);
void octree_seed(const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, const int32_t* cells,
                 const int64_t* lattice, int64_t seeds, uintptr_t stream);
void octree_mark(const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, const int64_t* fine_keys,
                 uint64_t* fine_masks, int64_t fine_count, int64_t fine_side, uintptr_t stream);
void octree_activate(const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, bool band, int64_t* children,
                     uintptr_t stream);
void octree_children(const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, const int64_t* starts,
                     int64_t fine_side, int64_t* out, uintptr_t stream);
void octree_split(const int64_t* keys, uint64_t* masks, const void* values, int dtype, int64_t count, int64_t side,
                  const int64_t* fine_keys, uint64_t* fine_masks, void* fine_values, int64_t fine_side,
                  const int64_t* bricks, int64_t listed, int64_t* sizes, uintptr_t stream);
void octree_add_coarse(const int64_t* keys, uint64_t* masks, const void* values, int dtype, int64_t count, int64_t side,
                       const int64_t* fine_keys, uint64_t* fine_masks, int64_t fine_count, int64_t fine_side, int shift,
                       void* fine_values, uintptr_t stream);
void octree_dense(const int64_t* table, int64_t count, int dtype, int64_t batch, int64_t nodes, void* dense,
                  uintptr_t stream);

}  // namespace occ::cuda
