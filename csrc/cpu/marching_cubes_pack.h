// SPDX-License-Identifier: MIT
// Compares runs of values with the level. For *.isa.cpp sources.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>

#include "common/macros.h"
#include "common/types.h"

namespace occ::mc {
OCC_BEGIN_SHARED

#if defined(__AVX2__)
inline __m256 load_lanes(const float* source) { return _mm256_loadu_ps(source); }
inline __m256d load_lanes(const double* source) { return _mm256_loadu_pd(source); }
inline __m256 load_lanes(const half_t* source) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
}
inline __m256 load_lanes(const bf16_t* source) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline __m256 broadcast(float value) { return _mm256_set1_ps(value); }
inline __m256d broadcast(double value) { return _mm256_set1_pd(value); }
inline unsigned greater(__m256 a, __m256 b) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
}
inline unsigned greater(__m256d a, __m256d b) {
  return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GT_OQ)));
}
inline __m256 add_nan(__m256 seen, __m256 v) { return _mm256_or_ps(seen, _mm256_cmp_ps(v, v, _CMP_UNORD_Q)); }
inline __m256d add_nan(__m256d seen, __m256d v) { return _mm256_or_pd(seen, _mm256_cmp_pd(v, v, _CMP_UNORD_Q)); }
inline unsigned ordered(__m256 v) { return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_ORD_Q))); }
inline unsigned ordered(__m256d v) {
  return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(v, v, _CMP_ORD_Q)));
}
inline bool any(__m256 mask) { return _mm256_movemask_ps(mask) != 0; }
inline bool any(__m256d mask) { return _mm256_movemask_pd(mask) != 0; }
#endif

// Signs of up to 64 consecutive values. NaN is looked for on the way, where it costs nothing: the loop waits for
// memory.
template <class T>
inline uint64_t pack(const T* values, int count, acc_t<T> level, bool& nan) {
  using S = acc_t<T>;
  uint64_t bits = 0;
  int i = 0;
#if defined(__AVX2__)
  constexpr int kLanes = 32 / static_cast<int>(sizeof(S));
  const auto bound = broadcast(level);
  auto seen = broadcast(S(0));
  for (; i + kLanes <= count; i += kLanes) {
    const auto lanes = load_lanes(values + i);
    bits |= static_cast<uint64_t>(greater(lanes, bound)) << i;
    seen = add_nan(seen, lanes);
  }
  nan |= any(seen);
#endif
  for (; i < count; ++i) {
    const S value = static_cast<S>(values[i]);
    bits |= static_cast<uint64_t>(value > level) << i;
    nan |= value != value;
  }
  return bits;
}

// Signs of 64 values, and which of them are numbers.
template <class T>
inline void pack_known(const T* values, acc_t<T> level, uint64_t& signs, uint64_t& known) {
  using S = acc_t<T>;
  signs = known = 0;
#if defined(__AVX2__)
  constexpr int kLanes = 32 / static_cast<int>(sizeof(S));
  const auto bound = broadcast(level);
  for (int i = 0; i < 64; i += kLanes) {
    const auto lanes = load_lanes(values + i);
    signs |= static_cast<uint64_t>(greater(lanes, bound)) << i;
    known |= static_cast<uint64_t>(ordered(lanes)) << i;
  }
#else
  for (int i = 0; i < 64; ++i) {
    const S value = static_cast<S>(values[i]);
    signs |= static_cast<uint64_t>(value > level) << i;
    known |= static_cast<uint64_t>(value == value) << i;
  }
#endif
}

OCC_END_SHARED
}  // namespace occ::mc
