// SPDX-License-Identifier: MIT
// The residual decoder: its jobs, and its launches in exact float32.
#include "cuda/decode.h"
#include "cuda/decode_kernels.h"

namespace occ::cuda {

OCC_ROUNDED_LAUNCHES(extern)

namespace {

template <class T>
DecodeDevice<T> make_job(const void* planes, const void* grid, const float* bases, const float* scale,
                         const float* weights, float* out, int64_t channels, int64_t hidden, int64_t depth,
                         int rounding, double leak, bool concat, const Layout& layout) {
  const int64_t features = concat ? channels * layout.maps() : channels;
  const int64_t rows = tile_rows(DecoderShape{hidden, features, depth});
  // A permission to round, declined where its wider rows do not fit.
  const Rounding chosen = columns_for(rows, static_cast<Rounding>(rounding)) ? static_cast<Rounding>(rounding) : kExact;
  DecodeDevice<T> job{static_cast<const T*>(planes),
                      static_cast<const T*>(grid),
                      nullptr,
                      bases,
                      scale,
                      weights,
                      out,
                      nullptr,
                      0,
                      channels,
                      features,
                      DecoderShape{hidden, features, depth},
                      chosen,
                      nullptr,
                      static_cast<float>(leak),
                      concat,
                      columns_for(rows, chosen),
                      layout.maps(),
                      layout.planes(),
                      layout.canonical,
                      layout.dynamic,
                      Normalizer<float>(layout.padding),
                      {},
                      nullptr,
                      nullptr,
                      nullptr,
                      0,
                      0};
  if (job.columns == 0) {
    throw std::invalid_argument("occkernels.decode: " + std::to_string(features) +
                                " feature channels do not fit the shared memory of a CUDA block; reduce them, or use "
                                "occkernels.sample_features and torch modules.");
  }
  SampleMap maps[kMaxMaps];
  sample_maps(layout, maps);
  for (int k = 0; k < job.maps; ++k) job.rule[k] = MapRule<float>(maps[k]);
  return job;
}

template <class F>
void dispatch_features(int dtype, F&& fn) {
  if (dtype == kFloat64) throw std::invalid_argument("occkernels.decode: float64 features are not supported");
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (!std::is_same_v<T, double>) fn(type);
  });
}

// Calls fn with the rounding as a constant.
template <class F>
void with_rounding(int rounding, F&& fn) {
  switch (rounding) {
    case kExact:
      fn(std::integral_constant<Rounding, kExact>{});
      return;
    case kTf32:
      fn(std::integral_constant<Rounding, kTf32>{});
      return;
    case kBf16:
      fn(std::integral_constant<Rounding, kBf16>{});
      return;
    default:
      throw std::invalid_argument("occkernels.decode: unknown rounding " + std::to_string(rounding));
  }
}

}  // namespace

void decode(const void* planes, const void* grid, const float* query, const float* bases, const float* scale,
            const float* weights, const uint32_t* rounded, const float*, float* out, float* gradient, int dtype,
            int64_t batch, int64_t queries, int64_t channels, int64_t hidden, int64_t depth, int rounding, double leak,
            bool concat, const Layout& layout, uintptr_t stream) {
  dispatch_features(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    DecodeDevice<T> job = make_job<T>(planes, grid, bases, scale, weights, out, channels, hidden, depth,
                                      gradient ? kExact : rounding, leak, concat, layout);
    job.query = query;
    job.rounded = rounded;
    job.gradient = gradient;
    job.queries = queries;
    with_rounding(job.rounding, [&](auto chosen) { launch_queries<decltype(chosen)::value>(job, batch, stream); });
  });
}

void decode_bricks(const void* planes, const void* grid, const float* bases, const float* scale, const float* weights,
                   const uint32_t* rounded, const int64_t* shape, const int32_t* corner, const int64_t* mask,
                   float* out, int dtype, int64_t bricks, int64_t, int64_t channels, int64_t hidden, int64_t depth,
                   int rounding, double leak, bool concat, double spacing, double origin, const Layout& layout,
                   uintptr_t stream) {
  dispatch_features(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    DecodeDevice<T> job =
        make_job<T>(planes, grid, bases, scale, weights, out, channels, hidden, depth, rounding, leak, concat, layout);
    job.rounded = rounded;
    job.brick_shape = shape;
    job.corner = corner;
    job.mask = reinterpret_cast<const uint64_t*>(mask);
    job.spacing = spacing;
    job.origin = origin;
    with_rounding(job.rounding, [&](auto chosen) { launch_bricks<decltype(chosen)::value>(job, bricks, stream); });
  });
}

}  // namespace occ::cuda
