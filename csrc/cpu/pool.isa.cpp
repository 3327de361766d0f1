// SPDX-License-Identifier: MIT
// Local pooling in two steps, each with one owner for every value written:
//   segments: a cell's points lie side by side in the sorted order; reduce their rows in registers, write one row;
//   points:   add up the rows of a point's cells over the maps, in the order of the maps.
#include "common/parallel.h"
#include "cpu/pool_jobs.h"
#include "cpu/pool_segment.h"

namespace occ::cpu::OCC_ISA {
namespace {

constexpr int64_t kBlock = 1024;       // points of one task
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
  int64_t i = begin;
  if (i < end && i > 0) {  // a segment belongs to the block in which it starts
    const int32_t cell = index[order[i]];
    if (starts[cell] < i) i = starts[cell + 1];
  }
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
    parallel_for(job.threads, samples * maps * blocks, [&](int64_t task) {
      const int64_t begin = task % blocks * kBlock;
      const int64_t end = begin + kBlock < s.count ? begin + kBlock : s.count;
      const int64_t local = task / blocks / maps;
      reduce_block<step>(r, b0 + local, local, s.first + static_cast<int>(task / blocks % maps), begin, end);
    });
    parallel_for(job.threads, samples * blocks, [&](int64_t task) {
      const int64_t begin = task % blocks * kBlock;
      const int64_t end = begin + kBlock < s.count ? begin + kBlock : s.count;
      gather_block<step>(r, b0 + task / blocks, task / blocks, begin, end);
    });
  }
}

template <class S>
void run_typed(const PoolJob& job) {
  if (job.mean) return run<Step::kMean, S>(job);
  if (job.transpose) return run<Step::kPickTranspose, S>(job);
  if (job.args) return run<Step::kPick, S>(job);
  run<Step::kMax, S>(job);
}

}  // namespace

void local_pool(const PoolJob& job) { job.wide ? run_typed<double>(job) : run_typed<float>(job); }

}  // namespace occ::cpu::OCC_ISA
