// SPDX-License-Identifier: MIT
// Scattering onto cells and its transposes. Both ways of scattering add a cell's points by their number, so they give
// the same bits:
//   streamed: no sort. A task adds up 16 channels in the order of the points, in sums that lie side by side (rows of
//             the output would take every second set of a cache): of all maps, so that the features are read once,
//             where that occupies the threads and the sums stay near; else of one map;
//   sorted:   one segment per cell, reduced in registers. For maps too large for the cache, and where the argument of a
//             maximum is wanted.
#include <cstdlib>

#include "common/parallel.h"
#include "cpu/pool_jobs.h"
#include "cpu/pool_segment.h"
#include "cpu/pool_stream.h"

namespace occ::cpu::OCC_ISA {
namespace {

constexpr int64_t kCellBlock = 512;
constexpr int64_t kPointBlock = 1024;
constexpr int64_t kNearBytes = 1 << 20;  // sums of a task that takes several maps: about a second-level cache

struct Sizes {
  int64_t maps, points, channels, target;
  explicit Sizes(const BinShape& s) : maps(s.last - s.first), points(s.count), channels(s.channels), target(s.target) {}
};

// The accumulators of map k into the output's rows: empty cells become 0, sums become means.
template <class S>
void finish_cells(const StreamMaps<S>& m, int k, int reduce, int64_t width, S* out) {
  for (uint64_t cell = 0; cell < m.limit[k]; ++cell) {
    const int32_t count = m.counts[k][cell];
    for_channels<16>(0, width, [&](int64_t c, auto w) {
      Pack<S, decltype(w)::value> sum;
      sum.load(m.rows[k] + cell * m.stride + c);
      if (count == 0) {
        sum.clear();
      } else if (reduce == kMean && count > 1) {
        sum.divide(static_cast<S>(count));
      }
      sum.store(out + cell * m.channels + c);
    });
  }
}

// Channels [first, first + width) of maps [map, map + maps) of sample b; false without memory.
template <class S>
bool stream_task(const ScatterJob& job, int64_t b, int64_t map, int maps, int64_t first) {
  const BinShape& s = job.shape;
  const int64_t size = maps * s.target * (kStreamChannels * sizeof(S) + sizeof(int32_t));
  char* memory = static_cast<char*>(malloc(static_cast<size_t>(size) + 64));
  if (memory == nullptr) return false;
  S* sums = reinterpret_cast<S*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64);
  StreamMaps<S> m{};
  for (int k = 0; k < maps; ++k) {
    m.rows[k] = sums + k * s.target * kStreamChannels;
    m.counts[k] = reinterpret_cast<int32_t*>(sums + maps * s.target * kStreamChannels) + k * s.target;
    m.index[k] = job.index + points_begin(s, b, s.first + static_cast<int>(map) + k);
    m.limit[k] = static_cast<uint64_t>(s.target);
  }
  m.maps = maps;
  m.points = s.count;
  m.channels = s.channels;
  m.stride = kStreamChannels;
  const int64_t width = first + kStreamChannels < s.channels ? kStreamChannels : s.channels - first;
  stream_channels<true>(m, static_cast<const S*>(job.in) + b * s.count * s.channels + first, job.reduce == kMax, 0,
                        width);
  for (int k = 0; k < maps; ++k) {
    const int64_t row = (b * (s.last - s.first) + map + k) * s.target;
    finish_cells(m, k, job.reduce, width, static_cast<S*>(job.out) + row * s.channels + first);
  }
  free(memory);
  return true;
}

template <class S>
void stream(const ScatterJob& job) {
  const BinShape& s = job.shape;
  const int64_t parts = (s.channels + kStreamChannels - 1) / kStreamChannels;
  const int64_t maps = s.last - s.first;
  const bool near = maps * s.target * kStreamChannels * static_cast<int64_t>(sizeof(S)) <= kNearBytes;
  const int64_t together = near && s.batch * parts >= job.threads ? maps : 1;
  const int64_t groups = maps / together;
  parallel_for(job.threads, s.batch * parts * groups, [&](int64_t task) {
    const int64_t map = task % groups * together, b = task / groups / parts, part = task / groups % parts;
    if (!stream_task<S>(job, b, map, static_cast<int>(together), part * kStreamChannels)) *job.failed = true;
  });
}

template <Step step, class S>
void sorted_block(const ScatterJob& job, int64_t b, int64_t map, int64_t begin, int64_t end) {
  const BinShape& s = job.shape;
  const int k = s.first + static_cast<int>(map);
  const int32_t* order = job.order + points_begin(s, b, k);
  const int32_t* starts = job.offsets + starts_begin(s, b, k);
  const S* features = static_cast<const S*>(job.in) + b * s.count * s.channels;
  const int64_t cells = (b * (s.last - s.first) + map) * s.target;
  for (int64_t cell = begin; cell < end; ++cell) {
    S* out = static_cast<S*>(job.out) + (cells + cell) * s.channels;
    int32_t* args = job.argmax ? job.argmax + (cells + cell) * s.channels : nullptr;
    if (starts[cell] == starts[cell + 1]) {
      for (int64_t c = 0; c < s.channels; ++c) out[c] = S(0);
      if (args) {
        for (int64_t c = 0; c < s.channels; ++c) args[c] = static_cast<int32_t>(s.count);
      }
      continue;
    }
    reduce_segment<step>(features, features, order, starts[cell], starts[cell + 1], starts[s.cells[k]], s.channels, out,
                         args);
  }
}

template <Step step, class S>
void sorted(const ScatterJob& job) {
  const BinShape& s = job.shape;
  const Sizes z(s);
  const int64_t blocks = (s.target + kCellBlock - 1) / kCellBlock;
  parallel_for(job.threads, s.batch * z.maps * blocks, [&](int64_t task) {
    const int64_t begin = task % blocks * kCellBlock;
    const int64_t end = begin + kCellBlock < s.target ? begin + kCellBlock : s.target;
    sorted_block<step, S>(job, task / blocks / z.maps, task / blocks % z.maps, begin, end);
  });
}

template <class S>
void sorted_typed(const ScatterJob& job) {
  if (job.argmax) return sorted<Step::kArgMax, S>(job);
  if (job.reduce == kSum) return sorted<Step::kSum, S>(job);
  if (job.reduce == kMean) return sorted<Step::kMean, S>(job);
  sorted<Step::kMax, S>(job);
}

// Every point adds up its cells' rows of job.in; with job.chosen only the channels in which it is the chosen point.
template <class S>
void gather(const ScatterJob& job) {
  const BinShape& s = job.shape;
  const Sizes z(s);
  const int64_t blocks = (s.count + kPointBlock - 1) / kPointBlock;
  parallel_for(job.threads, s.batch * blocks, [&](int64_t task) {
    const int64_t b = task / blocks, begin = task % blocks * kPointBlock;
    const int64_t end = begin + kPointBlock < s.count ? begin + kPointBlock : s.count;
    for (int64_t n = begin; n < end; ++n) {
      int64_t cells[kMaxMaps];
      S factors[kMaxMaps];
      int used = 0;
      for (int64_t map = 0; map < z.maps; ++map) {
        const int64_t cell = job.index[points_begin(s, b, s.first + static_cast<int>(map)) + n];
        if (cell < 0 || cell >= s.target) continue;
        cells[used] = (b * z.maps + map) * s.target + cell;
        factors[used] = job.reduce == kMean ? S(1) / static_cast<S>(job.counts[cells[used]]) : S(1);
        ++used;
      }
      S* out = static_cast<S*>(job.out) + (b * s.count + n) * s.channels;
      for_channels<32>(0, s.channels, [&](int64_t c, auto width) {
        Pack<S, decltype(width)::value> sum;
        sum.clear();
        for (int k = 0; k < used; ++k) {
          const int64_t at = cells[k] * s.channels + c;
          const S* in = static_cast<const S*>(job.in) + at;
          if (job.chosen) {
            sum.add_chosen(in, job.chosen + at, static_cast<int32_t>(n));
          } else {
            sum.add_scaled(in, factors[k]);
          }
        }
        sum.store(out + c);
      });
    }
  });
}

}  // namespace

void count_cells(const ScatterJob& job) {
  const BinShape& s = job.shape;
  const Sizes z(s);
  parallel_for(job.threads, s.batch * z.maps, [&](int64_t task) {
    int32_t* counts = job.counts + task * s.target;
    const int32_t* index = job.index + points_begin(s, task / z.maps, s.first + static_cast<int>(task % z.maps));
    for (int64_t cell = 0; cell < s.target; ++cell) counts[cell] = 0;
    for (int64_t n = 0; n < s.count; ++n) {
      if (index[n] >= 0 && index[n] < s.target) ++counts[index[n]];
    }
  });
}

void scatter_streamed(const ScatterJob& job) { job.wide ? stream<double>(job) : stream<float>(job); }

void scatter_sorted(const ScatterJob& job) { job.wide ? sorted_typed<double>(job) : sorted_typed<float>(job); }

void gather_cells(const ScatterJob& job) { job.wide ? gather<double>(job) : gather<float>(job); }

}  // namespace occ::cpu::OCC_ISA
