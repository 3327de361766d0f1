// SPDX-License-Identifier: MIT
// Simd<S, N>: N numbers treated as one, in one vector register where the compiler has vector types. For *.isa.cpp
// sources: kLanes<S> is the register width of the instruction set the source is being compiled for.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/macros.h"
#include "common/types.h"
#if defined(__F16C__)
#include <immintrin.h>
#endif

#if defined(__GNUC__) || defined(__clang__)
#define OCC_VECTOR_TYPES 1
#define OCC_PREFETCH(address) __builtin_prefetch(address)
#if defined(__clang__)
#define OCC_UNROLL _Pragma("clang loop unroll(full)")
#else
#define OCC_UNROLL _Pragma("GCC unroll 16")
#endif
#else
#include <intrin.h>
#define OCC_PREFETCH(address) _mm_prefetch(reinterpret_cast<const char*>(address), 1)
#define OCC_UNROLL
#endif

namespace occ {
OCC_BEGIN_SHARED

#if defined(__AVX512F__)
constexpr int kSimdBytes = 64;
#elif defined(__AVX2__)
constexpr int kSimdBytes = 32;
#else
constexpr int kSimdBytes = 16;
#endif
template <class S>
constexpr int kLanes = kSimdBytes / static_cast<int>(sizeof(S));

template <class S, int N>
struct Simd {
#if defined(OCC_VECTOR_TYPES)
  typedef S Lanes __attribute__((vector_size(N * sizeof(S))));
  Lanes v;
#else
  S v[N];
#endif
};

#if defined(OCC_VECTOR_TYPES)
#define OCC_SIMD_OPERATOR(op)                                     \
  template <class S, int N>                                       \
  OCC_INLINE Simd<S, N> operator op(Simd<S, N> a, Simd<S, N> b) { \
    return {a.v op b.v};                                          \
  }
#else
#define OCC_SIMD_OPERATOR(op)                                     \
  template <class S, int N>                                       \
  OCC_INLINE Simd<S, N> operator op(Simd<S, N> a, Simd<S, N> b) { \
    Simd<S, N> r;                                                 \
    for (int i = 0; i < N; ++i) r.v[i] = a.v[i] op b.v[i];        \
    return r;                                                     \
  }
#endif
OCC_SIMD_OPERATOR(+)
OCC_SIMD_OPERATOR(-)
OCC_SIMD_OPERATOR(*)
#undef OCC_SIMD_OPERATOR

template <class P, class S>
OCC_INLINE P broadcast(S value) {
  P pack;
#if defined(OCC_VECTOR_TYPES)
  pack.v = value - typename P::Lanes{};
#else
  for (S& lane : pack.v) lane = value;
#endif
  return pack;
}

template <class S, int N>
OCC_INLINE Simd<S, N> multiply_add(Simd<S, N> a, Simd<S, N> b, Simd<S, N> c) {
#if defined(OCC_VECTOR_TYPES)
  return {a.v * b.v + c.v};
#else
  Simd<S, N> r;
  for (int i = 0; i < N; ++i) r.v[i] = a.v[i] * b.v[i] + c.v[i];
  return r;
#endif
}

template <class S, int N>
OCC_INLINE S sum_lanes(Simd<S, N> pack) {
  if constexpr (N == 1) {
    return pack.v[0];
  } else {
    Simd<S, N / 2> half[2];
    memcpy(half, &pack, sizeof(pack));
    return sum_lanes(half[0] + half[1]);
  }
}

template <class P, class S>
OCC_INLINE P load_simd(const S* from) {
  P pack;
  memcpy(&pack, from, sizeof(pack));
  return pack;
}

template <class S, int N>
OCC_INLINE void store_simd(S* to, Simd<S, N> pack) {
  memcpy(to, &pack, sizeof(pack));
}

// Half-precision storage: one instruction where the processor has it, bit arithmetic elsewhere (common/types.h).
template <class P>
OCC_INLINE P load_simd(const half_t* from) {
  P pack;
  constexpr int lanes = sizeof(P) / sizeof(float);
#if defined(__AVX512F__)
  if constexpr (lanes == 16) {
    const __m512 wide = _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    memcpy(&pack, &wide, sizeof(pack));
    return pack;
  }
#endif
#if defined(__F16C__)
  if constexpr (lanes == 8) {
    const __m256 wide = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    memcpy(&pack, &wide, sizeof(pack));
    return pack;
  }
#endif
  float wide[lanes];
  for (int i = 0; i < lanes; ++i) wide[i] = from[i];
  memcpy(&pack, wide, sizeof(pack));
  return pack;
}

template <int N>
OCC_INLINE void store_simd(half_t* to, Simd<float, N> pack) {
#if defined(__AVX512F__)
  if constexpr (N == 16) {
    __m512 wide;
    memcpy(&wide, &pack, sizeof(pack));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtps_ph(0xffff, wide, _MM_FROUND_TO_NEAREST_INT));
    return;
  }
#endif
#if defined(__F16C__)
  if constexpr (N == 8) {
    __m256 wide;
    memcpy(&wide, &pack, sizeof(pack));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT));
    return;
  }
#endif
  float wide[N];
  memcpy(wide, &pack, sizeof(pack));
  for (int i = 0; i < N; ++i) to[i] = half_t(wide[i]);
}

template <class P>
OCC_INLINE P load_simd(const bf16_t* from) {
  constexpr int lanes = sizeof(P) / sizeof(float);
  uint32_t wide[lanes];
  for (int i = 0; i < lanes; ++i) wide[i] = static_cast<uint32_t>(from[i].bits) << 16;
  P pack;
  memcpy(&pack, wide, sizeof(pack));
  return pack;
}

template <int N>
OCC_INLINE void store_simd(bf16_t* to, Simd<float, N> pack) {
  float wide[N];
  memcpy(wide, &pack, sizeof(pack));
  for (int i = 0; i < N; ++i) to[i] = bf16_t(wide[i]);
}

OCC_END_SHARED
}  // namespace occ
