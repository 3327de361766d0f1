// SPDX-License-Identifier: MIT
// Features of a tile of queries: positions vectorised over queries, then every query's corners vectorised over
// channels, straight into the rows the matrix products read. Only for *.isa.cpp.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/types.h"
#include "cpu/decode.h"
#include "cpu/decode_gemm.h"

#if defined(OCC_VECTOR_TYPES)
#define OCC_PREFETCH_FAR(address) __builtin_prefetch(address, 0, 2)
#else
#define OCC_PREFETCH_FAR(address) _mm_prefetch(address, 2)
#endif

namespace occ::cpu {
namespace OCC_ISA {

constexpr int kTileRows = 96;
constexpr int kAhead = 6;  // queries between the call for their features into the first-level cache and their use
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

// x, y, z and the coordinates in the dynamic planes, structure of arrays.
struct Columns {
  float at[kColumns][kTileRows];
};

// One map's cells and positions in them.
struct Located {
  int64_t cell[kTileRows];  // elements from the map's begin
  float upper[3][kTileRows], slope[3][kTileRows];
};

// The queries of a tile and where they fall in every map. Places beyond the last query repeat the first one, up to a
// multiple of the steps of all loops over places.
struct Spots {
  Columns columns;
  int64_t shape = 0;
  int count = 0, places = 0;
  Located* at = nullptr;  // of every map

  static constexpr int kStep = kVector > 8 ? 48 : 24;  // a multiple of kRowStep and of a vector
};

OCC_INLINE void project_columns(const Maps& maps, Spots& spots) {
  const Layout& layout = maps.job.layout;
  const Normalizer<float> n(layout.padding);
  for (int l = 0; l < layout.dynamic; ++l) {
    const float* basis = maps.job.bases + (spots.shape * layout.dynamic + l) * 9;
    const float scale = maps.job.scale[spots.shape * layout.dynamic + l];
    auto& at = spots.columns.at;
    for (int q = 0; q < spots.places; ++q) {
      const float p[3] = {at[0][q], at[1][q], at[2][q]};
      float t[2];
      normalize_dynamic(n, basis, scale, p, t);
      at[3 + 2 * l][q] = t[0];
      at[4 + 2 * l][q] = t[1];
    }
  }
}

OCC_INLINE void locate(const Maps& maps, int k, Spots& spots) {
  const MapRule<float> rule = maps.rule[k];  // a copy: no store below can change it, so that the loops are vectorised
  Located& at = spots.at[k];
  int32_t low[3][kTileRows];
  for (int axis = 0; axis < rule.axes; ++axis) {
    const float* column = spots.columns.at[rule.columns[axis]];
    for (int q = 0; q < spots.places; ++q) {
      const float u = position_of(rule, column[q], at.slope[axis][q]);
      low[axis][q] = low_node(rule, u);
      at.upper[axis][q] = u - static_cast<float>(low[axis][q]);
    }
  }
  for (int q = 0; q < spots.places; ++q) {
    int64_t node = rule.axes == 3 ? low[2][q] : 0;
    node = low[0][q] + rule.resolution * (low[1][q] + rule.resolution * node);
    at.cell[q] = node * maps.channels;
  }
}

// Repeats the first of `count` queries over the places beyond.
OCC_INLINE void fill_places(Spots& spots, int count) {
  spots.count = count;
  spots.places = (count + Spots::kStep - 1) / Spots::kStep * Spots::kStep;
  for (int axis = 0; axis < 3; ++axis) {
    float* column = spots.columns.at[axis];
    for (int q = count; q < spots.places; ++q) column[q] = column[0];
  }
}

// Completes spots whose first `count` places hold x, y and z.
OCC_INLINE void locate_all(const Maps& maps, int64_t shape, int count, Spots& spots) {
  spots.shape = shape;
  fill_places(spots, count);
  project_columns(maps, spots);
  for (int k = 0; k < maps.count; ++k) locate(maps, k, spots);
}

// Asks for part `part` of `parts` of the features of spots, into the second-level cache: done between the matrix
// products of the tile before, it hides the way to memory.
template <class T>
void prefetch_part(const Maps& maps, const Spots& spots, int part, int parts) {
  const int total = maps.count * spots.count;
  const int64_t bytes = 2 * maps.channels * static_cast<int64_t>(sizeof(T));
  for (int i = total * part / parts; i < total * (part + 1) / parts; ++i) {
    const int k = i / spots.count, q = i - k * spots.count;
    const char* cell = reinterpret_cast<const char*>(maps.data<T>(spots.shape, k) + spots.at[k].cell[q]);
    const int corners = 1 << maps.rule[k].axes;
    for (int c = 0; c < corners; c += 2) {
      const char* from = cell + maps.corner[k][c] * static_cast<int64_t>(sizeof(T));
      for (int64_t byte = 0; byte < bytes; byte += 64) OCC_PREFETCH_FAR(from + byte);
    }
  }
}

// weight[corner][query]
template <int D>
OCC_INLINE void plain_weights(const Located& at, int places, float (*weight)[kTileRows]) {
  for (int q = 0; q < places; q += kVector) {
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
void gather_map(const Maps& maps, int k, const Spots& spots, int count, bool add, float* rows, int64_t stride) {
  const Located& at = spots.at[k];
  const T* data = maps.data<T>(spots.shape, k);
  float weight[1 << D][kTileRows];
  plain_weights<D>(at, spots.places, weight);
  const int64_t* corner = maps.corner[k];
  const int64_t channels = maps.channels;
  for (int q = 0; q < count; ++q) {
    const T* cell = data + at.cell[q];
    float* row = rows + q * stride;
    // Two nodes along the first axis lie beside each other.
    const T* later = data + at.cell[q + kAhead < count ? q + kAhead : q];
    for (int64_t element = 0; element < 2 * channels; element += 64 / static_cast<int64_t>(sizeof(T))) {
      OCC_UNROLL for (int i = 0; i < 1 << D; i += 2) OCC_PREFETCH(later + corner[i] + element);
    }
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

// Features of the first `count` places into rows; maps marked in `left_out` (or null) count as zeros.
template <class T>
void gather_rows(const Maps& maps, const Spots& spots, int count, const bool* left_out, float* rows, int64_t stride) {
  bool add = false;
  for (int k = 0; k < maps.count; ++k) {
    float* to = rows + (maps.job.concat ? k * maps.channels : 0);
    if (left_out && left_out[k]) {
      for (int q = 0; q < count && maps.job.concat; ++q) memset(to + q * stride, 0, maps.channels * sizeof(float));
      continue;
    }
    if (maps.rule[k].axes == 2) {
      gather_map<T, 2>(maps, k, spots, count, add, to, stride);
    } else {
      gather_map<T, 3>(maps, k, spots, count, add, to, stride);
    }
    add = !maps.job.concat;
  }
}

template <class T, int D>
void contract_map(const Maps& maps, int k, const Spots& spots, const float* rows, int64_t stride, Columns& gradient) {
  const Located& at = spots.at[k];
  const T* data = maps.data<T>(spots.shape, k);
  const int64_t* corner = maps.corner[k];
  float dots[1 << D][kTileRows] = {};
  for (int q = 0; q < spots.count; ++q) {
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
  for (int q = 0; q < spots.places; q += kVector) {
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
void contract_rows(const Maps& maps, const Spots& spots, const float* rows, int64_t stride, Columns& gradient) {
  for (int k = 0; k < maps.count; ++k) {
    const float* from = rows + (maps.job.concat ? k * maps.channels : 0);
    if (maps.rule[k].axes == 2) {
      contract_map<T, 2>(maps, k, spots, from, stride, gradient);
    } else {
      contract_map<T, 3>(maps, k, spots, from, stride, gradient);
    }
  }
  const Layout& layout = maps.job.layout;
  const Normalizer<float> n(layout.padding);
  for (int l = 0; l < layout.dynamic; ++l) {
    const float* basis = maps.job.bases + (spots.shape * layout.dynamic + l) * 9;
    const float unit = 1.0f / n.half_width / maps.job.scale[spots.shape * layout.dynamic + l] / 2.0f;
    for (int row = 0; row < 2; ++row) {
      for (int axis = 0; axis < 3; ++axis) {
        const float step = basis[3 * row + axis] * unit;
        for (int q = 0; q < spots.places; ++q) gradient.at[axis][q] += step * gradient.at[3 + 2 * l + row][q];
      }
    }
  }
}

}  // namespace OCC_ISA
}  // namespace occ::cpu
