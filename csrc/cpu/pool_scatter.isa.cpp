// SPDX-License-Identifier: MIT
// Scattering onto cells and its transposes. Both ways of scattering add a cell's points by their number, so they give
// the same bits:
//   streamed: no sort. One pass over the points per 16 channels onto the cells themselves, see pool_stream.h;
//   sorted:   one segment per cell, reduced in registers. For maps too large for the cache, and where the argument of a
//             maximum is wanted.
#include "common/parallel.h"
#include "cpu/pool_jobs.h"
#include "cpu/pool_segment.h"
#include "cpu/pool_stream.h"

namespace occ::cpu::OCC_ISA {
namespace {

constexpr int64_t kCellBlock = 512;
constexpr int64_t kPointBlock = 1024;

struct Sizes {
  int64_t maps, points, channels, target;
  explicit Sizes(const BinShape& s) : maps(s.last - s.first), points(s.count), channels(s.channels), target(s.target) {}
};

// Empty cells become 0; sums become means.
template <class S>
void finish_cells(const StreamMaps<S>& m, const int32_t* const* counts, int reduce, int64_t begin, int64_t end) {
  for (int k = 0; k < m.maps; ++k) {
    for (uint64_t cell = 0; cell < m.limit[k]; ++cell) {
      const int32_t count = counts[k][cell];
      if (count == 1 || (count > 1 && reduce == kMax)) continue;
      for_channels<16>(begin, end, [&](int64_t c, auto width) {
        S* row = m.rows[k] + cell * m.channels + c;
        Pack<S, decltype(width)::value> sum;
        sum.load(row);
        count == 0 ? sum.clear() : sum.divide(static_cast<S>(count));
        sum.store(row);
      });
    }
  }
}

// A task is 16 channels of a sample: of all maps where that occupies the threads, else of one map. Either way an
// accumulator adds up its points in their order.
template <class S>
void stream(const ScatterJob& job) {
  const BinShape& s = job.shape;
  const Sizes z(s);
  const int64_t parts = (s.channels + kStreamChannels - 1) / kStreamChannels;
  const int64_t together = s.batch * parts >= job.threads ? z.maps : 1;
  const int64_t groups = z.maps / together;
  parallel_for(job.threads, s.batch * parts * groups, [&](int64_t task) {
    const int64_t b = task / groups / parts, part = task / groups % parts, group = task % groups;
    StreamMaps<S> m{};
    const int32_t* counts[kMaxMaps];
    m.maps = static_cast<int>(together);
    m.points = s.count;
    m.channels = s.channels;
    for (int k = 0; k < m.maps; ++k) {
      const int64_t map = group * together + k, cells = (b * z.maps + map) * s.target;
      m.rows[k] = static_cast<S*>(job.out) + cells * s.channels;
      m.index[k] = job.index + points_begin(s, b, s.first + static_cast<int>(map));
      m.limit[k] = static_cast<uint64_t>(s.target);
      counts[k] = job.counts + (job.reduce == kSum ? 0 : cells);
    }
    const int64_t begin = part * kStreamChannels;
    const int64_t end = begin + kStreamChannels < s.channels ? begin + kStreamChannels : s.channels;
    stream_channels(m, static_cast<const S*>(job.in) + b * s.count * s.channels, job.reduce == kMax, begin, end);
    if (job.reduce != kSum) finish_cells(m, counts, job.reduce, begin, end);
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
