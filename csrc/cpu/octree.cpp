// SPDX-License-Identifier: MIT
#include "cpu/octree.h"

#include "common/parallel.h"
#include "common/types.h"
#include "math/octree_steps.h"

namespace occ::cpu {
namespace {

constexpr int64_t kBlock = 16;  // bricks a task

template <class F>
void each(int threads, int64_t count, F&& step) {
  parallel_blocks(threads, count, kBlock, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) step(i);
  });
}

template <class F>
void float_or_double(int dtype, F&& fn) {
  if (dtype == kFloat64) {
    fn(tag<double>{});
  } else {
    fn(tag<float>{});
  }
}

}  // namespace

void octree_start(uint64_t* masks, int64_t count, int64_t side, int64_t nodes, int threads) {
  const octree::Level level{nullptr, masks, count, side};
  each(threads, count, [&](int64_t brick) { octree::start_brick(level, brick, nodes); });
}

void octree_count(uint64_t* masks, const int64_t* bricks, int64_t* sizes, int64_t listed, int threads) {
  const octree::Level level{nullptr, masks, 0, 0};
  each(threads, listed, [&](int64_t i) { sizes[i] = octree::count_unknown(level, bricks[i]); });
}

void octree_list(const int64_t* keys, uint64_t* masks, int64_t side, const int64_t* bricks, const int64_t* starts,
                 int64_t listed, int64_t stride, int32_t* points, int threads) {
  const octree::Level level{keys, masks, 0, side};
  each(threads, listed, [&](int64_t i) { octree::list_unknown(level, bricks[i], stride, points + 3 * starts[i]); });
}

void octree_take(const int64_t* keys, uint64_t* masks, void* values, int dtype, int64_t side, const int64_t* bricks,
                 const int64_t* starts, int64_t listed, const void* given, double threshold, int64_t border_nodes,
                 int threads) {
  const octree::Level level{keys, masks, 0, side};
  float_or_double(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    each(threads, listed, [&](int64_t i) {
      const T* from = static_cast<const T*>(given) + (starts == nullptr ? octree::kBrickNodes * i : starts[i]);
      octree::take_values(level, bricks[i], static_cast<T*>(values), from, starts == nullptr, static_cast<T>(threshold),
                          border_nodes);
    });
  });
}

void octree_hang(const int64_t* fine_keys, uint64_t* fine_masks, int64_t fine_side, const int64_t* bricks,
                 int64_t listed, const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, int shift,
                 int threads) {
  const octree::Level fine{fine_keys, fine_masks, 0, fine_side}, level{keys, masks, count, side};
  each(threads, listed, [&](int64_t i) { octree::hang(fine, bricks[i], level, shift); });
}

void octree_seed(const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, const int32_t* cells,
                 const int64_t* lattice, int64_t seeds, int threads) {
  const octree::Level level{keys, masks, count, side};
  each(threads, seeds, [&](int64_t i) { octree::seed_cell(level, cells + 3 * i, lattice[i]); });
}

void octree_mark(const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, const int64_t* fine_keys,
                 uint64_t* fine_masks, int64_t fine_count, int64_t fine_side, int threads) {
  const octree::Level level{keys, masks, count, side}, fine{fine_keys, fine_masks, fine_count, fine_side};
  each(threads, count, [&](int64_t i) { octree::mark_brick(level, i, fine_count > 0 ? &fine : nullptr); });
}

void octree_activate(const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, bool band, int64_t* children,
                     int threads) {
  const octree::Level level{keys, masks, count, side};
  each(threads, count, [&](int64_t i) { children[i] = octree::activate_brick(level, i, band); });
}

void octree_children(const int64_t* keys, uint64_t* masks, int64_t count, int64_t side, const int64_t* starts,
                     int64_t fine_side, int64_t* out, int threads) {
  const octree::Level level{keys, masks, count, side};
  each(threads, count, [&](int64_t i) {
    if (starts[i + 1] > starts[i]) octree::list_children(level, i, fine_side, out + starts[i]);
  });
}

void octree_split(const int64_t* keys, uint64_t* masks, const void* values, int dtype, int64_t count, int64_t side,
                  const int64_t* fine_keys, uint64_t* fine_masks, void* fine_values, int64_t fine_side,
                  const int64_t* bricks, int64_t listed, int64_t* sizes, int threads) {
  const octree::Level level{keys, masks, count, side}, fine{fine_keys, fine_masks, 0, fine_side};
  float_or_double(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    each(threads, listed, [&](int64_t i) {
      sizes[i] =
          octree::split_into(level, static_cast<const T*>(values), fine, static_cast<T*>(fine_values), bricks[i]);
    });
  });
}

void octree_add_coarse(const int64_t* keys, uint64_t* masks, const void* values, int dtype, int64_t count, int64_t side,
                       const int64_t* fine_keys, uint64_t* fine_masks, int64_t fine_count, int64_t fine_side, int shift,
                       void* fine_values, int threads) {
  const octree::Level level{keys, masks, count, side}, fine{fine_keys, fine_masks, fine_count, fine_side};
  float_or_double(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    each(threads, fine_count, [&](int64_t i) {
      octree::add_coarse(level, static_cast<const T*>(values), fine, i, shift, static_cast<T*>(fine_values));
    });
  });
}

}  // namespace occ::cpu
