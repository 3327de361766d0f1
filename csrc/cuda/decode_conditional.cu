// SPDX-License-Identifier: MIT
// The decoder conditioned by per-shape scales and shifts, exact float32: a tile of queries stays in shared memory.
#include "cuda/decode.h"
#include "cuda/decode_device.h"

namespace occ::cuda {
namespace {

struct ConditionalDevice {
  const float *query, *weights, *affine, *offset;
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

OCC_KERNEL void __launch_bounds__(kDecodeThreads) conditional_kernel(ConditionalDevice job, int64_t tiles) {
  OCC_DYNAMIC_SHARED(float, memory);
  const ConditionalShape& shape = job.shape;
  const int stride = job.columns + kSkew;
  const int64_t tiles_of_shape = (job.queries + job.columns - 1) / job.columns, size = shape.width() * stride;
  float *position = memory, *net = position + 4 * stride, *buffers[2] = {net + size, net + 2 * size};
  const Part none{nullptr, nullptr, 0};
  for (int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
    const int64_t b = number / tiles_of_shape, first = number % tiles_of_shape * job.columns;
    const int count = static_cast<int>(job.queries - first < job.columns ? job.queries - first : job.columns);
    for (int i = threadIdx.x; i < 3 * job.columns; i += blockDim.x) {
      const int axis = i / job.columns, column = i % job.columns;
      position[axis * stride + column] =
          job.query[3 * (b * job.queries + first + (column < count ? column : 0)) + axis];
    }
    __syncthreads();
    multiply<1>(job.columns, shape.hidden, job.weights + shape.position_bias(), Part{position, job.weights, 3}, none,
                [&](int64_t output, int column, float* sum) {
                  for (int c = 0; c < kBlockColumns; ++c) {
                    if (job.offset) sum[c] += job.offset[b * shape.width() + output];
                    net[output * stride + column + c] = sum[c];
                  }
                  apply_norm(job, b, 0, output, sum);
                  for (int c = 0; c < kBlockColumns; ++c) buffers[0][output * stride + column + c] = sum[c];
                });
    __syncthreads();
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
      const float* from = buffers[layer % 2];
      float* to = buffers[(layer + 1) % 2];
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
    const float* last = buffers[shape.layers % 2];
    for (int column = threadIdx.x; column < count; column += blockDim.x) {
      float sum = 0;
      for (int64_t h = 0; h < shape.hidden; ++h) sum += job.weights[shape.out() + h] * last[h * stride + column];
      job.out[b * job.queries + first + column] = sum + job.weights[shape.out_bias()];
    }
    __syncthreads();
  }
}

}  // namespace

void decode_conditional(const float* query, const float* weights, const float* affine, const float* offset, float* out,
                        int64_t batch, int64_t queries, int64_t hidden, int64_t layers, double leak, double inner_leak,
                        bool residual, uintptr_t stream) {
  const ConditionalShape shape{hidden, layers};
  const int columns = columns_for(tile_rows(shape));
  const ConditionalDevice job{
      query,    weights, affine, offset, out, queries, shape, static_cast<float>(leak), static_cast<float>(inner_leak),
      residual, columns};
  const int64_t tiles = batch * ((queries + columns - 1) / columns);
  const size_t bytes = static_cast<size_t>(tile_rows(shape)) * (columns + kSkew) * sizeof(float);
  OCC_LAUNCH(conditional_kernel, grid_for(tiles, 1), kDecodeThreads, bytes, stream, job, tiles);
}

}  // namespace occ::cuda
