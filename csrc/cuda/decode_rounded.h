// SPDX-License-Identifier: MIT
// The product of packed, rounded weights with a tile of rounded operands in shared memory, by tensor cores.
//
// Operands are kept [word][column]: a word is one channel in tf32 or two neighbours in bf16. A warp computes 16 outputs
// of 32 columns: for 8 words of input one 16-byte load of weights a lane, and two words of the tile for every 8
// columns.
#pragma once

#include <cstdint>

#include "common/cuda_mma.h"
#include "cuda/decode_device.h"

namespace occ::cuda {

constexpr int kDecodeWarps = kDecodeThreads / kWarp;
constexpr int kTileColumns = 8, kTiles = 4;  // of one product, and products that share weights

OCC_HD inline RoundedShape rounded_shape(Rounding rounding, int64_t hidden, int64_t features, int64_t depth) {
  return {hidden, features, depth, rounding == kTf32 ? 8 : 16, 128};
}

// Stores channel `channel` of a column as an operand; without rounding as it is.
template <Rounding R>
OCC_DEVICE void put_operand(float* rows, int64_t channel, int column, int stride, float value) {
  if constexpr (R == kExact) {
    rows[channel * stride + column] = value;
  } else if constexpr (R == kTf32) {
    reinterpret_cast<uint32_t*>(rows)[channel * stride + column] = round_tf32(value);
  } else {
    reinterpret_cast<uint16_t*>(rows)[(channel / 2 * stride + column) * 2 + channel % 2] = round_bf16(value);
  }
}

// A factor: rows of operands and the packed weights they meet, `steps` of 8 words. Rows beyond the inputs hold numbers.
struct RoundedPart {
  const float* rows = nullptr;
  const uint32_t* weights = nullptr;
  int64_t steps = 0;
};

template <Rounding R>
OCC_DEVICE void multiply_rounded_part(const RoundedPart& part, int stride, int64_t panel, int column, int tiles,
                                      float (*sum)[4]) {
  if (part.steps == 0) return;
  const int lane = lane_id();
  const uint32_t* weights = part.weights + (panel * part.steps * kWarp + lane) * 4;
  const uint32_t* words = reinterpret_cast<const uint32_t*>(part.rows) + lane % 4 * stride + column + lane / 4;
#pragma unroll 2
  for (int64_t step = 0; step < part.steps; ++step) {
    const uint4 a = *reinterpret_cast<const uint4*>(weights + step * kWarp * 4);
    const uint32_t *low = words + step * 8 * stride, *high = low + 4 * stride;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      if (n >= tiles) break;
      multiply_matrices<R, kDecodeWarps>(sum[n], a, low[n * kTileColumns], high[n * kTileColumns]);
    }
  }
}

// start(output, column) + a + b for `columns` columns and the panels of `outputs`, handed to
// epilogue(output, column, sum). All threads of the block call it; warps do not wait for each other.
template <Rounding R, class B, class E>
OCC_DEVICE void multiply_rounded(int columns, int64_t outputs, const RoundedPart& a, const RoundedPart& b,
                                 const B& start, const E& epilogue) {
  const int stride = stride_of(R, columns), lane = lane_id(), together = kTiles * kTileColumns;
  const int groups = (columns + together - 1) / together;
  for (int64_t task = threadIdx.x / kWarp; task < panels_of(outputs) * groups; task += blockDim.x / kWarp) {
    const int64_t panel = task / groups, output = panel * kPanel + lane / 4;
    const int first = static_cast<int>(task % groups) * together, column = first + lane % 4 * 2;
    const int tiles = columns - first < together ? (columns - first) / kTileColumns : kTiles;
    float sum[kTiles][4];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[n][i] = n < tiles ? start(output + i / 2 * 8, column + n * kTileColumns + i % 2) : 0.0f;
      }
    }
    multiply_rounded_part<R>(a, stride, panel, first, tiles, sum);
    multiply_rounded_part<R>(b, stride, panel, first, tiles, sum);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      if (n >= tiles) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) epilogue(output + i / 2 * 8, column + n * kTileColumns + i % 2, sum[n][i]);
    }
  }
}

// bias + P p of one output, in float32.
OCC_DEVICE float position_sum(const float* weights, const float* bias, int64_t output, const float* position,
                              int stride) {
  const float* panel = weights + output / kPanel * kPanel * 3 + output % kPanel;
  float sum = bias[output];
  for (int axis = 0; axis < 3; ++axis) sum += panel[axis * kPanel] * position[axis * stride];
  return sum;
}

// Leaky ReLU; NaN stays.
OCC_DEVICE float active(float x, float leak) { return x > 0.0f || x != x ? x : leak * x; }

}  // namespace occ::cuda
