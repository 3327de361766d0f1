// SPDX-License-Identifier: MIT
// Reduction of the rows of one cell's points, which lie side by side in the sorted order.
#pragma once

#include "cpu/pool_pack.h"

namespace occ {
OCC_BEGIN_SHARED

enum class Step {
  kSum,
  kMean,
  kMax,
  kArgMax,         // maximum and which point it is
  kPick,           // values of the point in which the selector is largest
  kPickTranspose,  // sum of the values, and the point in which the selector is largest
};

constexpr int64_t kAhead = 16;  // rows asked for ahead of their use: they are anywhere in memory

OCC_INLINE constexpr bool has_argument(Step step) { return step >= Step::kArgMax; }

template <class S>
OCC_INLINE void prefetch_row(const S* row, int64_t channels) {
  for (int64_t c = 0; c < channels; c += 64 / static_cast<int64_t>(sizeof(S))) OCC_PREFETCH(row + c);
}

// Reduces the rows order[begin, end) of `in` (of selector `in` and `values` for kPick...) into `row` and `args`.
// `last` is the end of the valid entries of order.
template <Step step, class S>
OCC_INLINE void reduce_segment(const S* in, const S* values, const int32_t* order, int64_t begin, int64_t end,
                               int64_t last, int64_t channels, S* OCC_RESTRICT row, int32_t* OCC_RESTRICT args) {
  for_channels<has_argument(step) ? 16 : 32>(0, channels, [&](int64_t c, auto width) {
    Pack<S, decltype(width)::value> best, sum;
    const int64_t first = order[begin] * channels + c;
    if constexpr (has_argument(step)) {
      best.load(in + first, order[begin]);
    } else {
      best.load(in + first);
    }
    if constexpr (step == Step::kPickTranspose) sum.load(values + first);
    for (int64_t i = begin + 1; i < end; ++i) {
      const int64_t at = order[i] * channels + c;
      if (c == 0 && i + kAhead < last) prefetch_row(in + order[i + kAhead] * channels, channels);
      if constexpr (step == Step::kSum || step == Step::kMean) best.add(in + at);
      if constexpr (step == Step::kMax) best.raise(in + at);
      if constexpr (has_argument(step)) best.raise(in + at, order[i]);
      if constexpr (step == Step::kPickTranspose) sum.add(values + at);
    }
    if (c == 0 && end + kAhead - 1 < last) prefetch_row(in + order[end + kAhead - 1] * channels, channels);
    if constexpr (step == Step::kMean) best.divide(static_cast<S>(end - begin));
    if constexpr (step == Step::kPickTranspose) {
      sum.store(row + c);
    } else if constexpr (step != Step::kPick) {
      best.store(row + c);
    }
    if constexpr (has_argument(step)) {
      if (args != nullptr) best.store_args(args + c);
    }
  });
  if constexpr (step == Step::kPick) {
    for (int64_t c = 0; c < channels; ++c) row[c] = values[args[c] * channels + c];
  }
}

OCC_END_SHARED
}  // namespace occ
