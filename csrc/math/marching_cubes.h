// SPDX-License-Identifier: MIT
// Marching cubes on sign bits. A node is inside when its value exceeds the level. The signs of a row of nodes (fixed x,
// y) are packed along z, 64 to a word. Everything else follows from these words:
//
// * a node owns the three grid edges that leave it towards +x, +y, +z; a crossed edge carries one vertex;
// * vertices are ordered by owning node (row-major) and axis, so a vertex's index is the count of crossed edges before
//   it: the start of its row, plus whole words, plus a population count. Cells that share an edge compute the same
//   index, which welds the mesh with no hash and no sort, in an order that depends on the signs alone;
// * triangles are ordered by cell (row-major), then as in the table.
//
// Counting per row, prefix sums over rows, emission per row: after Flying Edges (Schroeder, Maynard, Geveci, LDAV
// 2015).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common/macros.h"
#include "common/types.h"
#include "math/marching_cubes_tables.h"

namespace occ::mc {

// These two cross from code for any machine into code for one instruction set: plain data, outside the shared
// namespace.

// Signs of `batch` grids of nx * ny * nz nodes (padding included), `row_words` words a row; bits past nz are 0.
struct SignGrid {
  uint64_t* words;
  int64_t batch, nx, ny, nz, row_words;
};

// The values behind them. Strides in elements; z is contiguous. With pad = 1 a layer of nodes of value `pad_value` is
// imagined around each volume.
struct Volume {
  const void* data;
  int dtype;
  int pad;
  int64_t size[3];
  int64_t stride_batch, stride_x, stride_y;
  double level, pad_value;
};

OCC_BEGIN_SHARED

OCC_HD inline int popcount(uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __popcll(bits);
#else
  return std::popcount(bits);
#endif
}

OCC_HD inline int lowest_bit(uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __ffsll(static_cast<long long>(bits)) - 1;
#else
  return std::countr_zero(bits);
#endif
}

OCC_HD inline int64_t row_count(const SignGrid& grid) { return grid.batch * grid.nx * grid.ny; }

// Place of a row: volume b, node (x, y).
struct Row {
  int64_t index, b, x, y;
};

OCC_HD inline Row row_at(const SignGrid& grid, int64_t index) {
  const int64_t plane = index / grid.ny;
  return {index, plane / grid.nx, plane % grid.nx, index % grid.ny};
}

OCC_HD inline Row neighbour(const SignGrid& grid, const Row& row, int dx, int dy) {
  return {row.index + dx * grid.ny + dy, row.b, row.x + dx, row.y + dy};
}

OCC_HD inline bool owns_cells(const SignGrid& grid, const Row& row) {
  return row.x + 1 < grid.nx && row.y + 1 < grid.ny;
}

// Bits of word `word` whose node has a successor along z in its row.
OCC_HD inline uint64_t followed(const SignGrid& grid, int64_t word) {
  const int64_t count = grid.nz - 1 - 64 * word;
  return count >= 64 ? ~uint64_t{0} : count <= 0 ? 0 : (uint64_t{1} << count) - 1;
}

// Words of a row and of the rows after it in x and y. A row at the border follows itself: its edges then do not cross.
struct RowSigns {
  const uint64_t *here, *after_x, *after_y;
};

OCC_HD inline RowSigns row_signs(const SignGrid& grid, const Row& row) {
  const uint64_t* here = grid.words + row.index * grid.row_words;
  return {here, row.x + 1 < grid.nx ? here + grid.ny * grid.row_words : here,
          row.y + 1 < grid.ny ? here + grid.row_words : here};
}

// The bits of a row moved one node down: bit i is the sign of node i + 1.
OCC_HD inline uint64_t successors(const SignGrid& grid, const uint64_t* row, int64_t word) {
  const uint64_t next = word + 1 < grid.row_words ? row[word + 1] : 0;
  return row[word] >> 1 | next << 63;
}

// Crossed edges owned by the 64 nodes of a word, by axis.
struct Crossings {
  uint64_t x, y, z;
};

OCC_HD inline Crossings crossings(const SignGrid& grid, const RowSigns& row, int64_t word) {
  const uint64_t signs = row.here[word];
  return {signs ^ row.after_x[word], signs ^ row.after_y[word],
          (signs ^ successors(grid, row.here, word)) & followed(grid, word)};
}

OCC_HD inline int vertex_count(const Crossings& crossed) {
  return popcount(crossed.x) + popcount(crossed.y) + popcount(crossed.z);
}

// Signs of the corners of the 64 cells whose lowest nodes are those of a word, and which of the cells hold triangles.
struct Cells {
  uint64_t corner[8];
  uint64_t active;
};

// `rows` are the four rows of nodes around a row of cells, (dx, dy) = (0, 0), (0, 1), (1, 0), (1, 1).
OCC_HD inline Cells cells(const SignGrid& grid, const uint64_t* const rows[4], int64_t word) {
  Cells result;
  uint64_t any = 0, all = ~uint64_t{0};
  for (int k = 0; k < 4; ++k) {
    const uint64_t low = rows[k][word], high = successors(grid, rows[k], word);
    result.corner[2 * k] = low;
    result.corner[2 * k + 1] = high;
    any |= low | high;
    all &= low & high;
  }
  result.active = any & ~all & followed(grid, word);
  return result;
}

OCC_HD inline unsigned cell_case(const Cells& cells, int bit) {
  unsigned code = 0;
  for (int corner = 0; corner < 8; ++corner) code |= static_cast<unsigned>(cells.corner[corner] >> bit & 1) << corner;
  return code;
}

// Crossed edges of one of the four rows of nodes around a row of cells: a word, the same moved one node down, and the
// index of the word's first vertex.
struct RowRanks {
  Crossings here, above;
  int64_t first;
};

OCC_HD inline Crossings move_down(const Crossings& a, const Crossings& next) {
  return {a.x >> 1 | next.x << 63, a.y >> 1 | next.y << 63, a.z >> 1 | next.z << 63};
}

// Vertex index of each of a cell's 12 edges, numbered as in generate_marching_cubes.py, from the four rows around
// it in the order of cells(). Entries of edges that are not crossed have no meaning.
OCC_HD inline void cell_vertices(const RowRanks rows[4], int bit, int64_t vertex[12]) {
  const uint64_t below = (uint64_t{1} << bit) - 1;
  for (int k = 0; k < 4; ++k) {
    const Crossings& a = rows[k].here;
    const Crossings& b = rows[k].above;
    const int dx = k >> 1, dy = k & 1;
    const int64_t low = rows[k].first + popcount(a.x & below) + popcount(a.y & below) + popcount(a.z & below);
    const int64_t low_y = low + static_cast<int64_t>(a.x >> bit & 1);
    const int64_t low_z = low_y + static_cast<int64_t>(a.y >> bit & 1);
    const int64_t high = low_z + static_cast<int64_t>(a.z >> bit & 1);
    if (dx == 0) {
      vertex[2 * dy] = low;
      vertex[2 * dy + 1] = high;
    }
    if (dy == 0) {
      vertex[4 + 2 * dx] = low_y;
      vertex[4 + 2 * dx + 1] = high + static_cast<int64_t>(b.x >> bit & 1);
    }
    vertex[8 + 2 * dx + dy] = low_z;
  }
}

template <class S>
OCC_HD inline bool is_finite(S value) {
  return value - value == S(0);
}

template <class S>
OCC_HD inline S clamp(S value, S low, S high) {
  return value < low ? low : value > high ? high : value;
}

// Where the linear function from a (at 0) to b (at 1) meets the level, kept `margin` away from both ends. An infinite
// value draws nothing towards itself: the crossing sits at the finite end, or half-way between two infinite ones.
template <class S>
OCC_HD inline S crossing(S a, S b, S level, S margin) {
  S t;
  if (is_finite(b - a)) {
    t = (level - a) / (b - a);
  } else if (is_finite(a) && is_finite(b)) {  // only the difference overflows
    t = (level * S(0.5) - a * S(0.5)) / (b * S(0.5) - a * S(0.5));
  } else {
    t = is_finite(a) ? S(0) : is_finite(b) ? S(1) : S(0.5);
  }
  return clamp(t, margin, S(1) - margin);
}

// Values of one volume of the batch by node, padding included. T is the storage type.
template <class T>
struct Field {
  using S = acc_t<T>;
  const T* data;
  int64_t nx, ny, nz, stride_x, stride_y, pad;
  S outside;

  OCC_HD Field(const Volume& volume, int64_t b)
      : data(static_cast<const T*>(volume.data) + b * volume.stride_batch),
        nx(volume.size[0] + 2 * volume.pad),
        ny(volume.size[1] + 2 * volume.pad),
        nz(volume.size[2] + 2 * volume.pad),
        stride_x(volume.stride_x),
        stride_y(volume.stride_y),
        pad(volume.pad),
        outside(static_cast<S>(volume.pad_value)) {}

  OCC_HD bool is_padding(int64_t x, int64_t y, int64_t z) const {
    return pad != 0 && (x == 0 || y == 0 || z == 0 || x + 1 == nx || y + 1 == ny || z + 1 == nz);
  }

  // Place of a node of volume b among those of all volumes stored without gaps, -1 if it is padding.
  OCC_HD int64_t element(int64_t b, int64_t x, int64_t y, int64_t z) const {
    if (is_padding(x, y, z)) return -1;
    return ((b * (nx - 2 * pad) + x - pad) * (ny - 2 * pad) + y - pad) * (nz - 2 * pad) + z - pad;
  }

  OCC_HD S operator()(int64_t x, int64_t y, int64_t z) const {
    if (is_padding(x, y, z)) return outside;
    return static_cast<S>(data[(x - pad) * stride_x + (y - pad) * stride_y + (z - pad)]);
  }
};

// Central difference, one-sided at the border; 0 where two infinite values cancel, bounded where one remains.
template <class S>
OCC_HD inline S difference(S before, S after, int64_t span) {
  const S largest = std::numeric_limits<S>::max() / 4;
  const S slope = (after - before) * (span == 2 ? S(0.5) : S(1));
  return slope == slope ? clamp(slope, -largest, largest) : S(0);
}

template <class T>
OCC_HD inline void gradient(const Field<T>& field, int64_t x, int64_t y, int64_t z, acc_t<T> out[3]) {
  const int64_t x0 = x > 0 ? x - 1 : 0, x1 = x + 1 < field.nx ? x + 1 : x;
  const int64_t y0 = y > 0 ? y - 1 : 0, y1 = y + 1 < field.ny ? y + 1 : y;
  const int64_t z0 = z > 0 ? z - 1 : 0, z1 = z + 1 < field.nz ? z + 1 : z;
  out[0] = difference(field(x0, y, z), field(x1, y, z), x1 - x0);
  out[1] = difference(field(x, y0, z), field(x, y1, z), y1 - y0);
  out[2] = difference(field(x, y, z0), field(x, y, z1), z1 - z0);
}

// Outward unit normal of a vertex at `t` of an edge along `axis`, from the slopes at the edge's nodes. `rising`: the
// upper node has the greater value.
template <class S>
OCC_HD inline void outward_normal(S from[3], const S to[3], S t, int axis, bool rising, S normal[3]) {
  S largest = 0;
  for (int i = 0; i < 3; ++i) {
    from[i] = from[i] * (S(1) - t) + to[i] * t;
    const S size = from[i] < S(0) ? -from[i] : from[i];
    largest = size > largest ? size : largest;
  }
  // A flat slope (as in a checkerboard) still has an outside: along the edge, away from its inside node.
  for (int i = 0; i < 3; ++i) from[i] = largest > S(0) ? from[i] / largest : S(i == axis ? (rising ? 1 : -1) : 0);
  const S length = std::sqrt(from[0] * from[0] + from[1] * from[1] + from[2] * from[2]);
  for (int i = 0; i < 3; ++i) normal[i] = -from[i] / length;
}

// The vertex on the edge that leaves node (x, y, z) along `axis`: its position in index units (0 is the first node that
// is not padding) and, unless null, the outward unit normal. Returns where on the edge it lies.
template <class T>
OCC_HD inline acc_t<T> place_vertex(const Field<T>& field, const int64_t node[3], int axis, acc_t<T> level,
                                    acc_t<T> margin, acc_t<T> position[3], acc_t<T>* normal) {
  using S = acc_t<T>;
  const int64_t end[3] = {node[0] + (axis == 0), node[1] + (axis == 1), node[2] + (axis == 2)};
  const S a = field(node[0], node[1], node[2]);
  const S b = field(end[0], end[1], end[2]);
  const S t = crossing(a, b, level, margin);
  for (int i = 0; i < 3; ++i) {
    const S whole = static_cast<S>(node[i] - field.pad);
    position[i] = i == axis ? whole + t : whole;
  }
  if (normal == nullptr) return t;
  S from[3], to[3];
  gradient(field, node[0], node[1], node[2], from);
  gradient(field, end[0], end[1], end[2], to);
  outward_normal(from, to, t, axis, b > a, normal);
  return t;
}

OCC_END_SHARED
}  // namespace occ::mc
