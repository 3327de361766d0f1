// SPDX-License-Identifier: MIT
// The steps of a round, each for one brick, shared by the CPU and the CUDA code. A step writes only the masks that its
// comment names, so that bricks can be taken in any order and at the same time.
//
// The rules are those of the multiresolution iso-surface extraction of Mescheder et al., "Occupancy Networks", CVPR
// 2019: a leaf cell is split when some known node on its boundary, of whatever level, is above the threshold and some
// is below; a value equal to the threshold is both.
#pragma once

#include "math/octree.h"

namespace occ::octree {
OCC_BEGIN_SHARED

// Nodes of a brick on the border of a lattice with `nodes` nodes a side.
OCC_HD inline void border_nodes(const Place& place, int64_t nodes, uint64_t* out) {
  uint64_t on[3];
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t last = nodes - 1 - 8 * place.at[axis];
    on[axis] = (place.at[axis] == 0 ? 1u : 0u) | (last >= 0 && last < 8 ? uint64_t{1} << last : 0u);
  }
  const uint64_t plane = rows(on[1]) | columns(on[2]);
  for (int x = 0; x < kWords; ++x) out[x] = on[0] >> x & 1 ? ~uint64_t{0} : plane;
}

// Masks of a brick of the coarsest level: all nodes of the lattice exist and are unknown, all cells are leaves.
OCC_HD inline void start_brick(const Level& level, int64_t brick, int64_t nodes) {
  const Place place = place_of(brick, level.side);
  uint64_t valid[2][3];  // of nodes, of cells
  for (int kind = 0; kind < 2; ++kind) {
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t last = nodes - 1 - kind - 8 * place.at[axis];
      valid[kind][axis] = last < 0 ? 0 : range8(0, last < 7 ? static_cast<int>(last) : 7);
    }
  }
  for (int which = 0; which < kMasks; ++which) {
    for (int x = 0; x < kWords; ++x) level.mask(brick, static_cast<Mask>(which))[x] = 0;
  }
  for (int kind = 0; kind < 2; ++kind) {
    const uint64_t plane = rows(valid[kind][1]) & columns(valid[kind][2]);
    for (int x = 0; x < kWords; ++x) {
      const uint64_t word = valid[kind][0] >> x & 1 ? plane : 0;
      level.mask(brick, kind == 0 ? kNodes : kLeaf)[x] = word;
      if (kind == 0) level.mask(brick, kUnknown)[x] = word;
    }
  }
}

OCC_HD inline int64_t count_unknown(const Level& level, int64_t brick) {
  int64_t total = 0;
  for (int x = 0; x < kWords; ++x) total += popcount(level.mask(brick, kUnknown)[x]);
  return total;
}

// The unknown nodes of a brick in the finest lattice's coordinates, ascending.
OCC_HD inline void list_unknown(const Level& level, int64_t brick, int64_t stride, int32_t* out) {
  const Place place = place_of(level.keys[brick], level.side);
  const uint64_t* unknown = level.mask(brick, kUnknown);
  for (int x = 0; x < kWords; ++x) {
    for (uint64_t left = unknown[x]; left != 0; left &= left - 1) {
      const int bit = lowest_bit(left);
      *out++ = static_cast<int32_t>((8 * place.at[0] + x) * stride);
      *out++ = static_cast<int32_t>((8 * place.at[1] + bit / 8) * stride);
      *out++ = static_cast<int32_t>((8 * place.at[2] + bit % 8) * stride);
    }
  }
}

// Takes the values of a brick's unknown nodes: in their order, or (`whole`) all 512 of the brick. Writes values,
// kAbove, kBelow, kUnknown. `nodes` > 0: outside the lattice of so many nodes a side is below.
template <class T>
OCC_HD inline void take_values(const Level& level, int64_t brick, T* values, const T* given, bool whole, T threshold,
                               int64_t nodes) {
  uint64_t border[kWords] = {};
  if (nodes > 0) border_nodes(place_of(level.keys[brick], level.side), nodes, border);
  for (int x = 0; x < kWords; ++x) {
    const uint64_t unknown = level.mask(brick, kUnknown)[x];
    uint64_t above = 0, below = border[x] & unknown;
    for (uint64_t left = unknown; left != 0; left &= left - 1) {
      const int bit = lowest_bit(left);
      const T value = whole ? given[64 * x + bit] : *given++;
      values[kBrickNodes * brick + 64 * x + bit] = value;
      above |= static_cast<uint64_t>(value >= threshold) << bit;
      below |= static_cast<uint64_t>(value <= threshold) << bit;
    }
    level.mask(brick, kAbove)[x] |= above;
    level.mask(brick, kBelow)[x] |= below;
    level.mask(brick, kUnknown)[x] = 0;
  }
}

// What the nodes of a brick of a finer level mean to leaf cells `shift` levels coarser. Writes kHangAbove and
// kHangBelow of coarse bricks, with atomic or.
struct Range {
  int64_t first, last;  // coarse cells that touch a node of the brick
};
OCC_HD inline Range touched(int64_t place, int shift) {
  const int64_t node = 8 * place;
  return {(node - 1) >> shift, (node + 7) >> shift};
}
// Nodes of the brick, as 8 bits, that touch a coarse cell.
OCC_HD inline uint64_t nodes_of_cell(int64_t place, int64_t cell, int shift) {
  const int64_t from = (cell << shift) - 8 * place, to = ((cell + 1) << shift) - 8 * place;
  return range8(from < 0 ? 0 : static_cast<int>(from), to > 7 ? 7 : static_cast<int>(to));
}

// Cells of a plane (eight rows of eight) among `leaves` that touch one of `marks`, a plane of nodes. `along_y`,
// `along_z`: nodes of the cells of a row and of a column, as 8 bits.
OCC_HD inline uint64_t touching(uint64_t leaves, uint64_t marks, const uint64_t* along_y, const uint64_t* along_z) {
  uint64_t found = 0;
  while (leaves != 0) {
    const int y = lowest_bit(leaves) / 8;
    uint64_t nodes = marks & rows(along_y[y]);
    nodes |= nodes >> 32;
    nodes |= nodes >> 16;
    nodes |= nodes >> 8;
    for (uint64_t row = leaves >> 8 * y & 0xff; row != 0 && (nodes & 0xff) != 0; row &= row - 1) {
      const int z = lowest_bit(row);
      found |= static_cast<uint64_t>((nodes & along_z[z]) != 0) << (8 * y + z);
    }
    leaves &= ~(uint64_t{0xff} << 8 * y);
  }
  return found;
}

OCC_HD inline void hang_on_brick(const Level& fine, int64_t brick, const Place& place, const Level& coarse,
                                 int64_t target, const Place& at, int shift) {
  int first[3], last[3];
  uint64_t along[3][kWords];  // nodes of the brick that touch each cell of the target along an axis
  for (int axis = 0; axis < 3; ++axis) {
    const Range range = touched(place.at[axis], shift);
    const int64_t from = range.first - 8 * at.at[axis], to = range.last - 8 * at.at[axis];
    first[axis] = from < 0 ? 0 : static_cast<int>(from);
    last[axis] = to > 7 ? 7 : static_cast<int>(to);
    for (int cell = first[axis]; cell <= last[axis]; ++cell) {
      along[axis][cell] = nodes_of_cell(place.at[axis], 8 * at.at[axis] + cell, shift);
    }
  }
  const uint64_t box = rows(range8(first[1], last[1])) & columns(range8(first[2], last[2]));
  for (int x = first[0]; x <= last[0]; ++x) {
    const uint64_t leaves = coarse.mask(target, kLeaf)[x] & box;
    for (int sign = 0; sign < 2; ++sign) {
      // A mark is only ever added: a cell that has it in an old copy has it.
      uint64_t* hanging = coarse.mask(target, sign == 0 ? kHangAbove : kHangBelow) + x;
      const uint64_t open = leaves & ~*hanging;
      if (open == 0) continue;
      uint64_t marks = 0;
      for (uint64_t left = along[0][x]; left != 0; left &= left - 1) {
        marks |= fine.mask(brick, sign == 0 ? kAbove : kBelow)[lowest_bit(left)];
      }
      const uint64_t found = marks != 0 ? touching(open, marks, along[1], along[2]) : 0;
      if (found != 0) atomic_or(hanging, found);
    }
  }
}

OCC_HD inline void hang(const Level& fine, int64_t brick, const Level& coarse, int shift) {
  const Place place = place_of(fine.keys[brick], fine.side);
  int64_t first[3], last[3];
  for (int axis = 0; axis < 3; ++axis) {
    first[axis] = touched(place.at[axis], shift).first >> 3;
    last[axis] = touched(place.at[axis], shift).last >> 3;
  }
  for (int64_t x = first[0]; x <= last[0]; ++x) {
    for (int64_t y = first[1]; y <= last[1]; ++y) {
      for (int64_t z = first[2]; z <= last[2]; ++z) {
        const Place at{place.b, {x, y, z}};
        const int64_t target = find(coarse, at);
        if (target >= 0) hang_on_brick(fine, brick, place, coarse, target, at, shift);
      }
    }
  }
}

// One cell to be split whatever its signs. Writes kSeed, with atomic or.
OCC_HD inline void seed_cell(const Level& level, const int32_t* cell, int64_t lattice) {
  const int64_t brick = find(level, {lattice, {cell[0] >> 3, cell[1] >> 3, cell[2] >> 3}});
  if (brick < 0) return;
  atomic_or(level.mask(brick, kSeed) + (cell[0] & 7), uint64_t{1} << (8 * (cell[1] & 7) + (cell[2] & 7)));
}

// Adds the signs of corners to kHangAbove and kHangBelow, to kCrossed the leaves with both signs and, where `fine` (the
// next level) is given, the cells with a crossed child.
OCC_HD inline void mark_brick(const Level& level, int64_t brick, const Level* fine) {
  const Place place = place_of(level.keys[brick], level.side);
  uint64_t* crossed = level.mask(brick, kCrossed);
  if (any(level.mask(brick, kLeaf))) {
    int64_t near[8];
    uint64_t above[kWords], below[kWords];
    find_corner(level, place, 1, near);
    or_corners(level, near, kAbove, above);
    or_corners(level, near, kBelow, below);
    for (int x = 0; x < kWords; ++x) {
      const uint64_t up = level.mask(brick, kHangAbove)[x] |= above[x];
      const uint64_t down = level.mask(brick, kHangBelow)[x] |= below[x];
      crossed[x] |= level.mask(brick, kLeaf)[x] & up & down;
    }
  }
  for (int child = 0; fine != nullptr && child < 8; ++child) {
    const int ox = child >> 2, oy = child >> 1 & 1, oz = child & 1;
    const int64_t index = find(*fine, {place.b, {2 * place.at[0] + ox, 2 * place.at[1] + oy, 2 * place.at[2] + oz}});
    for (int x = 0; index >= 0 && x < kWords; ++x) {
      crossed[4 * ox + x / 2] |= gather(fine->mask(index, kCrossed)[x], oy, oz);
    }
  }
}

// Cells along an axis with nodes in the brick 2 * place + offset of the next level, as 8 bits.
OCC_HD inline uint64_t cells_reaching(int offset) { return offset == 0 ? 0x0fu : offset == 1 ? 0xf8u : 0x80u; }

// Which of the 27 bricks of the next level, from 2 * place on, hold nodes of cells being split.
OCC_HD inline uint32_t child_bricks(const Level& level, int64_t brick) {
  const uint64_t* active = level.mask(brick, kActive);
  uint32_t found = 0;
  for (int dx = 0; dx < 3; ++dx) {
    uint64_t plane = 0;
    for (int x = 0; x < kWords; ++x) plane |= cells_reaching(dx) >> x & 1 ? active[x] : 0;
    for (int other = 0; plane != 0 && other < 9; ++other) {
      const uint64_t reach = rows(cells_reaching(other / 3)) & columns(cells_reaching(other % 3));
      found |= static_cast<uint32_t>((plane & reach) != 0) << (9 * dx + other);
    }
  }
  return found;
}

// Chooses the leaves to be split. Writes kActive and kLeaf; returns the number of bricks of the next level they need.
OCC_HD inline int activate_brick(const Level& level, int64_t brick, bool band) {
  uint64_t* leaf = level.mask(brick, kLeaf);
  uint64_t* active = level.mask(brick, kActive);
  uint64_t chosen[kWords] = {};
  if (any(leaf)) {
    if (band) dilate(level, place_of(level.keys[brick], level.side), kCrossed, chosen);
    for (int x = 0; x < kWords; ++x) {
      chosen[x] |= level.mask(brick, kCrossed)[x] | level.mask(brick, kSeed)[x];
      chosen[x] &= leaf[x];
      leaf[x] &= ~chosen[x];
    }
  }
  for (int x = 0; x < kWords; ++x) active[x] = chosen[x];
  return any(chosen) ? popcount(child_bricks(level, brick)) : 0;
}

// Keys of the bricks counted by activate_brick.
OCC_HD inline void list_children(const Level& level, int64_t brick, int64_t fine_side, int64_t* out) {
  const Place place = place_of(level.keys[brick], level.side);
  for (uint32_t left = child_bricks(level, brick); left != 0; left &= left - 1) {
    const int at = lowest_bit(left);
    const int64_t x = 2 * place.at[0] + at / 9, y = 2 * place.at[1] + at / 3 % 3, z = 2 * place.at[2] + at % 3;
    *out++ = key_of({place.b, {x, y, z}}, fine_side);
  }
}

// Cells of a brick of the next level whose parents are being split. `parent`: index of its parent brick or -1.
OCC_HD inline void new_cells(const Level& level, int64_t parent, const Place& place, uint64_t* out) {
  const int y = static_cast<int>(place.at[1] & 1), z = static_cast<int>(place.at[2] & 1);
  for (int x = 0; x < kWords; ++x) {
    uint64_t bits = 0;
    if (parent >= 0) bits = spread(level.mask(parent, kActive)[4 * (place.at[0] & 1) + x / 2], y, z);
    bits |= bits << 1;
    out[x] = bits | bits << 8;
  }
}

// Adds to a brick of the next level what its parents' active cells create: leaves, nodes, and the values of nodes that
// the coarser level knows. Writes kLeaf, kNodes, kUnknown, kAbove, kBelow and values of the fine brick; returns its
// number of unknown nodes.
template <class T>
OCC_HD inline int64_t split_into(const Level& level, const T* values, const Level& fine, T* fine_values,
                                 int64_t brick) {
  const Place place = place_of(fine.keys[brick], fine.side);
  uint64_t cells[8][kWords], around[kWords];
  int64_t parents[8];
  for (int corner = 0; corner < 8; ++corner) {
    Place other = place, parent = place;
    int same = corner;  // an earlier corner with the same parent
    for (int axis = 0; axis < 3; ++axis) {
      const int bit = 4 >> axis;
      if (corner & bit && place.at[axis] & 1) same &= ~bit;
      other.at[axis] -= corner & bit ? 1 : 0;
      parent.at[axis] = other.at[axis] >> 1;  // -1 for -1
    }
    parents[corner] = same == corner ? find(level, parent) : parents[same];
    new_cells(level, parents[corner], other, cells[corner]);
  }
  const int64_t own = parents[0];
  or_cells_around(cells, around);
  int64_t unknown = 0;
  const int ox = static_cast<int>(place.at[0] & 1), oy = static_cast<int>(place.at[1] & 1);
  const int oz = static_cast<int>(place.at[2] & 1);
  for (int x = 0; x < kWords; ++x) {
    const uint64_t added = around[x] & ~fine.mask(brick, kNodes)[x];
    const uint64_t copied = x % 2 == 0 ? added & 0x0055005500550055u : 0;
    fine.mask(brick, kNodes)[x] |= added;
    fine.mask(brick, kLeaf)[x] |= cells[0][x];
    fine.mask(brick, kUnknown)[x] |= added & ~copied;
    unknown += popcount(fine.mask(brick, kUnknown)[x]);
    if (copied == 0) continue;
    const int from = 4 * ox + x / 2;
    fine.mask(brick, kAbove)[x] |= copied & spread(level.mask(own, kAbove)[from], oy, oz);
    fine.mask(brick, kBelow)[x] |= copied & spread(level.mask(own, kBelow)[from], oy, oz);
    for (uint64_t left = copied; left != 0; left &= left - 1) {
      const int bit = lowest_bit(left);
      fine_values[kBrickNodes * brick + 64 * x + bit] =
          values[kBrickNodes * own + 64 * from + 8 * (4 * oy + bit / 16) + 4 * oz + bit % 8 / 2];
    }
  }
  return unknown;
}

// Copies known values of a level `shift` coarser to the places of a finer brick whose own level does not have the node.
template <class T>
OCC_HD inline void add_coarse(const Level& coarse, const T* values, const Level& fine, int64_t brick, int shift,
                              T* fine_values) {
  const Place place = place_of(fine.keys[brick], fine.side);
  const int64_t stride = int64_t{1} << shift;
  const int step = shift < 3 ? 1 << shift : 8;  // between coarse nodes in our brick
  Place at{place.b, {}};
  int first[3];  // the first of them in the coarse brick
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t node = 8 * place.at[axis] >> shift;
    if ((8 * place.at[axis] & (stride - 1)) != 0) return;  // there is none: coarse nodes are multiples of 8 or more
    at.at[axis] = node >> 3;
    first[axis] = static_cast<int>(node & 7);
  }
  const int64_t index = find(coarse, at);
  if (index < 0) return;
  for (int x = 0; x < 8 / step; ++x) {
    const uint64_t known = coarse.mask(index, kNodes)[first[0] + x] & ~coarse.mask(index, kUnknown)[first[0] + x];
    const uint64_t own = fine.mask(brick, kNodes)[step * x];
    if (shift == 1 && (spread(known, first[1] / 4, first[2] / 4) & ~own) == 0) continue;
    for (int y = 0; y < 8 / step; ++y) {
      for (int z = 0; z < 8 / step; ++z) {
        const int from = 8 * (first[1] + y) + first[2] + z, to = step * (8 * y + z);
        if ((known >> from & ~(own >> to) & 1) == 0) continue;
        fine_values[kBrickNodes * brick + 64 * step * x + to] =
            values[kBrickNodes * index + 64 * (first[0] + x) + from];
      }
    }
  }
}

// One row of the table of levels that the dense grid is made from: addresses of keys, masks and values; number of
// bricks; bricks along a side; distance of nodes in the finest lattice.
struct DenseLevel {
  Level level;
  const void* values;
  int64_t stride;
};
inline DenseLevel dense_level(const int64_t* table, int64_t row) {
  const int64_t* at = table + 6 * row;
  return {{reinterpret_cast<const int64_t*>(at[0]), reinterpret_cast<uint64_t*>(at[1]), at[3], at[4]},
          reinterpret_cast<const void*>(at[2]),
          at[5]};
}

// Known values of a brick into a dense array (batch, nodes, nodes, nodes) of the finest lattice.
template <class T>
OCC_HD inline void scatter_dense(const Level& level, int64_t brick, const T* values, int64_t stride, int64_t nodes,
                                 T* dense) {
  const Place place = place_of(level.keys[brick], level.side);
  for (int x = 0; x < kWords; ++x) {
    const uint64_t known = level.mask(brick, kNodes)[x] & ~level.mask(brick, kUnknown)[x];
    T* plane = dense + (place.b * nodes + (8 * place.at[0] + x) * stride) * nodes * nodes;
    for (uint64_t left = known; left != 0; left &= left - 1) {
      const int bit = lowest_bit(left);
      const int64_t y = (8 * place.at[1] + bit / 8) * stride, z = (8 * place.at[2] + bit % 8) * stride;
      plane[y * nodes + z] = values[kBrickNodes * brick + 64 * x + bit];
    }
  }
}

OCC_END_SHARED
}  // namespace occ::octree
