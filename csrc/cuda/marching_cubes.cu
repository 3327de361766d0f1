// SPDX-License-Identifier: MIT
// Marching cubes of dense volumes. A warp owns a row of nodes, its lanes nodes l and l + 32 of a word: values are read
// as whole lines, signs become words by ballot, and a cell's place among the triangles is a sum over the lanes below.
// The formulas are those of the CPU (math/marching_cubes*.h), compiled without contraction: same bits, same order.
#include "common/cuda_launch.h"
#include "common/cuda_scan.h"
#include "common/types.h"
#include "cuda/marching_cubes.h"
#include "math/marching_cubes.h"
#include "math/marching_cubes_edges.h"

namespace occ::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = kThreads / kWarp;  // of a block, neighbours in y

mc::Volume make_volume(const void* data, int dtype, const int64_t* shape, double level, bool pad, double pad_value) {
  return {data, dtype, pad ? 1 : 0, {shape[1], shape[2], shape[3]}, shape[4], shape[5], shape[6], level, pad_value};
}

mc::SignGrid make_grid(const mc::Volume& volume, int64_t batch, uint64_t* signs) {
  const int64_t nz = volume.size[2] + 2 * volume.pad;
  return {signs, batch, volume.size[0] + 2 * volume.pad, volume.size[1] + 2 * volume.pad, nz, (nz + 63) / 64};
}

// A block a run of rows of one plane: block x is the plane, y the run. (No division of 64-bit numbers a thread.)
dim3 grid_of(const mc::SignGrid& grid) {
  return dim3(static_cast<unsigned>(grid.batch * grid.nx), static_cast<unsigned>((grid.ny + kRows - 1) / kRows));
}

// The warp's row; its y is beyond the plane where there is none.
OCC_DEVICE mc::Row warp_row(const mc::SignGrid& grid) {
  const uint32_t nx = static_cast<uint32_t>(grid.nx);
  const int64_t y = static_cast<int64_t>(blockIdx.y) * kRows + threadIdx.x / kWarp;
  return {static_cast<int64_t>(blockIdx.x) * grid.ny + y, blockIdx.x / nx, blockIdx.x % nx, y};
}

constexpr int kWordsAtOnce = 4;  // loads in flight

template <class T>
OCC_KERNEL void __launch_bounds__(kThreads) pack_rows_kernel(mc::Volume volume, mc::SignGrid grid, int64_t* has_nan) {
  using S = acc_t<T>;
  const mc::Row row = warp_row(grid);
  if (row.y >= grid.ny) return;
  const S level = static_cast<S>(volume.level);
  const mc::Field<T> field(volume, row.b);
  const bool padding = volume.pad != 0 && (row.x == 0 || row.y == 0 || row.x + 1 == grid.nx || row.y + 1 == grid.ny);
  const T* values = field.data + (row.x - volume.pad) * field.stride_x + (row.y - volume.pad) * field.stride_y;
  uint64_t* words = grid.words + row.index * grid.row_words;
  bool nan = false;
  for (int64_t first = 0; first < grid.row_words; first += kWordsAtOnce) {
    S own[2 * kWordsAtOnce];
    for (int i = 0; i < 2 * kWordsAtOnce; ++i) {
      const int64_t z = 64 * first + 32 * i + lane_id() - volume.pad;
      const bool inner = !padding && z >= 0 && z < volume.size[2];
      own[i] = inner ? static_cast<S>(values[z]) : z <= volume.size[2] && volume.pad != 0 ? field.outside : level;
    }
    for (int i = 0; i < kWordsAtOnce && first + i < grid.row_words; ++i) {
      // Past the padding a lane holds the level itself: a sign of 0.
      const uint64_t low = ballot(own[2 * i] > level), high = ballot(own[2 * i + 1] > level);
      if (lane_id() == 0) words[first + i] = low | high << 32;
      nan |= own[2 * i] != own[2 * i] || own[2 * i + 1] != own[2 * i + 1];
    }
  }
  if (nan) *has_nan = 1;
}

// The four rows around the row of cells that begins at `row`.
OCC_DEVICE void rows_around(const mc::RowSigns& signs, const uint64_t* around[4]) {
  around[0] = signs.here;
  around[1] = signs.after_y;
  around[2] = signs.after_x;
  around[3] = signs.after_x + (signs.after_y - signs.here);
}

OCC_KERNEL void __launch_bounds__(kThreads)
    count_rows_kernel(mc::SignGrid grid, int64_t* vertex_rows, int64_t* face_rows) {
  const mc::Row row = warp_row(grid);
  if (row.y >= grid.ny) return;
  const mc::RowSigns signs = mc::row_signs(grid, row);
  const bool has_cells = mc::owns_cells(grid, row);
  const uint64_t* around[4];
  rows_around(signs, around);
  int64_t vertices = 0;
  int triangles = 0;
  for (int64_t w = 0; w < grid.row_words; ++w) {
    vertices += mc::vertex_count(mc::crossings(grid, signs, w));
    if (!has_cells) continue;
    const mc::Cells cells = mc::cells(grid, around, w);
    for (int bit = lane_id(); cells.active != 0 && bit < 64; bit += kWarp) {
      if ((cells.active >> bit & 1) != 0) triangles += mc::triangle_count(mc::cell_case(cells, bit));
    }
  }
  triangles = warp_sum(triangles);
  if (lane_id() == 0) {
    vertex_rows[row.index] = vertices;
    face_rows[row.index] = triangles;
  }
}

// Starts of the volumes and the totals.
OCC_KERNEL void finish_rows_kernel(const int64_t* vertex_rows, const int64_t* face_rows, int64_t rows_a_volume,
                                   int64_t batch, int64_t* vertex_offsets, int64_t* face_offsets, int64_t* totals) {
  OCC_GRID_STRIDE(b, batch + 1) {
    vertex_offsets[b] = vertex_rows[b * rows_a_volume];
    face_offsets[b] = face_rows[b * rows_a_volume];
    if (b == batch) {
      totals[0] = vertex_rows[b * rows_a_volume];
      totals[1] = face_rows[b * rows_a_volume];
    }
  }
}

template <class T>
OCC_KERNEL void __launch_bounds__(kThreads)
    emit_vertices_kernel(mc::Volume volume, mc::SignGrid grid, const int64_t* vertex_rows, double edge_margin,
                         mc::VertexTarget target) {
  using S = acc_t<T>;
  const mc::Row row = warp_row(grid);
  if (row.y >= grid.ny || vertex_rows[row.index] == vertex_rows[row.index + 1]) return;
  const mc::RowSigns signs = mc::row_signs(grid, row);
  const mc::Field<T> field(volume, row.b);
  int64_t first = vertex_rows[row.index];
  for (int64_t w = 0; w < grid.row_words; ++w) {
    const mc::Crossings crossed = mc::crossings(grid, signs, w);
    const uint64_t axes[3] = {crossed.x, crossed.y, crossed.z};
    for (int bit = lane_id(); bit < 64; bit += kWarp) {
      const uint64_t below = (uint64_t{1} << bit) - 1;
      int64_t vertex =
          first + mc::popcount(axes[0] & below) + mc::popcount(axes[1] & below) + mc::popcount(axes[2] & below);
      const int64_t node[3] = {row.x, row.y, 64 * w + bit};
      for (int axis = 0; axis < 3; ++axis) {
        if ((axes[axis] >> bit & 1) == 0) continue;
        mc::emit_vertex(field, row.b, node, axis, static_cast<S>(volume.level), static_cast<S>(edge_margin), target,
                        vertex++);
      }
    }
    first += mc::vertex_count(crossed);
  }
}

OCC_KERNEL void __launch_bounds__(kThreads)
    emit_faces_kernel(mc::SignGrid grid, const int64_t* vertex_rows, const int64_t* face_rows, int64_t* faces) {
  const mc::Row row = warp_row(grid);
  if (row.y >= grid.ny || face_rows[row.index] == face_rows[row.index + 1]) return;
  const int64_t base = vertex_rows[row.b * grid.nx * grid.ny];
  mc::RowSigns signs[4];
  const uint64_t* around[4];
  mc::RowRanks ranks[4];
  for (int k = 0; k < 4; ++k) {
    const mc::Row nodes = mc::neighbour(grid, row, k >> 1, k & 1);
    signs[k] = mc::row_signs(grid, nodes);
    around[k] = signs[k].here;
    ranks[k].first = vertex_rows[nodes.index] - base;
  }
  int64_t first = face_rows[row.index];
  for (int64_t w = 0; w < grid.row_words; ++w) {
    const mc::Cells cells = mc::cells(grid, around, w);
    for (int k = 0; k < 4; ++k) {
      ranks[k].here = mc::crossings(grid, signs[k], w);
      mc::Crossings next{0, 0, 0};
      if (w + 1 < grid.row_words) next = mc::crossings(grid, signs[k], w + 1);
      ranks[k].above = mc::move_down(ranks[k].here, next);
    }
    for (int bit = lane_id(); cells.active != 0 && bit < 64; bit += kWarp) {
      const unsigned code = (cells.active >> bit & 1) != 0 ? mc::cell_case(cells, bit) : 0;
      const int count = mc::triangle_count(code);
      const int inclusive = warp_inclusive_sum(count);
      int64_t* out = faces + 3 * (first + inclusive - count);
      first += shuffle(inclusive, kWarp - 1);
      if (count == 0) continue;
      int64_t vertex[12];
      mc::cell_vertices(ranks, bit, vertex);
      const uint8_t* edges = mc::triangle_edges(code);
      for (int i = 0; i < 3 * count; ++i) out[i] = vertex[edges[i]];
    }
    for (int k = 0; k < 4; ++k) ranks[k].first += mc::vertex_count(ranks[k].here);
  }
}

template <class T>
OCC_KERNEL void __launch_bounds__(kThreads)
    gather_rows_kernel(mc::Volume volume, mc::SignGrid grid, const int64_t* vertex_rows, double edge_margin,
                       mc::VertexGradient gradient) {
  using S = acc_t<T>;
  const mc::Row row = warp_row(grid);
  if (row.y >= grid.ny) return;
  const mc::Field<T> field(volume, row.b);
  for (int64_t w = 0; w < grid.row_words; ++w) {
    const uint64_t nodes = mc::nodes_with_edges(grid, row, w);
    for (int bit = lane_id(); nodes != 0 && bit < 64; bit += kWarp) {
      if ((nodes >> bit & 1) == 0) continue;
      mc::gather_dense(grid, field, vertex_rows, row, w, bit, gradient, static_cast<S>(volume.level),
                       static_cast<S>(edge_margin));
    }
  }
}

}  // namespace

void marching_cubes_count(const void* volume, int dtype, const int64_t* shape, double level, bool pad, double pad_value,
                          uint64_t* signs, int64_t* vertex_rows, int64_t* face_rows, int64_t* vertex_offsets,
                          int64_t* face_offsets, int64_t* totals, int64_t* scratch, uintptr_t stream) {
  const mc::Volume source = make_volume(volume, dtype, shape, level, pad, pad_value);
  const mc::SignGrid grid = make_grid(source, shape[0], signs);
  const int64_t rows = mc::row_count(grid);
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    OCC_LAUNCH(pack_rows_kernel<T>, grid_of(grid), kThreads, 0, stream, source, grid, totals + 2);
  });
  OCC_LAUNCH(count_rows_kernel, grid_of(grid), kThreads, 0, stream, grid, vertex_rows, face_rows);
  exclusive_scan(vertex_rows, face_rows, scratch, rows, stream);
  OCC_LAUNCH(finish_rows_kernel, grid_for(grid.batch + 1, kThreads), kThreads, 0, stream, vertex_rows, face_rows,
             grid.nx * grid.ny, grid.batch, vertex_offsets, face_offsets, totals);
}

void marching_cubes_emit(const void* volume, int dtype, const int64_t* shape, double level, bool pad, double pad_value,
                         uint64_t* signs, const int64_t* vertex_rows, const int64_t* face_rows, double edge_margin,
                         const void* attributes, int64_t channels, void* vertices, int64_t* faces, void* normals,
                         void* vertex_attributes, uintptr_t stream) {
  const mc::Volume source = make_volume(volume, dtype, shape, level, pad, pad_value);
  const mc::SignGrid grid = make_grid(source, shape[0], signs);
  const mc::VertexTarget target{vertices, normals, vertex_attributes, attributes, channels};
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    OCC_LAUNCH(emit_vertices_kernel<T>, grid_of(grid), kThreads, 0, stream, source, grid, vertex_rows, edge_margin,
               target);
  });
  OCC_LAUNCH(emit_faces_kernel, grid_of(grid), kThreads, 0, stream, grid, vertex_rows, face_rows, faces);
}

void marching_cubes_gather(const void* volume, int dtype, const int64_t* shape, double level, bool pad,
                           double pad_value, uint64_t* signs, const int64_t* vertex_rows, double edge_margin,
                           const void* attributes, int64_t channels, const void* vertex_gradient,
                           const void* attribute_gradient, void* volume_gradient, void* node_attribute_gradient,
                           uintptr_t stream) {
  const mc::Volume source = make_volume(volume, dtype, shape, level, pad, pad_value);
  const mc::SignGrid grid = make_grid(source, shape[0], signs);
  const mc::VertexGradient gradient{vertex_gradient, attribute_gradient, attributes,
                                    channels,        volume_gradient,    node_attribute_gradient};
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    OCC_LAUNCH(gather_rows_kernel<T>, grid_of(grid), kThreads, 0, stream, source, grid, vertex_rows, edge_margin,
               gradient);
  });
}

}  // namespace occ::cuda
