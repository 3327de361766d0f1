// SPDX-License-Identifier: MIT
#include "cpu/bins.h"

#include <algorithm>
#include <type_traits>

#include "common/parallel.h"
#include "common/types.h"
#include "cpu/bins_jobs.h"

namespace occ::cpu {
namespace {

constexpr int64_t kPointBlock = 1024;  // its coordinates and cells stay in the first-level cache

template <class S>
struct Block {
  S axis[3][kPointBlock], t[kPointBlock];
  int32_t cell[3][kPointBlock];
  int64_t size;
};

template <class T, class S>
void load_points(const T* points, Block<S>& block) {
  if constexpr (std::is_same_v<T, S>) {
    OCC_CALL_ISA(split_points, points, block.size, block.axis[0], block.axis[1], block.axis[2]);
  } else {
    for (int64_t i = 0; i < block.size; ++i) {
      for (int axis = 0; axis < 3; ++axis) block.axis[axis][i] = static_cast<S>(points[3 * i + axis]);
    }
  }
}

// Cells of a block in the maps that share the axis-aligned normalisation: the canonical planes, then the grid.
template <class S>
void aligned_maps(const Layout& layout, const Normalizer<S>& n, Block<S>& block, int32_t* index, int64_t count) {
  const int64_t size = block.size;
  const int r = layout.plane_resolution;
  for (int axis = 0; axis < 3 && layout.canonical > 0; ++axis) {
    OCC_CALL_ISA(divide_axis, block.axis[axis], size, n.plane_width, S(0.5), block.t);
    OCC_CALL_ISA(axis_cells, block.t, size, n.plane_top, r, block.cell[axis]);
  }
  for (int map = 0; map < layout.canonical; ++map) {
    OCC_CALL_ISA(join_cells, block.cell[layout.axes[map][0]], block.cell[layout.axes[map][1]], size, r,
                 index + map * count);
  }
  if (!layout.has_grid()) return;
  const int g = layout.grid_resolution;
  for (int axis = 0; axis < 3; ++axis) {
    OCC_CALL_ISA(divide_axis, block.axis[axis], size, n.grid_width, S(0.5), block.t);
    OCC_CALL_ISA(axis_cells, block.t, size, n.grid_top, g, block.cell[axis]);
  }
  int32_t* slice = index + layout.planes() * count;
  OCC_CALL_ISA(join_cells, block.cell[1], block.cell[2], size, g, slice);
  OCC_CALL_ISA(join_cells, block.cell[0], slice, size, g, slice);
}

template <class T, class S>
void dynamic_maps(const Layout& layout, const Normalizer<S>& n, const T* bases, const T* scales, Block<S>& block,
                  int32_t* index, int64_t count) {
  for (int axis = 0; axis < 3; ++axis) {
    OCC_CALL_ISA(divide_axis, block.axis[axis], block.size, n.half_width, S(0), block.axis[axis]);
  }
  const int r = layout.plane_resolution;
  for (int l = 0; l < layout.dynamic; ++l) {
    for (int axis = 0; axis < 2; ++axis) {
      const T* source = bases + 9 * l + 3 * axis;
      const S row[3] = {static_cast<S>(source[0]), static_cast<S>(source[1]), static_cast<S>(source[2])};
      OCC_CALL_ISA(project_axis, block.axis[0], block.axis[1], block.axis[2], block.size, row,
                   static_cast<S>(scales[l]), block.t);
      OCC_CALL_ISA(axis_cells, block.t, block.size, n.plane_top, r, block.cell[axis]);
    }
    OCC_CALL_ISA(join_cells, block.cell[0], block.cell[1], block.size, r, index + (layout.canonical + l) * count);
  }
}

template <class T>
void bin_index_typed(const T* points, const T* bases, const T* scales, const int64_t* lengths, int32_t* index,
                     int64_t batch, int64_t count, const Layout& layout, int threads) {
  using S = acc_t<T>;
  const Normalizer<S> normalizer(layout.padding);
  const int64_t maps = layout.maps();
  const int64_t blocks = (count + kPointBlock - 1) / kPointBlock;
  parallel_for(threads, batch * blocks, [&](int64_t task) {
    const int64_t b = task / blocks;
    const int64_t begin = (task % blocks) * kPointBlock;
    const int64_t end = std::min(begin + kPointBlock, count);
    const int64_t length = lengths ? std::clamp(lengths[b], begin, end) : end;
    int32_t* rows = index + b * maps * count + begin;
    Block<S> block;
    block.size = length - begin;
    load_points(points + (b * count + begin) * 3, block);
    aligned_maps(layout, normalizer, block, rows, count);
    if (layout.dynamic > 0) {
      dynamic_maps(layout, normalizer, bases + b * layout.dynamic * 9, scales + b * layout.dynamic, block, rows, count);
    }
    for (int64_t map = 0; map < maps; ++map)
      std::fill(rows + map * count + length - begin, rows + map * count + end - begin, -1);
  });
}

}  // namespace

void bin_index(const void* points, int dtype, const void* bases, const void* scales, const int64_t* lengths,
               int32_t* index, int64_t batch, int64_t count, const Layout& layout, int threads) {
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    bin_index_typed(static_cast<const T*>(points), static_cast<const T*>(bases), static_cast<const T*>(scales), lengths,
                    index, batch, count, layout, threads);
  });
}

int64_t sort_bins_workspace(const int64_t*, int64_t, int64_t, int64_t, int) { return 0; }

void sort_bins(const int32_t* index, const int64_t* cells, int32_t* order, int32_t* offsets, int32_t*, int64_t batch,
               int64_t maps, int64_t count, int threads) {
  int64_t stride = 0;  // int32 values of one sample in offsets
  for (int64_t map = 0; map < maps; ++map) stride += cells[map] + 1;
  parallel_for(threads, batch * maps, [&](int64_t task) {
    const int64_t map = task % maps;
    int64_t base = (task / maps) * stride;
    for (int64_t before = 0; before < map; ++before) base += cells[before] + 1;
    const int32_t* keys = index + task * count;
    int32_t* places = order + task * count;
    int32_t* starts = offsets + base;
    // starts[c + 1] first counts, then becomes the running write position of cell c, and ends as the start of cell c
    // + 1.
    std::fill(starts, starts + cells[map] + 1, 0);
    int32_t valid = 0;
    for (int64_t n = 0; n < count; ++n) {
      if (keys[n] >= 0) {
        ++starts[keys[n] + 1];
        ++valid;
      }
    }
    int32_t running = 0;
    for (int64_t cell = 0; cell < cells[map]; ++cell) {
      const int32_t size = starts[cell + 1];
      starts[cell + 1] = running;
      running += size;
    }
    int32_t tail = valid;
    for (int64_t n = 0; n < count; ++n) {
      const int32_t place = keys[n] >= 0 ? starts[keys[n] + 1]++ : tail++;
      places[place] = static_cast<int32_t>(n);
    }
  });
}

}  // namespace occ::cpu
