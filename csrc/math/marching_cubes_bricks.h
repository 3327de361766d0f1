// SPDX-License-Identifier: MIT
// Marching cubes on compact bricks of 8 x 8 x 8 nodes. Bit 8 y + z of word x of a brick stands for its node (x, y, z),
// so a brick's signs are eight 64-bit words, and "the next node" is a shift within a word, or the next word, or the
// same in a neighbouring brick. Values may be unknown (NaN): only cells whose eight corners are known hold triangles,
// and only crossed edges of such a cell carry a vertex.
//
// Vertices are ordered by brick, by node within the brick (row-major), by axis; triangles by brick, cell, table. A
// vertex's index is the start of its brick, plus the start of its word, plus population counts.
#pragma once

#include <cstdint>

#include "common/macros.h"
#include "math/marching_cubes.h"

namespace occ::mc {

constexpr int kBrickNodes = 512;

// Words kept of every brick. The known nodes are needed until the complete cells are found, the crossed edges after.
enum BrickWords : int {
  kSigns = 0,
  kKnown = 8,
  kEdges = 8,  // crossed edges with a vertex along x; along y 8 words later, along z 16
  kComplete = 32,
  kStarts = 40,  // vertices of the brick before each of its words, 16 bits each
  kWordsOfBrick = 42,
};

// Entries of a brick's row of neighbours, -1 where there is none. With m = 4 dx + 2 dy + dz, the brick at (dx, dy, dz)
// is entry m (0 to 7) and the brick at -(dx, dy, dz) entry 7 + m (m from 1 to 6).
constexpr int kNeighbours = 14;

// `side` bricks along an axis of the key space. With pad = 1 the lattice is surrounded by a layer of nodes, and its
// first brick has the coordinates (1, 1, 1).
// source[e]: the brick's row in the values; with padding also -1 (all its nodes lie outside of the lattice) or -2 - row
// (some do). Null: brick e is row e.
struct Bricks {
  const int64_t* keys;
  const int64_t* source;
  int64_t count, batch, nodes, side;
  int pad;
  int32_t* neighbours;
  uint64_t* words;
};

struct BrickValues {
  const void* data;
  int dtype;
  double level, pad_value;
};

OCC_BEGIN_SHARED

OCC_HD inline void neighbour_offset(int entry, int offset[3]) {
  const int mask = entry < 8 ? entry : entry - 7, step = entry < 8 ? 1 : -1;
  for (int axis = 0; axis < 3; ++axis) offset[axis] = (mask >> (2 - axis) & 1) * step;
}

// `shape`: {bricks, batch, nodes a side of a lattice, bricks a side of the key space, pad}.
inline Bricks make_bricks(const int64_t* keys, const int64_t* source, const int64_t* shape, int32_t* neighbours,
                          uint64_t* words) {
  return {keys, source, shape[0], shape[1], shape[2], shape[3], static_cast<int>(shape[4]), neighbours, words};
}

OCC_HD inline bool key_in_order(const Bricks& bricks, int64_t brick) {
  const int64_t key = bricks.keys[brick];
  return (brick == 0 ? key >= 0 : key > bricks.keys[brick - 1]) &&
         key < bricks.batch * bricks.side * bricks.side * bricks.side;
}

// First node of a brick in the lattice; returns the lattice.
OCC_HD inline int64_t brick_place(const Bricks& bricks, int64_t brick, int64_t first[3]) {
  int64_t rest = bricks.keys[brick];
  for (int axis = 2; axis >= 0; --axis) {
    first[axis] = 8 * (rest % bricks.side - bricks.pad);
    rest /= bricks.side;
  }
  return rest;
}

// First brick whose key is not less than `key`.
OCC_HD inline int64_t first_brick(const Bricks& bricks, int64_t key) {
  int64_t low = 0, high = bricks.count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (bricks.keys[middle] < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Key of a brick's neighbour, or -1 where there can be none.
OCC_HD inline int64_t neighbour_key(const Bricks& bricks, int64_t key, int entry) {
  int offset[3];
  neighbour_offset(entry, offset);
  int64_t rest = key, delta = 0, stride = 1;
  for (int axis = 2; axis >= 0; --axis) {
    const int64_t place = rest % bricks.side + offset[axis];
    if (place < 0 || place >= bricks.side) return -1;
    delta += offset[axis] * stride;
    stride *= bricks.side;
    rest /= bricks.side;
  }
  return key + delta;
}

OCC_HD inline uint64_t* brick_words(const Bricks& bricks, int64_t brick) {
  return bricks.words + brick * kWordsOfBrick;
}

OCC_HD inline uint64_t word_or_none(const Bricks& bricks, int64_t brick, int word) {
  return brick < 0 ? 0 : brick_words(bricks, brick)[word];
}

// One step along y or z brings the bits of a neighbour's first (or last) row to the free places.
OCC_HD inline uint64_t after_y(uint64_t here, uint64_t next) { return here >> 8 | next << 56; }
OCC_HD inline uint64_t before_y(uint64_t here, uint64_t previous) { return here << 8 | previous >> 56; }
OCC_HD inline uint64_t after_z(uint64_t here, uint64_t next) {
  constexpr uint64_t kLast = 0x8080808080808080u;
  return (here >> 1 & ~kLast) | (next << 7 & kLast);
}
OCC_HD inline uint64_t before_z(uint64_t here, uint64_t previous) {
  constexpr uint64_t kFirst = 0x0101010101010101u;
  return (here << 1 & ~kFirst) | (previous >> 7 & kFirst);
}

// The words of plane x = `plane` (0 to 8) moved down by (dy, dz) = (0, 0), (0, 1), (1, 0), (1, 1). `field`: the first
// of the eight words asked for.
OCC_HD inline void plane_words(const Bricks& bricks, const int32_t* neighbours, int field, int plane, uint64_t out[4]) {
  const int next = plane == 8 ? 4 : 0, word = field + (plane & 7);
  const uint64_t here = word_or_none(bricks, neighbours[next], word);
  const uint64_t z = word_or_none(bricks, neighbours[next + 1], word);
  const uint64_t y = word_or_none(bricks, neighbours[next + 2], word);
  const uint64_t yz = word_or_none(bricks, neighbours[next + 3], word);
  out[0] = here;
  out[1] = after_z(here, z);
  out[2] = after_y(here, y);
  out[3] = after_z(out[2], after_y(z, yz));
}

// Which of the 64 cells at each word of a brick have eight known corners.
OCC_HD inline void complete_cells(const Bricks& bricks, int64_t brick) {
  const int32_t* neighbours = bricks.neighbours + brick * kNeighbours;
  uint64_t* words = brick_words(bricks, brick);
  uint64_t plane[4], before = 0;
  for (int x = 0; x <= 8; ++x) {
    plane_words(bricks, neighbours, kKnown, x, plane);
    const uint64_t all = plane[0] & plane[1] & plane[2] & plane[3];
    if (x > 0) words[kComplete + x - 1] = before & all;
    before = all;
  }
}

// Complete cells at word x, moved up: bit i stands for the cell (dx, dy, dz) before node i, mask 4 dx + 2 dy + dz < 7.
OCC_HD inline uint64_t complete_before(const Bricks& bricks, const int32_t* neighbours, int x, int mask) {
  const int dx = mask >> 2, word = kComplete + ((x - dx) & 7);
  const int other = x < dx ? 4 : 0;
  const auto of = [&](int step) {
    const int entry = other | step;
    return word_or_none(bricks, neighbours[entry == 0 ? 0 : 7 + entry], word);
  };
  uint64_t result = of(0);
  if ((mask & 2) != 0) result = before_y(result, of(2));
  if ((mask & 1) != 0) result = before_z(result, (mask & 2) != 0 ? before_y(of(1), of(3)) : of(1));
  return result;
}

// Crossed edges that carry a vertex: of the nodes of word x, by axis. `here` and `next` are plane_words of the signs.
OCC_HD inline Crossings brick_crossings(const Bricks& bricks, const int32_t* neighbours, int x, const uint64_t here[4],
                                        const uint64_t next[4]) {
  Crossings crossed{here[0] ^ next[0], here[0] ^ here[2], here[0] ^ here[1]};
  if ((crossed.x | crossed.y | crossed.z) == 0) return crossed;
  uint64_t cells[7];
  for (int mask = 0; mask < 7; ++mask) cells[mask] = complete_before(bricks, neighbours, x, mask);
  crossed.x &= cells[0] | cells[1] | cells[2] | cells[3];
  crossed.y &= cells[0] | cells[1] | cells[4] | cells[5];
  crossed.z &= cells[0] | cells[2] | cells[4] | cells[6];
  return crossed;
}

OCC_HD inline Cells brick_cells(const uint64_t here[4], const uint64_t next[4], uint64_t complete) {
  Cells result;
  uint64_t any = 0, all = ~uint64_t{0};
  for (int k = 0; k < 4; ++k) {
    result.corner[k] = here[k];
    result.corner[4 + k] = next[k];
    any |= here[k] | next[k];
    all &= here[k] & next[k];
  }
  result.active = any & ~all & complete;
  return result;
}

struct BrickCounts {
  int64_t vertices, triangles;
};

// Finds the crossed edges of word x and keeps them; counts what its nodes own. `here` and `next` are plane_words of the
// signs.
OCC_HD inline BrickCounts count_word(const Bricks& bricks, int64_t brick, int x, const uint64_t here[4],
                                     const uint64_t next[4]) {
  uint64_t* words = brick_words(bricks, brick);
  const Crossings crossed = brick_crossings(bricks, bricks.neighbours + brick * kNeighbours, x, here, next);
  words[kEdges + x] = crossed.x;
  words[kEdges + 8 + x] = crossed.y;
  words[kEdges + 16 + x] = crossed.z;
  BrickCounts counts{vertex_count(crossed), 0};
  const Cells cells = brick_cells(here, next, words[kComplete + x]);
  for (uint64_t left = cells.active; left != 0; left &= left - 1) {
    counts.triangles += triangle_count(cell_case(cells, lowest_bit(left)));
  }
  return counts;
}

// Finds a brick's crossed edges, keeps them in its words, and counts what it owns.
OCC_HD inline BrickCounts count_brick(const Bricks& bricks, int64_t brick) {
  const int32_t* neighbours = bricks.neighbours + brick * kNeighbours;
  uint64_t* words = brick_words(bricks, brick);
  uint64_t planes[2][4];
  BrickCounts counts{0, 0};
  words[kStarts] = words[kStarts + 1] = 0;
  plane_words(bricks, neighbours, kSigns, 0, planes[0]);
  for (int x = 0; x < 8; ++x) {
    const uint64_t* here = planes[x & 1];
    plane_words(bricks, neighbours, kSigns, x + 1, planes[(x + 1) & 1]);
    const BrickCounts own = count_word(bricks, brick, x, here, planes[(x + 1) & 1]);
    words[kStarts + x / 4] |= static_cast<uint64_t>(counts.vertices) << 16 * (x % 4);
    counts.vertices += own.vertices;
    counts.triangles += own.triangles;
  }
  return counts;
}

OCC_HD inline Crossings stored_crossings(const uint64_t* words, int x) {
  return {words[kEdges + x], words[kEdges + 8 + x], words[kEdges + 16 + x]};
}

// A node: its brick (-1: none), word and bit.
struct BrickNode {
  int64_t brick;
  int word, bit;
};

// The next node along an axis.
OCC_HD inline BrickNode node_after(const Bricks& bricks, const BrickNode& node, int axis) {
  const int shift = axis == 1 ? 3 : 0, step = axis == 1 ? 8 : 1, entry = 4 >> axis;
  const int place = axis == 0 ? node.word : node.bit >> shift & 7;
  const bool inside = place < 7;
  const int64_t brick = inside ? node.brick : bricks.neighbours[node.brick * kNeighbours + entry];
  const int change = inside ? step : -7 * step;
  return axis == 0 ? BrickNode{brick, node.word + change, node.bit} : BrickNode{brick, node.word, node.bit + change};
}

OCC_HD inline BrickNode node_before(const Bricks& bricks, const BrickNode& node, int axis) {
  const int shift = axis == 1 ? 3 : 0, step = axis == 1 ? 8 : 1, entry = 7 + (4 >> axis);
  const int place = axis == 0 ? node.word : node.bit >> shift & 7;
  const bool inside = place > 0;
  const int64_t brick = inside ? node.brick : bricks.neighbours[node.brick * kNeighbours + entry];
  const int change = inside ? -step : 7 * step;
  return axis == 0 ? BrickNode{brick, node.word + change, node.bit} : BrickNode{brick, node.word, node.bit + change};
}

// Index of the first vertex that a node owns (or would own).
OCC_HD inline int64_t first_vertex(const Bricks& bricks, const int64_t* vertex_bricks, const BrickNode& node,
                                   const Crossings& crossed) {
  const uint64_t below = (uint64_t{1} << node.bit) - 1;
  const uint64_t starts = brick_words(bricks, node.brick)[kStarts + node.word / 4];
  return vertex_bricks[node.brick] + static_cast<int64_t>(starts >> 16 * (node.word % 4) & 0xffff) +
         popcount(crossed.x & below) + popcount(crossed.y & below) + popcount(crossed.z & below);
}

// Vertex index of each of a complete cell's 12 edges, numbered as in generate_marching_cubes.py. Entries of edges that
// are not crossed have no meaning.
OCC_HD inline void brick_cell_vertices(const Bricks& bricks, const int64_t* vertex_bricks, const BrickNode& cell,
                                       int64_t vertex[12]) {
  for (int k = 0; k < 4; ++k) {
    const int dx = k >> 1, dy = k & 1;
    BrickNode low = dx != 0 ? node_after(bricks, cell, 0) : cell;
    if (dy != 0) low = node_after(bricks, low, 1);
    const Crossings a = stored_crossings(brick_words(bricks, low.brick), low.word);
    const int64_t low_x = first_vertex(bricks, vertex_bricks, low, a);
    const int64_t low_y = low_x + static_cast<int64_t>(a.x >> low.bit & 1);
    const int64_t low_z = low_y + static_cast<int64_t>(a.y >> low.bit & 1);
    vertex[8 + 2 * dx + dy] = low_z;
    if (k == 3) break;
    const BrickNode high = node_after(bricks, low, 2);
    const bool same = high.brick == low.brick;
    const Crossings b = same ? a : stored_crossings(brick_words(bricks, high.brick), high.word);
    const int64_t high_x =
        same ? low_z + static_cast<int64_t>(a.z >> low.bit & 1) : first_vertex(bricks, vertex_bricks, high, b);
    if (dx == 0) {
      vertex[2 * dy] = low_x;
      vertex[2 * dy + 1] = high_x;
    }
    if (dy == 0) {
      vertex[4 + 2 * dx] = low_y;
      vertex[4 + 2 * dx + 1] = high_x + static_cast<int64_t>(b.x >> high.bit & 1);
    }
  }
}

// Writes a brick's triangles; `base` is the first vertex of its lattice.
OCC_HD inline void emit_brick_faces(const Bricks& bricks, const int64_t* vertex_bricks, int64_t brick, int64_t base,
                                    int64_t* out) {
  const int32_t* neighbours = bricks.neighbours + brick * kNeighbours;
  const uint64_t* words = brick_words(bricks, brick);
  uint64_t planes[2][4];
  plane_words(bricks, neighbours, kSigns, 0, planes[0]);
  for (int x = 0; x < 8; ++x) {
    plane_words(bricks, neighbours, kSigns, x + 1, planes[(x + 1) & 1]);
    const Cells cells = brick_cells(planes[x & 1], planes[(x + 1) & 1], words[kComplete + x]);
    for (uint64_t left = cells.active; left != 0; left &= left - 1) {
      const int bit = lowest_bit(left);
      const unsigned code = cell_case(cells, bit);
      int64_t vertex[12];
      brick_cell_vertices(bricks, vertex_bricks, {brick, x, bit}, vertex);
      const uint8_t* edges = triangle_edges(code);
      const int corners = 3 * triangle_count(code);
      for (int i = 0; i < corners; ++i) *out++ = vertex[edges[i]] - base;
    }
  }
}

OCC_END_SHARED
}  // namespace occ::mc
