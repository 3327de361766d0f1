// SPDX-License-Identifier: MIT
// Static work sharing. Tasks are fixed by the data, never by the number of threads, and every output element has one
// owner task: results are bit-identical for any thread count.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace occ {
OCC_BEGIN_SHARED

// Runs fn(task) for task in [0, tasks) on at most `threads` threads; tasks are handed out one by one because they may
// differ in size. Exceptions must not leave fn.
template <class F>
void parallel_for(int threads, int64_t tasks, F&& fn) {
#if defined(_OPENMP)
  if (threads > 1 && tasks > 1) {
    const int used = tasks < threads ? static_cast<int>(tasks) : threads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(used)
    for (int64_t task = 0; task < tasks; ++task) fn(task);
    return;
  }
#endif
  (void)threads;
  for (int64_t task = 0; task < tasks; ++task) fn(task);
}

// Runs fn(begin, end) over [0, count) in blocks of `block` items.
template <class F>
void parallel_blocks(int threads, int64_t count, int64_t block, F&& fn) {
  const int64_t tasks = (count + block - 1) / block;
  parallel_for(threads, tasks, [&](int64_t task) {
    const int64_t begin = task * block;
    fn(begin, begin + block < count ? begin + block : count);
  });
}

OCC_END_SHARED
}  // namespace occ
