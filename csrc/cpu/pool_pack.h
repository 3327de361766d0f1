// SPDX-License-Identifier: MIT
// W neighbouring channels in registers: the arithmetic of pooling and scattering. Uses vector types where the compiler
// has them; with plain arrays, gcc 12 keeps the running maximum in memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/macros.h"

#if defined(__GNUC__)
#define OCC_PREFETCH(address) __builtin_prefetch(address)
#define OCC_UNROLL _Pragma("GCC unroll 16")  // before registers are assigned: else the parts live in memory
#else
#define OCC_PREFETCH(address) (void)(address)
#endif

namespace occ {
OCC_BEGIN_SHARED

#if defined(OCC_ISA_avx512)
constexpr int kPackBytes = 64;
#elif defined(OCC_ISA_avx2)
constexpr int kPackBytes = 32;
#else
constexpr int kPackBytes = 16;
#endif

// A larger value replaces the maximum, and so does the first NaN: like torch.max, a NaN wins, the earliest of several.
#if defined(__GNUC__)

template <class E, int N>
struct lanes_of {
  typedef E type __attribute__((vector_size(N * sizeof(E))));
};

template <class S, int W>
struct Pack {
  using Index = std::conditional_t<sizeof(S) == 8, int64_t, int32_t>;
  static constexpr int kSize = static_cast<int>(sizeof(S));
  static constexpr int kLanes = W * kSize > kPackBytes ? kPackBytes / kSize : W;
  static constexpr int kParts = W / kLanes;
  using Values = typename lanes_of<S, kLanes>::type;
  using Indices = typename lanes_of<Index, kLanes>::type;
  using Stored = typename lanes_of<int32_t, kLanes>::type;

  Values part[kParts];
  Indices arg[kParts];  // left alone by the functions without `n`

  static OCC_INLINE Values values(const S* row, int p) {
    Values v;
    memcpy(&v, row + p * kLanes, sizeof(v));
    return v;
  }
  OCC_INLINE void clear() { OCC_UNROLL for (int p = 0; p < kParts; ++p) part[p] = Values{}; }
  OCC_INLINE void load(const S* row) { OCC_UNROLL for (int p = 0; p < kParts; ++p) part[p] = values(row, p); }
  OCC_INLINE void load(const S* row, int32_t n) {
    OCC_UNROLL for (int p = 0; p < kParts; ++p) {
      part[p] = values(row, p);
      arg[p] = Indices{} + Index{n};
    }
  }
  OCC_INLINE void store(S* row) const {
    OCC_UNROLL for (int p = 0; p < kParts; ++p) memcpy(row + p * kLanes, &part[p], sizeof(Values));
  }
  OCC_INLINE void load_args(const int32_t* row) {
    OCC_UNROLL for (int p = 0; p < kParts; ++p) {
      Stored s;
      memcpy(&s, row + p * kLanes, sizeof(s));
      arg[p] = __builtin_convertvector(s, Indices);
    }
  }
  OCC_INLINE void store_args(int32_t* row) const {
    OCC_UNROLL for (int p = 0; p < kParts; ++p) {
      const Stored s = __builtin_convertvector(arg[p], Stored);
      memcpy(row + p * kLanes, &s, sizeof(s));
    }
  }
  OCC_INLINE void add(const S* row) { OCC_UNROLL for (int p = 0; p < kParts; ++p) part[p] += values(row, p); }
  OCC_INLINE void add(const Pack& other) { OCC_UNROLL for (int p = 0; p < kParts; ++p) part[p] += other.part[p]; }
  OCC_INLINE void add_scaled(const S* row, S factor) {
    OCC_UNROLL for (int p = 0; p < kParts; ++p) part[p] += values(row, p) * factor;
  }
  OCC_INLINE void divide(S divisor) { OCC_UNROLL for (int p = 0; p < kParts; ++p) part[p] /= Values{} + divisor; }
  OCC_INLINE void raise(const S* row) {
    OCC_UNROLL for (int p = 0; p < kParts; ++p) {
      // Each of the two is one instruction that returns its second operand next to a NaN; so one of them is the NaN if
      // there is one, and its bits win. Otherwise they are equal (or zeros, of which the negative one wins).
      const Values v = values(row, p);
      const Values a = v > part[p] ? v : part[p], b = part[p] > v ? part[p] : v;
      part[p] = (Values)((Indices)a | (Indices)b);
    }
  }
  OCC_INLINE void raise(const S* row, int32_t n) {
    const Indices number = Indices{} + Index{n};
    OCC_UNROLL for (int p = 0; p < kParts; ++p) {
      const Values v = values(row, p);
      const Indices take = (v > part[p]) | ((v != v) & (part[p] == part[p]));
      part[p] = take ? v : part[p];
      arg[p] = take ? number : arg[p];
    }
  }
  // Adds the values of `row` in the channels where args[channel] == n.
  OCC_INLINE void add_chosen(const S* row, const int32_t* args, int32_t n) {
    load_args(args);
    const Indices number = Indices{} + Index{n};
    OCC_UNROLL for (int p = 0; p < kParts; ++p) part[p] += (arg[p] == number) ? values(row, p) : Values{};
  }
};

#else

template <class S, int W>
struct Pack {
  S part[W];
  int32_t arg[W];  // left alone by the functions without `n`

  OCC_INLINE void clear() {
    for (int j = 0; j < W; ++j) part[j] = S(0);
  }
  OCC_INLINE void load(const S* row) {
    for (int j = 0; j < W; ++j) part[j] = row[j];
  }
  OCC_INLINE void load(const S* row, int32_t n) {
    load(row);
    for (int j = 0; j < W; ++j) arg[j] = n;
  }
  OCC_INLINE void store(S* row) const {
    for (int j = 0; j < W; ++j) row[j] = part[j];
  }
  OCC_INLINE void load_args(const int32_t* row) {
    for (int j = 0; j < W; ++j) arg[j] = row[j];
  }
  OCC_INLINE void store_args(int32_t* row) const {
    for (int j = 0; j < W; ++j) row[j] = arg[j];
  }
  OCC_INLINE void add(const S* row) {
    for (int j = 0; j < W; ++j) part[j] += row[j];
  }
  OCC_INLINE void add(const Pack& other) {
    for (int j = 0; j < W; ++j) part[j] += other.part[j];
  }
  OCC_INLINE void add_scaled(const S* row, S factor) {
    for (int j = 0; j < W; ++j) part[j] += row[j] * factor;
  }
  OCC_INLINE void divide(S divisor) {
    for (int j = 0; j < W; ++j) part[j] /= divisor;
  }
  OCC_INLINE void raise(const S* row) {
    for (int j = 0; j < W; ++j) part[j] = (row[j] > part[j]) | (row[j] != row[j]) ? row[j] : part[j];
  }
  OCC_INLINE void raise(const S* row, int32_t n) {
    for (int j = 0; j < W; ++j) {
      const bool take = (row[j] > part[j]) | ((row[j] != row[j]) & (part[j] == part[j]));
      part[j] = take ? row[j] : part[j];
      arg[j] = take ? n : arg[j];
    }
  }
  // Adds the values of `row` in the channels where args[channel] == n.
  OCC_INLINE void add_chosen(const S* row, const int32_t* args, int32_t n) {
    for (int j = 0; j < W; ++j) part[j] += args[j] == n ? row[j] : S(0);
  }
};

#endif

template <int W>
struct Width {
  static constexpr int value = W;
};

// Calls fn(first channel, Width<W>{}) for consecutive runs of W channels that cover [begin, end), widest first.
template <int kWidest, class F>
OCC_INLINE void for_channels(int64_t begin, int64_t end, F&& fn) {
  int64_t c = begin;
  if constexpr (kWidest >= 32) {
    for (; c + 32 <= end; c += 32) fn(c, Width<32>{});
  }
  for (; c + 16 <= end; c += 16) fn(c, Width<16>{});
  for (; c + 4 <= end; c += 4) fn(c, Width<4>{});
  for (; c < end; ++c) fn(c, Width<1>{});
}

OCC_END_SHARED
}  // namespace occ
