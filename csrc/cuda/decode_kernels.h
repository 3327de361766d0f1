// SPDX-License-Identifier: MIT
// The residual decoder on lists and bricks of queries. A block takes a tile of columns through the whole network in
// shared memory; nothing but coordinates, features, weights and logits touches global memory. Weights are small enough
// for the first-level cache. Included by one source for each rounding.
#pragma once

#include "cuda/decode_device.h"
#include "cuda/decode_rounded.h"

namespace occ::cuda {

// The launches of one rounding: decode.cu has those without, decode_rounded.cu the others.
template <Rounding R, class T>
void launch_queries(const DecodeDevice<T>& job, int64_t batch, uintptr_t stream);
template <Rounding R, class T>
void launch_bricks(const DecodeDevice<T>& job, int64_t bricks, uintptr_t stream);

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

inline int64_t tile_rows(const DecoderShape& shape) {
  return 4 + panels_of(shape.features) * kPanel + 3 * shape.width();
}

// Positions and features are in place; `net` holds the last block's output afterwards. All threads of the block call.
template <class T, int S>
OCC_DEVICE void run_exact(const DecodeDevice<T>& job, const TileMemory& tile) {
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

// The same with rounded operands.
template <class T, Rounding R>
OCC_DEVICE void run_rounded(const DecodeDevice<T>& job, const TileMemory& tile) {
  const DecoderShape& shape = job.shape;
  const RoundedShape packed = rounded_shape(R, shape.hidden, shape.features, shape.depth);
  const int stride = stride_of(R, job.columns);
  const int64_t steps = packed.steps(shape.hidden);
  for (int64_t stage = 0; stage <= shape.depth; ++stage) {
    const bool first = stage == 0;
    const float* bias = job.weights + shape.second_bias(stage);
    RoundedPart from, features;
    if (!first) from = {tile.inner, job.rounded + packed.second(stage - 1), steps};
    if (stage < shape.depth) {
      features = {tile.features, job.rounded + packed.feature(stage), packed.steps(shape.features)};
    }
    multiply_rounded<R>(
        job.columns, shape.hidden, from, features,
        [&](int64_t output, int column) {
          if (!first) return bias[output] + tile.net[output * stride + column];
          return position_sum(job.weights + shape.position(), bias, output, tile.position + column, stride);
        },
        [&](int64_t output, int column, float sum) {
          tile.net[output * stride + column] = sum;
          put_operand<R>(tile.outer, output, column, stride, active(sum, 0.0f));
        });
    __syncthreads();
    if (stage == shape.depth) break;
    const RoundedPart outer{tile.outer, job.rounded + packed.first(stage), steps};
    multiply_rounded<R>(
        job.columns, shape.hidden, outer, RoundedPart{},
        [&](int64_t output, int) { return job.weights[shape.first_bias(stage) + output]; },
        [&](int64_t output, int column, float sum) {
          put_operand<R>(tile.inner, output, column, stride, active(sum, 0.0f));
        });
    __syncthreads();
  }
}

template <class T, int S, Rounding R>
OCC_DEVICE void run_network(const DecodeDevice<T>& job, const TileMemory& tile) {
  if constexpr (R == kExact) {
    run_exact<T, S>(job, tile);
  } else {
    static_assert(S == 1);
    run_rounded<T, R>(job, tile);
  }
}

// Operands that no channel fills must be numbers: their weights are 0.
template <Rounding R>
OCC_DEVICE void clear_operands(const TileMemory& tile) {
  if constexpr (R != kExact) {
    for (float* at = tile.features + threadIdx.x; at < tile.net; at += blockDim.x) *at = 0.0f;
  }
}

// Output of one column: the logit, or its derivative along one axis.
template <class T, int S>
OCC_DEVICE float column_out(const DecodeDevice<T>& job, const TileMemory& tile, int column) {
  const int stride = stride_of(job.rounding, job.columns), value_column = column - column % S;
  const float* out = job.weights + job.shape.out();
  float sum = 0;
  for (int64_t h = 0; h < job.shape.hidden; ++h) {
    const float value = tile.net[h * stride + value_column], x = tile.net[h * stride + column];
    const bool keeps = value > 0.0f || (value != value && column == value_column);
    sum += out[h] * (keeps ? x : job.leak * x);
  }
  return column == value_column ? sum + job.weights[job.shape.out_bias()] : sum;
}

template <class T, int N, int S, Rounding R>
OCC_KERNEL void __launch_bounds__(kDecodeThreads) decode_kernel(DecodeDevice<T> job, int64_t tiles) {
  OCC_DYNAMIC_SHARED(float, memory);
  const int stride = stride_of(R, job.columns), size = job.columns / S;
  const TileMemory tile(memory, job.shape, panels_of(job.features) * kPanel, stride);
  clear_operands<R>(tile);
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
    sample_tile<T, N, S>(job, b, tile.position, stride, [&](int64_t channel, int column, float value) {
      put_operand<R>(tile.features, channel, column, stride, value);
    });
    __syncthreads();
    run_network<T, S, R>(job, tile);
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

template <class T, int N, Rounding R>
OCC_KERNEL void __launch_bounds__(kDecodeThreads) bricks_kernel(DecodeDevice<T> job, int64_t bricks) {
  OCC_DYNAMIC_SHARED(float, memory);
  OCC_SHARED(int16_t, node, kNodes);
  const int stride = stride_of(R, job.columns);
  const TileMemory tile(memory, job.shape, panels_of(job.features) * kPanel, stride);
  clear_operands<R>(tile);
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
      const int64_t b = job.brick_shape[brick];
      sample_tile<T, N, 1>(job, b, tile.position, stride, [&](int64_t channel, int column, float value) {
        put_operand<R>(tile.features, channel, column, stride, value);
      });
      __syncthreads();
      run_network<T, 1, R>(job, tile);
      for (int column = threadIdx.x; column < count; column += blockDim.x) {
        out[node[first + column]] = column_out<T, 1>(job, tile, column);
      }
      __syncthreads();
    }
    __syncthreads();
  }
}

template <class T>
size_t shared_bytes(const DecodeDevice<T>& job) {
  return static_cast<size_t>(tile_rows(job.shape)) * stride_of(job.rounding, job.columns) * sizeof(float);
}

template <class T, int S, Rounding R>
void launch_queries_as(const DecodeDevice<T>& job, int64_t batch, uintptr_t stream) {
  const int size = job.columns / S;
  const int64_t tiles = batch * ((job.queries + size - 1) / size);
  if (job.channels % 4 == 0) {
    OCC_LAUNCH((decode_kernel<T, 4, S, R>), grid_for(tiles, 1), kDecodeThreads, shared_bytes(job), stream, job, tiles);
  } else {
    OCC_LAUNCH((decode_kernel<T, 1, S, R>), grid_for(tiles, 1), kDecodeThreads, shared_bytes(job), stream, job, tiles);
  }
}

}  // namespace

template <Rounding R, class T>
void launch_queries(const DecodeDevice<T>& job, int64_t batch, uintptr_t stream) {
  if constexpr (R == kExact) {
    if (job.gradient) {
      launch_queries_as<T, 4, R>(job, batch, stream);
      return;
    }
  }
  launch_queries_as<T, 1, R>(job, batch, stream);
}

template <Rounding R, class T>
void launch_bricks(const DecodeDevice<T>& job, int64_t bricks, uintptr_t stream) {
  const unsigned blocks = grid_for(bricks, 1);
  if (job.channels % 4 == 0) {
    OCC_LAUNCH((bricks_kernel<T, 4, R>), blocks, kDecodeThreads, shared_bytes(job), stream, job, bricks);
  } else {
    OCC_LAUNCH((bricks_kernel<T, 1, R>), blocks, kDecodeThreads, shared_bytes(job), stream, job, bricks);
  }
}

#define OCC_LAUNCHES(prefix, rounding, type)                                                          \
  prefix template void launch_queries<rounding, type>(const DecodeDevice<type>&, int64_t, uintptr_t); \
  prefix template void launch_bricks<rounding, type>(const DecodeDevice<type>&, int64_t, uintptr_t);
#define OCC_ROUNDED_LAUNCHES(prefix)  \
  OCC_LAUNCHES(prefix, kTf32, float)  \
  OCC_LAUNCHES(prefix, kTf32, half_t) \
  OCC_LAUNCHES(prefix, kTf32, bf16_t) \
  OCC_LAUNCHES(prefix, kBf16, float)  \
  OCC_LAUNCHES(prefix, kBf16, half_t) \
  OCC_LAUNCHES(prefix, kBf16, bf16_t)

}  // namespace occ::cuda
