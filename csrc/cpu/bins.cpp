// SPDX-License-Identifier: MIT
#include "cpu/bins.h"

#include <algorithm>

#include "common/parallel.h"
#include "common/types.h"

namespace occ::cpu {
namespace {

constexpr int64_t kPointBlock = 8192;

template <class T>
void bin_index_typed(const T* points, const T* bases, const T* scales, const int64_t* lengths, int32_t* index, int64_t batch,
                     int64_t count, const Layout& layout, int threads) {
  using S = acc_t<T>;
  const Normalizer<S> normalizer(layout.padding);
  const int maps = layout.maps();
  const int64_t blocks = (count + kPointBlock - 1) / kPointBlock;
  parallel_for(threads, batch * blocks, [&](int64_t task) {
    const int64_t b = task / blocks;
    const int64_t begin = (task % blocks) * kPointBlock;
    const int64_t end = std::min(begin + kPointBlock, count);
    const int64_t length = lengths ? lengths[b] : count;
    S basis[9 * kMaxMaps], scale[kMaxMaps];
    for (int l = 0; l < layout.dynamic; ++l) {
      for (int e = 0; e < 9; ++e) basis[9 * l + e] = static_cast<S>(bases[(b * layout.dynamic + l) * 9 + e]);
      scale[l] = static_cast<S>(scales[b * layout.dynamic + l]);
    }
    for (int map = 0; map < maps; ++map) {
      int32_t* row = index + (b * maps + map) * count;
      for (int64_t n = begin; n < end; ++n) {
        const T* source = points + (b * count + n) * 3;
        const S p[3] = {static_cast<S>(source[0]), static_cast<S>(source[1]), static_cast<S>(source[2])};
        row[n] = n < length ? cell_index(layout, normalizer, map, basis, scale, p) : -1;
      }
    }
  });
}

}  // namespace

void bin_index(const void* points, int dtype, const void* bases, const void* scales, const int64_t* lengths, int32_t* index,
               int64_t batch, int64_t count, const Layout& layout, int threads) {
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    bin_index_typed(static_cast<const T*>(points), static_cast<const T*>(bases), static_cast<const T*>(scales), lengths, index,
                    batch, count, layout, threads);
  });
}

int64_t sort_bins_workspace(const int64_t*, int64_t, int64_t, int64_t, int) { return 0; }

void sort_bins(const int32_t* index, const int64_t* cells, int32_t* order, int32_t* offsets, int32_t*, int64_t batch,
               int64_t maps, int64_t count, int threads) {
  int64_t stride = 0;  // int32 values of one sample in offsets
  for (int64_t map = 0; map < maps; ++map) stride += cells[map] + 1;
  parallel_for(threads, batch * maps, [&](int64_t task) {
    const int64_t map = task % maps;
    int64_t base = (task / maps) * stride;
    for (int64_t before = 0; before < map; ++before) base += cells[before] + 1;
    const int32_t* keys = index + task * count;
    int32_t* places = order + task * count;
    int32_t* starts = offsets + base;
    // starts[c + 1] first counts, then becomes the running write position of cell c, and ends as the start of cell c + 1.
    std::fill(starts, starts + cells[map] + 1, 0);
    int32_t valid = 0;
    for (int64_t n = 0; n < count; ++n) {
      if (keys[n] >= 0) {
        ++starts[keys[n] + 1];
        ++valid;
      }
    }
    int32_t running = 0;
    for (int64_t cell = 0; cell < cells[map]; ++cell) {
      const int32_t size = starts[cell + 1];
      starts[cell + 1] = running;
      running += size;
    }
    int32_t tail = valid;
    for (int64_t n = 0; n < count; ++n) {
      const int32_t place = keys[n] >= 0 ? starts[keys[n] + 1]++ : tail++;
      places[place] = static_cast<int32_t>(n);
    }
  });
}

}  // namespace occ::cpu
