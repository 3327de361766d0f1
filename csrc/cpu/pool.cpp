// SPDX-License-Identifier: MIT
#include "cpu/pool.h"

#include <memory>
#include <new>

#include "common/parallel.h"
#include "common/types.h"
#include "cpu/pool_jobs.h"

namespace occ::cpu {
namespace {

bool is_wide(int dtype) {
  if (dtype != kFloat32 && dtype != kFloat64)
    throw std::invalid_argument("occkernels: pooling on the CPU takes float or double");
  return dtype == kFloat64;
}

ScatterJob scatter_job(const void* in, int dtype, const int32_t* index, const BinShape& shape, void* out, int threads) {
  ScatterJob job{};
  job.in = in;
  job.index = index;
  job.out = out;
  job.shape = shape;
  job.threads = threads;
  job.wide = is_wide(dtype);
  return job;
}

// Rows of cells reduced in one pass are numbered by the cell.
void check_scratch(const PoolJob& job) {
  if (job.scratch == nullptr || job.args != nullptr) return;
  for (int k = job.shape.first; k < job.shape.last; ++k) {
    if (rows_by_start(job.shape, k))
      throw std::invalid_argument("occkernels: pooling fewer points than cells takes no scratch");
  }
}

std::unique_ptr<int32_t[]> count_into(ScatterJob& job) {
  const BinShape& s = job.shape;
  std::unique_ptr<int32_t[]> counts(new int32_t[s.batch * (s.last - s.first) * s.target]);
  job.counts = counts.get();
  OCC_CALL_ISA(count_cells, job);
  return counts;
}

}  // namespace

void local_pool_max(const void* selector, const void* values, int dtype, const int32_t* index, const int32_t* order,
                    const int32_t* offsets, const BinShape& shape, bool transpose, void* scratch, int32_t* args,
                    void* out, int threads) {
  const PoolJob job{selector, values, index,   order,          offsets, scratch,  out,
                    args,     shape,  threads, is_wide(dtype), false,   transpose};
  check_scratch(job);
  OCC_CALL_ISA(local_pool, job);
}

void local_pool_mean(const void* features, int dtype, const int32_t* index, const int32_t* order,
                     const int32_t* offsets, const BinShape& shape, void* scratch, void* out, int threads) {
  const PoolJob job{features, features, index,   order,          offsets, scratch, out,
                    nullptr,  shape,    threads, is_wide(dtype), true,    false};
  check_scratch(job);
  OCC_CALL_ISA(local_pool, job);
}

void scatter_cells(const void* features, int dtype, const int32_t* index, const int32_t* order, const int32_t* offsets,
                   const BinShape& shape, int reduce, void* out, int32_t* argmax, int threads) {
  ScatterJob job = scatter_job(features, dtype, index, shape, out, threads);
  job.order = order;
  job.offsets = offsets;
  job.reduce = reduce;
  job.argmax = argmax;
  if (order != nullptr) {
    OCC_CALL_ISA(scatter_sorted, job);
    return;
  }
  if (argmax != nullptr) throw std::invalid_argument("occkernels: scatter_cells needs the sorted order for argmax");
  bool failed = false;
  job.failed = &failed;
  OCC_CALL_ISA(scatter_streamed, job);
  if (failed) throw std::bad_alloc();
}

void gather_cells(const void* values, int dtype, const int32_t* index, const int32_t*, const BinShape& shape,
                  int reduce, void* out, int threads) {
  ScatterJob job = scatter_job(values, dtype, index, shape, out, threads);
  job.reduce = reduce;
  const auto counts = reduce == kMean ? count_into(job) : nullptr;
  OCC_CALL_ISA(gather_cells, job);
}

void pick_points(const void* values, int dtype, const int32_t* argmax, const BinShape& shape, void* out, int threads) {
  const int64_t cells = (shape.last - shape.first) * shape.target;
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    parallel_blocks(threads, shape.batch * cells, 256, [&](int64_t begin, int64_t end) {
      for (int64_t cell = begin; cell < end; ++cell) {
        const T* rows = static_cast<const T*>(values) + cell / cells * shape.count * shape.channels;
        for (int64_t c = 0; c < shape.channels; ++c) {
          const int64_t at = cell * shape.channels + c;
          static_cast<T*>(out)[at] = argmax[at] < shape.count ? rows[argmax[at] * shape.channels + c] : T(0.0f);
        }
      }
    });
  });
}

void unpick_points(const void* values, int dtype, const int32_t* argmax, const int32_t* index, const BinShape& shape,
                   void* out, int threads) {
  ScatterJob job = scatter_job(values, dtype, index, shape, out, threads);
  job.chosen = argmax;
  OCC_CALL_ISA(gather_cells, job);
}

}  // namespace occ::cpu
