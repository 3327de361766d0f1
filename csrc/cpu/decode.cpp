// SPDX-License-Identifier: MIT
#include "cpu/decode.h"

#include <new>

#include "common/types.h"

namespace occ::cpu {
namespace {

DecodeJob make_job(const void* planes, const void* grid, const float* bases, const float* scale, const float* weights,
                   float* out, int dtype, const Layout& layout) {
  dispatch(dtype, [](auto) {});  // throws on an unknown code; the *.isa.cpp code must not
  DecodeJob job;
  job.planes = planes;
  job.grid = grid;
  job.bases = bases;
  job.scale = scale;
  job.weights = weights;
  job.out = out;
  job.dtype = dtype;
  job.layout = layout;
  sample_maps(layout, job.map);
  return job;
}

bool rounds(int rounding, const uint32_t* rounded) { return rounding == kBf16 && rounded != nullptr; }

}  // namespace

void decode(const void* planes, const void* grid, const float* query, const float* bases, const float* scale,
            const float* weights, const uint32_t* rounded, const float* reversed, float* out, float* gradient,
            int dtype, int64_t batch, int64_t queries, int64_t channels, int64_t hidden, int64_t depth, int rounding,
            double leak, bool concat, const Layout& layout, int threads) {
  DecodeJob job = make_job(planes, grid, bases, scale, weights, out, dtype, layout);
  bool failed = false;
  job.query = query;
  job.reversed = reversed;
  job.gradient = gradient;
  job.batch = batch;
  job.queries = queries;
  job.channels = channels;
  job.hidden = hidden;
  job.depth = depth;
  job.rounded = rounded;
  job.leak = static_cast<float>(leak);
  job.concat = concat;
  job.threads = threads;
  job.failed = &failed;
  if (rounds(rounding, rounded) && gradient == nullptr) {
    OCC_CALL_BF16(run_decode, job);
  } else {
    OCC_CALL_ISA(run_decode, job);
  }
  if (failed) throw std::bad_alloc();
}

void decode_bricks(const void* planes, const void* grid, const float* bases, const float* scale, const float* weights,
                   const uint32_t* rounded, const int64_t* shape, const int32_t* corner, const int64_t* mask,
                   float* out, int dtype, int64_t bricks, int64_t batch, int64_t channels, int64_t hidden,
                   int64_t depth, int rounding, double leak, bool concat, double spacing, double origin,
                   const Layout& layout, int threads) {
  DecodeJob job = make_job(planes, grid, bases, scale, weights, out, dtype, layout);
  bool failed = false;
  job.shape = shape;
  job.corner = corner;
  job.mask = reinterpret_cast<const uint64_t*>(mask);
  job.bricks = bricks;
  job.batch = batch;
  job.channels = channels;
  job.hidden = hidden;
  job.depth = depth;
  job.rounded = rounded;
  job.leak = static_cast<float>(leak);
  job.concat = concat;
  job.spacing = spacing;
  job.origin = origin;
  job.threads = threads;
  job.failed = &failed;
  if (rounds(rounding, rounded)) {
    OCC_CALL_BF16(run_decode_bricks, job);
  } else {
    OCC_CALL_ISA(run_decode_bricks, job);
  }
  if (failed) throw std::bad_alloc();
}

void decode_conditional(const float* query, const float* weights, const uint32_t* rounded, const float* affine,
                        const float* offset, float* out, int64_t batch, int64_t queries, int64_t hidden, int64_t layers,
                        int rounding, double leak, double inner_leak, bool residual, int threads) {
  bool failed = false;
  ConditionalJob job;
  job.query = query;
  job.weights = weights;
  job.affine = affine;
  job.offset = offset;
  job.out = out;
  job.batch = batch;
  job.queries = queries;
  job.hidden = hidden;
  job.layers = layers;
  job.rounded = rounded;
  job.leak = static_cast<float>(leak);
  job.inner_leak = static_cast<float>(inner_leak);
  job.residual = residual;
  job.threads = threads;
  job.failed = &failed;
  if (rounds(rounding, rounded)) {
    OCC_CALL_BF16(run_decode_conditional, job);
  } else {
    OCC_CALL_ISA(run_decode_conditional, job);
  }
  if (failed) throw std::bad_alloc();
}

}  // namespace occ::cpu
