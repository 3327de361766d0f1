// SPDX-License-Identifier: MIT
#include "cpu/marching_cubes.h"

#include "common/parallel.h"
#include "common/types.h"
#include "cpu/marching_cubes_rows.h"
#include "math/marching_cubes.h"
#include "math/marching_cubes_edges.h"

namespace occ::cpu {
namespace {

constexpr int64_t kRowBlock = 64;  // 64 kB of a 256 cubed float volume

mc::Volume make_volume(const void* data, int dtype, const int64_t* shape, double level, bool pad, double pad_value) {
  return {data, dtype, pad ? 1 : 0, {shape[1], shape[2], shape[3]}, shape[4], shape[5], shape[6], level, pad_value};
}

mc::SignGrid make_grid(const mc::Volume& volume, int64_t batch, uint64_t* signs) {
  const int64_t nz = volume.size[2] + 2 * volume.pad;
  return {signs, batch, volume.size[0] + 2 * volume.pad, volume.size[1] + 2 * volume.pad, nz, (nz + 63) / 64};
}

// Counts of rows become starts of rows (rows[count] holds the total); offsets gets the start of every volume.
void accumulate(int64_t* rows, int64_t count, int64_t rows_a_volume, int64_t batch, int64_t* offsets) {
  int64_t running = 0;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t size = rows[r];
    rows[r] = running;
    running += size;
  }
  rows[count] = running;
  for (int64_t b = 0; b <= batch; ++b) offsets[b] = rows[b * rows_a_volume];
}

template <class T>
void emit_vertices(const mc::Volume& volume, const mc::SignGrid& grid, const int64_t* vertex_rows, double edge_margin,
                   const mc::VertexTarget& target, int64_t begin, int64_t end) {
  using S = acc_t<T>;
  const S level = static_cast<S>(volume.level);
  const S margin = static_cast<S>(edge_margin);
  for (int64_t r = begin; r < end; ++r) {
    if (vertex_rows[r] == vertex_rows[r + 1]) continue;
    const mc::Row row = mc::row_at(grid, r);
    const mc::RowSigns signs = mc::row_signs(grid, row);
    const mc::Field<T> field(volume, row.b);
    int64_t vertex = vertex_rows[r];
    for (int64_t w = 0; w < grid.row_words; ++w) {
      const mc::Crossings crossed = mc::crossings(grid, signs, w);
      for (uint64_t left = crossed.x | crossed.y | crossed.z; left != 0; left &= left - 1) {
        const int bit = mc::lowest_bit(left);
        const int64_t node[3] = {row.x, row.y, 64 * w + bit};
        const uint64_t axes[3] = {crossed.x, crossed.y, crossed.z};
        for (int axis = 0; axis < 3; ++axis) {
          if ((axes[axis] >> bit & 1) != 0) mc::emit_vertex(field, row.b, node, axis, level, margin, target, vertex++);
        }
      }
    }
  }
}

template <class T>
void gather_rows(const mc::Volume& volume, const mc::SignGrid& grid, const int64_t* vertex_rows, double edge_margin,
                 const mc::VertexGradient& gradient, int64_t begin, int64_t end) {
  using S = acc_t<T>;
  for (int64_t r = begin; r < end; ++r) {
    const mc::Row row = mc::row_at(grid, r);
    const mc::Field<T> field(volume, row.b);
    for (int64_t w = 0; w < grid.row_words; ++w) {
      for (uint64_t left = mc::nodes_with_edges(grid, row, w); left != 0; left &= left - 1) {
        mc::gather_dense(grid, field, vertex_rows, row, w, mc::lowest_bit(left), gradient, static_cast<S>(volume.level),
                         static_cast<S>(edge_margin));
      }
    }
  }
}

}  // namespace

void marching_cubes_count(const void* volume, int dtype, const int64_t* shape, double level, bool pad, double pad_value,
                          uint64_t* signs, int64_t* vertex_rows, int64_t* face_rows, int64_t* vertex_offsets,
                          int64_t* face_offsets, int64_t* totals, int64_t*, int threads) {
  const mc::Volume source = make_volume(volume, dtype, shape, level, pad, pad_value);
  const mc::SignGrid grid = make_grid(source, shape[0], signs);
  const int64_t rows = mc::row_count(grid);
  int64_t* nan = vertex_rows;  // until the vertices are counted
  parallel_blocks(threads, rows, kRowBlock,
                  [&](int64_t begin, int64_t end) { OCC_CALL_ISA(pack_rows, source, grid, nan, begin, end); });
  for (int64_t r = 0; r < rows; ++r) {
    totals[2] |= nan[r];
  }
  if (totals[2] != 0) return;
  parallel_blocks(threads, rows, kRowBlock, [&](int64_t begin, int64_t end) {
    OCC_CALL_ISA(count_rows, grid, vertex_rows, face_rows, begin, end);
  });
  accumulate(vertex_rows, rows, grid.nx * grid.ny, grid.batch, vertex_offsets);
  accumulate(face_rows, rows, grid.nx * grid.ny, grid.batch, face_offsets);
  totals[0] = vertex_rows[rows];
  totals[1] = face_rows[rows];
}

void marching_cubes_emit(const void* volume, int dtype, const int64_t* shape, double level, bool pad, double pad_value,
                         uint64_t* signs, const int64_t* vertex_rows, const int64_t* face_rows, double edge_margin,
                         const void* attributes, int64_t channels, void* vertices, int64_t* faces, void* normals,
                         void* vertex_attributes, int threads) {
  const mc::Volume source = make_volume(volume, dtype, shape, level, pad, pad_value);
  const mc::SignGrid grid = make_grid(source, shape[0], signs);
  const mc::VertexTarget target{vertices, normals, vertex_attributes, attributes, channels};
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    parallel_blocks(threads, mc::row_count(grid), kRowBlock, [&](int64_t begin, int64_t end) {
      emit_vertices<T>(source, grid, vertex_rows, edge_margin, target, begin, end);
      OCC_CALL_ISA(emit_rows, grid, vertex_rows, face_rows, faces, begin, end);
    });
  });
}

void marching_cubes_gather(const void* volume, int dtype, const int64_t* shape, double level, bool pad,
                           double pad_value, uint64_t* signs, const int64_t* vertex_rows, double edge_margin,
                           const void* attributes, int64_t channels, const void* vertex_gradient,
                           const void* attribute_gradient, void* volume_gradient, void* node_attribute_gradient,
                           int threads) {
  const mc::Volume source = make_volume(volume, dtype, shape, level, pad, pad_value);
  const mc::SignGrid grid = make_grid(source, shape[0], signs);
  const mc::VertexGradient gradient{vertex_gradient, attribute_gradient, attributes,
                                    channels,        volume_gradient,    node_attribute_gradient};
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    parallel_blocks(threads, mc::row_count(grid), kRowBlock, [&](int64_t begin, int64_t end) {
      gather_rows<T>(source, grid, vertex_rows, edge_margin, gradient, begin, end);
    });
  });
}

}  // namespace occ::cpu
