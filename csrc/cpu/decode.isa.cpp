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

constexpr int64_t kTask = 384;  // queries
constexpr Factor kNoFactor{nullptr, 0, nullptr, 0};

// Rows of a tile: enough to pay for reading the weights, few enough for the caches.
int tile_rows(const DecodeJob& job) {
  if (job.gradient) return job.hidden <= 64 ? 24 : 48;
  return job.hidden <= 64 ? 48 : 96;
}

// Rows of the tile in work. With a gradient every activation is kept, else one place is used again and again.
struct Tile {
  const DecodeJob& job;
  const Maps& maps;
  DecoderShape shape;
  int64_t width, feature_width, capacity;
  bool keep;
  int rows = 0;  // in use, a multiple of kRowStep
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
    const bool exists = block < shape.depth;
    return {features, feature_width, job.weights + shape.feature(exists ? block : 0), exists ? shape.features : 0};
  }
};

// Stores an activation.
struct StoreActive {
  float* to;
  int64_t width;
  OCC_INLINE void operator()(int row, int64_t column, Vector sum) const {
    store_simd(to + row * width + column, relu(sum));
  }
};

// Adds to the residual stream, or begins it, and stores its activation.
template <bool BEGIN>
struct StoreNet {
  float *net, *active;
  int64_t width;
  OCC_INLINE void operator()(int row, int64_t column, Vector sum) const {
    float* at = net + row * width + column;
    const Vector value = BEGIN ? sum : sum + load(at);
    store_simd(at, value);
    store_simd(active + row * width + column, relu(value));
  }
};

// The network up to `net` of the last block. `meanwhile(part, parts)` is called between the layers.
template <class F>
void forward(const Tile& tile, F&& meanwhile) {
  const DecoderShape& shape = tile.shape;
  const float* weights = tile.job.weights;
  const int64_t width = tile.width;
  const int parts = static_cast<int>(2 * shape.depth + 1);
  multiply(tile.rows, shape.hidden, weights + shape.second_bias(0),
           Factor{tile.position, kPanel, weights + shape.position(), 3}, tile.feature_factor(0),
           StoreNet<true>{tile.net, tile.outer(0), width});
  meanwhile(0, parts);
  for (int64_t i = 0; i < shape.depth; ++i) {
    multiply(tile.rows, shape.hidden, weights + shape.first_bias(i),
             Factor{tile.outer(i), width, weights + shape.first(i), shape.hidden}, kNoFactor,
             StoreActive{tile.inner(i), width});
    meanwhile(static_cast<int>(2 * i + 1), parts);
    multiply(tile.rows, shape.hidden, weights + shape.second_bias(i + 1),
             Factor{tile.inner(i), width, weights + shape.second(i), shape.hidden}, tile.feature_factor(i + 1),
             StoreNet<false>{tile.net, tile.outer(i + 1), width});
    meanwhile(static_cast<int>(2 * i + 2), parts);
  }
}

// logit = <o, act(net)> + o_b.
void head(const Tile& tile, int count, float* logits) {
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
void backward(const Tile& tile) {
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

// Logits, and gradients or null, of the queries of `spots`; asks for the features of `next` (or null) meanwhile.
template <class T>
void run_tile(Tile& tile, const Spots& spots, const Spots* next, float* logits, float* gradient) {
  const Maps& maps = tile.maps;
  tile.rows = (spots.count + kRowStep - 1) / kRowStep * kRowStep;
  for (int q = 0; q < tile.rows; ++q) {
    for (int axis = 0; axis < 3; ++axis) tile.position[q * kPanel + axis] = spots.columns.at[axis][q];
  }
  gather_rows<T>(maps, spots, tile.rows, tile.features, tile.feature_width);
  forward(tile, [&](int part, int parts) {
    if (next) prefetch_part<T>(maps, *next, part, parts);
  });
  head(tile, spots.count, logits);
  if (gradient == nullptr) return;
  backward(tile);
  Columns moved;
  memset(&moved, 0, sizeof(float) * kTileRows * maps.columns);
  if (tile.shape.depth > 0) contract_rows<T>(maps, spots, tile.feature_gradient, tile.feature_width, moved);
  for (int q = 0; q < spots.count; ++q) {
    const float* direct = tile.position_gradient + q * kPanel;
    for (int axis = 0; axis < 3; ++axis) gradient[3 * q + axis] = moved.at[axis][q] + direct[axis];
  }
}

// Queries [first, end) of shape b, at most a tile of them.
int locate_queries(const Tile& tile, int64_t b, int64_t first, int64_t end, Spots& spots) {
  const int count = static_cast<int>(end - first < tile.capacity ? end - first : tile.capacity);
  const float* query = tile.job.query + 3 * (b * tile.job.queries + first);
  for (int q = 0; q < count; ++q) {
    for (int axis = 0; axis < 3; ++axis) spots.columns.at[axis][q] = query[3 * q + axis];
  }
  locate_all(tile.maps, b, count, spots);
  return count;
}

template <class T>
void decode_queries(const DecodeJob& job) {
  const Maps maps(job);
  const int64_t tasks = (job.queries + kTask - 1) / kTask;
  parallel_for(job.threads, job.batch * tasks, [&](int64_t task) {
    Scratch memory(Tile::scratch(maps));
    if (!memory) {
      *job.failed = true;
      return;
    }
    Tile tile(maps, memory);
    const int64_t b = task / tasks, begin = task % tasks * kTask;
    const int64_t end = begin + kTask < job.queries ? begin + kTask : job.queries;
    int now = 0;
    int count = locate_queries(tile, b, begin, end, tile.spots[now]);
    for (int64_t first = begin; first < end; first += count, now ^= 1) {
      count = tile.spots[now].count;
      const bool more = first + count < end;
      if (more) locate_queries(tile, b, first + count, end, tile.spots[now ^ 1]);
      const int64_t at = b * job.queries + first;
      float* gradient = job.gradient ? job.gradient + 3 * at : nullptr;
      run_tile<T>(tile, tile.spots[now], more ? &tile.spots[now ^ 1] : nullptr, job.out + at, gradient);
    }
  });
}

template <class T>
void decode_brick(int64_t brick, Tile& tile) {
  constexpr int side = 8;
  const DecodeJob& job = tile.job;
  float* out = job.out + brick * side * side * side;
  float place[3][side], logits[kTileRows];
  int32_t node[kTileRows];
  Spots& spots = tile.spots[0];
  for (int axis = 0; axis < 3; ++axis) {
    for (int i = 0; i < side; ++i) {
      const double index = static_cast<double>(job.corner[3 * brick + axis]) + i;
      place[axis][i] = static_cast<float>(job.origin + job.spacing * index);
    }
  }
  int count = 0;
  const auto flush = [&] {
    if (count == 0) return;
    locate_all(tile.maps, job.shape[brick], count, spots);
    run_tile<T>(tile, spots, nullptr, logits, nullptr);
    for (int q = 0; q < count; ++q) out[node[q]] = logits[q];
    count = 0;
  };
  for (int32_t n = 0; n < side * side * side; ++n) {
    if (!(job.mask[brick * side + n / 64] >> (n % 64) & 1)) {
      out[n] = bit_cast<float>(0x7fc00000u);
      continue;
    }
    node[count] = n;
    spots.columns.at[0][count] = place[0][n / 64];
    spots.columns.at[1][count] = place[1][n / 8 % 8];
    spots.columns.at[2][count] = place[2][n % 8];
    if (++count == tile.capacity) flush();
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
      Scratch memory(Tile::scratch(maps));
      if (!memory) {
        *job.failed = true;
        return;
      }
      Tile tile(maps, memory);
      decode_brick<typename decltype(type)::type>(brick, tile);
    });
  });
}

}  // namespace OCC_ISA
}  // namespace occ::cpu
