// SPDX-License-Identifier: MIT
// Weighted scatter: the transpose of the gather, owner computes. Queries come sorted by cell; a row of cells (for the
// grid, a slab) adds to its own row of nodes and to the next, so even rows go in parallel, then odd ones. Within a row
// the queries are taken in sorted order, in blocks; consecutive queries of one cell are summed in registers and added
// to memory once.
#include "common/parallel.h"
#include "common/simd.h"
#include "cpu/sample.h"
#include "cpu/sample_block.h"

namespace occ::cpu {
namespace OCC_ISA {
namespace {

constexpr int kBlock = 64;
constexpr int64_t kTask = 1024;

// Queries of one row, and the outputs they go to.
template <class T>
struct Row {
  int64_t batch;
  int map, number;         // of the row
  const int32_t* queries;  // sorted by cell
  const int32_t* cells;    // cell of every query of the map, by query
  const T* grad;           // of query 0
  acc_t<T>* out;           // of the map
};

// Lower nodes from the cell number, positions from the coordinates. The cell decides, so that no rounding can lead
// outside it.
template <class T, int D>
void locate_cells(const Sampler<T>& s, const Row<T>& row, const int32_t* cell, MapBlock<acc_t<T>, kBlock>& block) {
  using S = acc_t<T>;
  const auto& rule = s.rule[row.map];
  S column[D][kBlock];
  for (int q = 0; q < kBlock; ++q) {
    const S* from = s.coords(row.batch, block.query[q]);
    for (int axis = 0; axis < D; ++axis) column[axis][q] = from[rule.columns[axis]];
  }
  const double inverse = 1.0 / rule.resolution;
  for (int q = 0; q < kBlock; ++q) {
    const int32_t line = D == 3 ? static_cast<int32_t>((cell[q] + 0.5) * inverse) : row.number;
    block.low[0][q] = cell[q] - line * rule.resolution;
    block.low[1][q] = D == 3 ? line - row.number * rule.resolution : line;
    block.low[2][q] = row.number;
  }
  for (int axis = 0; axis < D; ++axis) {
    for (int q = 0; q < kBlock; ++q) {
      const S u = position_of(rule, column[axis][q], block.slope[axis][q]);
      block.upper[axis][q] = u - static_cast<S>(block.low[axis][q]);
    }
  }
}

template <class T>
OCC_INLINE void prefetch_queries(const Sampler<T>& s, const Row<T>& row, int64_t begin, int64_t end, int terms) {
  const int64_t bytes = s.channels * static_cast<int64_t>(sizeof(T));
  for (int64_t i = begin; i < end; ++i) {
    const int64_t m = row.queries[i];
    OCC_PREFETCH(s.coords(row.batch, m));
    OCC_PREFETCH(row.cells + m);
    for (int term = 0; term < terms; ++term) {
      const char* from = reinterpret_cast<const char*>(row.grad + (m * terms + term) * s.width);
      for (int64_t byte = 0; byte < bytes; byte += 64) OCC_PREFETCH(from + byte);
    }
  }
}

// One cell: queries [begin, end) of the block, channels c0 to c0 + NV packs.
template <class T, class P, int NV, int TERMS, int CORNERS>
OCC_INLINE void add_run(const Sampler<T>& s, const T* const* grad, const acc_t<T> (*weight)[kMaxCorners][kBlock],
                        int begin, int end, int64_t c0, const int64_t* corner, acc_t<T>* out) {
  constexpr int lanes = sizeof(P) / sizeof(acc_t<T>);
  P sum[CORNERS][NV] = {};
  for (int q = begin; q < end; ++q) {
    OCC_UNROLL for (int term = 0; term < TERMS; ++term) {
      P g[NV];
      OCC_UNROLL for (int v = 0; v < NV; ++v) g[v] = load_simd<P>(grad[q] + term * s.width + c0 + v * lanes);
      OCC_UNROLL for (int c = 0; c < CORNERS; ++c) {
        const P w = broadcast<P>(weight[term][c][q]);
        OCC_UNROLL for (int v = 0; v < NV; ++v) sum[c][v] = multiply_add(g[v], w, sum[c][v]);
      }
    }
  }
  OCC_UNROLL for (int c = 0; c < CORNERS; ++c) {
    OCC_UNROLL for (int v = 0; v < NV; ++v) {
      acc_t<T>* to = out + corner[c] + c0 + v * lanes;
      store_simd(to, load_simd<P>(to) + sum[c][v]);
    }
  }
}

template <class T, int D, int TERMS>
void scatter_block(const Sampler<T>& s, const Row<T>& row, int64_t first, int count) {
  using S = acc_t<T>;
  constexpr int NV = D == 2 ? 2 : 1;  // with 2^D corners: eight registers of sums
  constexpr int lanes = kLanes<S>;
  MapBlock<S, kBlock> block;
  S weight[TERMS][kMaxCorners][kBlock];
  int32_t cell[kBlock];
  const T* grad[kBlock];
  for (int q = 0; q < kBlock; ++q) {
    const int64_t m = row.queries[first + (q < count ? q : 0)];
    block.query[q] = m;
    cell[q] = row.cells[m];
    grad[q] = row.grad + m * TERMS * s.width;
  }
  locate_cells<T, D>(s, row, cell, block);
  corner_weights<T, D, TERMS, kBlock>(s, row.batch, row.map, block, count, weight);
  for (int begin = 0, end; begin < count; begin = end) {
    for (end = begin + 1; end < count && cell[end] == cell[begin];) ++end;
    S* out = row.out + cell[begin] * s.channels;
    const int64_t* corner = s.corner[row.map];
    int64_t c = 0;
    for (; c + NV * lanes <= s.channels; c += NV * lanes) {
      add_run<T, Simd<S, lanes>, NV, TERMS, 1 << D>(s, grad, weight, begin, end, c, corner, out);
    }
    for (; c + lanes <= s.channels; c += lanes) {
      add_run<T, Simd<S, lanes>, 1, TERMS, 1 << D>(s, grad, weight, begin, end, c, corner, out);
    }
    for (; c < s.channels; ++c) {
      add_run<T, Simd<S, 1>, 1, TERMS, 1 << D>(s, grad, weight, begin, end, c, corner, out);
    }
  }
}

// One row of cells of one map. Even rows come first and own the zeroing of their two rows of nodes.
template <class T, int TERMS>
void scatter_row(const Sampler<T>& s, int64_t b, int k, int number, int64_t offset_base) {
  using S = acc_t<T>;
  const SampleJob& job = s.job;
  const auto& rule = s.rule[k];
  S* out = s.map_data(static_cast<S*>(job.out_planes), static_cast<S*>(job.out_grid), b, k);
  if (out == nullptr) return;
  const int64_t nodes = rule.axes == 3 ? static_cast<int64_t>(rule.resolution) * rule.resolution : rule.resolution;
  if (number % 2 == 0) {
    const int64_t rows = number + 1 < rule.resolution ? 2 : 1;
    memset(out + number * nodes * s.channels, 0, rows * nodes * s.channels * sizeof(S));
  }
  if (number > rule.last_cell) return;
  const int32_t* starts = job.offsets + offset_base;
  const int64_t begin = starts[number * nodes], end = starts[(number + 1) * nodes];
  const int64_t row_of_map = (b * job.maps + k) * s.queries;
  const T* grad = static_cast<const T*>(job.grad) + b * s.queries * TERMS * s.width + (job.concat ? k * s.channels : 0);
  const Row<T> row{b, k, number, job.order + row_of_map, job.index + row_of_map, grad, out};
  prefetch_queries(s, row, begin, begin + kBlock < end ? begin + kBlock : end, TERMS);
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t next = first + kBlock < end ? first + kBlock : end;
    prefetch_queries(s, row, next, next + kBlock < end ? next + kBlock : end, TERMS);
    if (rule.axes == 2) {
      scatter_block<T, 2, TERMS>(s, row, first, static_cast<int>(next - first));
    } else {
      scatter_block<T, 3, TERMS>(s, row, first, static_cast<int>(next - first));
    }
  }
}

template <class T, int TERMS>
void scatter(const SampleJob& job) {
  const Sampler<T> sampler(job);
  int64_t rows[kMaxMaps + 1] = {},
                          cells[kMaxMaps + 1] = {};  // of one parity, and entries of `offsets`, before each map
  for (int parity = 0; parity < 2; ++parity) {
    for (int k = 0; k < job.maps; ++k) {
      const int r = job.map[k].resolution;
      rows[k + 1] = rows[k] + (r + 1 - parity) / 2;
      cells[k + 1] = cells[k] + sampler.map_size(k) / job.channels + 1;
    }
    parallel_for(job.threads, job.batch * rows[job.maps], [&](int64_t task) {
      const int64_t b = task / rows[job.maps], place = task % rows[job.maps];
      int k = 0;
      while (place >= rows[k + 1]) ++k;
      const int number = static_cast<int>(2 * (place - rows[k])) + parity;
      scatter_row<T, TERMS>(sampler, b, k, number, b * cells[job.maps] + cells[k]);
    });
  }
}

// Lower nodes of up to kBlock queries in every map; positions are computed for a whole block, then the first `count`
// kept.
template <class S>
void index_block(const Sampler<S>& s, int64_t b, int64_t first, int count) {
  S column[kMaxColumns][kBlock], slope;
  for (int q = 0; q < kBlock; ++q) {
    const S* from = s.coords(b, first + (q < count ? q : 0));
    for (int c = 0; c < s.job.columns; ++c) column[c][q] = from[c];
  }
  for (int k = 0; k < s.job.maps; ++k) {
    const auto& rule = s.rule[k];
    int32_t node[kBlock] = {};
    for (int axis = rule.axes - 1; axis >= 0; --axis) {
      const S* values = column[rule.columns[axis]];
      for (int q = 0; q < kBlock; ++q) {
        node[q] = node[q] * rule.resolution + low_node(rule, position_of(rule, values[q], slope));
      }
    }
    memcpy(s.job.index + (b * s.job.maps + k) * s.queries + first, node, count * sizeof(int32_t));
  }
}

template <class S>
void index_queries(const SampleJob& job) {
  const Sampler<S> sampler(job);
  const int64_t tasks = (job.queries + kTask - 1) / kTask;
  parallel_for(job.threads, job.batch * tasks, [&](int64_t task) {
    const int64_t begin = (task % tasks) * kTask;
    const int64_t end = begin + kTask < job.queries ? begin + kTask : job.queries;
    for (int64_t first = begin; first < end; first += kBlock) {
      index_block(sampler, task / tasks, first, static_cast<int>(end - first < kBlock ? end - first : kBlock));
    }
  });
}

}  // namespace

void run_index(const SampleJob& job) { job.dtype == kFloat64 ? index_queries<double>(job) : index_queries<float>(job); }

void run_scatter(const SampleJob& job) {
  with_type(job.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    job.frame ? scatter<T, 4>(job) : scatter<T, 1>(job);
  });
}

}  // namespace OCC_ISA
}  // namespace occ::cpu
