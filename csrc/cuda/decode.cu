// SPDX-License-Identifier: MIT
// The residual decoder on lists and bricks of queries, exact float32. A block takes a tile of columns through the whole
// network in shared memory; nothing but coordinates, features, weights and logits touches global memory. Weights are
// small enough for the first-level cache.
#include "cuda/decode.h"
#include "cuda/decode_device.h"

namespace occ::cuda {
namespace {

constexpr int kNodes = 512;

// A tile's arrays, [channel][column] each.
struct TileMemory {
  float *position, *features, *net, *outer, *inner;

  OCC_DEVICE TileMemory(float* memory, const DecoderShape& shape, int64_t features_rows, int stride) {
    position = memory;
    features = position + 4 * stride;
    net = features + features_rows * stride;
    outer = net + shape.width() * stride;
    inner = outer + shape.width() * stride;
  }
};

int64_t tile_rows(const DecoderShape& shape) { return 4 + panels_of(shape.features) * kPanel + 3 * shape.width(); }

// Positions and features are in place; `net` holds the last block's output afterwards. All threads of the block call.
template <class T, int S>
OCC_DEVICE void run_network(const DecodeDevice<T>& job, const TileMemory& tile) {
  const DecoderShape& shape = job.shape;
  const int stride = job.columns + kSkew;
  const Part none{nullptr, nullptr, 0};
  for (int64_t stage = 0; stage <= shape.depth; ++stage) {
    const bool first = stage == 0;
    const Part from = first ? Part{tile.position, job.weights + shape.position(), 3}
                            : Part{tile.inner, job.weights + shape.second(stage - 1), shape.hidden};
    const Part features{tile.features, job.weights + shape.feature(stage < shape.depth ? stage : 0),
                        stage < shape.depth ? shape.features : 0};
    multiply<S>(job.columns, shape.hidden, job.weights + shape.second_bias(stage), from, features,
                [&](int64_t output, int column, float* sum) {
                  const int64_t at = output * stride + column;
                  for (int c = 0; c < kBlockColumns; ++c) {
                    sum[c] += first ? 0.0f : tile.net[at + c];
                    tile.net[at + c] = sum[c];
                  }
                  activate<S>(sum, 0.0f);
                  for (int c = 0; c < kBlockColumns; ++c) tile.outer[at + c] = sum[c];
                });
    __syncthreads();
    if (stage == shape.depth) break;
    multiply<S>(job.columns, shape.hidden, job.weights + shape.first_bias(stage),
                Part{tile.outer, job.weights + shape.first(stage), shape.hidden}, none,
                [&](int64_t output, int column, float* sum) {
                  activate<S>(sum, 0.0f);
                  for (int c = 0; c < kBlockColumns; ++c) tile.inner[output * stride + column + c] = sum[c];
                });
    __syncthreads();
  }
}

// Output of one column: the logit, or its derivative along one axis.
template <class T, int S>
OCC_DEVICE float column_out(const DecodeDevice<T>& job, const TileMemory& tile, int column) {
  const int stride = job.columns + kSkew, value_column = column - column % S;
  const float* out = job.weights + job.shape.out();
  float sum = 0;
  for (int64_t h = 0; h < job.shape.hidden; ++h) {
    const float value = tile.net[h * stride + value_column], x = tile.net[h * stride + column];
    const bool keeps = value > 0.0f || (value != value && column == value_column);
    sum += out[h] * (keeps ? x : job.leak * x);
  }
  return column == value_column ? sum + job.weights[job.shape.out_bias()] : sum;
}

template <class T, int N, int S>
OCC_KERNEL void __launch_bounds__(kDecodeThreads) decode_kernel(DecodeDevice<T> job, int64_t tiles) {
  OCC_DYNAMIC_SHARED(float, memory);
  const int stride = job.columns + kSkew, size = job.columns / S;
  const TileMemory tile(memory, job.shape, panels_of(job.features) * kPanel, stride);
  const int64_t tiles_of_shape = (job.queries + size - 1) / size;
  for (int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
    const int64_t b = number / tiles_of_shape, first = number % tiles_of_shape * size;
    const int count = static_cast<int>(job.queries - first < size ? job.queries - first : size);
    for (int i = threadIdx.x; i < 3 * job.columns; i += blockDim.x) {
      const int axis = i / job.columns, column = i % job.columns, q = column / S, term = column % S;
      const float at = job.query[3 * (b * job.queries + first + (q < count ? q : 0)) + axis];
      tile.position[axis * stride + column] = term == 0 ? at : axis == term - 1 ? 1.0f : 0.0f;
    }
    __syncthreads();
    sample_tile<T, N, S>(job, b, tile.position, tile.features);
    __syncthreads();
    run_network<T, S>(job, tile);
    for (int column = threadIdx.x; column < count * S; column += blockDim.x) {
      const int64_t at = b * job.queries + first + column / S;
      const float value = column_out<T, S>(job, tile, column);
      if (column % S == 0) {
        job.out[at] = value;
      } else {
        job.gradient[3 * at + column % S - 1] = value;
      }
    }
    __syncthreads();
  }
}

// Wanted nodes below `node` in a brick's mask.
OCC_DEVICE int wanted_below(const uint64_t* mask, int node) {
  int count = 0;
  for (int word = 0; word <= node / 64 && word < kNodes / 64; ++word) {
    const uint64_t bits = word < node / 64 ? mask[word] : mask[word] & ((uint64_t(1) << node % 64) - 1);
    count += popc(static_cast<uint32_t>(bits)) + popc(static_cast<uint32_t>(bits >> 32));
  }
  return count;
}

template <class T, int N>
OCC_KERNEL void __launch_bounds__(kDecodeThreads) bricks_kernel(DecodeDevice<T> job, int64_t bricks) {
  OCC_DYNAMIC_SHARED(float, memory);
  OCC_SHARED(int16_t, node, kNodes);
  const int stride = job.columns + kSkew;
  const TileMemory tile(memory, job.shape, panels_of(job.features) * kPanel, stride);
  for (int64_t brick = blockIdx.x; brick < bricks; brick += gridDim.x) {
    const uint64_t* mask = job.mask + brick * (kNodes / 64);
    float* out = job.out + brick * kNodes;
    for (int n = threadIdx.x; n < kNodes; n += blockDim.x) {
      if (mask[n / 64] >> (n % 64) & 1) {
        node[wanted_below(mask, n)] = static_cast<int16_t>(n);
      } else {
        out[n] = bit_cast<float>(0x7fc00000u);
      }
    }
    __syncthreads();
    const int wanted = wanted_below(mask, kNodes);
    for (int first = 0; first < wanted; first += job.columns) {
      const int count = wanted - first < job.columns ? wanted - first : job.columns;
      for (int i = threadIdx.x; i < 3 * job.columns; i += blockDim.x) {
        const int axis = i / job.columns, column = i % job.columns;
        const int n = node[first + (column < count ? column : 0)];
        const double index = static_cast<double>(job.corner[3 * brick + axis]) + (n >> (3 * (2 - axis)) & 7);
        tile.position[axis * stride + column] = static_cast<float>(job.origin + job.spacing * index);
      }
      __syncthreads();
      sample_tile<T, N, 1>(job, job.brick_shape[brick], tile.position, tile.features);
      __syncthreads();
      run_network<T, 1>(job, tile);
      for (int column = threadIdx.x; column < count; column += blockDim.x) {
        out[node[first + column]] = column_out<T, 1>(job, tile, column);
      }
      __syncthreads();
    }
    __syncthreads();
  }
}

template <class T>
DecodeDevice<T> make_job(const void* planes, const void* grid, const float* bases, const float* scale,
                         const float* weights, float* out, int64_t channels, int64_t hidden, int64_t depth, double leak,
                         bool concat, const Layout& layout) {
  const int64_t features = concat ? channels * layout.maps() : channels;
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
                      static_cast<float>(leak),
                      concat,
                      columns_for(tile_rows(DecoderShape{hidden, features, depth})),
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

template <class T>
size_t shared_bytes(const DecodeDevice<T>& job) {
  return static_cast<size_t>(tile_rows(job.shape)) * (job.columns + kSkew) * sizeof(float);
}

template <class F>
void dispatch_features(int dtype, F&& fn) {
  if (dtype == kFloat64) throw std::invalid_argument("occkernels.decode: float64 features are not supported");
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (!std::is_same_v<T, double>) fn(type);
  });
}

}  // namespace

void decode(const void* planes, const void* grid, const float* query, const float* bases, const float* scale,
            const float* weights, const float*, float* out, float* gradient, int dtype, int64_t batch, int64_t queries,
            int64_t channels, int64_t hidden, int64_t depth, double leak, bool concat, const Layout& layout,
            uintptr_t stream) {
  dispatch_features(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    DecodeDevice<T> job =
        make_job<T>(planes, grid, bases, scale, weights, out, channels, hidden, depth, leak, concat, layout);
    job.query = query;
    job.gradient = gradient;
    job.queries = queries;
    const int size = job.columns / (gradient ? 4 : 1);
    const int64_t tiles = batch * ((queries + size - 1) / size);
    const unsigned blocks = grid_for(tiles, 1);
    const size_t bytes = shared_bytes(job);
    if (gradient && channels % 4 == 0) {
      OCC_LAUNCH((decode_kernel<T, 4, 4>), blocks, kDecodeThreads, bytes, stream, job, tiles);
    } else if (gradient) {
      OCC_LAUNCH((decode_kernel<T, 1, 4>), blocks, kDecodeThreads, bytes, stream, job, tiles);
    } else if (channels % 4 == 0) {
      OCC_LAUNCH((decode_kernel<T, 4, 1>), blocks, kDecodeThreads, bytes, stream, job, tiles);
    } else {
      OCC_LAUNCH((decode_kernel<T, 1, 1>), blocks, kDecodeThreads, bytes, stream, job, tiles);
    }
  });
}

void decode_bricks(const void* planes, const void* grid, const float* bases, const float* scale, const float* weights,
                   const int64_t* shape, const int32_t* corner, const int64_t* mask, float* out, int dtype,
                   int64_t bricks, int64_t, int64_t channels, int64_t hidden, int64_t depth, double leak, bool concat,
                   double spacing, double origin, const Layout& layout, uintptr_t stream) {
  dispatch_features(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    DecodeDevice<T> job =
        make_job<T>(planes, grid, bases, scale, weights, out, channels, hidden, depth, leak, concat, layout);
    job.brick_shape = shape;
    job.corner = corner;
    job.mask = reinterpret_cast<const uint64_t*>(mask);
    job.spacing = spacing;
    job.origin = origin;
    const unsigned blocks = grid_for(bricks, 1);
    if (channels % 4 == 0) {
      OCC_LAUNCH((bricks_kernel<T, 4>), blocks, kDecodeThreads, shared_bytes(job), stream, job, bricks);
    } else {
      OCC_LAUNCH((bricks_kernel<T, 1>), blocks, kDecodeThreads, shared_bytes(job), stream, job, bricks);
    }
  });
}

}  // namespace occ::cuda
