// SPDX-License-Identifier: MIT
// The residual decoder, tile by tile: features of the tile, then one matrix product after the other on rows that stay
// in the first- and second-level caches. Bricks gather their wanted nodes into the same tiles.
#include "cpu/decode.h"

#include "common/parallel.h"
#include "cpu/decode_gemm.h"
#include "cpu/decode_maps.h"

namespace occ::cpu {
namespace OCC_ISA {
namespace {

constexpr int64_t kTask = 192;  // queries

// Rows of a tile: enough to pay for reading the weights, few enough for the first-level cache.
int tile_rows(const DecodeJob& job) {
  if (job.gradient) return job.hidden <= 64 ? 24 : 48;
  return job.hidden <= 64 ? 48 : 96;
}

// Rows and weights of a tile in work. With a gradient every activation is kept, else one place is used again and again.
struct Tile {
  const DecodeJob& job;
  DecoderShape shape;
  int64_t width, feature_width;
  int rows = 0;     // in use, a multiple of kRowStep
  bool keep;
  float *position, *features, *net, *feature_gradient;
  float *outer_base, *inner_base;
  int64_t capacity;

  static int64_t scratch(const DecodeJob& job, const Maps& maps) {
    const int64_t width = panels_of(job.hidden) * kPanel, features = panels_of(maps.features) * kPanel;
    const int64_t places = job.gradient ? 2 * job.depth + 1 : 2;
    return kTileRows * 4 + tile_rows(job) * (2 * features + kPanel + (places + 2) * width);
  }
  Tile(const DecodeJob& j, const Maps& maps, Scratch& memory)
      : job(j),
        shape{j.hidden, maps.features, j.depth},
        width(shape.width()),
        feature_width(panels_of(maps.features) * kPanel),
        keep(j.gradient != nullptr),
        capacity(tile_rows(j)) {
    position = memory.take(kTileRows * 4);
    features = memory.take(capacity * feature_width);
    feature_gradient = keep ? memory.take(capacity * (feature_width + kPanel)) : nullptr;
    net = memory.take(capacity * width);
    outer_base = memory.take(capacity * width * (keep ? job.depth + 1 : 1));
    inner_base = memory.take(capacity * width * (keep ? job.depth : 1));
  }
  // Activation before block i's first layer, and between its two.
  float* outer(int64_t i) const { return outer_base + (keep ? i * capacity * width : 0); }
  float* inner(int64_t i) const { return inner_base + (keep ? i * capacity * width : 0); }
  Factor factor(const float* from, int64_t weights, int64_t inputs) const {
    return {from, width, job.weights + weights, inputs};
  }
  Factor feature_factor(int64_t block) const {
    return {features, feature_width, job.weights + shape.feature(block), block < job.depth ? shape.features : 0};
  }
};

constexpr Factor kNoFactor{nullptr, 0, nullptr, 0};

void forward(const Tile& tile) {
  const DecoderShape& shape = tile.shape;
  const int64_t width = tile.width;
  float* net = tile.net;
  float* x = tile.outer(0);
  const Factor place{tile.position, 4, tile.job.weights + shape.position(), 3};
  const float* bias = tile.job.weights + shape.second_bias(0);
  const float* leak_at = &tile.job.leak;
  const auto start = [&](int row, int64_t column, Vector sum) {
    store_simd(net + row * width + column, sum);
    store_simd(x + row * width + column, relu(sum));
  };
  multiply(tile.rows, shape.hidden, bias, place, tile.feature_factor(0), start);
  for (int64_t i = 0; i < shape.depth; ++i) {
    float* h = tile.inner(i);
    multiply(tile.rows, shape.hidden, tile.job.weights + shape.first_bias(i),
             tile.factor(tile.outer(i), shape.first(i), shape.hidden), kNoFactor,
             [&](int row, int64_t column, Vector sum) { store_simd(h + row * width + column, relu(sum)); });
    x = tile.outer(i + 1);
    multiply(tile.rows, shape.hidden, tile.job.weights + shape.second_bias(i + 1),
             tile.factor(h, shape.second(i), shape.hidden), tile.feature_factor(i + 1), [&](int row, int64_t column, Vector sum) {
               const Vector value = sum + load(net + row * width + column);
               store_simd(net + row * width + column, value);
               store_simd(x + row * width + column, relu(value));
             });
  }
  (void)leak_at;
}

// logit = <o, act(net)> + o_b.
void head(const Tile& tile, int count, float* logits) {
  const float* out = tile.job.weights + tile.shape.out();
  const float bias = tile.job.weights[tile.shape.out_bias()];
  const Vector slope = spread_value(tile.job.leak);
  for (int row = 0; row < count; ++row) {
    const float* net = tile.net + row * tile.width;
    Vector sum{};
    for (int64_t column = 0; column < tile.shape.hidden; column += kVector) {
      const Vector value = load(net + column);
      const Vector active = tile.job.leak != 0 ? leaky(value, slope) : relu(value);
      sum = multiply_add(active, load(out + column), sum);
    }
    logits[row] = bias + sum_lanes(sum);
  }
}

// Gradient of the logits to the features (tile.feature_gradient, stride feature_width) and, behind them, to the
// position. `net` becomes the gradient that flows back; inner(i) and outer(i) give the derivatives of the activations.
void backward(const Tile& tile) {
  const DecoderShape& shape = tile.shape;
  const int64_t width = tile.width, features = tile.feature_width;
  const float* reversed = tile.job.reversed;
  float* net = tile.net;
  float* spare = tile.inner(0);
  const float* out = tile.job.weights + shape.out();
  const Vector slope = spread_value(tile.job.leak);
  for (int row = 0; row < tile.rows; ++row) {
    for (int64_t column = 0; column < shape.hidden; column += kVector) {
      float* at = net + row * width + column;
      const Vector weight = load(out + column);
      store_simd(at, where_positive(load(at), weight, weight * slope));
    }
  }
  float* to_features = tile.feature_gradient;
  for (int64_t i = shape.depth - 1; i >= 0; --i) {
    float* inner = tile.inner(i);  // overwritten by its own gradient
    const float* outer = tile.outer(i);
    multiply(tile.rows, shape.hidden, nullptr, Factor{net, width, reversed + shape.reversed_second(i), shape.hidden},
             kNoFactor, [&](int row, int64_t column, Vector sum) {
               float* at = inner + row * width + column;
               store_simd(at, where_positive(load(at), sum, Vector{}));
             });
    multiply(tile.rows, shape.hidden, nullptr, Factor{inner, width, reversed + shape.reversed_first(i), shape.hidden},
             kNoFactor, [&](int row, int64_t column, Vector sum) {
               float* at = net + row * width + column;
               store_simd(at, load(at) + where_positive(load(outer + row * width + column), sum, Vector{}));
             });
    const bool first = i == shape.depth - 1;
    multiply(tile.rows, shape.features, nullptr, Factor{net, width, reversed + shape.reversed_feature(i), shape.hidden},
             kNoFactor, [&](int row, int64_t column, Vector sum) {
               float* at = to_features + row * features + column;
               store_simd(at, first ? sum : load(at) + sum);
             });
  }
  (void)spare;
  float* to_position = to_features + tile.capacity * features;
  multiply(tile.rows, 3, nullptr, Factor{net, width, reversed, shape.hidden}, kNoFactor,
           [&](int row, int64_t column, Vector sum) { store_simd(to_position + row * kPanel + column, sum); });
}

// Spreads `count` queries over the tile; the places beyond repeat the first one.
void fill_tile(const Maps& maps, int64_t b, int count, Tile& tile, Columns& columns) {
  tile.rows = (count + kRowStep - 1) / kRowStep * kRowStep;
  for (int q = count; q < kTileRows; ++q) {
    for (int axis = 0; axis < 3; ++axis) columns.at[axis][q] = columns.at[axis][0];
  }
  for (int q = 0; q < tile.rows; ++q) {
    for (int axis = 0; axis < 3; ++axis) tile.position[q * 4 + axis] = columns.at[axis][q];
  }
  project_columns(maps, b, columns);
}

template <class T>
void run_tile(const Maps& maps, int64_t b, int count, Tile& tile, Columns& columns, float* logits, float* gradient) {
  fill_tile(maps, b, count, tile, columns);
  gather_rows<T>(maps, b, columns, tile.rows, tile.features, tile.feature_width);
  forward(tile);
  head(tile, count, logits);
  if (gradient == nullptr) return;
  backward(tile);
  Columns moved;
  memset(&moved, 0, sizeof(float) * kTileRows * maps.columns);
  if (tile.shape.depth > 0) {
    contract_rows<T>(maps, b, columns, tile.rows, tile.feature_gradient, tile.feature_width, moved);
  }
  const float* to_position = tile.feature_gradient + tile.capacity * tile.feature_width;
  for (int q = 0; q < count; ++q) {
    for (int axis = 0; axis < 3; ++axis) gradient[3 * q + axis] = moved.at[axis][q] + to_position[q * kPanel + axis];
  }
}

template <class T>
void decode_queries(const DecodeJob& job) {
  const Maps maps(job);
  const int size = tile_rows(job);
  const int64_t tasks = (job.queries + kTask - 1) / kTask;
  parallel_for(job.threads, job.batch * tasks, [&](int64_t task) {
    Scratch memory(Tile::scratch(job, maps));
    if (!memory) {
      *job.failed = true;
      return;
    }
    Tile tile(job, maps, memory);
    Columns columns;
    const int64_t b = task / tasks, begin = task % tasks * kTask;
    const int64_t end = begin + kTask < job.queries ? begin + kTask : job.queries;
    for (int64_t first = begin; first < end; first += size) {
      const int count = static_cast<int>(end - first < size ? end - first : size);
      const int64_t at = b * job.queries + first;
      for (int q = 0; q < count; ++q) {
        for (int axis = 0; axis < 3; ++axis) columns.at[axis][q] = job.query[3 * (at + q) + axis];
      }
      run_tile<T>(maps, b, count, tile, columns, job.out + at, job.gradient ? job.gradient + 3 * at : nullptr);
    }
  });
}

template <class T>
void decode_brick(const DecodeJob& job, const Maps& maps, int64_t brick, Tile& tile) {
  constexpr int side = 8;
  const int size = tile_rows(job);
  float* out = job.out + brick * side * side * side;
  float place[3][side], logits[kTileRows];
  int32_t node[kTileRows];
  Columns columns;
  for (int axis = 0; axis < 3; ++axis) {
    for (int i = 0; i < side; ++i) {
      const double index = static_cast<double>(job.corner[3 * brick + axis]) + i;
      place[axis][i] = static_cast<float>(job.origin + job.spacing * index);
    }
  }
  int count = 0;
  const auto flush = [&] {
    if (count == 0) return;
    run_tile<T>(maps, job.shape[brick], count, tile, columns, logits, nullptr);
    for (int q = 0; q < count; ++q) out[node[q]] = logits[q];
    count = 0;
  };
  for (int32_t n = 0; n < side * side * side; ++n) {
    if (!(job.mask[brick * side + n / 64] >> (n % 64) & 1)) {
      out[n] = bit_cast<float>(0x7fc00000u);
      continue;
    }
    node[count] = n;
    columns.at[0][count] = place[0][n / 64];
    columns.at[1][count] = place[1][n / 8 % 8];
    columns.at[2][count] = place[2][n % 8];
    if (++count == size) flush();
  }
  flush();
}

}  // namespace

void run_decode(const DecodeJob& job) {
  with_feature_type(job.dtype, [&](auto type) { decode_queries<typename decltype(type)::type>(job); });
}

void run_decode_bricks(const DecodeJob& job) {
  with_feature_type(job.dtype, [&](auto type) {
    const Maps maps(job);
    parallel_for(job.threads, job.bricks, [&](int64_t brick) {
      Scratch memory(Tile::scratch(job, maps));
      if (!memory) {
        *job.failed = true;
        return;
      }
      Tile tile(job, maps, memory);
      decode_brick<typename decltype(type)::type>(job, maps, brick, tile);
    });
  });
}

}  // namespace OCC_ISA
}  // namespace occ::cpu
