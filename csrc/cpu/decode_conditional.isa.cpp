// SPDX-License-Identifier: MIT
// Decoder conditioned by per-shape scales and shifts (folded conditional batch norm). All weights of a wide network do
// not fit the second-level cache: a tile of 96 queries reads each layer once.
#include "common/parallel.h"
#include "cpu/decode.h"
#include "cpu/decode_gemm.h"

namespace occ::cpu {
namespace OCC_ISA {
namespace {

constexpr int kRows = 96;
constexpr int64_t kTask = 384;  // queries

struct Stage {
  const ConditionalJob& job;
  ConditionalShape shape;
  RoundedShape pairs;
  int64_t width;
  int64_t b = 0;
  int rows = 0;
  float *position, *net, *x, *h;

  explicit Stage(const ConditionalJob& j, Scratch& memory)
      : job(j), shape{j.hidden, j.layers}, pairs{j.hidden, 0, j.layers, 2, kPanel}, width(shape.width()) {
    position = memory.take(kRows * 4);
    net = memory.take(kRows * width);
    x = memory.take(kRows * width);
    h = memory.take(kRows * width);
  }
  static int64_t scratch(const ConditionalJob& job) { return kRows * (4 + 3 * panels_of(job.hidden) * kPanel); }
  const float* scales(int64_t stage) const { return job.affine + (b * (job.layers + 1) + stage) * 2 * width; }
  Factor factor(const float* rows, int64_t layer) const {
    if constexpr (kRounds) {
      return Factor::of_pairs(rows, width, job.rounded + pairs.first(layer), job.hidden, job.hidden);
    }
    return {rows, width, job.weights + shape.matrix(layer), job.hidden};
  }
  float leak(int64_t stage) const { return stage == job.layers ? job.leak : job.inner_leak; }
};

// act(scale * value + shift): an operand of the next layer, or what the last one reads as it is.
struct Norm {
  const float *scale, *shift;
  float leak;
  bool last;
  OCC_INLINE Vector operator()(int64_t column, Vector value) const {
    const Vector moved = multiply_add(value, load(scale + column), load(shift + column));
    return leak != 0 ? leaky(moved, spread_value(leak)) : relu(moved);
  }
  OCC_INLINE void store(float* row, int64_t column, Vector value) const {
    if (kRounds && !last) {
      store_rounded(row, column, (*this)(column, value));
    } else {
      store_simd(row + column, (*this)(column, value));
    }
  }
};

Norm norm_of(const Stage& s, int64_t stage) {
  return {s.scales(stage), s.scales(stage) + s.width, s.leak(stage), stage == s.job.layers};
}

void run_layers(const Stage& s) {
  const ConditionalJob& job = s.job;
  const int64_t width = s.width;
  const float* offset = job.offset ? job.offset + s.b * width : nullptr;
  const Norm first = norm_of(s, 0);
  multiply(s.rows, job.hidden, job.weights + s.shape.position_bias(), Factor{s.position, 4, job.weights, 3}, kNoFactor,
           [&](int row, int64_t column, Vector sum) {
             const Vector value = offset ? sum + load(offset + column) : sum;
             store_simd(s.net + row * width + column, value);
             first.store(s.x + row * width, column, value);
           });
  const float* from = s.x;
  for (int64_t layer = 0; layer < job.layers; ++layer) {
    const Norm norm = norm_of(s, layer + 1);
    const Factor factor = s.factor(from, layer);
    const float* bias = job.weights + s.shape.bias(layer);
    float* to = from == s.x ? s.h : s.x;
    if (job.residual && layer % 2 == 1) {
      multiply(s.rows, job.hidden, bias, factor, kNoFactor, [&](int row, int64_t column, Vector sum) {
        float* at = s.net + row * width + column;
        const Vector value = sum + load(at);
        store_simd(at, value);
        norm.store(to + row * width, column, value);
      });
    } else {
      multiply(s.rows, job.hidden, bias, factor, kNoFactor,
               [&](int row, int64_t column, Vector sum) { norm.store(to + row * width, column, sum); });
    }
    from = to;
  }
}

void run_tile(Stage& s, int64_t first, int count) {
  const ConditionalJob& job = s.job;
  s.rows = (count + kRowStep - 1) / kRowStep * kRowStep;
  const int64_t at = s.b * job.queries + first;
  for (int q = 0; q < s.rows; ++q) {
    for (int axis = 0; axis < 3; ++axis) s.position[4 * q + axis] = job.query[3 * (at + (q < count ? q : 0)) + axis];
  }
  run_layers(s);
  const float* last = job.layers % 2 ? s.h : s.x;
  const float* out = job.weights + s.shape.out();
  for (int q = 0; q < count; ++q) {
    Vector sum{};
    for (int64_t column = 0; column < job.hidden; column += kVector) {
      sum = multiply_add(load(last + q * s.width + column), load(out + column), sum);
    }
    job.out[at + q] = job.weights[s.shape.out_bias()] + sum_lanes(sum);
  }
}

}  // namespace

void run_decode_conditional(const ConditionalJob& job) {
  const int64_t tasks = (job.queries + kTask - 1) / kTask;
  parallel_for(job.threads, job.batch * tasks, [&](int64_t task) {
    Scratch memory(Stage::scratch(job));
    if (!memory) {
      *job.failed = true;
      return;
    }
    Stage stage(job, memory);
    stage.b = task / tasks;
    const int64_t begin = task % tasks * kTask;
    const int64_t end = begin + kTask < job.queries ? begin + kTask : job.queries;
    for (int64_t first = begin; first < end; first += kRows) {
      run_tile(stage, first, static_cast<int>(end - first < kRows ? end - first : kRows));
    }
  });
}

}  // namespace OCC_ISA
}  // namespace occ::cpu
