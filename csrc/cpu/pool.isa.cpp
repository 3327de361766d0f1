// SPDX-License-Identifier: MIT
// Local pooling, with one owner for every value written. Values without an argument (plain maximum, mean) go one of two
// ways, which give the same bits:
//   direct:   few points a cell. A cell's points lie side by side in the sorted order; reduce their rows in registers
//             and add the result to the points' own rows at once, map after map. No scratch;
//   streamed: many points a cell. One pass over the points per 16 channels onto all cells (pool_stream.h), then every
//             point adds up the rows of its cells.
// All others go in two steps: reduce the segments of the sorted order to one row each, then gather as above.
#include "common/parallel.h"
#include "cpu/pool_jobs.h"
#include "cpu/pool_segment.h"
#include "cpu/pool_stream.h"

namespace occ::cpu::OCC_ISA {
namespace {

constexpr int64_t kBlock = 1024;       // points of one task
constexpr int64_t kDirectBlock = 512;  // the same for the direct way, which has the small clouds
constexpr int64_t kScratch = 4 << 20;  // values of the samples handled together: their rows stay in the cache

template <class S>
struct Rows {
  const PoolJob& job;
  const S* selector;
  const S* values;
  S* scratch;
  int32_t* args;
  S* out;
  int64_t rows;  // of one sample

  explicit Rows(const PoolJob& j)
      : job(j),
        selector(static_cast<const S*>(j.selector)),
        values(static_cast<const S*>(j.values)),
        scratch(static_cast<S*>(j.scratch)),
        args(j.args),
        out(static_cast<S*>(j.out)),
        rows(rows_before(j.shape, j.shape.last)) {}
};

// Position of the first segment that starts at `begin` or later: a segment belongs to the block in which it starts.
OCC_INLINE int64_t first_segment(const int32_t* index, const int32_t* order, const int32_t* starts, int64_t begin) {
  if (begin == 0) return 0;
  const int32_t cell = index[order[begin]];
  return starts[cell] < begin ? starts[cell + 1] : begin;
}

// The segments that start at positions [begin, end) of one map of one sample. `local` counts samples within the group.
template <Step step, class S>
void reduce_block(const Rows<S>& r, int64_t b, int64_t local, int map, int64_t begin, int64_t end) {
  const BinShape& s = r.job.shape;
  const int32_t* index = r.job.index + points_begin(s, b, map);
  const int32_t* order = r.job.order + points_begin(s, b, map);
  const int32_t* starts = r.job.offsets + starts_begin(s, b, map);
  const S* selector = r.selector + b * s.count * s.channels;
  const S* values = r.values + b * s.count * s.channels;
  const int64_t base = local * r.rows + rows_before(s, map);
  const int64_t present = starts[s.cells[map]];  // points with a negative index come after these
  const bool by_start = rows_by_start(s, map);
  if (end > present) end = present;
  int64_t i = begin < end ? first_segment(index, order, starts, begin) : end;
  while (i < end) {
    const int32_t cell = index[order[i]];
    const int64_t next = starts[cell + 1];
    const int64_t row = (base + (by_start ? i : cell)) * s.channels;
    int32_t* args = has_argument(step) ? r.args + row : nullptr;
    reduce_segment<step>(step == Step::kMean ? values : selector, values, order, i, next, present, s.channels,
                         r.scratch + row, args);
    i = next;
  }
}

// Adds the reduced segments that start at positions [begin, end) of one map to their points' rows; the first map
// writes.
template <Step step, class S>
void direct_block(const Rows<S>& r, int64_t b, int map, int64_t begin, int64_t end) {
  const BinShape& s = r.job.shape;
  const int32_t* index = r.job.index + points_begin(s, b, map);
  const int32_t* order = r.job.order + points_begin(s, b, map);
  const int32_t* starts = r.job.offsets + starts_begin(s, b, map);
  const S* in = r.values + b * s.count * s.channels;
  S* out = r.out + b * s.count * s.channels;
  const int64_t present = starts[s.cells[map]];  // points with a negative index come after these
  const bool first = map == s.first;
  const int64_t last = end < present ? end : present;
  for (int64_t i = begin < last ? first_segment(index, order, starts, begin) : last; i < last;) {
    const int64_t next = starts[index[order[i]] + 1];
    for (int64_t j = i + kAhead; j < next + kAhead && j < present; ++j) {
      prefetch_row(in + order[j] * s.channels, s.channels);
      prefetch_row(out + order[j] * s.channels, s.channels);
    }
    for_channels<32>(0, s.channels, [&](int64_t c, auto width) {
      Pack<S, decltype(width)::value> value, sum;
      value.load(in + order[i] * s.channels + c);
      for (int64_t j = i + 1; j < next; ++j) {
        if constexpr (step == Step::kMax) value.raise(in + order[j] * s.channels + c);
        if constexpr (step == Step::kMean) value.add(in + order[j] * s.channels + c);
      }
      if constexpr (step == Step::kMean) {
        if (next - i > 1) value.divide(static_cast<S>(next - i));
      }
      for (int64_t j = i; j < next; ++j) {
        S* row = out + order[j] * s.channels + c;
        sum.clear();
        if (!first) sum.load(row);
        sum.add(value);
        sum.store(row);
      }
    });
    i = next;
  }
  if (!first) return;
  for (int64_t i = begin < present ? present : begin; i < end; ++i) {
    S* row = out + order[i] * s.channels;
    for (int64_t c = 0; c < s.channels; ++c) row[c] = S(0);
  }
}

template <Step step, class S>
void direct(const PoolJob& job) {
  const Rows<S> r(job);
  const BinShape& s = job.shape;
  const int64_t blocks = (s.count + kDirectBlock - 1) / kDirectBlock;
  for (int map = s.first; map < s.last; ++map) {
    parallel_for(job.threads, s.batch * blocks, [&](int64_t task) {
      const int64_t begin = task % blocks * kDirectBlock;
      const int64_t end = begin + kDirectBlock < s.count ? begin + kDirectBlock : s.count;
      direct_block<step>(r, task / blocks, map, begin, end);
    });
  }
}

// Cells' rows of one sample and 16 channels: maxima, or means of the cells that have points.
template <Step step, class S>
void stream_cells(const Rows<S>& r, int64_t b, int64_t local, int first, int last, int64_t part) {
  const BinShape& s = r.job.shape;
  StreamMaps<S> m{};
  m.maps = last - first;
  m.points = s.count;
  m.channels = m.stride = s.channels;
  for (int k = 0; k < m.maps; ++k) {
    m.rows[k] = r.scratch + (local * r.rows + rows_before(s, first + k)) * s.channels;
    m.index[k] = r.job.index + points_begin(s, b, first + k);
    m.limit[k] = static_cast<uint64_t>(s.cells[first + k]);
  }
  const int64_t begin = part * kStreamChannels;
  const int64_t end = begin + kStreamChannels < s.channels ? begin + kStreamChannels : s.channels;
  stream_channels<false>(m, r.values + b * s.count * s.channels, step == Step::kMax, begin, end);
  if constexpr (step == Step::kMean) {
    for (int k = 0; k < m.maps; ++k) {
      const int32_t* starts = r.job.offsets + starts_begin(s, b, first + k);
      for (int64_t cell = 0; cell < s.cells[first + k]; ++cell) {
        const int32_t count = starts[cell + 1] - starts[cell];
        if (count < 2) continue;
        for_channels<16>(begin, end, [&](int64_t c, auto width) {
          S* row = m.rows[k] + cell * s.channels + c;
          Pack<S, decltype(width)::value> sum;
          sum.load(row);
          sum.divide(static_cast<S>(count));
          sum.store(row);
        });
      }
    }
  }
}

template <Step step, class S>
void gather_block(const Rows<S>& r, int64_t b, int64_t local, int64_t begin, int64_t end) {
  const BinShape& s = r.job.shape;
  const int32_t* index[kMaxMaps];
  const int32_t* starts[kMaxMaps];
  int64_t base[kMaxMaps];
  bool by_start[kMaxMaps];
  for (int k = s.first; k < s.last; ++k) {
    index[k] = r.job.index + points_begin(s, b, k);
    starts[k] = r.job.offsets + starts_begin(s, b, k);
    base[k] = local * r.rows + rows_before(s, k);
    by_start[k] = rows_by_start(s, k);
  }
  for (int64_t n = begin; n < end; ++n) {
    if (n + kAhead < end) {
      for (int k = s.first; k < s.last; ++k) {
        const int32_t cell = index[k][n + kAhead];
        if (cell >= 0)
          prefetch_row(r.scratch + (base[k] + (by_start[k] ? starts[k][cell] : cell)) * s.channels, s.channels);
      }
    }
    int64_t rows[kMaxMaps];
    int used = 0;
    for (int k = s.first; k < s.last; ++k) {
      const int32_t cell = index[k][n];
      if (cell >= 0) rows[used++] = (base[k] + (by_start[k] ? starts[k][cell] : cell)) * s.channels;
    }
    S* out = r.out + (b * s.count + n) * s.channels;
    for_channels<32>(0, s.channels, [&](int64_t c, auto width) {
      Pack<S, decltype(width)::value> sum;
      sum.clear();
      for (int k = 0; k < used; ++k) {
        if constexpr (step == Step::kPickTranspose) {
          sum.add_chosen(r.scratch + rows[k] + c, r.args + rows[k] + c, static_cast<int32_t>(n));
        } else {
          sum.add(r.scratch + rows[k] + c);
        }
      }
      sum.store(out + c);
    });
  }
}

// A task is 16 channels of a sample: of all maps where that occupies the threads, else of one map.
template <Step step, class S>
void stream_samples(const Rows<S>& r, int64_t b0, int64_t samples) {
  const BinShape& s = r.job.shape;
  const int64_t parts = (s.channels + kStreamChannels - 1) / kStreamChannels;
  const int maps = s.last - s.first;
  const int together = samples * parts >= r.job.threads ? maps : 1;
  const int groups = maps / together;
  parallel_for(r.job.threads, samples * parts * groups, [&](int64_t task) {
    const int64_t local = task / groups / parts;
    const int first = s.first + static_cast<int>(task % groups) * together;
    stream_cells<step>(r, b0 + local, local, first, first + together, task / groups % parts);
  });
}

template <Step step, class S>
void run(const PoolJob& job) {
  const Rows<S> r(job);
  const BinShape& s = job.shape;
  const int64_t blocks = (s.count + kBlock - 1) / kBlock;
  const int64_t maps = s.last - s.first;
  const int64_t sample = r.rows * s.channels;
  const int64_t group = sample > 0 && kScratch / sample > 1 ? kScratch / sample : 1;
  for (int64_t b0 = 0; b0 < s.batch; b0 += group) {
    const int64_t samples = b0 + group < s.batch ? group : s.batch - b0;
    if constexpr (step == Step::kMax || step == Step::kMean) {
      stream_samples<step>(r, b0, samples);
    } else {
      parallel_for(job.threads, samples * maps * blocks, [&](int64_t task) {
        const int64_t begin = task % blocks * kBlock;
        const int64_t end = begin + kBlock < s.count ? begin + kBlock : s.count;
        const int64_t local = task / blocks / maps;
        reduce_block<step>(r, b0 + local, local, s.first + static_cast<int>(task / blocks % maps), begin, end);
      });
    }
    parallel_for(job.threads, samples * blocks, [&](int64_t task) {
      const int64_t begin = task % blocks * kBlock;
      const int64_t end = begin + kBlock < s.count ? begin + kBlock : s.count;
      gather_block<step>(r, b0 + task / blocks, task / blocks, begin, end);
    });
  }
}

template <class S>
void run_typed(const PoolJob& job) {
  if (job.scratch == nullptr) return job.mean ? direct<Step::kMean, S>(job) : direct<Step::kMax, S>(job);
  if (job.mean) return run<Step::kMean, S>(job);
  if (job.transpose) return run<Step::kPickTranspose, S>(job);
  if (job.args) return run<Step::kPick, S>(job);
  run<Step::kMax, S>(job);
}

}  // namespace

void local_pool(const PoolJob& job) { job.wide ? run_typed<double>(job) : run_typed<float>(job); }

}  // namespace occ::cpu::OCC_ISA
