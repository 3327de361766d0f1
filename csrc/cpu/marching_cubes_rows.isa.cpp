// SPDX-License-Identifier: MIT
#include "cpu/marching_cubes_rows.h"

#include "common/types.h"
#include "cpu/marching_cubes_pack.h"

namespace occ::cpu {
namespace OCC_ISA {
namespace {

template <class T>
void pack_typed(const mc::Volume& volume, const mc::SignGrid& grid, int64_t* nan, int64_t begin, int64_t end) {
  using S = acc_t<T>;
  const S level = static_cast<S>(volume.level);
  const int64_t pad = volume.pad;
  const uint64_t outside = pad != 0 && static_cast<S>(volume.pad_value) > level ? ~uint64_t{0} : 0;
  for (int64_t r = begin; r < end; ++r) {
    const mc::Row row = mc::row_at(grid, r);
    uint64_t* words = grid.words + r * grid.row_words;
    const int64_t x = row.x - pad, y = row.y - pad;
    const bool virtual_row = x < 0 || y < 0 || x >= volume.size[0] || y >= volume.size[1];
    const T* values = nullptr;
    if (!virtual_row) {
      values =
          static_cast<const T*>(volume.data) + row.b * volume.stride_batch + x * volume.stride_x + y * volume.stride_y;
    }
    bool found = false;
    for (int64_t w = 0; w < grid.row_words; ++w) {
      // Nodes [64 w, last) of the row hold values [from, to).
      const int64_t last = 64 * w + 64 < grid.nz ? 64 * w + 64 : grid.nz;
      uint64_t bits = outside;
      if (!virtual_row) {
        const int64_t from = w == 0 ? 0 : 64 * w - pad;
        const int64_t to = last - pad < volume.size[2] ? last - pad : volume.size[2];
        const int shift = static_cast<int>(from + pad - 64 * w);
        const int count = to > from ? static_cast<int>(to - from) : 0;
        if (count > 0) {
          const uint64_t covered = (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << shift;
          bits = (outside & ~covered) | mc::pack(values + from, count, level, found) << shift;
        }
      }
      const int64_t nodes = last - 64 * w;
      words[w] = nodes == 64 ? bits : bits & ((uint64_t{1} << nodes) - 1);
    }
    nan[r] = found ? 1 : 0;
  }
}

}  // namespace

void pack_rows(const mc::Volume& volume, const mc::SignGrid& grid, int64_t* nan, int64_t begin, int64_t end) {
  dispatch(volume.dtype, [&](auto type) { pack_typed<typename decltype(type)::type>(volume, grid, nan, begin, end); });
}

void count_rows(const mc::SignGrid& grid, int64_t* vertices, int64_t* triangles, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const mc::Row row = mc::row_at(grid, r);
    const mc::RowSigns signs = mc::row_signs(grid, row);
    const bool has_cells = mc::owns_cells(grid, row);
    const uint64_t* around[4] = {signs.here, signs.after_y, signs.after_x,
                                 signs.after_x + (signs.after_y - signs.here)};
    int64_t vertex_count = 0, triangle_count = 0;
    for (int64_t w = 0; w < grid.row_words; ++w) {
      vertex_count += mc::vertex_count(mc::crossings(grid, signs, w));
      if (!has_cells) continue;
      const mc::Cells cells = mc::cells(grid, around, w);
      for (uint64_t left = cells.active; left != 0; left &= left - 1) {
        triangle_count += mc::triangle_count(mc::cell_case(cells, mc::lowest_bit(left)));
      }
    }
    vertices[r] = vertex_count;
    triangles[r] = triangle_count;
  }
}

void emit_rows(const mc::SignGrid& grid, const int64_t* vertex_rows, const int64_t* face_rows, int64_t* faces,
               int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    if (face_rows[r] == face_rows[r + 1]) continue;
    int64_t* out = faces + 3 * face_rows[r];
    const mc::Row row = mc::row_at(grid, r);
    const int64_t base = vertex_rows[row.b * grid.nx * grid.ny];
    mc::RowSigns signs[4];
    const uint64_t* around[4];
    mc::Crossings next[4];
    mc::RowRanks ranks[4];
    for (int k = 0; k < 4; ++k) {
      const mc::Row nodes = mc::neighbour(grid, row, k >> 1, k & 1);
      signs[k] = mc::row_signs(grid, nodes);
      around[k] = signs[k].here;
      next[k] = mc::crossings(grid, signs[k], 0);
      ranks[k].first = vertex_rows[nodes.index] - base;
    }
    for (int64_t w = 0; w < grid.row_words; ++w) {
      uint64_t crossed = 0;
      for (int k = 0; k < 4; ++k) {
        ranks[k].here = next[k];
        crossed |= next[k].x | next[k].y | next[k].z;
        next[k] = w + 1 < grid.row_words ? mc::crossings(grid, signs[k], w + 1) : mc::Crossings{0, 0, 0};
      }
      if (crossed == 0) continue;
      for (int k = 0; k < 4; ++k) ranks[k].above = mc::move_down(ranks[k].here, next[k]);
      const mc::Cells cells = mc::cells(grid, around, w);
      for (uint64_t left = cells.active; left != 0; left &= left - 1) {
        const int bit = mc::lowest_bit(left);
        const unsigned code = mc::cell_case(cells, bit);
        int64_t vertex[12];
        mc::cell_vertices(ranks, bit, vertex);
        const uint8_t* edges = mc::triangle_edges(code);
        const int corners = 3 * mc::triangle_count(code);
        for (int i = 0; i < corners; ++i) *out++ = vertex[edges[i]];
      }
      for (int k = 0; k < 4; ++k) ranks[k].first += mc::vertex_count(ranks[k].here);
    }
  }
}

}  // namespace OCC_ISA
}  // namespace occ::cpu
