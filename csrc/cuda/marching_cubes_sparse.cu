// SPDX-License-Identifier: MIT
// Marching cubes of bricks. Eight neighbouring lanes own the words of a brick where words are worked on, a warp owns a
// brick where values are read or results written (lanes own nodes l and l + 32 of a word). The formulas are those of
// the CPU (math/marching_cubes*.h), compiled without contraction: same bits, same order.
#include "common/cuda_launch.h"
#include "common/cuda_scan.h"
#include "common/types.h"
#include "cuda/marching_cubes.h"
#include "math/marching_cubes_brick_values.h"
#include "math/marching_cubes_bricks.h"

namespace occ::cuda {
namespace {

constexpr int kThreads = 256;

// The brick of the warp; beyond the last one where there is none.
OCC_DEVICE int64_t warp_brick() { return (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp; }

unsigned warps_for(const mc::Bricks& bricks) { return grid_for(bricks.count * kWarp, kThreads); }

OCC_KERNEL void link_bricks_kernel(mc::Bricks bricks, int64_t* unsorted) {
  OCC_GRID_STRIDE(i, bricks.count * mc::kNeighbours) {
    const int64_t brick = i / mc::kNeighbours;
    const int entry = static_cast<int>(i - brick * mc::kNeighbours);
    if (entry == 0 && !mc::key_in_order(bricks, brick)) *unsorted = 1;
    const int64_t key = mc::neighbour_key(bricks, bricks.keys[brick], entry);
    const int64_t at = key < 0 ? bricks.count : mc::first_brick(bricks, key);
    bricks.neighbours[i] = at < bricks.count && bricks.keys[at] == key ? static_cast<int32_t>(at) : -1;
  }
}

template <class T>
OCC_KERNEL void __launch_bounds__(kThreads) pack_bricks_kernel(mc::Bricks bricks, mc::BrickValues values) {
  using S = acc_t<T>;
  const int64_t brick = warp_brick();
  if (brick >= bricks.count) return;
  const S level = static_cast<S>(values.level);
  const mc::BrickField<T> field(bricks, values);
  const int64_t row = bricks.source == nullptr ? brick : bricks.source[brick];
  S own[16];
  for (int i = 0; i < 16; ++i) {
    const int bit = 32 * (i & 1) + lane_id();
    own[i] =
        row >= 0 ? static_cast<S>(field.data[row * mc::kBrickNodes + 32 * i + lane_id()]) : field({brick, i >> 1, bit});
  }
  uint64_t* words = mc::brick_words(bricks, brick);
  for (int x = 0; x < 8; ++x) {
    const S low = own[2 * x], high = own[2 * x + 1];
    const uint64_t signs = ballot(low > level) | static_cast<uint64_t>(ballot(high > level)) << 32;
    const uint64_t known = ballot(low == low) | static_cast<uint64_t>(ballot(high == high)) << 32;
    if (lane_id() != 0) continue;
    words[mc::kSigns + x] = signs;
    words[mc::kKnown + x] = known;
  }
}

OCC_KERNEL void complete_bricks_kernel(mc::Bricks bricks) {
  OCC_GRID_STRIDE(i, bricks.count * 8) {
    const int64_t brick = i / 8;
    const int x = static_cast<int>(i % 8);
    const int32_t* neighbours = bricks.neighbours + brick * mc::kNeighbours;
    uint64_t here[4], next[4];
    mc::plane_words(bricks, neighbours, mc::kKnown, x, here);
    mc::plane_words(bricks, neighbours, mc::kKnown, x + 1, next);
    mc::brick_words(bricks, brick)[mc::kComplete + x] =
        here[0] & here[1] & here[2] & here[3] & next[0] & next[1] & next[2] & next[3];
  }
}

OCC_KERNEL void __launch_bounds__(kThreads)
    count_bricks_kernel(mc::Bricks bricks, int64_t* vertex_bricks, int64_t* face_bricks) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t brick = item / 8;
  const int x = static_cast<int>(item % 8);
  mc::BrickCounts own{0, 0};
  if (brick < bricks.count) {
    const int32_t* neighbours = bricks.neighbours + brick * mc::kNeighbours;
    uint64_t here[4], next[4];
    mc::plane_words(bricks, neighbours, mc::kSigns, x, here);
    mc::plane_words(bricks, neighbours, mc::kSigns, x + 1, next);
    own = mc::count_word(bricks, brick, x, here, next);
  }
  int64_t vertices = own.vertices, triangles = own.triangles;
  for (int distance = 1; distance < 8; distance *= 2) {
    const int64_t v = shuffle_up(vertices, distance), t = shuffle_up(triangles, distance);
    vertices += x >= distance ? v : 0;
    triangles += x >= distance ? t : 0;
  }
  uint64_t starts = static_cast<uint64_t>(vertices - own.vertices) << 16 * (x % 4);
  starts |= shuffle_xor(starts, 1);
  starts |= shuffle_xor(starts, 2);
  if (brick >= bricks.count) return;
  if (x % 4 == 0) mc::brick_words(bricks, brick)[mc::kStarts + x / 4] = starts;
  if (x != 7) return;
  vertex_bricks[brick] = vertices;
  face_bricks[brick] = triangles;
}

// Starts of the lattices and the totals.
OCC_KERNEL void finish_bricks_kernel(mc::Bricks bricks, const int64_t* vertex_bricks, const int64_t* face_bricks,
                                     int64_t* vertex_offsets, int64_t* face_offsets, int64_t* totals) {
  OCC_GRID_STRIDE(b, bricks.batch + 1) {
    const int64_t first = mc::first_brick(bricks, b * bricks.side * bricks.side * bricks.side);
    vertex_offsets[b] = vertex_bricks[first];
    face_offsets[b] = face_bricks[first];
    if (b == bricks.batch) {
      totals[0] = vertex_bricks[bricks.count];
      totals[1] = face_bricks[bricks.count];
    }
  }
}

template <class T>
OCC_KERNEL void __launch_bounds__(kThreads)
    emit_brick_vertices_kernel(mc::BrickField<T> field, const int64_t* vertex_bricks, acc_t<T> level, acc_t<T> margin,
                               mc::VertexTarget target) {
  const int64_t brick = warp_brick();
  if (brick >= field.bricks.count || vertex_bricks[brick] == vertex_bricks[brick + 1]) return;
  int64_t first[3];
  mc::brick_place(field.bricks, brick, first);
  const uint64_t* words = mc::brick_words(field.bricks, brick);
  for (int x = 0; x < 8; ++x) {
    const mc::Crossings crossed = mc::stored_crossings(words, x);
    const uint64_t axes[3] = {crossed.x, crossed.y, crossed.z};
    for (int bit = lane_id(); bit < 64; bit += kWarp) {
      if (((axes[0] | axes[1] | axes[2]) >> bit & 1) == 0) continue;
      const mc::BrickNode node{brick, x, bit};
      const int64_t place[3] = {first[0] + x, first[1] + (bit >> 3), first[2] + (bit & 7)};
      int64_t vertex = mc::first_vertex(field.bricks, vertex_bricks, node, crossed);
      for (int axis = 0; axis < 3; ++axis) {
        if ((axes[axis] >> bit & 1) == 0) continue;
        mc::emit_brick_vertex(field, node, place, axis, level, margin, target, vertex++);
      }
    }
  }
}

OCC_KERNEL void __launch_bounds__(kThreads)
    emit_brick_faces_kernel(mc::Bricks bricks, const int64_t* vertex_bricks, const int64_t* face_bricks,
                            const int64_t* vertex_offsets, int64_t* faces) {
  const int64_t brick = warp_brick();
  if (brick >= bricks.count || face_bricks[brick] == face_bricks[brick + 1]) return;
  int64_t place[3];
  const int64_t base = vertex_offsets[mc::brick_place(bricks, brick, place)];
  const int32_t* neighbours = bricks.neighbours + brick * mc::kNeighbours;
  const uint64_t* words = mc::brick_words(bricks, brick);
  int64_t first = face_bricks[brick];
  uint64_t here[4], next[4];
  mc::plane_words(bricks, neighbours, mc::kSigns, 0, next);
  for (int x = 0; x < 8; ++x) {
    for (int k = 0; k < 4; ++k) here[k] = next[k];
    mc::plane_words(bricks, neighbours, mc::kSigns, x + 1, next);
    const mc::Cells cells = mc::brick_cells(here, next, words[mc::kComplete + x]);
    for (int bit = lane_id(); cells.active != 0 && bit < 64; bit += kWarp) {
      const unsigned code = (cells.active >> bit & 1) != 0 ? mc::cell_case(cells, bit) : 0;
      const int count = mc::triangle_count(code);
      const int inclusive = warp_inclusive_sum(count);
      int64_t* out = faces + 3 * (first + inclusive - count);
      first += shuffle(inclusive, kWarp - 1);
      if (count == 0) continue;
      int64_t vertex[12];
      mc::brick_cell_vertices(bricks, vertex_bricks, {brick, x, bit}, vertex);
      const uint8_t* edges = mc::triangle_edges(code);
      for (int i = 0; i < 3 * count; ++i) out[i] = vertex[edges[i]] - base;
    }
  }
}

template <class T>
OCC_KERNEL void __launch_bounds__(kThreads)
    gather_bricks_kernel(mc::BrickField<T> field, const int64_t* vertex_bricks, acc_t<T> level, acc_t<T> margin,
                         mc::VertexGradient gradient) {
  const int64_t brick = warp_brick();
  if (brick >= field.bricks.count) return;
  for (int x = 0; x < 8; ++x) {
    const uint64_t nodes = mc::brick_nodes_with_edges(field.bricks, brick, x);
    for (int bit = lane_id(); nodes != 0 && bit < 64; bit += kWarp) {
      if ((nodes >> bit & 1) == 0) continue;
      mc::gather_brick(field, vertex_bricks, {brick, x, bit}, gradient, level, margin);
    }
  }
}

}  // namespace

void marching_cubes_sparse_count(const int64_t* keys, const int64_t* source, const int64_t* shape, const void* values,
                                 int dtype, double level, double pad_value, int32_t* neighbours, uint64_t* words,
                                 int64_t* vertex_bricks, int64_t* face_bricks, int64_t* vertex_offsets,
                                 int64_t* face_offsets, int64_t* totals, int64_t* scratch, uintptr_t stream) {
  const mc::Bricks bricks = mc::make_bricks(keys, source, shape, neighbours, words);
  OCC_LAUNCH(link_bricks_kernel, grid_for(bricks.count * mc::kNeighbours, kThreads), kThreads, 0, stream, bricks,
             totals + 2);
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    OCC_LAUNCH(pack_bricks_kernel<T>, warps_for(bricks), kThreads, 0, stream, bricks,
               mc::BrickValues{values, dtype, level, pad_value});
  });
  const unsigned eighths = grid_for(bricks.count * 8, kThreads);
  OCC_LAUNCH(complete_bricks_kernel, eighths, kThreads, 0, stream, bricks);
  OCC_LAUNCH(count_bricks_kernel, eighths, kThreads, 0, stream, bricks, vertex_bricks, face_bricks);
  exclusive_scan(vertex_bricks, face_bricks, scratch, bricks.count, stream);
  OCC_LAUNCH(finish_bricks_kernel, grid_for(bricks.batch + 1, kThreads), kThreads, 0, stream, bricks, vertex_bricks,
             face_bricks, vertex_offsets, face_offsets, totals);
}

void marching_cubes_sparse_emit(const int64_t* keys, const int64_t* source, const int64_t* shape, const void* values,
                                int dtype, double level, double pad_value, int32_t* neighbours, uint64_t* words,
                                const int64_t* vertex_bricks, const int64_t* face_bricks, const int64_t* vertex_offsets,
                                double edge_margin, const void* attributes, int64_t channels, void* vertices,
                                int64_t* faces, void* normals, void* vertex_attributes, uintptr_t stream) {
  const mc::Bricks bricks = mc::make_bricks(keys, source, shape, neighbours, words);
  const mc::VertexTarget target{vertices, normals, vertex_attributes, attributes, channels};
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using S = acc_t<T>;
    OCC_LAUNCH(emit_brick_vertices_kernel<T>, warps_for(bricks), kThreads, 0, stream,
               mc::BrickField<T>(bricks, {values, dtype, level, pad_value}), vertex_bricks, static_cast<S>(level),
               static_cast<S>(edge_margin), target);
  });
  OCC_LAUNCH(emit_brick_faces_kernel, warps_for(bricks), kThreads, 0, stream, bricks, vertex_bricks, face_bricks,
             vertex_offsets, faces);
}

void marching_cubes_sparse_gather(const int64_t* keys, const int64_t* source, const int64_t* shape, const void* values,
                                  int dtype, double level, double pad_value, int32_t* neighbours, uint64_t* words,
                                  const int64_t* vertex_bricks, double edge_margin, const void* attributes,
                                  int64_t channels, const void* vertex_gradient, const void* attribute_gradient,
                                  void* value_gradient, void* node_attribute_gradient, uintptr_t stream) {
  const mc::Bricks bricks = mc::make_bricks(keys, source, shape, neighbours, words);
  const mc::VertexGradient gradient{vertex_gradient, attribute_gradient, attributes,
                                    channels,        value_gradient,     node_attribute_gradient};
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using S = acc_t<T>;
    OCC_LAUNCH(gather_bricks_kernel<T>, warps_for(bricks), kThreads, 0, stream,
               mc::BrickField<T>(bricks, {values, dtype, level, pad_value}), vertex_bricks, static_cast<S>(level),
               static_cast<S>(edge_margin), gradient);
  });
}

}  // namespace occ::cuda
