// SPDX-License-Identifier: MIT
// Rounds of the octree. Steps on masks take a thread a brick: a few hundred word operations each, on some thousand
// bricks. Steps on nodes take a block of 512 threads a brick.
#include "common/cuda_launch.h"
#include "common/types.h"
#include "cuda/octree.h"
#include "math/octree_steps.h"

namespace occ::cuda {
namespace {

using octree::kBrickNodes;
using octree::kWords;
using octree::Level;

constexpr int kThreads = 64;  // steps on masks hold many registers

template <class F>
OCC_KERNEL void __launch_bounds__(kThreads) step_kernel(F step, int64_t count) {
  OCC_GRID_STRIDE(i, count) step(i);
}

template <class F>
void each(int64_t count, Stream stream, F step) {
  OCC_LAUNCH(step_kernel<F>, grid_for(count, kThreads), kThreads, 0, stream, step, count);
}

template <class F>
void float_or_double(int dtype, F&& fn) {
  if (dtype == kFloat64) {
    fn(tag<double>{});
  } else {
    fn(tag<float>{});
  }
}

// Position of the thread's node among the unknown nodes of its brick, or -1 if it is known. 512 threads.
OCC_DEVICE int unknown_rank(const uint64_t* unknown) {
  const int x = static_cast<int>(threadIdx.x) / 64, bit = static_cast<int>(threadIdx.x) % 64;
  if ((unknown[x] >> bit & 1) == 0) return -1;
  int rank = octree::popcount(unknown[x] & ((uint64_t{1} << bit) - 1));
  for (int before = 0; before < x; ++before) rank += octree::popcount(unknown[before]);
  return rank;
}

OCC_KERNEL void __launch_bounds__(kBrickNodes) list_kernel(Level level, const int64_t* bricks, const int64_t* starts,
                                                           int64_t listed, int64_t stride, int32_t* points) {
  for (int64_t i = blockIdx.x; i < listed; i += gridDim.x) {
    const int rank = unknown_rank(level.mask(bricks[i], octree::kUnknown));
    if (rank < 0) continue;
    const octree::Place place = octree::place_of(level.keys[bricks[i]], level.side);
    const int local[3] = {static_cast<int>(threadIdx.x) / 64, static_cast<int>(threadIdx.x) / 8 % 8,
                          static_cast<int>(threadIdx.x) % 8};
    int32_t* out = points + 3 * (starts[i] + rank);
    for (int axis = 0; axis < 3; ++axis) out[axis] = static_cast<int32_t>((8 * place.at[axis] + local[axis]) * stride);
  }
}

// A warp's ballot is half a word: 32-bit halves are little-endian on every device.
template <class T>
OCC_KERNEL void __launch_bounds__(kBrickNodes)
    take_kernel(Level level, const int64_t* bricks, const int64_t* starts, int64_t listed, const T* given, T* values,
                T threshold, int64_t border_nodes) {
  const int thread = static_cast<int>(threadIdx.x), x = thread / 64;
  for (int64_t i = blockIdx.x; i < listed; i += gridDim.x) {
    const int64_t brick = bricks[i];
    const int rank = unknown_rank(level.mask(brick, octree::kUnknown));
    bool above = false, below = false;
    if (rank >= 0) {
      const T value = given[starts == nullptr ? kBrickNodes * i + thread : starts[i] + rank];
      values[kBrickNodes * brick + thread] = value;
      above = value >= threshold;
      below = value <= threshold;
      if (border_nodes > 0 && !below) {
        uint64_t border[kWords];
        octree::border_nodes(octree::place_of(level.keys[brick], level.side), border_nodes, border);
        below = (border[x] >> thread % 64 & 1) != 0;
      }
    }
    const uint32_t up = ballot(above), down = ballot(below);
    __syncthreads();  // every thread has read the brick's unknown nodes
    if (lane_id() == 0) {
      reinterpret_cast<uint32_t*>(level.mask(brick, octree::kAbove))[thread / kWarp] |= up;
      reinterpret_cast<uint32_t*>(level.mask(brick, octree::kBelow))[thread / kWarp] |= down;
      reinterpret_cast<uint32_t*>(level.mask(brick, octree::kUnknown))[thread / kWarp] = 0;
    }
  }
}

template <class T>
void take(const Level& level, const int64_t* bricks, const int64_t* starts, int64_t listed, const void* given,
          void* values, double threshold, int64_t border_nodes, Stream stream) {
  OCC_LAUNCH(take_kernel<T>, grid_for(listed, 1), kBrickNodes, 0, stream, level, bricks, starts, listed,
             static_cast<const T*>(given), static_cast<T*>(values), static_cast<T>(threshold), border_nodes);
}

template <class T>
void split(const Level& level, const void* values, const Level& fine, void* fine_values, const int64_t* bricks,
           int64_t listed, int64_t* sizes, Stream stream) {
  const T* from = static_cast<const T*>(values);
  T* to = static_cast<T*>(fine_values);
  each(listed, stream, [=] __device__(int64_t i) { sizes[i] = octree::split_into(level, from, fine, to, bricks[i]); });
}

template <class T>
void add_coarse(const Level& level, const void* values, const Level& fine, int shift, void* fine_values,
                Stream stream) {
  const T* from = static_cast<const T*>(values);
  T* to = static_cast<T*>(fine_values);
  each(fine.count, stream, [=] __device__(int64_t i) { octree::add_coarse(level, from, fine, i, shift, to); });
}

template <class T>
void scatter_dense(const Level& level, const void* values, int64_t stride, int64_t nodes, void* dense, Stream stream) {
  const T* from = static_cast<const T*>(values);
  T* to = static_cast<T*>(dense);
  each(level.count, stream, [=] __device__(int64_t i) { octree::scatter_dense(level, i, from, stride, nodes, to); });
}

template <class T>
void clear(void* dense, int64_t size, Stream stream) {
  T* to = static_cast<T*>(dense);
  const T unknown = std::numeric_limits<T>::quiet_NaN();
  each(size, stream, [=] __device__(int64_t i) { to[i] = unknown; });
}

// Lines along an axis: `lines` of them share a block of `lines * nodes` values, neighbours lie `lines` apart.
template <class T>
void fill(void* dense, int64_t batch, int64_t nodes, Stream stream) {
  T* all = static_cast<T*>(dense);
  for (int64_t lines = nodes * nodes; lines > 0; lines /= nodes) {
    each(batch * nodes * nodes, stream, [=] __device__(int64_t i) {
      T* line = all + i / lines * lines * nodes + i % lines;
      T last = line[0];
      for (int64_t at = 1; at < nodes; ++at) {
        const T value = line[at * lines];
        if (value == value) {
          last = value;
        } else {
          line[at * lines] = last;
        }
      }
    });
  }
}

}  // namespace

void octree_start(uint64_t* masks, int64_t count, int64_t side, int64_t nodes, uintptr_t stream) {
  const Level level{nullptr, masks, count, side};
  each(count, stream, [=] __device__(int64_t i) { octree::start_brick(level, i, nodes); });
}

void octree_count(uint64_t* masks, const int64_t* bricks, int64_t* sizes, int64_t listed, uintptr_t stream) {
  const Level level{nullptr, masks, 0, 0};
  each(listed, stream, [=] __device__(int64_t i) { sizes[i] = octree::count_unknown(level, bricks[i]); });
}

void octree_list(const int64_t* keys, uint64_t* masks, int64_t side, const int64_t* bricks, const int64_t* starts,
                 int64_t listed, int64_t stride, int32_t* points, uintptr_t stream) {
  const Level level{keys, masks, 0, side};
  OCC_LAUNCH(list_kernel, grid_for(listed, 1), kBrickNodes, 0, stream, level, bricks, starts, listed, stride, points);
}

void octree_take(const int64_t* keys, uint64_t* masks, void* values, int dtype, int64_t side, const int64_t* bricks,
                 const int64_t* starts, int64_t listed, const void* given, double threshold, int64_t border_nodes,
                 uintptr_t stream) {
  const Level level{keys, masks, 0, side};
  float_or_double(dtype, [&](auto type) {
    take<typename decltype(type)::type>(level, bricks, starts, listed, given, values, threshold, border_nodes, stream);
  });
}

void octree_hang(const int64_t* fine_keys, uint64_t* fine_masks, int64_t fine_side, const int64_t* bricks,
                 int64_t listed, const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, int shift,
                 uintptr_t stream) {
  const Level fine{fine_keys, fine_masks, 0, fine_side}, level{keys, masks, count, side};
  each(listed, stream, [=] __device__(int64_t i) { octree::hang(fine, bricks[i], level, shift); });
}

void octree_seed(const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, const int32_t* cells,
                 const int64_t* lattice, int64_t seeds, uintptr_t stream) {
  const Level level{keys, masks, count, side};
  each(seeds, stream, [=] __device__(int64_t i) { octree::seed_cell(level, cells + 3 * i, lattice[i]); });
}

void octree_mark(const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, const int64_t* fine_keys,
                 uint64_t* fine_masks, int64_t fine_count, int64_t fine_side, uintptr_t stream) {
  const Level level{keys, masks, count, side}, fine{fine_keys, fine_masks, fine_count, fine_side};
  each(count, stream, [=] __device__(int64_t i) { octree::mark_brick(level, i, fine_count > 0 ? &fine : nullptr); });
}

void octree_activate(const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, bool band, int64_t* children,
                     uintptr_t stream) {
  const Level level{keys, masks, count, side};
  each(count, stream, [=] __device__(int64_t i) { children[i] = octree::activate_brick(level, i, band); });
}

void octree_children(const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, const int64_t* starts,
                     int64_t fine_side, int64_t* out, uintptr_t stream) {
  const Level level{keys, masks, count, side};
  each(count, stream, [=] __device__(int64_t i) {
    if (starts[i + 1] > starts[i]) octree::list_children(level, i, fine_side, out + starts[i]);
  });
}

void octree_split(const int64_t* keys, uint64_t* masks, const void* values, int dtype, int64_t count, int64_t side,
                  const int64_t* fine_keys, uint64_t* fine_masks, void* fine_values, int64_t fine_side,
                  const int64_t* bricks, int64_t listed, int64_t* sizes, uintptr_t stream) {
  const Level level{keys, masks, count, side}, fine{fine_keys, fine_masks, 0, fine_side};
  float_or_double(dtype, [&](auto type) {
    split<typename decltype(type)::type>(level, values, fine, fine_values, bricks, listed, sizes, stream);
  });
}

void octree_add_coarse(const int64_t* keys, uint64_t* masks, const void* values, int dtype, int64_t count, int64_t side,
                       const int64_t* fine_keys, uint64_t* fine_masks, int64_t fine_count, int64_t fine_side, int shift,
                       void* fine_values, uintptr_t stream) {
  const Level level{keys, masks, count, side}, fine{fine_keys, fine_masks, fine_count, fine_side};
  float_or_double(dtype, [&](auto type) {
    add_coarse<typename decltype(type)::type>(level, values, fine, shift, fine_values, stream);
  });
}

void octree_dense(const int64_t* table, int64_t count, int dtype, int64_t batch, int64_t nodes, void* dense,
                  uintptr_t stream) {
  float_or_double(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    clear<T>(dense, batch * nodes * nodes * nodes, stream);
    for (int64_t l = 0; l < count; ++l) {
      const octree::DenseLevel source = octree::dense_level(table, l);
      scatter_dense<T>(source.level, source.values, source.stride, nodes, dense, stream);
    }
    fill<T>(dense, batch, nodes, stream);
  });
}

}  // namespace occ::cuda
