// SPDX-License-Identifier: MIT
// The dense grid, written once. Filling along x is keeping one plane of latest values while x goes up; filling along y
// is one row of them; so everything but the result itself stays in the cache.
#include <algorithm>
#include <limits>
#include <vector>

#include "common/parallel.h"
#include "common/types.h"
#include "cpu/octree.h"
#include "math/octree_steps.h"

namespace occ::cpu {
namespace {

constexpr int64_t kSegments = 4;  // of a lattice, along x; each first replays the known nodes before it

// Known nodes with coordinate x, into a plane (nodes, nodes).
template <class T>
void place_nodes(const octree::DenseLevel& source, int64_t b, int64_t x, int64_t nodes, T* plane) {
  if (x % source.stride != 0) return;
  const octree::Level& level = source.level;
  const int64_t at = x / source.stride, slab = level.side * level.side;
  const int64_t first = (b * level.side + at / 8) * slab;
  const int64_t* end = level.keys + level.count;
  for (const int64_t* key = std::lower_bound(level.keys, end, first); key != end && *key < first + slab; ++key) {
    const int64_t brick = key - level.keys;
    const uint64_t known = level.mask(brick, octree::kNodes)[at % 8] & ~level.mask(brick, octree::kUnknown)[at % 8];
    const T* values = static_cast<const T*>(source.values) + octree::kBrickNodes * brick + 64 * (at % 8);
    const octree::Place place = octree::place_of(*key, level.side);
    for (uint64_t left = known; left != 0; left &= left - 1) {
      const int bit = octree::lowest_bit(left);
      const int64_t y = (8 * place.at[1] + bit / 8) * source.stride, z = (8 * place.at[2] + bit % 8) * source.stride;
      if (values[bit] == values[bit]) plane[y * nodes + z] = values[bit];  // a NaN is filled like an unknown node
    }
  }
}

// Each NaN takes the value before it. Most groups of eight hold one value or eight.
template <class T>
void fill_row(const T* row, T* out, int64_t nodes) {
  constexpr int kGroup = 8;
  T last = row[0];
  int64_t z = 0;
  for (; z + kGroup <= nodes; z += kGroup) {
    int known = 0;
    for (int i = 0; i < kGroup; ++i) known += row[z + i] == row[z + i];
    if (known == kGroup) {
      for (int i = 0; i < kGroup; ++i) out[z + i] = row[z + i];
      last = row[z + kGroup - 1];
    } else if (known == 0 || (known == 1 && row[z] == row[z])) {
      last = known == 0 ? last : row[z];
      for (int i = 0; i < kGroup; ++i) out[z + i] = last;
    } else {
      for (int i = 0; i < kGroup; ++i) out[z + i] = last = row[z + i] == row[z + i] ? row[z + i] : last;
    }
  }
  for (; z < nodes; ++z) out[z] = last = row[z] == row[z] ? row[z] : last;
}

template <class T>
void write_segment(const octree::DenseLevel* levels, int64_t count, int64_t b, int64_t segment, int64_t nodes,
                   T* dense) {
  std::vector<T> plane(static_cast<size_t>(nodes * nodes), std::numeric_limits<T>::quiet_NaN());
  std::vector<T> row(static_cast<size_t>(nodes));
  const int64_t begin = nodes * segment / kSegments, end = nodes * (segment + 1) / kSegments;
  for (int64_t x = 0; x < end; ++x) {
    for (int64_t l = 0; l < count; ++l) place_nodes(levels[l], b, x, nodes, plane.data());
    if (x < begin) continue;
    T* out = dense + (b * nodes + x) * nodes * nodes;
    for (int64_t y = 0; y < nodes; ++y) {
      const T* here = plane.data() + y * nodes;
      for (int64_t z = 0; z < nodes; ++z) row[z] = y == 0 || here[z] == here[z] ? here[z] : row[z];
      fill_row(row.data(), out + y * nodes, nodes);
    }
  }
}

}  // namespace

void octree_dense(const int64_t* table, int64_t count, int dtype, int64_t batch, int64_t nodes, void* dense,
                  int threads) {
  std::vector<octree::DenseLevel> levels;
  for (int64_t l = 0; l < count; ++l) levels.push_back(octree::dense_level(table, l));
  parallel_for(threads, batch * kSegments, [&](int64_t task) {
    const int64_t b = task / kSegments, segment = task % kSegments;
    if (dtype == kFloat64) {
      write_segment(levels.data(), count, b, segment, nodes, static_cast<double*>(dense));
    } else {
      write_segment(levels.data(), count, b, segment, nodes, static_cast<float*>(dense));
    }
  });
}

}  // namespace occ::cpu
