// SPDX-License-Identifier: MIT
// Rounds of a batched octree (multiresolution iso-surface extraction). A level is given by `keys` (count,) ascending,
// `masks` (count, kMasks, 8 words), `values` (count, 512) float32 or float64 by `dtype`, the number of its bricks and
// `side`, bricks along an axis of a lattice. See math/octree.h for the masks and math/octree_steps.h for the rules.
// `bricks` lists indices of bricks.
#pragma once

#include <cstdint>

namespace occ::cpu {

// Masks of all bricks of the coarsest level, whose keys are 0, 1, ...; `nodes` along a side of a lattice.
void octree_start(uint64_t* masks, int64_t count, int64_t side, int64_t nodes, int threads);

// sizes[i] = unknown nodes of bricks[i].
void octree_count(uint64_t* masks, const int64_t* bricks, int64_t* sizes, int64_t listed, int threads);

// Coordinates (starts[listed], 3) of unknown nodes, those of bricks[i] from row starts[i] on, times `stride`.
void octree_list(const int64_t* keys, uint64_t* masks, int64_t side, const int64_t* bricks, const int64_t* starts,
                 int64_t listed, int64_t stride, int32_t* points, int threads);

// Values of unknown nodes: those of bricks[i] from given[starts[i]] on or, without `starts`, all 512 of the brick from
// given[512 * i] on. `border_nodes` > 0: outside the lattice, of so many nodes a side, counts as below.
void octree_take(const int64_t* keys, uint64_t* masks, void* values, int dtype, int64_t side, const int64_t* bricks,
                 const int64_t* starts, int64_t listed, const void* given, double threshold, int64_t border_nodes,
                 int threads);

// Marks of the nodes of fine bricks on leaves `shift` levels coarser.
void octree_hang(const int64_t* fine_keys, uint64_t* fine_masks, int64_t fine_side, const int64_t* bricks,
                 int64_t listed, const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, int shift,
                 int threads);

// Cells (seeds, 3) of lattices `lattice` are split whatever their signs.
void octree_seed(const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, const int32_t* cells,
                 const int64_t* lattice, int64_t seeds, int threads);

// Finds the leaves with a change of sign; with `fine_count` > 0 their ancestors too.
void octree_mark(const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, const int64_t* fine_keys,
                 uint64_t* fine_masks, int64_t fine_count, int64_t fine_side, int threads);

// Chooses the leaves to split; children[i]: bricks of the next level that brick i needs.
void octree_activate(const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, bool band, int64_t* children,
                     int threads);

// Keys of these bricks, with repetitions, those of brick i from out[starts[i]] on; starts (count + 1,).
void octree_children(const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, const int64_t* starts,
                     int64_t fine_side, int64_t* out, int threads);

// Creates leaves and nodes in the listed bricks of the next level; sizes[i]: unknown nodes of bricks[i].
void octree_split(const int64_t* keys, uint64_t* masks, const void* values, int dtype, int64_t count, int64_t side,
                  const int64_t* fine_keys, uint64_t* fine_masks, void* fine_values, int64_t fine_side,
                  const int64_t* bricks, int64_t listed, int64_t* sizes, int threads);

// Adds values known `shift` levels coarser to the fine level's, where that has no node of its own.
void octree_add_coarse(const int64_t* keys, uint64_t* masks, const void* values, int dtype, int64_t count, int64_t side,
                       const int64_t* fine_keys, uint64_t* fine_masks, int64_t fine_count, int64_t fine_side, int shift,
                       void* fine_values, int threads);

// All values in dense (batch, nodes, nodes, nodes); where there is none, the value before along x, then along y, then
// along z. `table` (count, 6), in the memory of the host: see octree::DenseLevel.
void octree_dense(const int64_t* table, int64_t count, int dtype, int64_t batch, int64_t nodes, void* dense,
                  int threads);

}  // namespace occ::cpu
