// SPDX-License-Identifier: MIT
// Multilinear interpolation and all its derivatives, as weights of the corners of a cell.
//
// Along one axis a value is k0 * hat + k1 * dhat: the hat function has the weights (1 - u, u) at the two nodes, its
// derivative (-slope, slope). In D axes a *kind* is a set of axes along which the derivative is taken (bit a = axis a),
// and kinds[s] is the coefficient of kind s. The plain sample has kinds = {1, 0, ...}; a derivative along a direction
// moves coefficients to larger sets (`differentiate`); `spread` turns kinds into 2^D corner weights, `collect` is its
// transpose. Second derivatives along one axis vanish, so this closes under differentiation: sampling, its gradients
// and theirs are all one weighted gather and one weighted scatter.
//
// V is float or double, or a vector of queries (csrc/common/simd.h).
#pragma once

#include <cstdint>

#include "common/macros.h"
#include "math/layout.h"

namespace occ {

// Position of a coordinate in one map. Plain data without functions: it may pass between code of different instruction
// sets.
struct SampleMap {
  int axes;  // 2 or 3
  int resolution;
  int columns[3];  // of the coordinates: 0, 1, 2 = x, y, z; 3 + 2 l + a = axis a of dynamic plane l, projected already
  double width;    // t = clamp(coordinate / width + offset, top)
  double offset;
  double top;
  double scale;  // position = t * scale - shift, in [0, resolution - 1]
  double shift;
};

OCC_BEGIN_SHARED

inline void sample_maps(const Layout& layout, SampleMap* maps) {
  const Normalizer<double> n(layout.padding);
  for (int k = 0; k < layout.maps(); ++k) {
    SampleMap& map = maps[k];
    const bool grid = k >= layout.planes(), dynamic = !grid && k >= layout.canonical;
    map.axes = grid ? 3 : 2;
    map.resolution = grid ? layout.grid_resolution : layout.plane_resolution;
    for (int axis = 0; axis < 3; ++axis) map.columns[axis] = axis;
    if (!grid) {
      for (int axis = 0; axis < 2; ++axis) {
        map.columns[axis] = dynamic ? 3 + 2 * (k - layout.canonical) + axis : layout.axes[k][axis];
      }
    }
    map.width = grid ? n.grid_width : dynamic ? 1.0 : n.plane_width;
    map.offset = dynamic ? 0.0 : 0.5;
    map.top = grid ? n.grid_top : n.plane_top;
    map.scale = layout.cell_registration ? map.resolution : map.resolution - 1;
    map.shift = layout.cell_registration ? 0.5 : 0.0;
  }
}

// SampleMap rounded once to the arithmetic type.
template <class S>
struct MapRule {
  int axes, resolution, last_cell;
  int columns[3];
  S width, offset, top, scale, shift, last, slope;
  MapRule() = default;
  explicit MapRule(const SampleMap& map)
      : axes(map.axes),
        resolution(map.resolution),
        last_cell(map.resolution > 2 ? map.resolution - 2 : 0),
        columns{map.columns[0], map.columns[1], map.columns[2]},
        width(static_cast<S>(map.width)),
        offset(static_cast<S>(map.offset)),
        top(static_cast<S>(map.top)),
        scale(static_cast<S>(map.scale)),
        shift(static_cast<S>(map.shift)),
        last(static_cast<S>(map.resolution - 1)),
        slope(static_cast<S>(map.scale / map.width)) {}
};

// Position in [0, resolution - 1]; NaN gives 0. `slope` is its derivative, 0 where the coordinate is clamped.
template <class S>
OCC_HD OCC_INLINE S position_of(const MapRule<S>& rule, S coordinate, S& slope) {
  const S raw = coordinate / rule.width + rule.offset;
  const S u = clamp_unit(raw, rule.top) * rule.scale - rule.shift;
  const bool inside = (raw > S(0)) & (raw < S(1)) & (u >= S(0)) & (u <= rule.last);
  slope = inside ? rule.slope : S(0);
  const S raised = u > S(0) ? u : S(0);
  return raised < rule.last ? raised : rule.last;
}

// Lower node of the cell a position falls in.
template <class S>
OCC_HD OCC_INLINE int32_t low_node(const MapRule<S>& rule, S position) {
  const int32_t low = static_cast<int32_t>(position);
  return low < rule.last_cell ? low : rule.last_cell;
}

// kinds becomes the coefficients of the derivative along `along` (one entry an axis).
template <int D, class V>
OCC_HD OCC_INLINE void differentiate(V* kinds, const V* along) {
  for (int set = (1 << D) - 1; set >= 0; --set) {  // larger sets first: each reads only smaller ones
    V sum{};
    for (int axis = 0; axis < D; ++axis) {
      if (set >> axis & 1) sum = sum + kinds[set ^ (1 << axis)] * along[axis];
    }
    kinds[set] = sum;
  }
}

// In place: kinds to corner weights (bit a of a corner = upper node of axis a).
template <int D, class V>
OCC_HD OCC_INLINE void spread(const V* upper, const V* slope, V* kinds) {
  for (int axis = 0; axis < D; ++axis) {
    for (int set = 0; set < 1 << D; ++set) {
      if (set >> axis & 1) continue;
      const V high = kinds[set] * upper[axis] + kinds[set | 1 << axis] * slope[axis];
      kinds[set | 1 << axis] = high;
      kinds[set] = kinds[set] - high;
    }
  }
}

// Corner weights of the plain sample: spread of {one, 0, ...}.
template <int D, class V>
OCC_HD OCC_INLINE void spread_plain(const V* upper, V one, V* weights) {
  weights[0] = one;
  for (int axis = 0; axis < D; ++axis) {
    for (int set = 0; set < 1 << axis; ++set) {
      const V high = weights[set] * upper[axis];
      weights[set | 1 << axis] = high;
      weights[set] = weights[set] - high;
    }
  }
}

// In place: values at the corners to the value of every kind.
template <int D, class V>
OCC_HD OCC_INLINE void collect(const V* upper, const V* slope, V* corners) {
  for (int axis = 0; axis < D; ++axis) {
    for (int set = 0; set < 1 << D; ++set) {
      if (set >> axis & 1) continue;
      const V step = corners[set | 1 << axis] - corners[set];
      corners[set] = corners[set] + upper[axis] * step;
      corners[set | 1 << axis] = slope[axis] * step;
    }
  }
}

// Derivative along one axis of sum(kinds * values), where values come from `collect`.
template <int D, class V>
OCC_HD OCC_INLINE V derivative_along(int axis, const V* kinds, const V* values) {
  V sum{};
  for (int set = 0; set < 1 << D; ++set) {
    if (!(set >> axis & 1)) sum = sum + kinds[set] * values[set | 1 << axis];
  }
  return sum;
}

OCC_END_SHARED
}  // namespace occ
