// SPDX-License-Identifier: MIT
// Products of small matrices by a warp's tensor cores, and the rounding of their operands. The same on the host and on
// devices without such instructions, with ordinary ones.
//
// sum (16 x 8, float) += a (16 x K) b (K x 8); K = 8 tf32 numbers, or 16 bf16 numbers, two neighbours in a word. In
// both cases a row of a and a column of b are 8 words. Lane 4 g + t holds
//   a: words t and t + 4 of rows g and g + 8, as (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)
//   b: words t and t + 4 of column g
//   sum: rows g and g + 8 of columns 2 t and 2 t + 1, as (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1)
#pragma once

#include <cstdint>

#include "common/cuda_launch.h"
#include "common/types.h"
#include "math/decode.h"

namespace occ::cuda {

OCC_DEVICE uint16_t round_bf16(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
  return bf16_t(value).bits;
#endif
}

// To 10 mantissa bits, ties to even; NaN stays.
OCC_DEVICE uint32_t round_tf32(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  return value == value ? (bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu : bits;
}

template <Rounding R>
OCC_DEVICE float product_of_words(uint32_t a, uint32_t b, float sum) {
  if constexpr (R == kTf32) return sum + bit_cast<float>(a) * bit_cast<float>(b);
  sum += bit_cast<float>(a << 16) * bit_cast<float>(b << 16);
  return sum + bit_cast<float>(a & 0xffff0000u) * bit_cast<float>(b & 0xffff0000u);
}

// All lanes of the warp call; blocks have at most WARPS warps.
template <Rounding R, int WARPS>
OCC_DEVICE void multiply_matrices(float* sum, uint4 a, uint32_t b0, uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (R == kTf32) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
  }
#else
  constexpr int kWords = 6;
  OCC_SHARED(uint32_t, every, WARPS * kWarp * kWords);
  const int lane = lane_id(), g = lane / 4, t = lane % 4;
  uint32_t* words = every + threadIdx.x / kWarp * kWarp * kWords;
  const uint32_t own[kWords] = {a.x, a.y, a.z, a.w, b0, b1};
  for (int i = 0; i < kWords; ++i) words[lane * kWords + i] = own[i];
  sync_warp();
  for (int i = 0; i < 4; ++i) {
    const uint32_t *row = words + g * 4 * kWords + i / 2, *column = words + (2 * t + i % 2) * 4 * kWords + 4;
    for (int k = 0; k < 8; ++k) {
      sum[i] = product_of_words<R>(row[k % 4 * kWords + k / 4 * 2], column[k % 4 * kWords + k / 4], sum[i]);
    }
  }
  sync_warp();
#endif
}

}  // namespace occ::cuda
