// SPDX-License-Identifier: MIT
// Decoders fused with the sampling of their features: coordinates in, logits out.
//
// Sizes: batch B, queries M, channels C of one map, K maps; hidden, depth (residual blocks).
//   planes (B, P, R, R, C), grid (B, R, R, R, C): features in any element type; null where the layout has none
//   query (B, M, 3); bases (B, L, 3, 3) and scale (B, L) of the dynamic planes or null; all float
//   weights, rounded, reversed: packed as csrc/math/decode.h says; `reversed` null leaves the gradient out. `rounding`
//   kBf16 permits bf16 operands, for which `rounded` holds the weights; a gradient wants kExact
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "math/decode.h"
#include "math/interp.h"
#include "math/layout.h"

namespace occ::cpu {

// The arguments of one call. Plain data: it passes from code of one instruction set to another.
struct DecodeJob {
  const void* planes = nullptr;
  const void* grid = nullptr;
  const float* query = nullptr;
  const float* bases = nullptr;
  const float* scale = nullptr;
  const float* weights = nullptr;
  const uint32_t* rounded = nullptr;
  const float* reversed = nullptr;
  float* out = nullptr;
  float* gradient = nullptr;
  int dtype = 0;
  int64_t batch = 0, queries = 0, channels = 0, hidden = 0, depth = 0;
  float leak = 0;  // slope of the last activation below zero
  bool concat = false;
  int threads = 1;
  Layout layout;
  SampleMap map[kMaxMaps];
  // Bricks: (K,) shapes, (K, 3) corners, (K, 8) masks.
  const int64_t* shape = nullptr;
  const int32_t* corner = nullptr;
  const uint64_t* mask = nullptr;
  int64_t bricks = 0;
  double spacing = 0, origin = 0;
  bool* failed = nullptr;  // set when scratch memory could not be had
};

struct ConditionalJob {
  const float* query = nullptr;
  const float* weights = nullptr;
  const uint32_t* rounded = nullptr;
  const float* affine = nullptr;
  const float* offset = nullptr;
  float* out = nullptr;
  int64_t batch = 0, queries = 0, hidden = 0, layers = 0;
  float leak = 0;        // of the last activation
  float inner_leak = 0;  // of the others
  bool residual = false;
  int threads = 1;
  bool* failed = nullptr;
};

// out (B, M); gradient (B, M, 3) to the query, or null.
void decode(const void* planes, const void* grid, const float* query, const float* bases, const float* scale,
            const float* weights, const uint32_t* rounded, const float* reversed, float* out, float* gradient,
            int dtype, int64_t batch, int64_t queries, int64_t channels, int64_t hidden, int64_t depth, int rounding,
            double leak, bool concat, const Layout& layout, int threads);

// out (K, 8, 8, 8): node (i, j, k) of a brick lies at origin + spacing * (corner + (i, j, k)) and is evaluated if bit
// 8 j + k of word i of the brick's mask is set; the others become NaN.
void decode_bricks(const void* planes, const void* grid, const float* bases, const float* scale, const float* weights,
                   const uint32_t* rounded, const int64_t* shape, const int32_t* corner, const int64_t* mask,
                   float* out, int dtype, int64_t bricks, int64_t batch, int64_t channels, int64_t hidden,
                   int64_t depth, int rounding, double leak, bool concat, double spacing, double origin,
                   const Layout& layout, int threads);

// affine (B, layers + 1, 2, width), offset (B, width) added after the first layer or null; out (B, M). `residual`:
// layers form pairs, and the second of each adds to what entered the first.
void decode_conditional(const float* query, const float* weights, const uint32_t* rounded, const float* affine,
                        const float* offset, float* out, int64_t batch, int64_t queries, int64_t hidden, int64_t layers,
                        int rounding, double leak, double inner_leak, bool residual, int threads);

OCC_DECLARE_ISA(void run_decode(const DecodeJob& job))
OCC_DECLARE_ISA(void run_decode_bricks(const DecodeJob& job))
OCC_DECLARE_ISA(void run_decode_conditional(const ConditionalJob& job))
OCC_DECLARE_BF16(void run_decode(const DecodeJob& job))
OCC_DECLARE_BF16(void run_decode_bricks(const DecodeJob& job))
OCC_DECLARE_BF16(void run_decode_conditional(const ConditionalJob& job))

}  // namespace occ::cpu
