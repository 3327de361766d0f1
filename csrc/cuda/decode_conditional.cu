// SPDX-License-Identifier: MIT
// The decoder conditioned by per-shape scales and shifts: a tile of queries stays in shared memory.
#include "cuda/decode.h"
#include "cuda/decode_device.h"
#include "cuda/decode_rounded.h"

namespace occ::cuda {
namespace {

struct ConditionalDevice {
  const float *query, *weights, *affine, *offset;
  const uint32_t* rounded;
  float* out;
  int64_t queries;
  ConditionalShape shape;
  float leak, inner_leak;
  bool residual;
  int columns;
};

int64_t tile_rows(const ConditionalShape& shape) { return 4 + 3 * shape.width(); }

// act(scale * x + shift) of one output, in place.
OCC_DEVICE void apply_norm(const ConditionalDevice& job, int64_t b, int64_t stage, int64_t output, float* x) {
  const float* scale = job.affine + (b * (job.shape.layers + 1) + stage) * 2 * job.shape.width();
  const float by = scale[output], plus = scale[job.shape.width() + output];
  for (int c = 0; c < kBlockColumns; ++c) x[c] = by * x[c] + plus;
  activate<1>(x, stage == job.shape.layers ? job.leak : job.inner_leak);
}

struct ConditionalTile {
  float *position, *net;
  int64_t size;  // of an array
  int64_t b;
  int stride;

  // What stage `stage` hands on; stages take turns. An array of addresses would lie in local memory.
  OCC_DEVICE float* buffer(int64_t stage) const { return net + (1 + stage % 2) * size; }
};

// All layers; the input of the last one is in buffer(layers) afterwards. All threads of the block call.
OCC_DEVICE void run_exact(const ConditionalDevice& job, const ConditionalTile& tile) {
  const ConditionalShape& shape = job.shape;
  const int stride = tile.stride;
  const int64_t b = tile.b;
  float* net = tile.net;
  const Part none{nullptr, nullptr, 0};
  multiply<1>(job.columns, shape.hidden, job.weights + shape.position_bias(), Part{tile.position, job.weights, 3}, none,
              [&](int64_t output, int column, float* sum) {
                for (int c = 0; c < kBlockColumns; ++c) {
                  if (job.offset) sum[c] += job.offset[b * shape.width() + output];
                  net[output * stride + column + c] = sum[c];
                }
                apply_norm(job, b, 0, output, sum);
                for (int c = 0; c < kBlockColumns; ++c) tile.buffer(0)[output * stride + column + c] = sum[c];
              });
  __syncthreads();
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    const float* from = tile.buffer(layer);
    float* to = tile.buffer(layer + 1);
    const bool adds = job.residual && layer % 2 == 1;
    multiply<1>(job.columns, shape.hidden, job.weights + shape.bias(layer),
                Part{from, job.weights + shape.matrix(layer), shape.hidden}, none,
                [&](int64_t output, int column, float* sum) {
                  const int64_t at = output * stride + column;
                  for (int c = 0; c < kBlockColumns && adds; ++c) net[at + c] = sum[c] += net[at + c];
                  apply_norm(job, b, layer + 1, output, sum);
                  for (int c = 0; c < kBlockColumns; ++c) to[at + c] = sum[c];
                });
    __syncthreads();
  }
}

// The same with rounded operands. What the last layer reads stays float32.
template <Rounding R>
OCC_DEVICE void run_rounded(const ConditionalDevice& job, const ConditionalTile& tile) {
  const ConditionalShape& shape = job.shape;
  const RoundedShape packed = rounded_shape(R, shape.hidden, 0, shape.layers);
  const int stride = tile.stride;
  float* net = tile.net;
  const auto store = [&](int64_t stage, int64_t output, int column, float sum) {
    const float* scale = job.affine + (tile.b * (shape.layers + 1) + stage) * 2 * shape.width();
    const bool last = stage == shape.layers;
    const float x = active(scale[output] * sum + scale[shape.width() + output], last ? job.leak : job.inner_leak);
    float* rows = tile.buffer(stage);
    if (last) {
      rows[output * stride + column] = x;
    } else {
      put_operand<R>(rows, output, column, stride, x);
    }
  };
  multiply_rounded<R>(
      job.columns, shape.hidden, RoundedPart{}, RoundedPart{},
      [&](int64_t output, int column) {
        const float* bias = job.weights + shape.position_bias();
        const float sum = position_sum(job.weights, bias, output, tile.position + column, stride);
        return job.offset ? sum + job.offset[tile.b * shape.width() + output] : sum;
      },
      [&](int64_t output, int column, float sum) {
        net[output * stride + column] = sum;
        store(0, output, column, sum);
      });
  __syncthreads();
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    const RoundedPart from{tile.buffer(layer), job.rounded + packed.first(layer), packed.steps(shape.hidden)};
    const bool adds = job.residual && layer % 2 == 1;
    multiply_rounded<R>(
        job.columns, shape.hidden, from, RoundedPart{},
        [&](int64_t output, int column) {
          return job.weights[shape.bias(layer) + output] + (adds ? net[output * stride + column] : 0.0f);
        },
        [&](int64_t output, int column, float sum) {
          if (adds) net[output * stride + column] = sum;
          store(layer + 1, output, column, sum);
        });
    __syncthreads();
  }
}

template <Rounding R>
OCC_KERNEL void __launch_bounds__(kDecodeThreads) conditional_kernel(ConditionalDevice job, int64_t tiles) {
  OCC_DYNAMIC_SHARED(float, memory);
  const ConditionalShape& shape = job.shape;
  const int stride = stride_of(R, job.columns);
  const int64_t tiles_of_shape = (job.queries + job.columns - 1) / job.columns, size = shape.width() * stride;
  float *position = memory, *net = position + 4 * stride;
  for (int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
    const int64_t b = number / tiles_of_shape, first = number % tiles_of_shape * job.columns;
    const int count = static_cast<int>(job.queries - first < job.columns ? job.queries - first : job.columns);
    for (int i = threadIdx.x; i < 3 * job.columns; i += blockDim.x) {
      const int axis = i / job.columns, column = i % job.columns;
      position[axis * stride + column] =
          job.query[3 * (b * job.queries + first + (column < count ? column : 0)) + axis];
    }
    __syncthreads();
    const ConditionalTile tile{position, net, size, b, stride};
    if constexpr (R == kExact) {
      run_exact(job, tile);
    } else {
      run_rounded<R>(job, tile);
    }
    const float* last = tile.buffer(shape.layers);
    for (int column = threadIdx.x; column < count; column += blockDim.x) {
      float sum = 0;
      for (int64_t h = 0; h < shape.hidden; ++h) sum += job.weights[shape.out() + h] * last[h * stride + column];
      job.out[b * job.queries + first + column] = sum + job.weights[shape.out_bias()];
    }
    __syncthreads();
  }
}

}  // namespace

void decode_conditional(const float* query, const float* weights, const uint32_t* rounded, const float* affine,
                        const float* offset, float* out, int64_t batch, int64_t queries, int64_t hidden, int64_t layers,
                        int rounding, double leak, double inner_leak, bool residual, uintptr_t stream) {
  const ConditionalShape shape{hidden, layers};
  const Rounding chosen = static_cast<Rounding>(rounding);
  const int columns = columns_for(tile_rows(shape), chosen);
  const ConditionalDevice job{query,
                              weights,
                              affine,
                              offset,
                              rounded,
                              out,
                              queries,
                              shape,
                              static_cast<float>(leak),
                              static_cast<float>(inner_leak),
                              residual,
                              columns};
  const int64_t tiles = batch * ((queries + columns - 1) / columns);
  const size_t bytes = static_cast<size_t>(tile_rows(shape)) * stride_of(chosen, columns) * sizeof(float);
  const auto kernel = chosen == kExact  ? conditional_kernel<kExact>
                      : chosen == kTf32 ? conditional_kernel<kTf32>
                                        : conditional_kernel<kBf16>;
  OCC_LAUNCH(kernel, grid_for(tiles, 1), kDecodeThreads, bytes, stream, job, tiles);
}

}  // namespace occ::cuda
