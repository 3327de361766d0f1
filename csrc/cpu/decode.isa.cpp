// SPDX-License-Identifier: MIT
// The residual decoder on lists of queries, tile by tile: features of the tile, then one matrix product after the other
// on rows that stay in the first- and second-level caches.
#include "cpu/decode.h"

#include "common/parallel.h"
#include "cpu/decode_tile.h"

namespace occ::cpu {
namespace OCC_ISA {
namespace {

constexpr int64_t kTask = 384;  // queries

// Queries [first, end) of shape b, at most a tile of them.
int locate_queries(const Tile& tile, int64_t b, int64_t first, int64_t end, Spots& spots) {
  const int count = static_cast<int>(end - first < tile.capacity ? end - first : tile.capacity);
  const float* query = tile.job.query + 3 * (b * tile.job.queries + first);
  for (int q = 0; q < count; ++q) {
    for (int axis = 0; axis < 3; ++axis) spots.columns.at[axis][q] = query[3 * q + axis];
  }
  locate_all(tile.maps, b, count, spots);
  return count;
}

template <class T>
void decode_queries(const DecodeJob& job) {
  const Maps maps(job);
  const int64_t tasks = (job.queries + kTask - 1) / kTask;
  parallel_for(job.threads, job.batch * tasks, [&](int64_t task) {
    Scratch memory(Tile::scratch(maps));
    if (!memory) {
      *job.failed = true;
      return;
    }
    Tile tile(maps, memory);
    const int64_t b = task / tasks, begin = task % tasks * kTask;
    const int64_t end = begin + kTask < job.queries ? begin + kTask : job.queries;
    int now = 0;
    int count = locate_queries(tile, b, begin, end, tile.spots[now]);
    for (int64_t first = begin; first < end; first += count, now ^= 1) {
      count = tile.spots[now].count;
      const bool more = first + count < end;
      if (more) locate_queries(tile, b, first + count, end, tile.spots[now ^ 1]);
      const int64_t at = b * job.queries + first;
      float* gradient = job.gradient ? job.gradient + 3 * at : nullptr;
      run_tile<T>(tile, tile.spots[now], more ? &tile.spots[now ^ 1] : nullptr, job.out + at, gradient);
    }
  });
}

}  // namespace

void run_decode(const DecodeJob& job) {
  with_feature_type(job.dtype, [&](auto type) { decode_queries<typename decltype(type)::type>(job); });
}

}  // namespace OCC_ISA
}  // namespace occ::cpu
