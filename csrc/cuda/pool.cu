// SPDX-License-Identifier: MIT
// Pooling and scattering over sorted points. A warp owns a cell (or a point), its lanes own channels, 32 at a time:
// rows are read and written as whole lines, every value is written once, and nothing is added atomically.
#include "common/cuda_launch.h"
#include "common/types.h"
#include "cuda/pool.h"

namespace occ::cuda {
namespace {

constexpr int kThreads = 256;

// Loop over items, one a warp.
#define OCC_WARP_STRIDE(item, count)                                                         \
  for (int64_t item = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp, \
               occ_stride_##item = static_cast<int64_t>(gridDim.x) * blockDim.x / kWarp;     \
       item < (count); item += occ_stride_##item)

enum class Step { kSum, kMean, kMax, kArgMax, kPick, kPickTranspose };

// One channel of the points order[begin, end), in that order. A NaN beats every number, the earliest of equals stays.
template <Step step, class T>
struct Reduced {
  using S = acc_t<T>;
  S value;
  int32_t arg;

  OCC_DEVICE Reduced(const T* in, const T* values, const int32_t* order, int64_t begin, int64_t end, int64_t channels) {
    arg = order[begin];
    value = static_cast<S>(in[arg * channels]);
    S sum = S(0);
    if constexpr (step == Step::kPickTranspose) sum = static_cast<S>(values[arg * channels]);
    for (int64_t i = begin + 1; i < end; ++i) {
      const int32_t n = order[i];
      const S v = static_cast<S>(in[n * channels]);
      if constexpr (step == Step::kSum || step == Step::kMean) {
        value += v;
      } else if (v > value || (v != v && value == value)) {
        value = v;
        arg = n;
      }
      if constexpr (step == Step::kPickTranspose) sum += static_cast<S>(values[n * channels]);
    }
    if constexpr (step == Step::kMean) value /= static_cast<S>(end - begin);
    if constexpr (step == Step::kPick) value = static_cast<S>(values[arg * channels]);
    if constexpr (step == Step::kPickTranspose) value = sum;
  }
};

// Where a cell's reduced row is kept: see rows_by_start in math/bins.h. `starts`: of this sample and map.
OCC_DEVICE int64_t pooled_row(const BinShape& s, int64_t b, int k, const int32_t* starts, int32_t cell) {
  const int64_t row = rows_by_start(s, k) ? starts[cell] : cell;
  return (b * rows_before(s, s.last) + rows_before(s, k) + row) * s.channels;
}

// One warp per sorted position; those at which a cell starts reduce it.
template <Step step, class T>
OCC_KERNEL void __launch_bounds__(kThreads)
    reduce_segments_kernel(const T* selector, const T* values, const int32_t* index, const int32_t* order,
                           const int32_t* offsets, BinShape s, acc_t<T>* scratch, int32_t* args) {
  const int64_t maps = s.last - s.first;
  OCC_WARP_STRIDE(item, s.batch * maps * s.count) {
    const int64_t i = item % s.count, b = item / s.count / maps;
    const int k = s.first + static_cast<int>(item / s.count % maps);
    const int32_t* sorted = order + points_begin(s, b, k);
    const int32_t cell = index[points_begin(s, b, k) + sorted[i]];
    const int32_t* starts = offsets + starts_begin(s, b, k);
    if (cell < 0 || starts[cell] != i) continue;
    const int64_t row = pooled_row(s, b, k, starts, cell), sample = b * s.count * s.channels;
    for (int64_t c = lane_id(); c < s.channels; c += kWarp) {
      const Reduced<step, T> reduced(selector + sample + c, values + sample + c, sorted, i, starts[cell + 1],
                                     s.channels);
      scratch[row + c] = reduced.value;
      if constexpr (step == Step::kPickTranspose) args[row + c] = reduced.arg;
    }
  }
}

// One warp per point: the sum of its cells' rows, or of those channels in which it was chosen.
template <bool transpose, class T>
OCC_KERNEL void __launch_bounds__(kThreads) sum_maps_kernel(const int32_t* index, const int32_t* offsets, BinShape s,
                                                            const acc_t<T>* scratch, const int32_t* args, T* out) {
  OCC_WARP_STRIDE(item, s.batch * s.count) {
    const int64_t b = item / s.count, n = item % s.count;
    for (int64_t c = lane_id(); c < s.channels; c += kWarp) {
      acc_t<T> sum = 0;
      for (int k = s.first; k < s.last; ++k) {
        const int32_t cell = index[points_begin(s, b, k) + n];
        if (cell < 0) continue;
        const int64_t at = pooled_row(s, b, k, offsets + starts_begin(s, b, k), cell) + c;
        if (!transpose || args[at] == n) sum += scratch[at];
      }
      out[item * s.channels + c] = static_cast<T>(sum);
    }
  }
}

// One warp per cell, empty ones included.
template <Step step, class T>
OCC_KERNEL void __launch_bounds__(kThreads)
    reduce_cells_kernel(const T* features, const int32_t* order, const int32_t* offsets, BinShape s, T* out,
                        int32_t* argmax) {
  const int64_t maps = s.last - s.first;
  OCC_WARP_STRIDE(item, s.batch * maps * s.target) {
    const int64_t cell = item % s.target, b = item / s.target / maps;
    const int k = s.first + static_cast<int>(item / s.target % maps);
    const int32_t* starts = offsets + starts_begin(s, b, k);
    const T* rows = features + b * s.count * s.channels;
    for (int64_t c = lane_id(); c < s.channels; c += kWarp) {
      const int64_t at = item * s.channels + c;
      if (starts[cell] == starts[cell + 1]) {
        out[at] = static_cast<T>(acc_t<T>(0));
        if constexpr (step == Step::kArgMax) argmax[at] = static_cast<int32_t>(s.count);
        continue;
      }
      const Reduced<step, T> reduced(rows + c, rows + c, order + points_begin(s, b, k), starts[cell], starts[cell + 1],
                                     s.channels);
      out[at] = static_cast<T>(reduced.value);
      if constexpr (step == Step::kArgMax) argmax[at] = reduced.arg;
    }
  }
}

// One warp per point. With `chosen` only the channels in which it is the chosen point; with `offsets` divided by
// counts.
template <class T>
OCC_KERNEL void __launch_bounds__(kThreads)
    gather_cells_kernel(const T* values, const int32_t* index, const int32_t* offsets, const int32_t* chosen,
                        BinShape s, T* out) {
  using S = acc_t<T>;
  const int64_t maps = s.last - s.first;
  OCC_WARP_STRIDE(item, s.batch * s.count) {
    const int64_t b = item / s.count, n = item % s.count;
    for (int64_t c = lane_id(); c < s.channels; c += kWarp) {
      S sum = 0;
      for (int64_t map = 0; map < maps; ++map) {
        const int k = s.first + static_cast<int>(map);
        const int64_t cell = index[points_begin(s, b, k) + n];
        if (cell < 0 || cell >= s.target) continue;
        const int64_t at = ((b * maps + map) * s.target + cell) * s.channels + c;
        if (chosen != nullptr && chosen[at] != n) continue;
        const int32_t* starts = offsets + starts_begin(s, b, k);
        const S factor = offsets != nullptr ? S(1) / static_cast<S>(starts[cell + 1] - starts[cell]) : S(1);
        sum += static_cast<S>(values[at]) * factor;
      }
      out[item * s.channels + c] = static_cast<T>(sum);
    }
  }
}

template <class T>
OCC_KERNEL void __launch_bounds__(kThreads)
    pick_points_kernel(const T* values, const int32_t* argmax, BinShape s, int64_t cells, T* out) {
  OCC_GRID_STRIDE(at, s.batch * cells * s.channels) {
    const int64_t c = at % s.channels, b = at / s.channels / cells, n = argmax[at];
    out[at] = n < s.count ? values[(b * s.count + n) * s.channels + c] : static_cast<T>(acc_t<T>(0));
  }
}

unsigned warps_for(int64_t items) { return grid_for(items * kWarp, kThreads); }

template <Step step, class T>
void pool(const void* selector, const void* values, const int32_t* index, const int32_t* order, const int32_t* offsets,
          const BinShape& s, void* scratch, int32_t* args, void* out, uintptr_t stream) {
  constexpr bool transpose = step == Step::kPickTranspose;
  acc_t<T>* rows = static_cast<acc_t<T>*>(scratch);
  OCC_LAUNCH((reduce_segments_kernel<step, T>), warps_for(s.batch * (s.last - s.first) * s.count), kThreads, 0, stream,
             static_cast<const T*>(selector), static_cast<const T*>(values), index, order, offsets, s, rows, args);
  OCC_LAUNCH((sum_maps_kernel<transpose, T>), warps_for(s.batch * s.count), kThreads, 0, stream, index, offsets, s,
             rows, args, static_cast<T*>(out));
}

template <Step step, class T>
void reduce_cells(const void* features, const int32_t* order, const int32_t* offsets, const BinShape& s, void* out,
                  int32_t* argmax, uintptr_t stream) {
  OCC_LAUNCH((reduce_cells_kernel<step, T>), warps_for(s.batch * (s.last - s.first) * s.target), kThreads, 0, stream,
             static_cast<const T*>(features), order, offsets, s, static_cast<T*>(out), argmax);
}

}  // namespace

void local_pool_max(const void* selector, const void* values, int dtype, const int32_t* index, const int32_t* order,
                    const int32_t* offsets, const BinShape& shape, bool transpose, void* scratch, int32_t* args,
                    void* out, uintptr_t stream) {
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (transpose) {
      pool<Step::kPickTranspose, T>(selector, values, index, order, offsets, shape, scratch, args, out, stream);
    } else {
      pool<Step::kPick, T>(selector, values, index, order, offsets, shape, scratch, args, out, stream);
    }
  });
}

void local_pool_mean(const void* features, int dtype, const int32_t* index, const int32_t* order,
                     const int32_t* offsets, const BinShape& shape, void* scratch, void* out, uintptr_t stream) {
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    pool<Step::kMean, T>(features, features, index, order, offsets, shape, scratch, nullptr, out, stream);
  });
}

void scatter_cells(const void* features, int dtype, const int32_t*, const int32_t* order, const int32_t* offsets,
                   const BinShape& shape, int reduce, void* out, int32_t* argmax, uintptr_t stream) {
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (argmax != nullptr) {
      reduce_cells<Step::kArgMax, T>(features, order, offsets, shape, out, argmax, stream);
    } else if (reduce == kMax) {
      reduce_cells<Step::kMax, T>(features, order, offsets, shape, out, argmax, stream);
    } else if (reduce == kMean) {
      reduce_cells<Step::kMean, T>(features, order, offsets, shape, out, argmax, stream);
    } else {
      reduce_cells<Step::kSum, T>(features, order, offsets, shape, out, argmax, stream);
    }
  });
}

void gather_cells(const void* values, int dtype, const int32_t* index, const int32_t* offsets, const BinShape& shape,
                  int reduce, void* out, uintptr_t stream) {
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    OCC_LAUNCH(gather_cells_kernel<T>, warps_for(shape.batch * shape.count), kThreads, 0, stream,
               static_cast<const T*>(values), index, reduce == kMean ? offsets : nullptr, nullptr, shape,
               static_cast<T*>(out));
  });
}

void pick_points(const void* values, int dtype, const int32_t* argmax, const BinShape& shape, void* out,
                 uintptr_t stream) {
  const int64_t cells = (shape.last - shape.first) * shape.target;
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    OCC_LAUNCH(pick_points_kernel<T>, grid_for(shape.batch * cells * shape.channels, kThreads), kThreads, 0, stream,
               static_cast<const T*>(values), argmax, shape, cells, static_cast<T*>(out));
  });
}

void unpick_points(const void* values, int dtype, const int32_t* argmax, const int32_t* index, const BinShape& shape,
                   void* out, uintptr_t stream) {
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    OCC_LAUNCH(gather_cells_kernel<T>, warps_for(shape.batch * shape.count), kThreads, 0, stream,
               static_cast<const T*>(values), index, nullptr, argmax, shape, static_cast<T*>(out));
  });
}

}  // namespace occ::cuda
