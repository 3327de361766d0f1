// SPDX-License-Identifier: MIT
// Weighted gather and contraction: one pass over the queries in their own order. For a block of queries positions and
// corner weights of all maps come first, vectorised over queries; then each query reads its corners, vectorised over
// channels.
#include "cpu/sample.h"

#include "common/parallel.h"
#include "common/simd.h"
#include "cpu/sample_block.h"

namespace occ::cpu {
namespace OCC_ISA {
namespace {

constexpr int64_t kTask = 1024;  // queries
constexpr int kAhead = 8;        // queries between prefetch and use

// All maps of one block. 64 queries; 16 with derivatives, so that it stays in the first-level cache.
template <class T, int TERMS>
struct Block {
  static constexpr int N = TERMS == 1 ? 64 : 16;
  using S = acc_t<T>;
  int active = 0;  // maps that have features
  int map[kMaxMaps];
  const T* cell[kMaxMaps][N];  // channels of the lower node
  S weight[kMaxMaps][TERMS][kMaxCorners][N];
};

template <class T, int N>
void load_columns(const Sampler<T>& s, int64_t b, const int64_t* query, acc_t<T> (*column)[N]) {
  for (int q = 0; q < N; ++q) {
    const acc_t<T>* from = s.coords(b, query[q]);
    for (int c = 0; c < s.job.columns; ++c) column[c][q] = from[c];
  }
}

// Positions of the block in map k, and where its cells begin in memory.
template <class T, int N>
void locate_map(const Sampler<T>& s, int k, const T* data, const acc_t<T> (*column)[N], MapBlock<acc_t<T>, N>& block,
                const T** cell) {
  const auto& rule = s.rule[k];
  for (int axis = 0; axis < rule.axes; ++axis) {
    locate_axis<acc_t<T>, N>(rule, column[rule.columns[axis]], block.low[axis], block.upper[axis], block.slope[axis]);
  }
  for (int q = 0; q < N; ++q) {
    int64_t node = rule.axes == 3 ? block.low[2][q] : 0;
    node = block.low[0][q] + rule.resolution * (block.low[1][q] + rule.resolution * node);
    cell[q] = data + node * s.channels;
  }
}

template <class T, int N>
void start_block(MapBlock<T, N>& block, int64_t first, int count) {
  for (int q = 0; q < N; ++q) block.query[q] = first + (q < count ? q : 0);
}

// Asks for the lines of a cell; two nodes along the first axis lie beside each other, so that ROWS = 2^(D - 1).
template <int ROWS, class T>
OCC_INLINE void prefetch_rows(const T* cell, const int64_t* corner, int64_t bytes) {
  const char* from = reinterpret_cast<const char*>(cell);
  for (int64_t byte = 0; byte < bytes; byte += 64) {
    OCC_UNROLL for (int row = 0; row < ROWS; ++row) {
      OCC_PREFETCH(from + byte + corner[2 * row] * static_cast<int64_t>(sizeof(T)));
    }
  }
}

template <class T>
OCC_INLINE void prefetch_cell(const Sampler<T>& s, int k, const T* cell) {
  const int64_t bytes = 2 * s.channels * static_cast<int64_t>(sizeof(T));
  if (s.rule[k].axes == 2) {
    prefetch_rows<2>(cell, s.corner[k], bytes);
  } else {
    prefetch_rows<4>(cell, s.corner[k], bytes);
  }
}

// Adds the corners of one cell, channels c0 to c0 + NV packs.
template <class T, class P, int NV, int TERMS, int CORNERS, int N>
OCC_INLINE void add_corners(const T* cell, const int64_t* corner, const acc_t<T> (*weight)[kMaxCorners][N], int q,
                            P (*sum)[NV]) {
  OCC_UNROLL for (int c = 0; c < CORNERS; ++c) {
    P value[NV];
    OCC_UNROLL for (int v = 0; v < NV; ++v) value[v] =
        load_simd<P>(cell + corner[c] + v * (sizeof(P) / sizeof(acc_t<T>)));
    OCC_UNROLL for (int term = 0; term < TERMS; ++term) {
      const P w = broadcast<P>(weight[term][c][q]);
      OCC_UNROLL for (int v = 0; v < NV; ++v) sum[term][v] = multiply_add(value[v], w, sum[term][v]);
    }
  }
}

template <class T, class P, int NV, int TERMS>
OCC_INLINE void gather_chunk(const Sampler<T>& s, const Block<T, TERMS>& block, int q, int64_t c0, T* out) {
  constexpr int lanes = sizeof(P) / sizeof(acc_t<T>);
  P sum[TERMS][NV] = {};
  for (int a = 0; a < block.active; ++a) {
    const int k = block.map[a];
    const T* cell = block.cell[a][q] + c0;
    if (s.rule[k].axes == 2) {
      add_corners<T, P, NV, TERMS, 4>(cell, s.corner[k], block.weight[a], q, sum);
    } else {
      add_corners<T, P, NV, TERMS, 8>(cell, s.corner[k], block.weight[a], q, sum);
    }
    if (s.job.concat || a + 1 == block.active) {
      T* to = out + c0 + (s.job.concat ? k * s.channels : 0);
      OCC_UNROLL for (int term = 0; term < TERMS; ++term) {
        OCC_UNROLL for (int v = 0; v < NV; ++v) {
          store_simd(to + term * s.width + v * lanes, sum[term][v]);
          sum[term][v] = P{};
        }
      }
    }
  }
}

// Calls fn(tag<Simd>, tag<char[packs]>, first channel) over the channels: NV packs at a time, then half as many, down
// to one pack and then one channel.
template <int NV, class S, class F>
OCC_INLINE void over_channels(int64_t channels, int64_t c, F&& fn) {
  constexpr int lanes = kLanes<S>;
  for (; c + NV * lanes <= channels; c += NV * lanes) fn(tag<Simd<S, lanes>>{}, tag<char[NV]>{}, c);
  if constexpr (NV > 1) {
    over_channels<NV / 2, S>(channels, c, fn);
  } else {
    for (; c < channels; ++c) fn(tag<Simd<S, 1>>{}, tag<char[1]>{}, c);
  }
}

template <class T, int TERMS>
void gather_block(const Sampler<T>& s, int64_t b, int64_t first, int count) {
  using S = acc_t<T>;
  constexpr int N = Block<T, TERMS>::N;
  constexpr int NV = TERMS == 1 ? 4 : 2;
  Block<T, TERMS> block;
  MapBlock<S, N> located;
  S column[kMaxColumns][N];
  start_block(located, first, count);
  load_columns<T, N>(s, b, located.query, column);
  T* out = static_cast<T*>(s.job.out) + (b * s.queries + first) * TERMS * s.width;
  for (int k = 0; k < s.job.maps; ++k) {
    const T* data = s.map_data(static_cast<const T*>(s.job.planes), static_cast<const T*>(s.job.grid), b, k);
    if (data == nullptr) {
      for (int q = 0; q < count * TERMS && s.job.concat; ++q)
        memset(out + q * s.width + k * s.channels, 0, s.channels * sizeof(T));
      continue;
    }
    const int a = block.active++;
    block.map[a] = k;
    locate_map<T, N>(s, k, data, column, located, block.cell[a]);
    if (s.rule[k].axes == 2) {
      corner_weights<T, 2, TERMS, N>(s, b, k, located, count, block.weight[a]);
    } else {
      corner_weights<T, 3, TERMS, N>(s, b, k, located, count, block.weight[a]);
    }
  }
  const auto prefetch = [&](int q) {
    for (int a = 0; a < block.active && q < count; ++a) prefetch_cell(s, block.map[a], block.cell[a][q]);
  };
  for (int q = 0; q < kAhead; ++q) prefetch(q);
  for (int q = 0; q < count; ++q) {
    prefetch(q + kAhead);
    T* row = out + q * TERMS * s.width;
    over_channels<NV, S>(s.channels, 0, [&](auto pack, auto packs, int64_t c) {
      gather_chunk<T, typename decltype(pack)::type, sizeof(typename decltype(packs)::type), TERMS>(s, block, q, c,
                                                                                                    row);
    });
  }
}

// dots[corner] = <grad, features at the corner> of one query.
template <class T, int CORNERS>
OCC_INLINE void corner_dots(const T* cell, const int64_t* corner, const T* grad, int64_t channels, acc_t<T>* dots) {
  using S = acc_t<T>;
  constexpr int lanes = kLanes<S>;
  using P = Simd<S, lanes>;
  P sum[CORNERS] = {};
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes) {
    const P g = load_simd<P>(grad + c);
    OCC_UNROLL for (int i = 0; i < CORNERS; ++i) sum[i] = multiply_add(g, load_simd<P>(cell + corner[i] + c), sum[i]);
  }
  OCC_UNROLL for (int i = 0; i < CORNERS; ++i) dots[i] = sum_lanes(sum[i]);
  for (; c < channels; ++c) {
    for (int i = 0; i < CORNERS; ++i) dots[i] += static_cast<S>(grad[c]) * static_cast<S>(cell[corner[i] + c]);
  }
}

// Adds map k's part of the gradient to the block's columns.
template <class T, int D, int TERMS, int N>
void contract_map(const Sampler<T>& s, int64_t b, int k, const MapBlock<acc_t<T>, N>& block, int count,
                  const T* const* cell, const T* grad, acc_t<T> (*column)[N]) {
  using S = acc_t<T>;
  using P = Simd<S, kLanes<S>>;
  for (int term = 0; term < TERMS; ++term) {
    S dots[1 << D][N] = {};
    for (int q = 0; q < count; ++q) {
      if (q + kAhead < count && term == 0) prefetch_cell(s, k, cell[q + kAhead]);
      S one[1 << D];
      corner_dots<T, 1 << D>(cell[q], s.corner[k], grad + (q * TERMS + term) * s.width, s.channels, one);
      for (int c = 0; c < 1 << D; ++c) dots[c][q] = one[c];
    }
    for (int q0 = 0; q0 < count; q0 += kLanes<S>) {
      P upper[D], slope[D], values[1 << D], kinds[1 << D];
      for (int axis = 0; axis < D; ++axis) {
        upper[axis] = load_simd<P>(&block.upper[axis][q0]);
        slope[axis] = load_simd<P>(&block.slope[axis][q0]);
      }
      for (int c = 0; c < 1 << D; ++c) values[c] = load_simd<P>(&dots[c][q0]);
      collect<D>(upper, slope, values);
      direction_kinds<T, D>(s, b, k, block, q0, kinds);
      if (term > 0) frame_kinds<T, D>(s, b, k, term - 1, kinds);
      for (int axis = 0; axis < D; ++axis) {
        S* to = &column[s.rule[k].columns[axis]][q0];
        store_simd(to, load_simd<P>(to) + derivative_along<D>(axis, kinds, values));
      }
    }
  }
}

template <class T, int TERMS>
void contract_block(const Sampler<T>& s, int64_t b, int64_t first, int count) {
  using S = acc_t<T>;
  constexpr int N = Block<T, TERMS>::N;
  MapBlock<S, N> located;
  const T* cell[N];
  S column[kMaxColumns][N], gradient[kMaxColumns][N];
  start_block(located, first, count);
  load_columns<T, N>(s, b, located.query, column);
  for (int c = 0; c < s.job.columns; ++c) {
    for (int q = 0; q < N; ++q) gradient[c][q] = 0;
  }
  const T* grad = static_cast<const T*>(s.job.grad) + (b * s.queries + first) * TERMS * s.width;
  for (int k = 0; k < s.job.maps; ++k) {
    const T* data = s.map_data(static_cast<const T*>(s.job.planes), static_cast<const T*>(s.job.grid), b, k);
    if (data == nullptr) continue;
    locate_map<T, N>(s, k, data, column, located, cell);
    const T* part = grad + (s.job.concat ? k * s.channels : 0);
    if (s.rule[k].axes == 2) {
      contract_map<T, 2, TERMS, N>(s, b, k, located, count, cell, part, gradient);
    } else {
      contract_map<T, 3, TERMS, N>(s, b, k, located, count, cell, part, gradient);
    }
  }
  S* out = static_cast<S*>(s.job.out) + (b * s.queries + first) * s.job.columns;
  for (int q = 0; q < count; ++q) {
    for (int c = 0; c < s.job.columns; ++c) out[q * s.job.columns + c] = gradient[c][q];
  }
}

// Calls fn(b, first, count) over all queries in blocks of N.
template <int N, class F>
void over_queries(const SampleJob& job, F&& fn) {
  const int64_t tasks = (job.queries + kTask - 1) / kTask;
  parallel_for(job.threads, job.batch * tasks, [&](int64_t task) {
    const int64_t begin = (task % tasks) * kTask;
    const int64_t end = begin + kTask < job.queries ? begin + kTask : job.queries;
    for (int64_t first = begin; first < end; first += N) {
      fn(task / tasks, first, static_cast<int>(end - first < N ? end - first : N));
    }
  });
}

template <class T, int TERMS, bool CONTRACT>
void run(const SampleJob& job) {
  const Sampler<T> sampler(job);
  over_queries<Block<T, TERMS>::N>(job, [&](int64_t b, int64_t first, int count) {
    if constexpr (CONTRACT) {
      contract_block<T, TERMS>(sampler, b, first, count);
    } else {
      gather_block<T, TERMS>(sampler, b, first, count);
    }
  });
}

}  // namespace

void run_gather(const SampleJob& job) {
  with_type(job.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    job.frame ? run<T, 4, false>(job) : run<T, 1, false>(job);
  });
}

void run_contract(const SampleJob& job) {
  with_type(job.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    job.frame ? run<T, 4, true>(job) : run<T, 1, true>(job);
  });
}

}  // namespace OCC_ISA
}  // namespace occ::cpu
