// SPDX-License-Identifier: MIT
#include "cpu/sample.h"

#include "common/types.h"

namespace occ::cpu {
namespace {

SampleJob make_job(int dtype, int64_t batch, int64_t queries, int64_t channels, int num_directions, bool concat,
                   const Layout& layout, int threads) {
  dispatch(dtype, [](auto) {});  // throws on an unknown code; the *.isa.cpp code must not
  SampleJob job;
  job.dtype = dtype;
  job.batch = batch;
  job.queries = queries;
  job.channels = channels;
  job.num_directions = num_directions;
  job.concat = concat;
  job.columns = 3 + 2 * layout.dynamic;
  job.maps = layout.maps();
  job.num_planes = layout.planes();
  job.threads = threads;
  sample_maps(layout, job.map);
  return job;
}

}  // namespace

void sample_gather(const void* planes, const void* grid, const void* coords, const void* directions, const void* frame,
                   void* out, int dtype, int64_t batch, int64_t queries, int64_t channels, int num_directions,
                   bool concat, const Layout& layout, int threads) {
  SampleJob job = make_job(dtype, batch, queries, channels, num_directions, concat, layout, threads);
  job.planes = planes;
  job.grid = grid;
  job.coords = coords;
  job.directions = directions;
  job.frame = frame;
  job.out = out;
  OCC_CALL_ISA(run_gather, job);
}

void sample_contract(const void* planes, const void* grid, const void* coords, const void* grad, const void* directions,
                     const void* frame, void* out, int dtype, int64_t batch, int64_t queries, int64_t channels,
                     int num_directions, bool concat, const Layout& layout, int threads) {
  SampleJob job = make_job(dtype, batch, queries, channels, num_directions, concat, layout, threads);
  job.planes = planes;
  job.grid = grid;
  job.coords = coords;
  job.grad = grad;
  job.directions = directions;
  job.frame = frame;
  job.out = out;
  OCC_CALL_ISA(run_contract, job);
}

void sample_index(const void* coords, int32_t* index, int dtype, int64_t batch, int64_t queries, const Layout& layout,
                  int threads) {
  SampleJob job = make_job(dtype, batch, queries, 0, 0, false, layout, threads);
  job.coords = coords;
  job.index = index;
  OCC_CALL_ISA(run_index, job);
}

void sample_scatter(const void* coords, const void* grad, const void* directions, const void* frame,
                    const int32_t* index, const int32_t* order, const int32_t* offsets, void* planes, void* grid,
                    int dtype, int64_t batch, int64_t queries, int64_t channels, int num_directions, bool concat,
                    const Layout& layout, int threads) {
  SampleJob job = make_job(dtype, batch, queries, channels, num_directions, concat, layout, threads);
  job.coords = coords;
  job.grad = grad;
  job.directions = directions;
  job.frame = frame;
  job.index = const_cast<int32_t*>(index);
  job.order = order;
  job.offsets = offsets;
  job.out_planes = planes;
  job.out_grid = grid;
  OCC_CALL_ISA(run_scatter, job);
}

}  // namespace occ::cpu
