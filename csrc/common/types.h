// SPDX-License-Identifier: MIT
// Element types and their dispatch. Storage may be half precision; arithmetic is float (double for double).
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "common/macros.h"
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace occ {
OCC_BEGIN_SHARED

// Codes used by the Python layer (occkernels/_native.py).
enum DType : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

template <class To, class From>
OCC_HD OCC_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// IEEE binary16, round to nearest even. Two plain shifts and an fp add handle subnormals without a table.
struct half_t {
  uint16_t bits;
  half_t() = default;
  OCC_HD explicit half_t(float value) {
#if defined(__CUDA_ARCH__)
    bits = __half_as_ushort(__float2half_rn(value));
#else
    const uint32_t raw = bit_cast<uint32_t>(value);
    const uint32_t sign = (raw >> 16) & 0x8000u;
    const uint32_t magnitude = raw & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
      bits = static_cast<uint16_t>(sign | 0x7e00u);  // NaN
    } else if (magnitude >= 0x477ff000u) {
      bits = static_cast<uint16_t>(sign | 0x7c00u);  // rounds beyond 65504
    } else if (magnitude < 0x38800000u) {
      // Subnormal: adding 0.5 aligns the mantissa so that the hardware does the rounding.
      const float aligned = bit_cast<float>(magnitude) + 0.5f;
      bits = static_cast<uint16_t>(sign | (bit_cast<uint32_t>(aligned) - 0x3f000000u));
    } else {
      const uint32_t odd = (magnitude >> 13) & 1u;
      bits = static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
    }
#endif
  }
  OCC_HD operator float() const {
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(bits));
#else
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t exponent = (bits >> 10) & 0x1fu;
    const uint32_t mantissa = bits & 0x3ffu;
    if (exponent == 0) {
      const float value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
      return sign ? -value : value;
    }
    const uint32_t widened =
        exponent == 31 ? 0x7f800000u | (mantissa << 13) : ((exponent + 112u) << 23) | (mantissa << 13);
    return bit_cast<float>(sign | widened);
#endif
  }
};

// bfloat16, round to nearest even.
struct bf16_t {
  uint16_t bits;
  bf16_t() = default;
  OCC_HD explicit bf16_t(float value) {
    const uint32_t raw = bit_cast<uint32_t>(value);
    if ((raw & 0x7fffffffu) > 0x7f800000u) {
      bits = static_cast<uint16_t>((raw >> 16) | 0x40u);  // keep NaN a NaN
    } else {
      bits = static_cast<uint16_t>((raw + 0x7fffu + ((raw >> 16) & 1u)) >> 16);
    }
  }
  OCC_HD operator float() const { return bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

// Arithmetic type of a storage type.
template <class T>
struct acc {
  using type = float;
};
template <>
struct acc<double> {
  using type = double;
};
template <class T>
using acc_t = typename acc<T>::type;

template <class T>
struct tag {
  using type = T;
};

// Calls fn(tag<T>{}) for the element type behind a code.
template <class F>
void dispatch(int dtype, F&& fn) {
  switch (dtype) {
    case kFloat32:
      fn(tag<float>{});
      return;
    case kFloat64:
      fn(tag<double>{});
      return;
    case kFloat16:
      fn(tag<half_t>{});
      return;
    case kBFloat16:
      fn(tag<bf16_t>{});
      return;
    default:
      throw std::invalid_argument("occkernels: unknown dtype code " + std::to_string(dtype));
  }
}

OCC_END_SHARED
}  // namespace occ
