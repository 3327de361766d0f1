// SPDX-License-Identifier: MIT
// Features of a tile of queries: positions vectorised over queries, then every query's corners vectorised over
// channels, straight into the rows the matrix products read. Only for *.isa.cpp.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/types.h"
#include "cpu/decode.h"
#include "cpu/decode_gemm.h"

namespace occ::cpu {
namespace OCC_ISA {

constexpr int kTileRows = 96;
constexpr int kColumns = 3 + 2 * kMaxMaps;

// Calls fn(tag<T>{}) for the element type of the features; the code was checked by the caller.
template <class F>
OCC_INLINE void with_feature_type(int dtype, F&& fn) {
  if (dtype == kFloat16) {
    fn(tag<half_t>{});
  } else if (dtype == kBFloat16) {
    fn(tag<bf16_t>{});
  } else {
    fn(tag<float>{});
  }
}

// The maps of a call with their constants.
struct Maps {
  const DecodeJob& job;
  int count, planes, columns;
  int64_t channels, features;  // of one map, of a row
  MapRule<float> rule[kMaxMaps];
  int64_t corner[kMaxMaps][8];  // of a cell, in elements from its lower node

  explicit Maps(const DecodeJob& j)
      : job(j),
        count(j.layout.maps()),
        planes(j.layout.planes()),
        columns(3 + 2 * j.layout.dynamic),
        channels(j.channels),
        features(j.concat ? j.channels * j.layout.maps() : j.channels) {
    for (int k = 0; k < count; ++k) {
      rule[k] = MapRule<float>(j.map[k]);
      const int64_t r = rule[k].resolution;
      const int64_t steps[3] = {channels, channels * r, channels * r * r};
      for (int c = 0; c < 8; ++c) {
        corner[k][c] = 0;
        for (int axis = 0; axis < 3; ++axis) corner[k][c] += r > 1 && (c >> axis & 1) ? steps[axis] : 0;
      }
    }
  }

  template <class T>
  const T* data(int64_t b, int k) const {
    const int64_t r = rule[k].resolution;
    if (k < planes) return static_cast<const T*>(job.planes) + (b * planes + k) * channels * r * r;
    return static_cast<const T*>(job.grid) + b * channels * r * r * r;
  }
};

// x, y, z and the coordinates in the dynamic planes, structure of arrays. Places beyond the last query repeat the first
// one, so that whole vectors can be computed.
struct Columns {
  float at[kColumns][kTileRows];
};

OCC_INLINE void project_columns(const Maps& maps, int64_t b, Columns& columns) {
  const Layout& layout = maps.job.layout;
  const Normalizer<float> n(layout.padding);
  for (int l = 0; l < layout.dynamic; ++l) {
    const float* basis = maps.job.bases + (b * layout.dynamic + l) * 9;
    const float scale = maps.job.scale[b * layout.dynamic + l];
    for (int q = 0; q < kTileRows; ++q) {
      const float p[3] = {columns.at[0][q], columns.at[1][q], columns.at[2][q]};
      float t[2];
      normalize_dynamic(n, basis, scale, p, t);
      columns.at[3 + 2 * l][q] = t[0];
      columns.at[4 + 2 * l][q] = t[1];
    }
  }
}

// One map's cells and positions in them.
struct Located {
  int64_t cell[kTileRows];  // elements from the map's begin
  float upper[3][kTileRows], slope[3][kTileRows];
};

OCC_INLINE void locate(const Maps& maps, int k, const Columns& columns, Located& at) {
  const MapRule<float>& rule = maps.rule[k];
  int32_t low[3][kTileRows];
  for (int axis = 0; axis < rule.axes; ++axis) {
    const float* column = columns.at[rule.columns[axis]];
    for (int q = 0; q < kTileRows; ++q) {
      const float u = position_of(rule, column[q], at.slope[axis][q]);
      low[axis][q] = low_node(rule, u);
      at.upper[axis][q] = u - static_cast<float>(low[axis][q]);
    }
  }
  for (int q = 0; q < kTileRows; ++q) {
    int64_t node = rule.axes == 3 ? low[2][q] : 0;
    node = low[0][q] + rule.resolution * (low[1][q] + rule.resolution * node);
    at.cell[q] = node * maps.channels;
  }
}

// weight[corner][query]
template <int D>
OCC_INLINE void plain_weights(const Located& at, float (*weight)[kTileRows]) {
  for (int q = 0; q < kTileRows; q += kVector) {
    Vector upper[D], corners[1 << D];
    for (int axis = 0; axis < D; ++axis) upper[axis] = load(&at.upper[axis][q]);
    spread_plain<D>(upper, spread_value(1.0f), corners);
    for (int c = 0; c < 1 << D; ++c) store_simd(&weight[c][q], corners[c]);
  }
}

// NV vectors of channels of one query: the weighted corners, added to or written over the row.
template <class T, class P, int NV, int D>
OCC_INLINE void gather_channels(const T* cell, const int64_t* corner, const float (*weight)[kTileRows], int q, bool add,
                                float* row) {
  constexpr int lanes = sizeof(P) / sizeof(float);
  P sum[NV];
  OCC_UNROLL for (int v = 0; v < NV; ++v) sum[v] = add ? load_simd<P>(row + v * lanes) : P{};
  OCC_UNROLL for (int c = 0; c < 1 << D; ++c) {
    const P w = broadcast<P>(weight[c][q]);
    OCC_UNROLL for (int v = 0; v < NV; ++v) {
      sum[v] = multiply_add(load_simd<P>(cell + corner[c] + v * lanes), w, sum[v]);
    }
  }
  OCC_UNROLL for (int v = 0; v < NV; ++v) store_simd(row + v * lanes, sum[v]);
}

template <class T, int D>
void gather_map(const Maps& maps, int k, const T* data, const Located& at, int count, bool add, float* rows,
                int64_t stride) {
  constexpr int ahead = 8;
  float weight[1 << D][kTileRows];
  plain_weights<D>(at, weight);
  const int64_t* corner = maps.corner[k];
  const int64_t channels = maps.channels, bytes = 2 * channels * static_cast<int64_t>(sizeof(T));
  for (int q = 0; q < count; ++q) {
    const T* cell = data + at.cell[q];
    const char* later = reinterpret_cast<const char*>(data + at.cell[q + ahead < count ? q + ahead : q]);
    for (int64_t byte = 0; byte < bytes; byte += 64) {
      OCC_UNROLL for (int c = 0; c < 1 << D; c += 2) {
        OCC_PREFETCH(later + byte + corner[c] * static_cast<int64_t>(sizeof(T)));
      }
    }
    float* row = rows + q * stride;
    int64_t c = 0;
    for (; c + 4 * kVector <= channels; c += 4 * kVector) {
      gather_channels<T, Vector, 4, D>(cell + c, corner, weight, q, add, row + c);
    }
    for (; c + kVector <= channels; c += kVector) {
      gather_channels<T, Vector, 1, D>(cell + c, corner, weight, q, add, row + c);
    }
    for (; c < channels; ++c) {
      gather_channels<T, Simd<float, 1>, 1, D>(cell + c, corner, weight, q, add, row + c);
    }
  }
}

// Features of `count` queries of shape b into rows.
template <class T>
void gather_rows(const Maps& maps, int64_t b, const Columns& columns, int count, float* rows, int64_t stride) {
  Located at;
  for (int k = 0; k < maps.count; ++k) {
    locate(maps, k, columns, at);
    float* to = rows + (maps.job.concat ? k * maps.channels : 0);
    const bool add = k > 0 && !maps.job.concat;
    if (maps.rule[k].axes == 2) {
      gather_map<T, 2>(maps, k, maps.data<T>(b, k), at, count, add, to, stride);
    } else {
      gather_map<T, 3>(maps, k, maps.data<T>(b, k), at, count, add, to, stride);
    }
  }
}

template <class T, int D>
void contract_map(const Maps& maps, int k, const T* data, const Located& at, int count, const float* rows,
                  int64_t stride, Columns& gradient) {
  const int64_t* corner = maps.corner[k];
  float dots[1 << D][kTileRows] = {};
  for (int q = 0; q < count; ++q) {
    const T* cell = data + at.cell[q];
    const float* row = rows + q * stride;
    Vector sum[1 << D] = {};
    int64_t c = 0;
    for (; c + kVector <= maps.channels; c += kVector) {
      const Vector g = load(row + c);
      OCC_UNROLL for (int i = 0; i < 1 << D; ++i) {
        sum[i] = multiply_add(g, load_simd<Vector>(cell + corner[i] + c), sum[i]);
      }
    }
    OCC_UNROLL for (int i = 0; i < 1 << D; ++i) dots[i][q] = sum_lanes(sum[i]);
    for (; c < maps.channels; ++c) {
      for (int i = 0; i < 1 << D; ++i) dots[i][q] += row[c] * static_cast<float>(cell[corner[i] + c]);
    }
  }
  for (int q = 0; q < kTileRows; q += kVector) {
    Vector upper[D], slope[D], values[1 << D], kinds[1 << D];
    for (int axis = 0; axis < D; ++axis) {
      upper[axis] = load(&at.upper[axis][q]);
      slope[axis] = load(&at.slope[axis][q]);
    }
    for (int c = 0; c < 1 << D; ++c) {
      values[c] = load(&dots[c][q]);
      kinds[c] = spread_value(c == 0 ? 1.0f : 0.0f);
    }
    collect<D>(upper, slope, values);
    for (int axis = 0; axis < D; ++axis) {
      float* to = &gradient.at[maps.rule[k].columns[axis]][q];
      store_simd(to, load(to) + derivative_along<D>(axis, kinds, values));
    }
  }
}

// Adds to every column the derivative of <rows, features> along it, then folds the dynamic planes' columns into the
// first three.
template <class T>
void contract_rows(const Maps& maps, int64_t b, const Columns& columns, int count, const float* rows, int64_t stride,
                   Columns& gradient) {
  Located at;
  for (int k = 0; k < maps.count; ++k) {
    locate(maps, k, columns, at);
    const float* from = rows + (maps.job.concat ? k * maps.channels : 0);
    if (maps.rule[k].axes == 2) {
      contract_map<T, 2>(maps, k, maps.data<T>(b, k), at, count, from, stride, gradient);
    } else {
      contract_map<T, 3>(maps, k, maps.data<T>(b, k), at, count, from, stride, gradient);
    }
  }
  const Layout& layout = maps.job.layout;
  const Normalizer<float> n(layout.padding);
  for (int l = 0; l < layout.dynamic; ++l) {
    const float* basis = maps.job.bases + (b * layout.dynamic + l) * 9;
    const float unit = 1.0f / n.half_width / maps.job.scale[b * layout.dynamic + l] / 2.0f;
    for (int row = 0; row < 2; ++row) {
      for (int axis = 0; axis < 3; ++axis) {
        const float step = basis[3 * row + axis] * unit;
        for (int q = 0; q < kTileRows; ++q) gradient.at[axis][q] += step * gradient.at[3 + 2 * l + row][q];
      }
    }
  }
}

}  // namespace OCC_ISA
}  // namespace occ::cpu
