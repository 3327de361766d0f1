// SPDX-License-Identifier: MIT
// A tile of queries on its way through the residual decoder, forward and back: what decoding of lists and of bricks
// shares. Only for *.isa.cpp.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/decode.h"
#include "cpu/decode_gemm.h"
#include "cpu/decode_maps.h"

namespace occ::cpu {
namespace OCC_ISA {
namespace {

// Rows of a tile: enough to pay for reading the weights, few enough for the caches.
inline int tile_rows(const DecodeJob& job) {
  if (job.gradient) return job.hidden <= 64 ? 24 : 48;
  return job.hidden <= 64 ? 48 : 96;
}

// Rows of the tile in work. With a gradient every activation is kept, else one place is used again and again.
struct Tile {
  const DecodeJob& job;
  const Maps& maps;
  DecoderShape shape;
  RoundedShape pairs;
  int64_t width, feature_width, capacity;
  bool keep;
  bool sampled = true;  // the rows of features are in use
  int rows = 0;         // in use, a multiple of kRowStep
  float *position, *features, *net, *feature_gradient, *position_gradient;
  float *outer_base, *inner_base;
  Spots spots[2];

  static int64_t scratch(const Maps& maps) {
    const DecodeJob& job = maps.job;
    const int64_t width = panels_of(job.hidden) * kPanel, features = panels_of(maps.features) * kPanel;
    const int64_t places = job.gradient ? 2 * job.depth + 2 : 3;
    const int64_t located = maps.count * static_cast<int64_t>(sizeof(Located) / sizeof(float));
    return 2 * located + tile_rows(job) * (2 * features + 2 * kPanel + places * width);
  }
  Tile(const Maps& m, Scratch& memory)
      : job(m.job),
        maps(m),
        shape{job.hidden, maps.features, job.depth},
        pairs{job.hidden, maps.features, job.depth, 2, kPanel},
        width(shape.width()),
        feature_width(panels_of(maps.features) * kPanel),
        capacity(tile_rows(job)),
        keep(job.gradient != nullptr) {
    for (Spots& each : spots) {
      each.at = reinterpret_cast<Located*>(memory.take(maps.count * static_cast<int64_t>(sizeof(Located) / 4)));
    }
    position = memory.take(capacity * kPanel);
    position_gradient = memory.take(capacity * kPanel);
    features = memory.take(capacity * feature_width);
    feature_gradient = memory.take(capacity * feature_width);
    net = memory.take(capacity * width);
    outer_base = memory.take(capacity * width * (keep ? job.depth + 1 : 1));
    inner_base = memory.take(capacity * width * (keep ? job.depth : 1));
  }
  // Activation before block i's first layer, and between its two.
  float* outer(int64_t i) const { return outer_base + (keep ? i * capacity * width : 0); }
  float* inner(int64_t i) const { return inner_base + (keep ? i * capacity * width : 0); }
  Factor feature_factor(int64_t block) const {
    const bool exists = block < shape.depth && sampled;
    const int64_t at = exists ? block : 0, inputs = exists ? shape.features : 0;
    if constexpr (kRounds) {
      return Factor::of_pairs(features, feature_width, job.rounded + pairs.feature(at), inputs, inputs);
    }
    return {features, feature_width, job.weights + shape.feature(at), inputs};
  }
  Factor first_factor(int64_t block) const {
    if constexpr (kRounds) {
      return Factor::of_pairs(outer(block), width, job.rounded + pairs.first(block), shape.hidden, shape.hidden);
    }
    return {outer(block), width, job.weights + shape.first(block), shape.hidden};
  }
  Factor second_factor(int64_t block) const {
    if constexpr (kRounds) {
      return Factor::of_pairs(inner(block), width, job.rounded + pairs.second(block), shape.hidden, shape.hidden);
    }
    return {inner(block), width, job.weights + shape.second(block), shape.hidden};
  }
};

// Stores an activation.
struct StoreActive {
  float* to;
  int64_t width;
  OCC_INLINE void operator()(int row, int64_t column, Vector sum) const {
    store_operand(to + row * width, column, relu(sum));
  }
};

template <int N>
using Number = std::integral_constant<int, N>;

// Sampled features of every row that the feature layers have been applied to already, [depth][width] for each map.
struct Projected {
  int maps = 0;
  const float* row[4][kTileRows];
};

// Adds to the residual stream, or begins it, and stores its activation. Rows of MAPS projected maps are added from
// `shift` on.
template <bool BEGIN, int MAPS>
struct StoreNet {
  float *net, *active;
  int64_t width, shift;
  const Projected* projected;
  OCC_INLINE void operator()(int row, int64_t column, Vector sum) const {
    float* at = net + row * width + column;
    Vector value = BEGIN ? sum : sum + load(at);
    OCC_UNROLL for (int k = 0; k < MAPS; ++k) value = value + load(projected->row[k][row] + shift + column);
    store_simd(at, value);
    store_operand(active + row * width, column, relu(value));
  }
};

// Stage `stage` of the residual stream: the factor, the features' part, and what is projected.
template <bool BEGIN>
void add_to_net(const Tile& tile, int64_t stage, const Factor& factor, const Projected* projected) {
  const float* bias = tile.job.weights + tile.shape.second_bias(stage);
  const Factor features = tile.feature_factor(stage);
  float* active = tile.outer(stage);
  const int64_t width = tile.width;
  const auto store = [&](auto maps) {
    multiply(tile.rows, tile.shape.hidden, bias, factor, features,
             StoreNet<BEGIN, maps>{tile.net, active, width, stage * width, projected});
  };
  switch (projected && stage < tile.shape.depth ? projected->maps : 0) {
    case 0:
      store(Number<0>{});
      break;
    case 1:
      store(Number<1>{});
      break;
    case 2:
      store(Number<2>{});
      break;
    case 3:
      store(Number<3>{});
      break;
    default:
      store(Number<4>{});
  }
}

// The network up to `net` of the last block. `meanwhile(part, parts)` is called between the layers.
template <class F>
void forward(const Tile& tile, const Projected* projected, F&& meanwhile) {
  const DecoderShape& shape = tile.shape;
  const float* weights = tile.job.weights;
  const int64_t width = tile.width;
  const int parts = static_cast<int>(2 * shape.depth + 1);
  add_to_net<true>(tile, 0, Factor{tile.position, kPanel, weights + shape.position(), 3}, projected);
  meanwhile(0, parts);
  for (int64_t i = 0; i < shape.depth; ++i) {
    multiply(tile.rows, shape.hidden, weights + shape.first_bias(i), tile.first_factor(i), kNoFactor,
             StoreActive{tile.inner(i), width});
    meanwhile(static_cast<int>(2 * i + 1), parts);
    add_to_net<false>(tile, i + 1, tile.second_factor(i), projected);
    meanwhile(static_cast<int>(2 * i + 2), parts);
  }
}

// logit = <o, act(net)> + o_b.
inline void head(const Tile& tile, int count, float* logits) {
  const float* out = tile.job.weights + tile.shape.out();
  const float bias = tile.job.weights[tile.shape.out_bias()];
  const Vector slope = spread_value(tile.job.leak);
  const bool leaks = tile.job.leak != 0;
  for (int row = 0; row < count; ++row) {
    const float* net = tile.net + row * tile.width;
    Vector sum{};
    for (int64_t column = 0; column < tile.shape.hidden; column += kVector) {
      const Vector value = load(net + column);
      sum = multiply_add(leaks ? leaky(value, slope) : relu(value), load(out + column), sum);
    }
    logits[row] = bias + sum_lanes(sum);
  }
}

// Gradients of the logits to the features and to the position. `net` becomes the gradient that flows back; outer(i) and
// inner(i) tell the derivatives of the activations, and inner(i) is overwritten by its gradient.
inline void backward(const Tile& tile) {
  const DecoderShape& shape = tile.shape;
  const int64_t width = tile.width;
  const float* reversed = tile.job.reversed;
  const float* out = tile.job.weights + shape.out();
  const Vector slope = spread_value(tile.job.leak);
  float* net = tile.net;
  for (int row = 0; row < tile.rows; ++row) {
    for (int64_t column = 0; column < shape.hidden; column += kVector) {
      float* at = net + row * width + column;
      const Vector weight = load(out + column);
      store_simd(at, where_positive(load(at), weight, weight * slope));
    }
  }
  for (int64_t i = shape.depth - 1; i >= 0; --i) {
    float* inner = tile.inner(i);
    const float* outer = tile.outer(i);
    float* to_features = tile.feature_gradient;
    const int64_t features = tile.feature_width;
    const bool last = i == shape.depth - 1;
    multiply(tile.rows, shape.hidden, nullptr, Factor{net, width, reversed + shape.reversed_second(i), shape.hidden},
             kNoFactor, [=](int row, int64_t column, Vector sum) {
               float* at = inner + row * width + column;
               store_simd(at, where_positive(load(at), sum, Vector{}));
             });
    multiply(tile.rows, shape.hidden, nullptr, Factor{inner, width, reversed + shape.reversed_first(i), shape.hidden},
             kNoFactor, [=](int row, int64_t column, Vector sum) {
               const int64_t at = row * width + column;
               store_simd(net + at, load(net + at) + where_positive(load(outer + at), sum, Vector{}));
             });
    multiply(tile.rows, shape.features, nullptr, Factor{net, width, reversed + shape.reversed_feature(i), shape.hidden},
             kNoFactor, [=](int row, int64_t column, Vector sum) {
               float* at = to_features + row * features + column;
               store_simd(at, last ? sum : sum + load(at));
             });
  }
  float* to_position = tile.position_gradient;
  multiply(tile.rows, 3, nullptr, Factor{net, width, reversed, shape.hidden}, kNoFactor,
           [=](int row, int64_t column, Vector sum) { store_simd(to_position + row * kPanel + column, sum); });
}

// x, y and z of the queries into the rows.
inline void begin_rows(Tile& tile, const Spots& spots) {
  tile.rows = (spots.count + kRowStep - 1) / kRowStep * kRowStep;
  for (int q = 0; q < tile.rows; ++q) {
    for (int axis = 0; axis < 3; ++axis) tile.position[q * kPanel + axis] = spots.columns.at[axis][q];
  }
}

// Gradients of the queries after their forward pass.
template <class T>
void gradient_rows(const Tile& tile, const Spots& spots, float* gradient) {
  backward(tile);
  Columns moved;
  memset(&moved, 0, sizeof(float) * kTileRows * tile.maps.columns);
  if (tile.shape.depth > 0) contract_rows<T>(tile.maps, spots, tile.feature_gradient, tile.feature_width, moved);
  for (int q = 0; q < spots.count; ++q) {
    const float* direct = tile.position_gradient + q * kPanel;
    for (int axis = 0; axis < 3; ++axis) gradient[3 * q + axis] = moved.at[axis][q] + direct[axis];
  }
}

// Features of the maps not left out, as the rows' operands.
template <class T>
void gather_features(const Tile& tile, const Spots& spots, const bool* left_out) {
  gather_rows<T>(tile.maps, spots, tile.rows, left_out, tile.features, tile.feature_width);
  if constexpr (kRounds) round_rows(tile.features, tile.rows, tile.feature_width, tile.maps.features);
}

// Logits, and gradients or null, of the queries of `spots`; asks for the features of `next` (or null) meanwhile.
template <class T>
void run_tile(Tile& tile, const Spots& spots, const Spots* next, float* logits, float* gradient) {
  const Maps& maps = tile.maps;
  begin_rows(tile, spots);
  gather_features<T>(tile, spots, nullptr);
  forward(tile, nullptr, [&](int part, int parts) {
    if (next) prefetch_part<T>(maps, *next, part, parts);
  });
  head(tile, spots.count, logits);
  if constexpr (!kRounds) {
    if (gradient) gradient_rows<T>(tile, spots, gradient);
  }
}

}  // namespace
}  // namespace OCC_ISA
}  // namespace occ::cpu
