// SPDX-License-Identifier: MIT
// Where the weights of a fused decoder lie in memory; occkernels/decode_weights.py packs them.
//
// A matrix that maps K inputs to N outputs is stored as panels of 16 outputs, [ceil(N / 16)][K][16], zeros beyond N: a
// kernel reads it front to back whatever the width of its vectors. Vectors are padded to whole panels.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace occ {
OCC_BEGIN_SHARED

constexpr int kPanel = 16;

OCC_HD OCC_INLINE int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }
OCC_HD OCC_INLINE int64_t matrix_size(int64_t inputs, int64_t outputs) { return panels_of(outputs) * kPanel * inputs; }

// net = P p + C_0 c + s_0; L times: net += S_i relu(F_i relu(net) + f_i) + C_i+1 c + s_i+1; logit = o act(net) + o_b.
// Forward, in this order:  P, C_0 .. C_L-1, F_0 .. F_L-1, S_0 .. S_L-1, f_0 .. f_L-1, s_0 .. s_L, o, o_b (one panel).
// Reversed (transposed):   P, C.., F.., S.. .
struct DecoderShape {
  int64_t hidden, features, depth;

  OCC_HD int64_t width() const { return panels_of(hidden) * kPanel; }
  OCC_HD int64_t square() const { return matrix_size(hidden, hidden); }

  OCC_HD int64_t position() const { return 0; }
  OCC_HD int64_t feature(int64_t block) const { return matrix_size(3, hidden) + block * matrix_size(features, hidden); }
  OCC_HD int64_t first(int64_t block) const { return feature(depth) + block * square(); }
  OCC_HD int64_t second(int64_t block) const { return first(depth) + block * square(); }
  OCC_HD int64_t first_bias(int64_t block) const { return second(depth) + block * width(); }
  OCC_HD int64_t second_bias(int64_t stage) const { return first_bias(depth) + stage * width(); }
  OCC_HD int64_t out() const { return second_bias(depth + 1); }
  OCC_HD int64_t out_bias() const { return out() + width(); }

  OCC_HD int64_t reversed_feature(int64_t block) const {
    return matrix_size(hidden, 3) + block * matrix_size(hidden, features);
  }
  OCC_HD int64_t reversed_first(int64_t block) const { return reversed_feature(depth) + block * square(); }
  OCC_HD int64_t reversed_second(int64_t block) const { return reversed_first(depth) + block * square(); }
};

// Copies of the square and feature matrices whose weights are rounded, for products of rounded operands.
enum Rounding : int { kExact = 0, kTf32 = 1, kBf16 = 2 };

// In 32-bit words: C_0 .., F_0 .., S_0 .. (or W_0 .., which are `first` of a shape without features). A matrix is
// [ceil(N / 16)][ceil(K / inputs)][words], zeros beyond N and K; `words` hold `inputs` weights of each of 16 outputs:
//   CPU, bf16     inputs 2   [16 outputs][2]
//   CUDA, tf32    inputs 8   [32 lanes][4]: fragment A of mma.m16n8k8
//   CUDA, bf16    inputs 16  [32 lanes][4][2]: fragment A of mma.m16n8k16
struct RoundedShape {
  int64_t hidden, features, depth;
  int inputs, words;

  OCC_HD int64_t steps(int64_t count) const { return (count + inputs - 1) / inputs; }
  OCC_HD int64_t matrix(int64_t count) const { return panels_of(hidden) * steps(count) * words; }
  OCC_HD int64_t feature(int64_t block) const { return block * matrix(features); }
  OCC_HD int64_t first(int64_t block) const { return feature(depth) + block * matrix(hidden); }
  OCC_HD int64_t second(int64_t block) const { return first(depth) + block * matrix(hidden); }
};

// Decoder conditioned by scales and shifts. `layers` square matrices W_i with biases; before each, and before the
// output, x = act(scale * net + shift). In this order: P, p_b, W_0 .., w_0 .., o, o_b (one panel). The affine tensor
// holds (scale, shift) pairs of vectors [layers + 1][2][width] for every shape.
struct ConditionalShape {
  int64_t hidden, layers;

  OCC_HD int64_t width() const { return panels_of(hidden) * kPanel; }
  OCC_HD int64_t position_bias() const { return matrix_size(3, hidden); }
  OCC_HD int64_t matrix(int64_t layer) const { return position_bias() + width() + layer * matrix_size(hidden, hidden); }
  OCC_HD int64_t bias(int64_t layer) const { return matrix(layers) + layer * width(); }
  OCC_HD int64_t out() const { return bias(layers); }
  OCC_HD int64_t out_bias() const { return out() + width(); }
};

OCC_END_SHARED
}  // namespace occ
