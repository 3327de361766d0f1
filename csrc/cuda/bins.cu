// SPDX-License-Identifier: MIT
// Cells of points, and the stable sort of points by cell: least-significant-digit radix sort, up to 7 bits a pass. A
// row is the points of one sample in one map; absent points get the key `cells`, so that they come last.
//   rows of at most kSmall points: one block a row, all passes in shared memory;
//   longer rows: tiles of kTile points, per pass a count per tile and digit, a scan per row, and a scatter.
// Ranks within a tile come from per-warp counters and warp matches, so equal keys keep their order; nothing depends on
// the order in which blocks run.
#include <algorithm>
#include <stdexcept>

#include "common/cuda_launch.h"
#include "common/types.h"
#include "cuda/bins.h"

namespace occ::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kSmall = 4096;  // keys and two orders fit in 48 KB of shared memory
constexpr int kTile = 2048;
constexpr int kMaxDigitBits = 7;
constexpr int kMaxDigits = 1 << kMaxDigitBits;

template <class T>
OCC_KERNEL void bin_index_kernel(const T* points, const T* bases, const T* scales, const int64_t* lengths,
                                 int32_t* index, int64_t batch, int64_t count, Layout layout,
                                 Normalizer<acc_t<T>> normalizer) {
  using S = acc_t<T>;
  const int maps = layout.maps();
  OCC_GRID_STRIDE(i, batch * count) {
    const int64_t b = i / count;
    const int64_t n = i - b * count;
    const bool exists = lengths == nullptr || n < lengths[b];
    const S p[3] = {static_cast<S>(points[3 * i]), static_cast<S>(points[3 * i + 1]),
                    static_cast<S>(points[3 * i + 2])};
    for (int map = 0; map < maps; ++map) {
      S basis[9], scale = S(1);
      int kind = map;
      if (map >= layout.canonical && map < layout.planes()) {
        const int64_t l = b * layout.dynamic + map - layout.canonical;
        for (int e = 0; e < 9; ++e) basis[e] = static_cast<S>(bases[l * 9 + e]);
        scale = static_cast<S>(scales[l]);
        kind = layout.canonical;  // `basis` holds this plane's frame only, as if it were the first
      }
      index[(b * maps + map) * count + n] = exists ? cell_index(layout, normalizer, kind, basis, &scale, p) : -1;
    }
  }
}

// What the sorting kernels know about the rows.
struct Rows {
  int64_t number, count, tiles;  // rows, points of each, tiles of each
  int maps;
  int64_t stride;           // int32 values of one sample in offsets
  int32_t cells[kMaxMaps];  // of every map
  int64_t base[kMaxMaps];   // where a map's offsets begin within a sample
  int digit_bits, passes;

  OCC_HD int32_t cells_of(int64_t row) const { return cells[row % maps]; }
  OCC_HD int64_t offsets_of(int64_t row) const { return row / maps * stride + base[row % maps]; }
};

struct Digit {
  int shift, bits;
  OCC_HD int of(int32_t key) const { return (key >> shift) & ((1 << bits) - 1); }
};

OCC_DEVICE int32_t key_of(int32_t cell, int32_t cells) { return cell < 0 ? cells : cell; }

// Exclusive prefix sum of `count` shared values by the whole block; returns the total. `totals`: kWarps shared values.
OCC_DEVICE int32_t block_exclusive_scan(int32_t* values, int count, int32_t* totals) {
  const int each = (count + kThreads - 1) / kThreads;
  const int begin = min(static_cast<int>(threadIdx.x) * each, count);
  const int end = min(begin + each, count);
  int32_t sum = 0;
  for (int i = begin; i < end; ++i) sum += values[i];
  const int32_t inclusive = warp_inclusive_sum(sum);
  if (lane_id() == kWarp - 1) totals[threadIdx.x / kWarp] = inclusive;
  __syncthreads();
  int32_t before = 0, total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < static_cast<int>(threadIdx.x) / kWarp) before += totals[w];
    total += totals[w];
  }
  int32_t running = before + inclusive - sum;
  for (int i = begin; i < end; ++i) {
    const int32_t value = values[i];
    values[i] = running;
    running += value;
  }
  __syncthreads();
  return total;
}

// A warp's place among the points of a tile: every warp takes a run of them, whole rounds of 32.
struct Run {
  int begin, end, rounds;
  OCC_DEVICE explicit Run(int count) {
    const int each = (count + kThreads - 1) / kThreads * kWarp;
    begin = min(static_cast<int>(threadIdx.x) / kWarp * each, count);
    end = min(begin + each, count);
    rounds = (end - begin + kWarp - 1) / kWarp;
  }
};

// Where the lane's item goes among those of its digit; advances the warp's counter. The whole warp calls it, lanes
// without an item with digit -1.
OCC_DEVICE int32_t take_place(int32_t* counters, int digit) {
  const uint32_t peers = match_any(static_cast<uint32_t>(digit));
  int32_t* counter = counters + (digit < 0 ? 0 : digit) * kWarps + threadIdx.x / kWarp;
  const int32_t place = *counter + popc(peers & lanes_below());
  sync_warp();
  if (digit >= 0 && lowest_bit(peers) == lane_id()) *counter += popc(peers);
  sync_warp();
  return place;
}

// Writes the starts of the cells (previous, key] of a row, position `place`, for every lane; long stretches together.
OCC_DEVICE void fill_starts(int32_t* starts, int32_t previous, int32_t key, int32_t place) {
  constexpr int kAlone = 8;
  const bool together = key - previous > kAlone;
  if (!together) {
    for (int32_t cell = previous + 1; cell <= key; ++cell) starts[cell] = place;
  }
  for (uint32_t lanes = ballot(together); lanes != 0; lanes &= lanes - 1) {
    const int lane = lowest_bit(lanes);
    const int32_t first = shuffle(previous, lane) + 1, last = shuffle(key, lane), value = shuffle(place, lane);
    for (int64_t cell = static_cast<int64_t>(first) + lane_id(); cell <= last; cell += kWarp) starts[cell] = value;
  }
}

// One block a row.
OCC_KERNEL void __launch_bounds__(kThreads)
    sort_small_kernel(const int32_t* index, int32_t* order, int32_t* offsets, Rows rows) {
  OCC_SHARED(int32_t, keys, kSmall);
  OCC_SHARED(uint16_t, places, 2 * kSmall);
  OCC_SHARED(int32_t, counters, kMaxDigits* kWarps);
  OCC_SHARED(int32_t, totals, kWarps);
  const int64_t row = blockIdx.x;
  const int count = static_cast<int>(rows.count);
  const int32_t cells = rows.cells_of(row);
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < count; i += kThreads) {
    keys[i] = key_of(index[row * rows.count + i], cells);
    places[i] = static_cast<uint16_t>(i);
  }
  const Run run(count);
  const int digits = 1 << rows.digit_bits;
  uint16_t* from = places;
  uint16_t* to = places + kSmall;
  for (int pass = 0; pass < rows.passes; ++pass) {
    const Digit digit{pass * rows.digit_bits, rows.digit_bits};
    for (int i = thread; i < digits * kWarps; i += kThreads) counters[i] = 0;
    __syncthreads();
    for (int i = run.begin + lane_id(); i < run.end; i += kWarp) {
      atomicAdd(&counters[digit.of(keys[from[i]]) * kWarps + thread / kWarp], 1);
    }
    __syncthreads();
    block_exclusive_scan(counters, digits * kWarps, totals);
    for (int round = 0; round < run.rounds; ++round) {
      const int i = run.begin + round * kWarp + lane_id();
      const uint16_t point = i < run.end ? from[i] : uint16_t(0);
      const int32_t place = take_place(counters, i < run.end ? digit.of(keys[point]) : -1);
      if (i < run.end) to[place] = point;
    }
    __syncthreads();
    uint16_t* const free = from;
    from = to;
    to = free;
  }
  // Position `count` stands for an end with key `cells`.
  for (int begin = 0; begin <= count; begin += kThreads) {
    const int i = begin + thread;
    int32_t previous = 0, key = 0;  // of a lane past the end: nothing to fill
    if (i <= count) {
      previous = i == 0 ? -1 : keys[from[i - 1]];
      key = i == count ? cells : keys[from[i]];
      if (i < count) order[row * rows.count + i] = from[i];
    }
    fill_starts(offsets + rows.offsets_of(row), previous, key, i);
  }
}

// counts[row, digit, tile]: how many of the tile's points have the digit. `from` is the order so far, null before any.
OCC_KERNEL void __launch_bounds__(kThreads)
    count_tiles_kernel(const int32_t* index, const int32_t* from, int32_t* counts, Rows rows, Digit digit) {
  OCC_SHARED(int32_t, counters, kMaxDigits);
  const int64_t row = blockIdx.x / rows.tiles, tile = blockIdx.x % rows.tiles;
  const int32_t cells = rows.cells_of(row);
  const int digits = 1 << digit.bits;
  for (int d = static_cast<int>(threadIdx.x); d < digits; d += kThreads) counters[d] = 0;
  __syncthreads();
  const int64_t first = row * rows.count, begin = tile * kTile;
  const int64_t end = begin + kTile < rows.count ? begin + kTile : rows.count;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const int64_t point = from == nullptr ? i : from[first + i];
    atomicAdd(&counters[digit.of(key_of(index[first + point], cells))], 1);
  }
  __syncthreads();
  for (int d = static_cast<int>(threadIdx.x); d < digits; d += kThreads) {
    counts[(row * digits + d) * rows.tiles + tile] = counters[d];
  }
}

// Counts become starts within the row: an exclusive sum over (digit, tile). One block a row.
OCC_KERNEL void __launch_bounds__(kThreads) scan_tiles_kernel(int32_t* counts, int64_t length) {
  constexpr int kChunk = 4 * kThreads;
  OCC_SHARED(int32_t, values, kChunk);
  OCC_SHARED(int32_t, totals, kWarps);
  int32_t* own = counts + static_cast<int64_t>(blockIdx.x) * length;
  int32_t before = 0;
  for (int64_t begin = 0; begin < length; begin += kChunk) {
    for (int i = static_cast<int>(threadIdx.x); i < kChunk; i += kThreads)
      values[i] = begin + i < length ? own[begin + i] : 0;
    __syncthreads();
    const int32_t total = block_exclusive_scan(values, kChunk, totals);
    for (int i = static_cast<int>(threadIdx.x); i < kChunk; i += kThreads) {
      if (begin + i < length) own[begin + i] = before + values[i];
    }
    before += total;
    __syncthreads();
  }
}

// Moves a tile's points to their places by one digit.
OCC_KERNEL void __launch_bounds__(kThreads) scatter_tiles_kernel(const int32_t* index, const int32_t* from, int32_t* to,
                                                                 const int32_t* starts, Rows rows, Digit digit) {
  OCC_SHARED(int32_t, counters, kMaxDigits* kWarps);
  const int64_t row = blockIdx.x / rows.tiles, tile = blockIdx.x % rows.tiles;
  const int32_t cells = rows.cells_of(row);
  const int digits = 1 << digit.bits;
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < digits * kWarps; i += kThreads) counters[i] = 0;
  __syncthreads();
  const int64_t first = row * rows.count, begin = tile * kTile;
  const Run run(static_cast<int>(begin + kTile < rows.count ? kTile : rows.count - begin));
  constexpr int kRounds = kTile / kThreads;  // a run is at most this long; kept in registers between count and move
  int32_t point[kRounds], own[kRounds];
  for (int round = 0; round < kRounds; ++round) {
    const int i = run.begin + round * kWarp + lane_id();
    own[round] = -1;
    if (i >= run.end) continue;
    point[round] = from == nullptr ? static_cast<int32_t>(begin + i) : from[first + begin + i];
    own[round] = digit.of(key_of(index[first + point[round]], cells));
    atomicAdd(&counters[own[round] * kWarps + thread / kWarp], 1);
  }
  __syncthreads();
  for (int d = thread; d < digits; d += kThreads) {
    int32_t running = starts[(row * digits + d) * rows.tiles + tile];
    for (int w = 0; w < kWarps; ++w) {
      const int32_t size = counters[d * kWarps + w];
      counters[d * kWarps + w] = running;
      running += size;
    }
  }
  __syncthreads();
  for (int round = 0; round < kRounds; ++round) {
    const int32_t place = take_place(counters, own[round]);
    if (own[round] >= 0) to[first + place] = point[round];
  }
}

// offsets of every (row, cell), the cell `cells` included, by binary search in the sorted keys.
OCC_KERNEL void find_starts_kernel(const int32_t* index, const int32_t* order, int32_t* offsets, Rows rows) {
  OCC_GRID_STRIDE(i, rows.number / rows.maps * rows.stride) {
    const int64_t within = i % rows.stride;
    int map = rows.maps - 1;
    while (within < rows.base[map]) --map;
    const int64_t first = (i / rows.stride * rows.maps + map) * rows.count;
    const int32_t cell = static_cast<int32_t>(within - rows.base[map]);
    int64_t low = 0, high = rows.count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (key_of(index[first + order[first + middle]], rows.cells[map]) < cell) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    offsets[i] = static_cast<int32_t>(low);
  }
}

Rows make_rows(const int64_t* cells, int64_t batch, int64_t maps, int64_t count) {
  if (maps < 1 || maps > kMaxMaps) {
    throw std::invalid_argument("occkernels.sort_bins: expected 1 to 16 maps, got " + std::to_string(maps));
  }
  Rows rows{};
  rows.number = batch * maps;
  rows.count = count;
  rows.tiles = (count + kTile - 1) / kTile;
  rows.maps = static_cast<int>(maps);
  int64_t most = 0;
  for (int64_t map = 0; map < maps; ++map) {
    rows.cells[map] = static_cast<int32_t>(cells[map]);
    rows.base[map] = rows.stride;
    rows.stride += cells[map] + 1;
    most = std::max(most, cells[map]);
  }
  int bits = 1;  // of the largest key, `most`
  while (bits < 31 && (most >> bits) != 0) ++bits;
  rows.passes = (bits + kMaxDigitBits - 1) / kMaxDigitBits;
  rows.digit_bits = (bits + rows.passes - 1) / rows.passes;
  return rows;
}

}  // namespace

void bin_index(const void* points, int dtype, const void* bases, const void* scales, const int64_t* lengths,
               int32_t* index, int64_t batch, int64_t count, const Layout& layout, uintptr_t stream) {
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kBlock = 256;
    OCC_LAUNCH(bin_index_kernel<T>, grid_for(batch * count, kBlock), kBlock, 0, stream, static_cast<const T*>(points),
               static_cast<const T*>(bases), static_cast<const T*>(scales), lengths, index, batch, count, layout,
               Normalizer<acc_t<T>>(layout.padding));
  });
}

int64_t sort_bins_workspace(const int64_t* cells, int64_t batch, int64_t maps, int64_t count, uintptr_t) {
  if (count <= kSmall) return 0;
  const Rows rows = make_rows(cells, batch, maps, count);
  return rows.number * (rows.count + (int64_t{1} << rows.digit_bits) * rows.tiles);
}

void sort_bins(const int32_t* index, const int64_t* cells, int32_t* order, int32_t* offsets, int32_t* workspace,
               int64_t batch, int64_t maps, int64_t count, uintptr_t stream) {
  const Rows rows = make_rows(cells, batch, maps, count);
  if (count <= kSmall) {
    OCC_LAUNCH(sort_small_kernel, static_cast<unsigned>(rows.number), kThreads, 0, stream, index, order, offsets, rows);
    return;
  }
  int32_t* other = workspace;  // the second order
  int32_t* counts = workspace + rows.number * rows.count;
  const auto blocks = static_cast<unsigned>(rows.number * rows.tiles);
  const int32_t* from = nullptr;
  for (int pass = 0; pass < rows.passes; ++pass) {
    const Digit digit{pass * rows.digit_bits, rows.digit_bits};
    int32_t* to = (rows.passes - 1 - pass) % 2 == 0 ? order : other;  // the last pass ends in `order`
    OCC_LAUNCH(count_tiles_kernel, blocks, kThreads, 0, stream, index, from, counts, rows, digit);
    OCC_LAUNCH(scan_tiles_kernel, static_cast<unsigned>(rows.number), kThreads, 0, stream, counts,
               rows.tiles << digit.bits);
    OCC_LAUNCH(scatter_tiles_kernel, blocks, kThreads, 0, stream, index, from, to, counts, rows, digit);
    from = to;
  }
  constexpr int kBlock = 256;
  OCC_LAUNCH(find_starts_kernel, grid_for(batch * rows.stride, kBlock), kBlock, 0, stream, index, order, offsets, rows);
}

}  // namespace occ::cuda
