// SPDX-License-Identifier: MIT
// Bricks of an octree: 8 x 8 x 8 nodes of one level's lattice, and the 512 cells whose lowest corners these nodes are.
//
// A mask of a brick is eight 64-bit words; bit 8 * y + z of word x stands for the node, or cell, (x, y, z). Everything
// the octree decides is a few operations on such words: a shift by 1 is a step along z, by 8 along y, and the next word
// is a step along x. What falls off a brick's end comes from its neighbours.
//
// A level holds its bricks' keys, ascending: ((b * side + x) * side + y) * side + z, as in occkernels.SparseVolume.
#pragma once

#include <bit>
#include <cstdint>

#include "common/macros.h"

namespace occ::octree {
OCC_BEGIN_SHARED

constexpr int kWords = 8;
constexpr int kBrickNodes = 512;

// Masks of a brick, in this order in memory.
enum Mask : int {
  kNodes,      // nodes that exist: corners of a cell of this level
  kUnknown,    // of these, those whose value is still to be given
  kAbove,      // value >= threshold
  kBelow,      // value <= threshold, or outside counts as below and the node is on the border
  kLeaf,       // cells that exist and are not split
  kHangAbove,  // cells with a node on their boundary, of whatever level, that is above (as far as looked at) ...
  kHangBelow,  // ... below
  kCrossed,    // cells in which a change of sign was found; with a band also their ancestors
  kSeed,       // cells to be split whatever their signs
  kActive,     // cells split in this round
  kMasks
};

struct Level {
  const int64_t* keys;
  uint64_t* masks;  // (count, kMasks, kWords)
  int64_t count;
  int64_t side;  // bricks along an axis of a lattice

  OCC_HD uint64_t* mask(int64_t brick, Mask which) const { return masks + (brick * kMasks + which) * kWords; }
};

struct Place {
  int64_t b, at[3];
};

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

// `*word |= bits` while other threads do the same.
OCC_HD inline void atomic_or(uint64_t* word, uint64_t bits) {
#if defined(__CUDA_ARCH__)
  atomicOr(reinterpret_cast<unsigned long long*>(word), static_cast<unsigned long long>(bits));
#elif defined(_MSC_VER) && !defined(__clang__)
  _InterlockedOr64(reinterpret_cast<volatile long long*>(word), static_cast<long long>(bits));
#else
  __atomic_fetch_or(word, bits, __ATOMIC_RELAXED);
#endif
}

OCC_HD inline Place place_of(int64_t key, int64_t side) {
  Place place;
  for (int axis = 2; axis >= 0; --axis) {
    place.at[axis] = key % side;
    key /= side;
  }
  place.b = key;
  return place;
}

OCC_HD inline int64_t key_of(const Place& place, int64_t side) {
  return ((place.b * side + place.at[0]) * side + place.at[1]) * side + place.at[2];
}

// Index of the brick at a place; -1 when it lies outside the lattice or does not exist.
OCC_HD inline int64_t find(const Level& level, const Place& place) {
  for (int axis = 0; axis < 3; ++axis) {
    if (place.at[axis] < 0 || place.at[axis] >= level.side) return -1;
  }
  const int64_t key = key_of(place, level.side);
  if (level.count > 0 && level.keys[level.count - 1] == level.count - 1) return key < level.count ? key : -1;
  int64_t low = 0, size = level.count;
  while (size > 0) {
    const int64_t half = size / 2;
    const bool right = level.keys[low + half] < key;
    low = right ? low + half + 1 : low;
    size = right ? size - half - 1 : half;
  }
  return low < level.count && level.keys[low] == key ? low : -1;
}

// Indices of the brick at `place` and of its seven neighbours `step` (+1 or -1) away: bit 2 of the position stands for
// x, bit 1 for y, bit 0 for z.
OCC_HD inline void find_corner(const Level& level, const Place& place, int step, int64_t* index) {
  for (int corner = 0; corner < 8; ++corner) {
    Place other = place;
    for (int axis = 0; axis < 3; ++axis) other.at[axis] += (corner >> (2 - axis) & 1) * step;
    index[corner] = find(level, other);
  }
}

OCC_HD inline bool any(const uint64_t* words) {
  uint64_t all = 0;
  for (int x = 0; x < kWords; ++x) all |= words[x];
  return all != 0;
}

constexpr uint64_t kZ0 = 0x0101010101010101u;  // z = 0 of every row; << k: z = k

// out(cell) = or over the cell's eight corners. `near`: find_corner(+1) of the brick.
OCC_HD inline void or_corners(const Level& level, const int64_t* near, Mask which, uint64_t* out) {
  uint64_t previous = 0;
  for (int x = 0; x <= kWords; ++x) {
    uint64_t rows[2];
    for (int y = 0; y < 2; ++y) {
      const int64_t here = near[(x >> 3) * 4 + y * 2], next = near[(x >> 3) * 4 + y * 2 + 1];
      const uint64_t word = here < 0 ? 0 : level.mask(here, which)[x & 7];
      const uint64_t beyond = next < 0 ? 0 : level.mask(next, which)[x & 7];
      rows[y] = word | (word >> 1 & ~(kZ0 << 7)) | (beyond & kZ0) << 7;
    }
    const uint64_t plane = rows[0] | rows[0] >> 8 | rows[1] << 56;
    if (x > 0) out[x - 1] = previous | plane;
    previous = plane;
  }
}

// out(node) = or over the eight cells around it. `cells`: masks of the brick and of its neighbours one step lower, in
// the order of find_corner(-1).
OCC_HD inline void or_cells_around(const uint64_t (*cells)[kWords], uint64_t* out) {
  uint64_t previous = 0;
  for (int x = -1; x < kWords; ++x) {
    const int corner = x < 0 ? 4 : 0;
    uint64_t rows[2];
    for (int y = 0; y < 2; ++y) {
      const uint64_t word = cells[corner + y * 2][x & 7], before = cells[corner + y * 2 + 1][x & 7];
      rows[y] = word | (word << 1 & ~kZ0) | (before >> 7 & kZ0);
    }
    const uint64_t plane = rows[0] | rows[0] << 8 | rows[1] >> 56;
    if (x >= 0) out[x] = previous | plane;
    previous = plane;
  }
}

// out(cell) = or over the 27 cells around it.
OCC_HD inline void dilate(const Level& level, const Place& place, Mask which, uint64_t* out) {
  for (int x = 0; x < kWords; ++x) out[x] = 0;
  for (int dx = -1; dx <= 1; ++dx) {
    int64_t near[3][3];
    for (int dy = -1; dy <= 1; ++dy) {
      for (int dz = -1; dz <= 1; ++dz) {
        near[dy + 1][dz + 1] = find(level, {place.b, {place.at[0] + dx, place.at[1] + dy, place.at[2] + dz}});
      }
    }
    for (int x = dx < 0 ? 7 : 0; x < (dx > 0 ? 1 : kWords); ++x) {
      uint64_t rows[3];
      for (int y = 0; y < 3; ++y) {
        uint64_t words[3];
        for (int z = 0; z < 3; ++z) words[z] = near[y][z] < 0 ? 0 : level.mask(near[y][z], which)[x];
        rows[y] = words[1] | (words[1] << 1 & ~kZ0) | (words[1] >> 1 & ~(kZ0 << 7));
        rows[y] |= (words[0] >> 7 & kZ0) | (words[2] & kZ0) << 7;
      }
      const uint64_t plane = rows[1] | rows[1] << 8 | rows[1] >> 8 | rows[0] >> 56 | rows[2] << 56;
      for (int to = x + 8 * dx - 1; to <= x + 8 * dx + 1; ++to) {
        if (to >= 0 && to < kWords) out[to] |= plane;
      }
    }
  }
}

// The 4 x 4 bits of a word at rows 4 * y .., columns 4 * z .., each moved to twice its row and column.
OCC_HD inline uint64_t spread(uint64_t word, int y, int z) {
  uint64_t bits = word >> (32 * y + 4 * z) & 0x0f0f0f0fu;
  bits = (bits | bits << 2) & 0x33333333u;
  bits = (bits | bits << 1) & 0x55555555u;
  bits = (bits | bits << 16) & 0x0000ffff0000ffffu;
  return (bits | bits << 8) & 0x00ff00ff00ff00ffu;
}

// The inverse: every 2 x 2 bits joined by or, moved to rows 4 * y .., columns 4 * z ...
OCC_HD inline uint64_t gather(uint64_t word, int y, int z) {
  uint64_t bits = (word | word >> 1 | word >> 8 | word >> 9) & 0x0055005500550055u;
  bits = (bits | bits >> 8) & 0x0000ffff0000ffffu;
  bits = (bits | bits >> 16) & 0xffffffffu;
  bits = (bits | bits >> 1) & 0x33333333u;
  bits = (bits | bits >> 2) & 0x0f0f0f0fu;
  return bits << (32 * y + 4 * z);
}

// Bits `from` to `to`, both included, of each of the eight numbers of an axis; as a mask of rows and of columns.
OCC_HD inline uint64_t range8(int from, int to) { return (0xffu >> (7 - to)) & (0xffu << from) & 0xffu; }
OCC_HD inline uint64_t rows(uint64_t which) {  // bit y of an 8-bit number -> row y
  uint64_t bits = (which | which << 28) & 0x0000000f0000000fu;
  bits = (bits | bits << 14) & 0x0003000300030003u;
  bits = (bits | bits << 7) & kZ0;
  return bits * 0xff;
}
OCC_HD inline uint64_t columns(uint64_t which) { return which * kZ0; }

OCC_END_SHARED
}  // namespace occ::octree
