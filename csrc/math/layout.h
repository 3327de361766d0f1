// SPDX-License-Identifier: MIT
// Where features live: normalisation of coordinates, projection onto planes, cell index, sampling position.
// The rules are those of Convolutional Occupancy Networks (Peng et al., ECCV 2020) and Dynamic Plane Convolutional
// Occupancy Networks (Lionar et al., WACV 2021); released checkpoints depend on every epsilon and rounding below, so
// expressions are written operation by operation and must not be contracted into fused multiply-adds.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace occ {
OCC_BEGIN_SHARED

constexpr int kMaxMaps = 16;

// Mirrors occkernels.FeatureLayout; passed from Python as a tuple (planes, dynamic, plane_resolution, grid_resolution,
// cells, padding) where `planes` is a bit mask 1 = xz, 2 = xy, 4 = yz and `cells` chooses the registration.
// Maps are numbered canonical planes first (xz, xy, yz), then dynamic planes, then the grid.
struct Layout {
  int axes[3][2] = {{0, 2}, {0, 1}, {1, 2}};  // of the canonical planes in use
  int canonical = 0;
  int dynamic = 0;
  int plane_resolution = 0;
  int grid_resolution = 0;
  bool cell_registration = false;
  double padding = 0.1;

  OCC_HD int planes() const { return canonical + dynamic; }
  OCC_HD bool has_grid() const { return grid_resolution > 0; }
  OCC_HD int maps() const { return planes() + (has_grid() ? 1 : 0); }
  OCC_HD int64_t cells(int map) const {
    const int64_t r = map < planes() ? plane_resolution : grid_resolution;
    return map < planes() ? r * r : r * r * r;
  }
};

inline Layout make_layout(int mask, int dynamic, int plane_resolution, int grid_resolution, bool cells,
                          double padding) {
  constexpr int kAxes[3][2] = {{0, 2}, {0, 1}, {1, 2}};
  Layout layout;
  for (int plane = 0; plane < 3; ++plane) {
    if (mask & (1 << plane)) {
      layout.axes[layout.canonical][0] = kAxes[plane][0];
      layout.axes[layout.canonical][1] = kAxes[plane][1];
      ++layout.canonical;
    }
  }
  layout.dynamic = dynamic;
  layout.plane_resolution = plane_resolution;
  layout.grid_resolution = grid_resolution;
  layout.cell_registration = cells;
  layout.padding = padding;
  return layout;
}

// Constants of one arithmetic type, rounded once.
template <class S>
struct Normalizer {
  S plane_width, grid_width, half_width, plane_top, grid_top;
  OCC_HD explicit Normalizer(double padding)
      : plane_width(static_cast<S>(1.0 + padding + 1e-5)),
        grid_width(static_cast<S>(1.0 + padding + 1e-3)),
        half_width(static_cast<S>((1.0 + padding) / 2.0)),
        plane_top(static_cast<S>(1.0 - 1e-5)),
        grid_top(static_cast<S>(1.0 - 1e-3)) {}
};

// Clamps to [0, top]; values of exactly 1 and above become top. NaN becomes 0, so that it never indexes out of bounds.
template <class S>
OCC_HD OCC_INLINE S clamp_unit(S t, S top) {
  if (t >= S(1)) return top;
  return t > S(0) ? t : S(0);
}

// True when the clamp leaves t alone, i.e. when its derivative is one.
template <class S>
OCC_HD OCC_INLINE bool inside_unit(S t) {
  return t >= S(0) && t < S(1);
}

// Unclamped coordinates in [0, 1) for in-range points. Planes fill two, the grid three.
template <class S>
OCC_HD OCC_INLINE void normalize_plane(const Layout& layout, const Normalizer<S>& n, int plane, const S* p, S* t) {
  t[0] = p[layout.axes[plane][0]] / n.plane_width + S(0.5);
  t[1] = p[layout.axes[plane][1]] / n.plane_width + S(0.5);
}

// Dynamic plane: `basis` holds three rows, the first two span the plane; `scale` is the plane's normaliser + 0.05.
template <class S>
OCC_HD OCC_INLINE void normalize_dynamic(const Normalizer<S>& n, const S* basis, S scale, const S* p, S* t) {
  const S x = p[0] / n.half_width, y = p[1] / n.half_width, z = p[2] / n.half_width;
  for (int axis = 0; axis < 2; ++axis) {
    const S* row = basis + 3 * axis;
    const S projected = row[0] * x + row[1] * y + row[2] * z;
    t[axis] = projected / scale / S(2) + S(0.5);
  }
}

template <class S>
OCC_HD OCC_INLINE void normalize_grid(const Normalizer<S>& n, const S* p, S* t) {
  for (int axis = 0; axis < 3; ++axis) t[axis] = p[axis] / n.grid_width + S(0.5);
}

// Integer cell along one axis: truncation of t * R.
template <class S>
OCC_HD OCC_INLINE int32_t cell_of(S t, S top, int resolution) {
  const int32_t cell = static_cast<int32_t>(clamp_unit(t, top) * static_cast<S>(resolution));
  return cell < resolution ? cell : resolution - 1;
}

// Cell of a point in a map, first coordinate fastest. `basis` and `scale` are those of the sample's dynamic planes.
template <class S>
OCC_HD OCC_INLINE int32_t cell_index(const Layout& layout, const Normalizer<S>& n, int map, const S* basis,
                                     const S* scale, const S* p) {
  S t[3];
  if (map >= layout.planes()) {
    const int r = layout.grid_resolution;
    normalize_grid(n, p, t);
    return cell_of(t[0], n.grid_top, r) + r * (cell_of(t[1], n.grid_top, r) + r * cell_of(t[2], n.grid_top, r));
  }
  const int r = layout.plane_resolution;
  if (map < layout.canonical) {
    normalize_plane(layout, n, map, p, t);
  } else {
    const int l = map - layout.canonical;
    normalize_dynamic(n, basis + 9 * l, scale[l], p, t);
  }
  return cell_of(t[0], n.plane_top, r) + r * cell_of(t[1], n.plane_top, r);
}

OCC_END_SHARED
}  // namespace occ
