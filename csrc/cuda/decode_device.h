// SPDX-License-Identifier: MIT
// What the decoder kernels share: the product of packed weights with a tile of columns in shared memory, and the
// sampling of features into such a tile.
//
// A tile is stored [channel][column]. A column is a query, or with tangents (S = 4) four columns are one: its value and
// the derivatives along x, y and z. A thread computes blocks of 4 outputs by 8 columns in registers: for every input
// one 16-byte load of weights, the same for the lanes of a warp, and two of the tile.
#pragma once

#include <cstdint>

#include "common/cuda_launch.h"
#include "common/types.h"
#include "math/decode.h"
#include "math/interp.h"
#include "math/layout.h"

namespace occ::cuda {

constexpr int kDecodeThreads = 128;
constexpr int kBlockOutputs = 4;
constexpr int kBlockColumns = 8;
// Columns between rows: they keep 16-byte alignment and spread what a warp reads at once over the banks.
constexpr int kSkew = 4, kRoundedSkew = 8;
constexpr int kMostColumns = 128;
constexpr int64_t kUsualBytes = 64 * 1024, kMostBytes = 96 * 1024;  // of shared memory a block

OCC_HD inline int stride_of(Rounding rounding, int columns) {
  return columns + (rounding == kExact ? kSkew : kRoundedSkew);
}

// The widest tile of rows * columns floats that fits; 0 if none does.
inline int columns_for(int64_t rows, Rounding rounding) {
  for (int columns = kMostColumns; columns >= kBlockColumns; columns /= 2) {
    const int64_t bytes = rows * stride_of(rounding, columns) * static_cast<int64_t>(sizeof(float));
    if (bytes <= (columns == kBlockColumns ? kMostBytes : kUsualBytes)) return columns;
  }
  return 0;
}

// A factor of a product: `inputs` rows of a tile and the packed weights they meet.
struct Part {
  const float* rows;
  const float* weights;
  int64_t inputs;
};

OCC_DEVICE float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }

OCC_DEVICE void multiply_part(const Part& part, int stride, int64_t output, int column, float (*sum)[kBlockColumns]) {
  const float* weights = part.weights + output / kPanel * kPanel * part.inputs + output % kPanel;
  const float* rows = part.rows + column;
#pragma unroll 4
  for (int64_t k = 0; k < part.inputs; ++k) {
    const float4 w = load4(weights + k * kPanel);
    const float4 low = load4(rows + k * stride), high = load4(rows + k * stride + 4);
    const float by[kBlockOutputs] = {w.x, w.y, w.z, w.w};
    const float x[kBlockColumns] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int o = 0; o < kBlockOutputs; ++o) {
#pragma unroll
      for (int c = 0; c < kBlockColumns; ++c) sum[o][c] += by[o] * x[c];
    }
  }
}

// bias + a + b for `columns` columns and `outputs` rows, handed to epilogue(output, column, 8 sums). The bias belongs
// to values, every S-th column. All threads of the block call it; they do not wait for each other.
template <int S, class E>
OCC_DEVICE void multiply(int columns, int64_t outputs, const float* bias, const Part& a, const Part& b,
                         const E& epilogue) {
  const int groups = columns / kBlockColumns, stride = columns + kSkew;
  const int64_t tasks = groups * ((outputs + kBlockOutputs - 1) / kBlockOutputs);
  for (int64_t task = threadIdx.x; task < tasks; task += blockDim.x) {
    const int64_t output = task / groups * kBlockOutputs;
    const int column = static_cast<int>(task % groups) * kBlockColumns;
    float sum[kBlockOutputs][kBlockColumns];
#pragma unroll
    for (int o = 0; o < kBlockOutputs; ++o) {
#pragma unroll
      for (int c = 0; c < kBlockColumns; ++c) sum[o][c] = c % S == 0 ? bias[output + o] : 0.0f;
    }
    multiply_part(a, stride, output, column, sum);
    multiply_part(b, stride, output, column, sum);
#pragma unroll
    for (int o = 0; o < kBlockOutputs; ++o) epilogue(output + o, column, sum[o]);
  }
}

// ReLU (leaky for leak > 0) in place; tangents follow their value. NaN stays.
template <int S>
OCC_DEVICE void activate(float* x, float leak) {
#pragma unroll
  for (int c = 0; c < kBlockColumns; ++c) {
    const float value = x[c - c % S];
    if (c % S == 0) continue;
    x[c] = value > 0.0f ? x[c] : leak * x[c];
  }
#pragma unroll
  for (int c = 0; c < kBlockColumns; c += S) x[c] = x[c] > 0.0f || x[c] != x[c] ? x[c] : leak * x[c];
}

// Features and constants of one call as kernels see them. See cpu/decode.h for the tensors.
template <class T>
struct DecodeDevice {
  const T *planes, *grid;
  const float *query, *bases, *scale, *weights;
  float *out, *gradient;
  int64_t queries, channels, features;
  DecoderShape shape;
  Rounding rounding;
  const uint32_t* rounded;
  float leak;
  bool concat;
  int columns, maps, num_planes, canonical, dynamic;
  Normalizer<float> normalizer;
  MapRule<float> rule[kMaxMaps];
  // Bricks.
  const int64_t* brick_shape;
  const int32_t* corner;
  const uint64_t* mask;
  double spacing, origin;
};

// Corner weights of one map at p: of the sample, or for term 1 to 3 of its derivative along x, y or z.
template <class T, int D>
OCC_DEVICE void term_weights(const DecodeDevice<T>& job, int k, int64_t b, int term, const float* upper,
                             const float* slope, float* weights) {
  if (term == 0) {
    spread_plain<D>(upper, 1.0f, weights);
    return;
  }
  float along[D];
  const int l = k - job.canonical;
  const bool turned = k < job.num_planes && l >= 0;
  for (int axis = 0; axis < D; ++axis) {
    if (turned) {
      const float step = job.bases[((b * job.dynamic + l) * 3 + axis) * 3 + term - 1];
      along[axis] = step / job.normalizer.half_width / job.scale[b * job.dynamic + l] / 2.0f;
    } else {
      along[axis] = job.rule[k].columns[axis] == term - 1 ? 1.0f : 0.0f;
    }
  }
  for (int set = 0; set < 1 << D; ++set) weights[set] = set == 0 ? 1.0f : 0.0f;
  differentiate<D>(weights, along);
  spread<D>(upper, slope, weights);
}

// Adds map k at p, channels [c, c + N), to sum[term][channel].
template <class T, int D, int N, int S>
OCC_DEVICE void sample_map(const DecodeDevice<T>& job, int k, int64_t b, const float* p, int64_t c, float (*sum)[N]) {
  const MapRule<float>& rule = job.rule[k];
  const int64_t r = rule.resolution;
  const int l = k - job.canonical;
  float turned[2] = {0, 0};
  if (D == 2 && l >= 0) {
    normalize_dynamic(job.normalizer, job.bases + (b * job.dynamic + l) * 9, job.scale[b * job.dynamic + l], p, turned);
  }
  float upper[D], slope[D];
  int64_t node = 0, step = 1;
  for (int axis = 0; axis < D; ++axis) {
    const float coordinate = D == 2 && l >= 0 ? turned[axis < 2 ? axis : 0] : p[rule.columns[axis]];
    const float u = position_of(rule, coordinate, slope[axis]);
    const int32_t low = low_node(rule, u);
    upper[axis] = u - static_cast<float>(low);
    node += low * step;
    step *= r;
  }
  const T* data =
      D == 3 ? job.grid + b * step * job.channels : job.planes + (b * job.num_planes + k) * step * job.channels;
  const T* cell = data + node * job.channels + c;
  float weights[S][1 << D];
  for (int term = 0; term < S; ++term) term_weights<T, D>(job, k, b, term, upper, slope, weights[term]);
#pragma unroll
  for (int corner = 0; corner < 1 << D; ++corner) {
    const int64_t up = (corner & 1) + (corner >> 1 & 1) * r + (D == 3 ? (corner >> 2 & 1) * r * r : 0);
    const T* from = cell + (r > 1 ? up : 0) * job.channels;
    for (int i = 0; i < N; ++i) {
      const float value = static_cast<float>(from[i]);
      for (int term = 0; term < S; ++term) sum[term][i] += weights[term][corner] * value;
    }
  }
}

// Features at the tile's positions (3 rows), handed to put(channel, column, value). Neighbouring threads take
// neighbouring channels of one query.
template <class T, int N, int S, class P>
OCC_DEVICE void sample_tile(const DecodeDevice<T>& job, int64_t b, const float* position, int stride, const P& put) {
  const int64_t chunks = job.channels / N, tasks = chunks * (job.columns / S);
  for (int64_t task = threadIdx.x; task < tasks; task += blockDim.x) {
    const int column = static_cast<int>(task / chunks) * S;
    const int64_t c = task % chunks * N;
    const float p[3] = {position[column], position[stride + column], position[2 * stride + column]};
    float sum[S][N] = {};
    for (int k = 0; k < job.maps; ++k) {
      if (k < job.num_planes) {
        sample_map<T, 2, N, S>(job, k, b, p, c, sum);
      } else {
        sample_map<T, 3, N, S>(job, k, b, p, c, sum);
      }
      if (!job.concat && k + 1 < job.maps) continue;
      const int64_t channel = c + (job.concat ? k * job.channels : 0);
      for (int i = 0; i < N; ++i) {
        for (int term = 0; term < S; ++term) {
          put(channel + i, column + term, sum[term][i]);
          sum[term][i] = 0;
        }
      }
    }
  }
}

}  // namespace occ::cuda
