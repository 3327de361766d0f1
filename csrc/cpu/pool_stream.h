// SPDX-License-Identifier: MIT
// Reduction without a sort: one pass over the points, in their order, onto accumulators of all maps. A block's features
// are read from far once for all maps, which is what counts when the cloud is larger than the cache.
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
constexpr int64_t kStreamBlock = 64;     // points whose features stay in the first-level cache from map to map

// Accumulators of maps [0, maps) of one sample: rows[k] has `limit[k]` rows of `stride` values, index[k] says the row
// of every point; points outside [0, limit) are left out. COUNTED: each row's points are counted as well.
template <class S>
struct StreamMaps {
  S* rows[kMaxMaps];
  const int32_t* index[kMaxMaps];
  uint64_t limit[kMaxMaps];
  int32_t* counts[kMaxMaps];
  int maps;
  int64_t points, channels, stride;  // channels: from one point's features to the next one's
};

// Channels [c, c + W).
template <bool COUNTED, bool is_max, int W, class S>
OCC_INLINE void stream_points(const StreamMaps<S>& m, const S* features, int64_t c) {
  S first[W];
  for (int j = 0; j < W; ++j) first[j] = is_max ? -std::numeric_limits<S>::infinity() : S(0);
  Pack<S, W> start;
  start.load(first);
  for (int k = 0; k < m.maps; ++k) {
    for (uint64_t cell = 0; cell < m.limit[k]; ++cell) start.store(m.rows[k] + cell * m.stride + c);
    if constexpr (COUNTED) memset(m.counts[k], 0, m.limit[k] * sizeof(int32_t));
  }
  for (int64_t begin = 0; begin < m.points; begin += kStreamBlock) {
    const int64_t end = begin + kStreamBlock < m.points ? begin + kStreamBlock : m.points;
    const int64_t cells_ahead = end + kStreamAhead <= m.points ? kStreamAhead : 0;
    const int64_t features_ahead = end + kStreamBlock <= m.points ? kStreamBlock : 0;
    for (int k = 0; k < m.maps; ++k) {
      S* const rows = m.rows[k] + c;
      int32_t* const counts = m.counts[k];
      const int32_t* const index = m.index[k];
      const uint64_t limit = m.limit[k];
      const bool last = k + 1 == m.maps;
      for (int64_t n = begin; n < end; ++n) {
        const S* row = features + n * m.channels + c;
        if (last) OCC_PREFETCH(row + features_ahead * m.channels);
        const int32_t later = index[n + cells_ahead];
        OCC_PREFETCH(rows + (later < 0 ? 0 : later) * m.stride);
        const uint64_t cell = static_cast<uint64_t>(static_cast<int64_t>(index[n]));  // -1 is large
        if (cell >= limit) continue;
        S* sums = rows + cell * m.stride;
        Pack<S, W> sum;
        sum.load(sums);
        if constexpr (is_max) {
          sum.raise(row);
        } else {
          sum.add(row);
        }
        sum.store(sums);
        if constexpr (COUNTED) ++counts[cell];
      }
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
