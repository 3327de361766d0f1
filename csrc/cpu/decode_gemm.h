// SPDX-License-Identifier: MIT
// The matrix product under the decoders: a tile of rows (one query each) times packed weights, with everything that
// follows a layer (bias, residual, activation) done while its outputs are still in registers. Only for *.isa.cpp.
//
// A block of MR rows by NR vectors of outputs stays in registers; for every input NR vectors of weights are loaded and
// MR inputs broadcast. Each output is one chain of multiply-adds in the order of the inputs, so a row's result depends
// neither on its place in the tile nor on the other rows.
//
// Compiled with OCC_BF16_PRODUCTS, the operands of a layer are bf16: a row keeps its inputs in pairs, the first half of
// its place, and a pair is one step of the product.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "common/simd.h"
#include "common/types.h"
#include "math/decode.h"
#if defined(OCC_ISA_avx512bf16)
#include <immintrin.h>
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#define OCC_NOINLINE __declspec(noinline)
#else
#define OCC_NOINLINE __attribute__((noinline))
#endif

namespace occ::cpu {
namespace OCC_ISA {

constexpr int kVector = kLanes<float>;
using Vector = Simd<float, kVector>;

constexpr int kRowStep = 12;  // tiles hold a multiple of this: every MR below divides it

#if defined(OCC_BF16_PRODUCTS)
constexpr bool kRounds = true;
#else
constexpr bool kRounds = false;
#endif

// Rows of a tile as one factor: K inputs a row, and the packed weights they meet: K inputs out of the `height` inputs
// of a panel. With `pairs` an input is two bf16 numbers.
struct Factor {
  const float* rows;
  int64_t stride;
  const float* weights;
  int64_t inputs, height;
  bool pairs = false;

  constexpr Factor(const float* r, int64_t s, const float* w, int64_t k) : Factor(r, s, w, k, k) {}
  constexpr Factor(const float* r, int64_t s, const float* w, int64_t k, int64_t h)
      : rows(r), stride(s), weights(w), inputs(k), height(h) {}
  // `k` and `h` are counted in single inputs, `w` in pairs.
  static Factor of_pairs(const float* r, int64_t s, const uint32_t* w, int64_t k, int64_t h) {
    Factor factor(r, s, reinterpret_cast<const float*>(w), (k + 1) / 2, (h + 1) / 2);
    factor.pairs = true;
    return factor;
  }
};
constexpr Factor kNoFactor{nullptr, 0, nullptr, 0};

#if defined(OCC_VECTOR_TYPES)
// Negative values become 0, NaN stays.
OCC_INLINE Vector relu(Vector a) {
  const Vector::Lanes zero{};
  return {zero > a.v ? zero : a.v};
}
OCC_INLINE Vector leaky(Vector a, Vector slope) { return {a.v > 0.0f ? a.v : a.v * slope.v}; }
// `a` times the derivative of an activation whose output (or input) was `at`.
OCC_INLINE Vector where_positive(Vector at, Vector a, Vector other) { return {at.v > 0.0f ? a.v : other.v}; }
#else
OCC_INLINE Vector relu(Vector a) {
  for (float& lane : a.v) lane = 0.0f > lane ? 0.0f : lane;
  return a;
}
OCC_INLINE Vector leaky(Vector a, Vector slope) {
  for (int i = 0; i < kVector; ++i) a.v[i] = a.v[i] > 0.0f ? a.v[i] : a.v[i] * slope.v[i];
  return a;
}
OCC_INLINE Vector where_positive(Vector at, Vector a, Vector other) {
  for (int i = 0; i < kVector; ++i) a.v[i] = at.v[i] > 0.0f ? a.v[i] : other.v[i];
  return a;
}
#endif

OCC_INLINE Vector load(const float* from) { return load_simd<Vector>(from); }
OCC_INLINE Vector spread_value(float value) { return broadcast<Vector>(value); }

// sum + a_0 b_0 + a_1 b_1 with the pairs in the lanes of a and b; products are exact.
OCC_INLINE Vector add_pairs(Vector sum, Vector a, Vector b) {
#if defined(OCC_ISA_avx512bf16)
  __m512 total;
  __m512i left, right;
  memcpy(&total, &sum, sizeof(sum));
  memcpy(&left, &a, sizeof(a));
  memcpy(&right, &b, sizeof(b));
  total = _mm512_dpbf16_ps(total, (__m512bh)left, (__m512bh)right);
  memcpy(&sum, &total, sizeof(sum));
#else
  uint32_t left[kVector], right[kVector];
  float total[kVector];
  memcpy(left, &a, sizeof(a));
  memcpy(right, &b, sizeof(b));
  memcpy(total, &sum, sizeof(sum));
  for (int i = 0; i < kVector; ++i) {
    total[i] += bit_cast<float>(left[i] & 0xffff0000u) * bit_cast<float>(right[i] & 0xffff0000u);
    total[i] += bit_cast<float>(left[i] << 16) * bit_cast<float>(right[i] << 16);
  }
  memcpy(&sum, total, sizeof(sum));
#endif
  return sum;
}

// A vector of numbers as bf16, from number `column` of the row on.
OCC_INLINE void store_rounded(float* row, int64_t column, Vector value) {
  char* to = reinterpret_cast<char*>(row) + column * static_cast<int64_t>(sizeof(bf16_t));
#if defined(OCC_ISA_avx512bf16)
  __m512 wide;
  memcpy(&wide, &value, sizeof(value));
  const __m256bh narrow = _mm512_cvtneps_pbh(wide);
  memcpy(to, &narrow, sizeof(narrow));
#else
  bf16_t narrow[kVector];
  store_simd(narrow, value);
  memcpy(to, narrow, sizeof(narrow));
#endif
}

// Outputs that are operands of the next product.
OCC_INLINE void store_operand(float* row, int64_t column, Vector value) {
  if constexpr (kRounds) {
    store_rounded(row, column, value);
  } else {
    store_simd(row + column, value);
  }
}

// Makes rows of float operands, in place: nothing is written before it was read.
inline void round_rows(float* rows, int count, int64_t stride, int64_t inputs) {
  for (float* row = rows; row < rows + count * stride; row += stride) {
    int64_t c = 0;
    for (; c + kVector <= inputs; c += kVector) store_rounded(row, c, load(row + c));
    for (; c < inputs + inputs % 2; ++c) {
      const bf16_t narrow(c < inputs ? row[c] : 0.0f);
      memcpy(reinterpret_cast<char*>(row) + c * static_cast<int64_t>(sizeof(narrow)), &narrow, sizeof(narrow));
    }
  }
}

// An input in every lane, its bits as they are.
template <bool PAIRS>
OCC_INLINE Vector spread_input(const float* at) {
  if constexpr (PAIRS) {
    uint32_t bits;
    memcpy(&bits, at, sizeof(bits));
    const auto lanes = broadcast<Simd<uint32_t, kVector>>(bits);
    Vector value;
    memcpy(&value, &lanes, sizeof(value));
    return value;
  } else {
    return spread_value(*at);
  }
}

template <bool PAIRS>
OCC_INLINE Vector add_product(Vector x, Vector w, Vector sum) {
  if constexpr (PAIRS) {
    return add_pairs(sum, x, w);
  } else {
    return multiply_add(x, w, sum);
  }
}

// One input of MR rows: the NR vectors of weights come one by one, so that MR + NR * MR + 1 registers are enough.
template <bool PAIRS, int MR, int NR>
OCC_INLINE void step(const float* rows, int64_t stride, const float* weights, int64_t next, Vector (*sum)[NR]) {
  constexpr int together = kPanel / kVector < NR ? kPanel / kVector : NR;  // vectors of one panel
  if constexpr (MR < NR) {
    Vector x[MR];
    OCC_UNROLL for (int r = 0; r < MR; ++r) x[r] = spread_input<PAIRS>(rows + r * stride);
    OCC_UNROLL for (int v = 0; v < NR; ++v) {
      const Vector w = load(weights + v / together * next + v % together * kVector);
      OCC_UNROLL for (int r = 0; r < MR; ++r) sum[r][v] = add_product<PAIRS>(x[r], w, sum[r][v]);
    }
  } else {
    Vector w[NR];
    OCC_UNROLL for (int v = 0; v < NR; ++v) w[v] = load(weights + v / together * next + v % together * kVector);
    OCC_UNROLL for (int r = 0; r < MR; ++r) {
      const Vector x = spread_input<PAIRS>(rows + r * stride);
      OCC_UNROLL for (int v = 0; v < NR; ++v) sum[r][v] = add_product<PAIRS>(x, w[v], sum[r][v]);
    }
  }
}

template <bool PAIRS, int MR, int NR>
OCC_INLINE void accumulate_as(const Factor& factor, int64_t row, int64_t column, Vector (*sum)[NR]) {
  const float* rows = factor.rows + row * factor.stride;
  const float* weights = factor.weights + column / kPanel * kPanel * factor.height + column % kPanel;
  const int64_t stride = factor.stride, next = factor.height * kPanel;
  for (const float* end = rows + factor.inputs; rows < end; ++rows, weights += kPanel) {
    step<PAIRS, MR, NR>(rows, stride, weights, next, sum);
  }
}

template <int MR, int NR>
OCC_INLINE void accumulate(const Factor& factor, int64_t row, int64_t column, Vector (*sum)[NR]) {
  if constexpr (kRounds) {
    if (factor.pairs) {
      accumulate_as<true, MR, NR>(factor, row, column, sum);
      return;
    }
  }
  accumulate_as<false, MR, NR>(factor, row, column, sum);
}

constexpr int kSumRows = 48;  // a multiple of kRowStep

// The sums of the blocks of rows [begin, end), out of line: with the epilogues around it the loop would run out of
// address registers. Several blocks a call, which the calls' own work is small beside.
template <int MR, int NR>
OCC_NOINLINE void block_sums(const Factor& a, const Factor& b, int begin, int end, int64_t column, const float* bias,
                             float* out) {
  for (int row = begin; row < end; row += MR) {
    Vector sum[MR][NR];
    OCC_UNROLL for (int v = 0; v < NR; ++v) {
      const Vector start = bias ? load(bias + column + v * kVector) : Vector{};
      OCC_UNROLL for (int r = 0; r < MR; ++r) sum[r][v] = start;
    }
    accumulate<MR, NR>(a, row, column, sum);
    accumulate<MR, NR>(b, row, column, sum);
    OCC_UNROLL for (int r = 0; r < MR; ++r) {
      OCC_UNROLL for (int v = 0; v < NR; ++v, out += kVector) store_simd(out, sum[r][v]);
    }
  }
}

template <int MR, int NR, class E>
OCC_INLINE void multiply_columns(int rows, int64_t column, const float* bias, const Factor& a, const Factor& b,
                                 const E& epilogue) {
  alignas(64) float sums[kSumRows * NR * kVector];
  for (int begin = 0; begin < rows; begin += kSumRows) {
    const int end = rows - begin < kSumRows ? rows : begin + kSumRows;
    block_sums<MR, NR>(a, b, begin, end, column, bias, sums);
    const float* from = sums;
    for (int row = begin; row < end; ++row) {
      OCC_UNROLL for (int v = 0; v < NR; ++v, from += kVector) epilogue(row, column + v * kVector, load(from));
    }
  }
}

// bias + a + b for `rows` rows (a multiple of kRowStep) and `columns` outputs, handed to epilogue(row, column, vector).
// Outputs are taken in whole vectors; those beyond `columns` have weight 0. Four vectors at once need fewer loads; with
// many inputs their weights would not stay in the first-level cache.
template <class E>
OCC_INLINE void multiply(int rows, int64_t columns, const float* bias, const Factor& a, const Factor& b,
                         const E& epilogue) {
  int64_t column = 0;
  if constexpr (kVector == kPanel) {
    for (; column + kVector < columns; column += 2 * kVector)
      multiply_columns<12, 2>(rows, column, bias, a, b, epilogue);
  } else {
    if (a.inputs <= 128) {
      for (; column + 3 * kVector < columns; column += 4 * kVector) {
        multiply_columns<3, 4>(rows, column, bias, a, b, epilogue);
      }
    }
    for (; column + kVector < columns; column += 2 * kVector)
      multiply_columns<6, 2>(rows, column, bias, a, b, epilogue);
  }
  for (; column < columns; column += kVector) multiply_columns<12, 1>(rows, column, bias, a, b, epilogue);
}

// Scratch memory of one task: 64-byte aligned pieces of one allocation.
class Scratch {
 public:
  explicit Scratch(int64_t floats) : memory_(std::malloc(static_cast<size_t>(floats) * sizeof(float) + 64)) {
    next_ = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory_) + 63) / 64 * 64);
  }
  ~Scratch() { std::free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  explicit operator bool() const { return memory_ != nullptr; }
  // `floats` is a multiple of 16.
  float* take(int64_t floats) {
    float* taken = next_;
    next_ += floats;
    return taken;
  }

 private:
  void* memory_;
  float* next_;
};

}  // namespace OCC_ISA
}  // namespace occ::cpu
