// SPDX-License-Identifier: MIT
// What the sampling loops share: a block of queries as structure of arrays, its positions and corner weights.
// Only for *.isa.cpp sources.
#pragma once

#include <cstdint>

#include "common/simd.h"
#include "cpu/sample.h"
#include "math/interp.h"

namespace occ::cpu {
namespace OCC_ISA {

constexpr int kMaxColumns = 3 + 2 * kMaxMaps;
constexpr int kMaxCorners = 8;

// Calls fn(tag<T>{}) for the element type of a job; the code was checked by the caller.
template <class F>
OCC_INLINE void with_type(int dtype, F&& fn) {
  if (dtype == kFloat32) fn(tag<float>{});
  if (dtype == kFloat64) fn(tag<double>{});
  if (dtype == kFloat16) fn(tag<half_t>{});
  if (dtype == kBFloat16) fn(tag<bf16_t>{});
}

// A job with its types and constants; made once a call.
template <class T>
struct Sampler {
  using S = acc_t<T>;
  const SampleJob& job;
  int64_t channels, queries;
  int64_t width;  // channels of one row of out or grad
  MapRule<S> rule[kMaxMaps];
  int64_t corner[kMaxMaps][kMaxCorners];  // of a cell, in elements from its lower node

  explicit Sampler(const SampleJob& j)
      : job(j), channels(j.channels), queries(j.queries), width(j.concat ? j.maps * j.channels : j.channels) {
    for (int k = 0; k < job.maps; ++k) {
      rule[k] = MapRule<S>(job.map[k]);
      const int64_t r = rule[k].resolution;
      const int64_t steps[3] = {channels, channels * r, channels * r * r};
      for (int c = 0; c < kMaxCorners; ++c) {
        corner[k][c] = 0;
        for (int axis = 0; axis < 3; ++axis) {
          if (r > 1 && (c >> axis & 1)) corner[k][c] += steps[axis];
        }
      }
    }
  }

  // Elements of one map, and where a sample's map begins; null when the map has no features.
  int64_t map_size(int k) const {
    const int64_t r = rule[k].resolution;
    return channels * r * r * (k < job.num_planes ? 1 : r);
  }
  template <class E>
  E* map_data(E* planes, E* grid, int64_t b, int k) const {
    if (k < job.num_planes) return planes ? planes + (b * job.num_planes + k) * map_size(k) : nullptr;
    return grid ? grid + b * map_size(k) : nullptr;
  }
  const S* coords(int64_t b, int64_t m) const {
    return static_cast<const S*>(job.coords) + (b * queries + m) * job.columns;
  }
  const S* direction(int64_t b, int number, int64_t m) const {
    return static_cast<const S*>(job.directions) + ((b * job.num_directions + number) * queries + m) * job.columns;
  }
  const S* frame(int64_t b, int row) const { return static_cast<const S*>(job.frame) + (b * 3 + row) * job.columns; }
};

// Up to N queries of one map. Unused places repeat a query, so that whole packs can be computed.
template <class S, int N>
struct MapBlock {
  int64_t query[N];
  int32_t low[3][N];
  S upper[3][N], slope[3][N];
};

// Positions along one axis: lower node, weight of the upper node, and its slope.
template <class S, int N>
OCC_INLINE void locate_axis(const MapRule<S>& rule, const S* column, int32_t* low, S* upper, S* slope) {
  for (int q = 0; q < N; ++q) {
    const S u = position_of(rule, column[q], slope[q]);
    low[q] = low_node(rule, u);
    upper[q] = u - static_cast<S>(low[q]);
  }
}

// Coefficients of the kinds after all directions, for the pack of queries at q0.
template <class T, int D, class P, int N>
OCC_INLINE void direction_kinds(const Sampler<T>& s, int64_t b, int k, const MapBlock<acc_t<T>, N>& block, int q0,
                                P* kinds) {
  using S = acc_t<T>;
  constexpr int lanes = sizeof(P) / sizeof(S);
  for (int set = 0; set < 1 << D; ++set) kinds[set] = broadcast<P>(S(set == 0));
  for (int number = 0; number < s.job.num_directions; ++number) {
    S values[D][lanes];
    for (int lane = 0; lane < lanes; ++lane) {
      const S* from = s.direction(b, number, block.query[q0 + lane]);
      for (int axis = 0; axis < D; ++axis) values[axis][lane] = from[s.rule[k].columns[axis]];
    }
    P along[D];
    for (int axis = 0; axis < D; ++axis) along[axis] = load_simd<P>(values[axis]);
    differentiate<D>(kinds, along);
  }
}

// Adds the derivative along a row of the frame.
template <class T, int D, class P>
OCC_INLINE void frame_kinds(const Sampler<T>& s, int64_t b, int k, int row, P* kinds) {
  P along[D];
  for (int axis = 0; axis < D; ++axis) along[axis] = broadcast<P>(s.frame(b, row)[s.rule[k].columns[axis]]);
  differentiate<D>(kinds, along);
}

// weight[term][corner][query] of the first `count` queries, rounded up to whole packs.
template <class T, int D, int TERMS, int N>
void corner_weights(const Sampler<T>& s, int64_t b, int k, const MapBlock<acc_t<T>, N>& block, int count,
                    acc_t<T> (*weight)[kMaxCorners][N]) {
  using S = acc_t<T>;
  using P = Simd<S, kLanes<S>>;
  for (int q0 = 0; q0 < count; q0 += kLanes<S>) {
    P upper[D], slope[D], kinds[1 << D];
    for (int axis = 0; axis < D; ++axis) {
      upper[axis] = load_simd<P>(&block.upper[axis][q0]);
      slope[axis] = load_simd<P>(&block.slope[axis][q0]);
    }
    if (TERMS == 1 && s.job.num_directions == 0) {
      spread_plain<D>(upper, broadcast<P>(S(1)), kinds);
      for (int c = 0; c < 1 << D; ++c) store_simd(&weight[0][c][q0], kinds[c]);
      continue;
    }
    P base[1 << D];
    direction_kinds<T, D>(s, b, k, block, q0, base);
    for (int term = 0; term < TERMS; ++term) {
      for (int set = 0; set < 1 << D; ++set) kinds[set] = base[set];
      if (term > 0) frame_kinds<T, D>(s, b, k, term - 1, kinds);
      spread<D>(upper, slope, kinds);
      for (int c = 0; c < 1 << D; ++c) store_simd(&weight[term][c][q0], kinds[c]);
    }
  }
}

}  // namespace OCC_ISA
}  // namespace occ::cpu
