// SPDX-License-Identifier: MIT
#include "cpu/marching_cubes_sparse.h"

#include "common/parallel.h"
#include "common/types.h"
#include "cpu/marching_cubes_bricks.h"
#include "math/marching_cubes_brick_values.h"
#include "math/marching_cubes_bricks.h"

namespace occ::cpu {
namespace {

constexpr int64_t kBrickBlock = 64;  // 128 kB of float values
constexpr int64_t kLinkBlock = 4096;

// Keys ascend, hence so do the keys of a neighbour: one pass over both lists an entry.
void link_bricks(const mc::Bricks& bricks, int64_t begin, int64_t end) {
  for (int entry = 0; entry < mc::kNeighbours; ++entry) {
    int64_t at = -1;
    for (int64_t e = begin; e < end; ++e) {
      int32_t& neighbour = bricks.neighbours[e * mc::kNeighbours + entry];
      neighbour = -1;
      const int64_t key = mc::neighbour_key(bricks, bricks.keys[e], entry);
      if (key < 0) continue;
      if (at < 0) at = mc::first_brick(bricks, key);
      while (at < bricks.count && bricks.keys[at] < key) ++at;
      if (at < bricks.count && bricks.keys[at] == key) neighbour = static_cast<int32_t>(at);
    }
  }
}

// Counts of bricks become starts (starts[count] holds the total); offsets gets the start of every lattice.
void accumulate(const mc::Bricks& bricks, int64_t* starts, int64_t* offsets) {
  int64_t running = 0;
  for (int64_t e = 0; e < bricks.count; ++e) {
    const int64_t size = starts[e];
    starts[e] = running;
    running += size;
  }
  starts[bricks.count] = running;
  for (int64_t b = 0; b <= bricks.batch; ++b) {
    offsets[b] = starts[mc::first_brick(bricks, b * bricks.side * bricks.side * bricks.side)];
  }
}

template <class T>
void emit_vertices(const mc::BrickField<T>& field, const int64_t* vertex_bricks, int64_t brick, acc_t<T> level,
                   acc_t<T> margin, const mc::VertexTarget& target) {
  int64_t vertex = vertex_bricks[brick], first[3];
  if (vertex == vertex_bricks[brick + 1]) return;
  mc::brick_place(field.bricks, brick, first);
  const uint64_t* words = mc::brick_words(field.bricks, brick);
  for (int x = 0; x < 8; ++x) {
    const mc::Crossings crossed = mc::stored_crossings(words, x);
    for (uint64_t left = crossed.x | crossed.y | crossed.z; left != 0; left &= left - 1) {
      const int bit = mc::lowest_bit(left);
      const int64_t place[3] = {first[0] + x, first[1] + (bit >> 3), first[2] + (bit & 7)};
      const uint64_t axes[3] = {crossed.x, crossed.y, crossed.z};
      for (int axis = 0; axis < 3; ++axis) {
        if ((axes[axis] >> bit & 1) == 0) continue;
        mc::emit_brick_vertex<T>(field, {brick, x, bit}, place, axis, level, margin, target, vertex++);
      }
    }
  }
}

}  // namespace

void marching_cubes_sparse_count(const int64_t* keys, const int64_t* source, const int64_t* shape, const void* values,
                                 int dtype, double level, double pad_value, int32_t* neighbours, uint64_t* words,
                                 int64_t* vertex_bricks, int64_t* face_bricks, int64_t* vertex_offsets,
                                 int64_t* face_offsets, int64_t* totals, int64_t*, int threads) {
  const mc::Bricks bricks = mc::make_bricks(keys, source, shape, neighbours, words);
  const mc::BrickValues field{values, dtype, level, pad_value};
  for (int64_t e = 0; e < bricks.count; ++e) totals[2] |= mc::key_in_order(bricks, e) ? 0 : 1;
  if (totals[2] != 0) return;
  parallel_blocks(threads, bricks.count, kLinkBlock,
                  [&](int64_t begin, int64_t end) { link_bricks(bricks, begin, end); });
  parallel_blocks(threads, bricks.count, kBrickBlock,
                  [&](int64_t begin, int64_t end) { OCC_CALL_ISA(pack_bricks, bricks, field, begin, end); });
  parallel_blocks(threads, bricks.count, kBrickBlock,
                  [&](int64_t begin, int64_t end) { OCC_CALL_ISA(complete_bricks, bricks, begin, end); });
  parallel_blocks(threads, bricks.count, kBrickBlock, [&](int64_t begin, int64_t end) {
    OCC_CALL_ISA(count_bricks, bricks, vertex_bricks, face_bricks, begin, end);
  });
  accumulate(bricks, vertex_bricks, vertex_offsets);
  accumulate(bricks, face_bricks, face_offsets);
  totals[0] = vertex_bricks[bricks.count];
  totals[1] = face_bricks[bricks.count];
}

void marching_cubes_sparse_emit(const int64_t* keys, const int64_t* source, const int64_t* shape, const void* values,
                                int dtype, double level, double pad_value, int32_t* neighbours, uint64_t* words,
                                const int64_t* vertex_bricks, const int64_t* face_bricks, const int64_t* vertex_offsets,
                                double edge_margin, const void* attributes, int64_t channels, void* vertices,
                                int64_t* faces, void* normals, void* vertex_attributes, int threads) {
  const mc::Bricks bricks = mc::make_bricks(keys, source, shape, neighbours, words);
  const mc::VertexTarget target{vertices, normals, vertex_attributes, attributes, channels};
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using S = acc_t<T>;
    const mc::BrickField<T> field(bricks, {values, dtype, level, pad_value});
    parallel_blocks(threads, bricks.count, kBrickBlock, [&](int64_t begin, int64_t end) {
      for (int64_t e = begin; e < end; ++e) {
        emit_vertices<T>(field, vertex_bricks, e, static_cast<S>(level), static_cast<S>(edge_margin), target);
      }
      OCC_CALL_ISA(emit_bricks, bricks, vertex_bricks, face_bricks, vertex_offsets, faces, begin, end);
    });
  });
}

void marching_cubes_sparse_gather(const int64_t* keys, const int64_t* source, const int64_t* shape, const void* values,
                                  int dtype, double level, double pad_value, int32_t* neighbours, uint64_t* words,
                                  const int64_t* vertex_bricks, double edge_margin, const void* attributes,
                                  int64_t channels, const void* vertex_gradient, const void* attribute_gradient,
                                  void* value_gradient, void* node_attribute_gradient, int threads) {
  const mc::Bricks bricks = mc::make_bricks(keys, source, shape, neighbours, words);
  const mc::VertexGradient gradient{vertex_gradient, attribute_gradient, attributes,
                                    channels,        value_gradient,     node_attribute_gradient};
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using S = acc_t<T>;
    const mc::BrickField<T> field(bricks, {values, dtype, level, pad_value});
    parallel_blocks(threads, bricks.count, kBrickBlock, [&](int64_t begin, int64_t end) {
      for (int64_t word = 8 * begin; word < 8 * end; ++word) {
        const int64_t e = word / 8;
        const int x = static_cast<int>(word % 8);
        for (uint64_t left = mc::brick_nodes_with_edges(bricks, e, x); left != 0; left &= left - 1) {
          mc::gather_brick<T>(field, vertex_bricks, {e, x, mc::lowest_bit(left)}, gradient, static_cast<S>(level),
                              static_cast<S>(edge_margin));
        }
      }
    });
  });
}

}  // namespace occ::cpu
