// SPDX-License-Identifier: MIT
// Reduction without a sort: one pass over the points, in their order, onto accumulators of all maps. A point's features
// are read once for all maps, which is what counts when the cloud is larger than the cache.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/pool_pack.h"
#include "math/bins.h"

namespace occ {
OCC_BEGIN_SHARED

constexpr int64_t kStreamChannels = 16;  // of one task: a cache line of float
constexpr int64_t kStreamAhead = 8;      // points whose accumulators are asked for ahead of their use
constexpr int64_t kFeaturesAhead = 32;   // and their features: a task reads a part of rows longer than a cache line

// Accumulators of maps [0, maps) of one sample: rows[k] has `limit[k]` rows of `stride` values, index[k] says the row
// of every point; points outside [0, limit) are left out. COUNTED: one map, whose rows' points are counted as well.
template <class S>
struct StreamMaps {
  S* rows[kMaxMaps];
  const int32_t* index[kMaxMaps];
  uint64_t limit[kMaxMaps];
  int32_t* counts;
  int maps;
  int64_t points, channels, stride;  // channels: from one point's features to the next one's
};

// Channels [c, c + W).
template <bool COUNTED, bool is_max, int W, class S>
OCC_INLINE void stream_points(const StreamMaps<S>& m, const S* features, int64_t c) {
  const int maps = COUNTED ? 1 : m.maps;
  S first[W];
  for (int j = 0; j < W; ++j) first[j] = is_max ? -std::numeric_limits<S>::infinity() : S(0);
  Pack<S, W> start;
  start.load(first);
  for (int k = 0; k < maps; ++k) {
    for (uint64_t cell = 0; cell < m.limit[k]; ++cell) start.store(m.rows[k] + cell * m.stride + c);
  }
  if constexpr (COUNTED) memset(m.counts, 0, m.limit[0] * sizeof(int32_t));
  for (int64_t n = 0; n < m.points; ++n) {
    const S* row = features + n * m.channels + c;
    OCC_PREFETCH(features + (n + kFeaturesAhead < m.points ? n + kFeaturesAhead : n) * m.channels + c);
    const bool ahead = n + kStreamAhead < m.points;
    for (int k = 0; k < maps; ++k) {
      if (ahead) {
        const int32_t later = m.index[k][n + kStreamAhead];
        OCC_PREFETCH(m.rows[k] + (later < 0 ? 0 : later) * m.stride + c);
      }
      const uint64_t cell = static_cast<uint64_t>(static_cast<int64_t>(m.index[k][n]));  // -1 is large
      if (cell >= m.limit[k]) continue;
      S* sums = m.rows[k] + cell * m.stride + c;
      Pack<S, W> sum;
      sum.load(sums);
      if constexpr (is_max) {
        sum.raise(row);
      } else {
        sum.add(row);
      }
      sum.store(sums);
      if constexpr (COUNTED) ++m.counts[cell];
    }
  }
}

template <bool COUNTED, class S>
OCC_INLINE void stream_channels(const StreamMaps<S>& m, const S* features, bool is_max, int64_t begin, int64_t end) {
  for_channels<16>(begin, end, [&](int64_t c, auto width) {
    constexpr int W = decltype(width)::value;
    is_max ? stream_points<COUNTED, true, W>(m, features, c) : stream_points<COUNTED, false, W>(m, features, c);
  });
}

OCC_END_SHARED
}  // namespace occ
