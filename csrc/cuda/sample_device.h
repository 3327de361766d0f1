// SPDX-License-Identifier: MIT
// What the sampling kernels share: the job as kernels see it, vector loads, and the corner weights of one query.
#pragma once

#include <cstdint>

#include "common/cuda_launch.h"
#include "common/types.h"
#include "math/interp.h"

namespace occ::cuda {

constexpr int kSampleThreads = 128;
constexpr int kMaxCorners = 8;

// One call, with the constants in the arithmetic type. See cpu/sample.h for the tensors.
template <class T>
struct SampleDevice {
  using S = acc_t<T>;
  const T *planes, *grid, *grad;
  const S *coords, *directions, *frame;
  int64_t batch, queries, channels, width;
  int num_directions, columns, maps, num_planes;
  bool concat;
  MapRule<S> rule[kMaxMaps];

  // Where a sample's map begins; null when the map has no features.
  template <class E>
  OCC_HD E* map_data(E* plane_maps, E* grid_maps, int64_t b, int k) const {
    const int64_t r = rule[k].resolution;
    if (k < num_planes) return plane_maps ? plane_maps + (b * num_planes + k) * r * r * channels : nullptr;
    return grid_maps ? grid_maps + b * r * r * r * channels : nullptr;
  }
};

// N elements loaded and stored at once.
template <class T, int N>
struct alignas(sizeof(T) * N) Chunk {
  T v[N];
};

template <class T, int N>
OCC_DEVICE void load_chunk(const T* from, acc_t<T>* to) {
  const Chunk<T, N> chunk = *reinterpret_cast<const Chunk<T, N>*>(from);
  for (int i = 0; i < N; ++i) to[i] = static_cast<acc_t<T>>(chunk.v[i]);
}

template <class T, int N>
OCC_DEVICE void store_chunk(T* to, const acc_t<T>* from) {
  Chunk<T, N> chunk;
  for (int i = 0; i < N; ++i) chunk.v[i] = T(from[i]);
  *reinterpret_cast<Chunk<T, N>*>(to) = chunk;
}

// Elements a lane moves at once: 16 bytes of the arithmetic type.
template <class T>
constexpr int kChunk = 16 / static_cast<int>(sizeof(acc_t<T>));

// Lanes that share a query: a power of two up to 32, enough for the channels if possible.
inline int lanes_for(int64_t channels, int chunk) {
  int lanes = 1;
  while (lanes < kWarp && static_cast<int64_t>(lanes) * chunk < channels) lanes *= 2;
  return lanes;
}

// Position of one query in map k.
template <class S>
struct Spot {
  int32_t low[3];
  S upper[3], slope[3];
};

template <class T>
OCC_DEVICE Spot<acc_t<T>> locate(const SampleDevice<T>& job, int k, int64_t b, int64_t m) {
  Spot<acc_t<T>> spot;
  const auto& rule = job.rule[k];
  const acc_t<T>* coords = job.coords + (b * job.queries + m) * job.columns;
  for (int axis = 0; axis < 3; ++axis) {
    if (axis >= rule.axes) break;
    const acc_t<T> u = position_of(rule, coords[rule.columns[axis]], spot.slope[axis]);
    spot.low[axis] = low_node(rule, u);
    spot.upper[axis] = u - static_cast<acc_t<T>>(spot.low[axis]);
  }
  return spot;
}

// Coefficients of the kinds of one term: after all directions, and the frame's row term - 1.
template <class T, int D>
OCC_DEVICE void term_kinds(const SampleDevice<T>& job, int k, int64_t b, int64_t m, int term, acc_t<T>* kinds) {
  using S = acc_t<T>;
  for (int set = 0; set < 1 << D; ++set) kinds[set] = S(set == 0);
  for (int number = 0; number <= job.num_directions; ++number) {
    const bool last = number == job.num_directions;
    if (last && term == 0) break;
    const S* from = last ? job.frame + (b * 3 + term - 1) * job.columns
                         : job.directions + ((b * job.num_directions + number) * job.queries + m) * job.columns;
    S along[D];
    for (int axis = 0; axis < D; ++axis) along[axis] = from[job.rule[k].columns[axis]];
    differentiate<D>(kinds, along);
  }
}

template <class T, int D>
OCC_DEVICE void corner_weights(const SampleDevice<T>& job, int k, int64_t b, int64_t m, int term,
                               const Spot<acc_t<T>>& spot, acc_t<T>* weights) {
  if (term == 0 && job.num_directions == 0) {
    spread_plain<D>(spot.upper, acc_t<T>(1), weights);
  } else {
    term_kinds<T, D>(job, k, b, m, term, weights);
    spread<D>(spot.upper, spot.slope, weights);
  }
}

// Elements from a cell's lower node to each of its corners.
template <int D, class R>
OCC_DEVICE int64_t corner_offset(const R& rule, int corner, int64_t channels) {
  const int64_t r = rule.resolution;
  if (r == 1) return 0;
  return ((corner & 1) + (corner >> 1 & 1) * r + (D == 3 ? (corner >> 2 & 1) * r * r : 0)) * channels;
}

template <int D, class R, class S>
OCC_DEVICE int64_t node_of(const R& rule, const Spot<S>& spot) {
  const int64_t r = rule.resolution;
  const int64_t plane = spot.low[0] + r * spot.low[1];
  return D == 3 ? plane + r * r * spot.low[2] : plane;
}

}  // namespace occ::cuda
