// SPDX-License-Identifier: MIT
#include "cpu/marching_cubes_sparse.h"

#include "common/parallel.h"
#include "common/types.h"
#include "cpu/marching_cubes_bricks.h"
#include "math/marching_cubes_bricks.h"

namespace occ::cpu {
namespace {

constexpr int64_t kBrickBlock = 64;  // 128 kB of float values
constexpr int64_t kLinkBlock = 4096;

mc::Bricks make_bricks(const int64_t* keys, const int64_t* source, const int64_t* shape, int32_t* neighbours,
                       uint64_t* words) {
  return {keys, source, shape[0], shape[1], shape[2], shape[3], static_cast<int>(shape[4]), neighbours, words};
}

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
struct VertexOutput {
  acc_t<T>* position;
  acc_t<T>* normal;
  acc_t<T> level, margin;
};

template <class T>
void emit_vertex(const mc::BrickField<T>& field, const mc::BrickNode& node, const int64_t place[3], int axis,
                 VertexOutput<T>& out) {
  using S = acc_t<T>;
  const mc::BrickNode end = mc::node_after(field.bricks, node, axis);
  const S a = field(node), b = field(end);
  const S t = mc::crossing(a, b, out.level, out.margin);
  for (int i = 0; i < 3; ++i) {
    const S whole = static_cast<S>(place[i]);
    out.position[i] = i == axis ? whole + t : whole;
  }
  out.position += 3;
  if (out.normal == nullptr) return;
  S from[3], to[3];
  mc::brick_gradient(field, node, from);
  mc::brick_gradient(field, end, to);
  mc::outward_normal(from, to, t, axis, b > a, out.normal);
  out.normal += 3;
}

template <class T>
void emit_vertices(const mc::BrickField<T>& field, int64_t brick, VertexOutput<T> out) {
  int64_t first[3];
  mc::brick_place(field.bricks, brick, first);
  const uint64_t* words = mc::brick_words(field.bricks, brick);
  for (int x = 0; x < 8; ++x) {
    const mc::Crossings crossed = mc::stored_crossings(words, x);
    for (uint64_t left = crossed.x | crossed.y | crossed.z; left != 0; left &= left - 1) {
      const int bit = mc::lowest_bit(left);
      const int64_t place[3] = {first[0] + x, first[1] + (bit >> 3), first[2] + (bit & 7)};
      const uint64_t axes[3] = {crossed.x, crossed.y, crossed.z};
      for (int axis = 0; axis < 3; ++axis) {
        if ((axes[axis] >> bit & 1) != 0) emit_vertex(field, {brick, x, bit}, place, axis, out);
      }
    }
  }
}

}  // namespace

void marching_cubes_sparse_count(const int64_t* keys, const int64_t* source, const int64_t* shape, const void* values,
                                 int dtype, double level, double pad_value, int32_t* neighbours, uint64_t* words,
                                 int64_t* vertex_bricks, int64_t* face_bricks, int64_t* vertex_offsets,
                                 int64_t* face_offsets, int threads) {
  const mc::Bricks bricks = make_bricks(keys, source, shape, neighbours, words);
  const mc::BrickValues field{values, dtype, level, pad_value};
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
}

void marching_cubes_sparse_emit(const int64_t* keys, const int64_t* source, const int64_t* shape, const void* values,
                                int dtype, double level, double pad_value, int32_t* neighbours, uint64_t* words,
                                const int64_t* vertex_bricks, const int64_t* face_bricks, const int64_t* vertex_offsets,
                                double edge_margin, void* vertices, int64_t* faces, void* normals, int threads) {
  const mc::Bricks bricks = make_bricks(keys, source, shape, neighbours, words);
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using S = acc_t<T>;
    const mc::BrickField<T> field(bricks, {values, dtype, level, pad_value});
    parallel_blocks(threads, bricks.count, kBrickBlock, [&](int64_t begin, int64_t end) {
      for (int64_t e = begin; e < end; ++e) {
        const int64_t first = 3 * vertex_bricks[e];
        if (vertex_bricks[e] == vertex_bricks[e + 1]) continue;
        emit_vertices<T>(
            field, e,
            {static_cast<S*>(vertices) + first, normals == nullptr ? nullptr : static_cast<S*>(normals) + first,
             static_cast<S>(level), static_cast<S>(edge_margin)});
      }
      OCC_CALL_ISA(emit_bricks, bricks, vertex_bricks, face_bricks, vertex_offsets, faces, begin, end);
    });
  });
}

}  // namespace occ::cpu
