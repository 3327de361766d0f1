// SPDX-License-Identifier: MIT
// Which instruction set the *.isa.cpp sources run with. Chosen once from the processor; OCC_SIMD=base|avx2|avx512 in
// the environment lowers it (never raises it), which tests use to run every version.
#pragma once

namespace occ {

enum class Isa : int { kBase = 0, kAvx2 = 1, kAvx512 = 2 };

Isa active_isa();
const char* isa_name(Isa isa);

// Products of bf16 pairs, for the few sources that have a version with them. kPortable does the same arithmetic with
// ordinary instructions, slower than float32: only OCC_BF16=portable in the environment, for tests, chooses it.
// OCC_BF16=none, or any OCC_SIMD, leaves bf16 out.
enum class Bf16 : int { kNone = 0, kPortable = 1, kAvx512 = 2 };

Bf16 active_bf16();
const char* bf16_name(Bf16 bf16);

}  // namespace occ

// Calls occ::cpu::<isa>::function(args...). The three versions are declared with OCC_DECLARE_ISA.
#if defined(OCC_HAVE_X86_ISAS)
#define OCC_DECLARE_ISA(signature) \
  namespace isa_base {             \
  signature;                       \
  }                                \
  namespace isa_avx2 {             \
  signature;                       \
  }                                \
  namespace isa_avx512 {           \
  signature;                       \
  }
#define OCC_CALL_ISA(function, ...)                    \
  do {                                                 \
    switch (::occ::active_isa()) {                     \
      case ::occ::Isa::kAvx512:                        \
        ::occ::cpu::isa_avx512::function(__VA_ARGS__); \
        break;                                         \
      case ::occ::Isa::kAvx2:                          \
        ::occ::cpu::isa_avx2::function(__VA_ARGS__);   \
        break;                                         \
      default:                                         \
        ::occ::cpu::isa_base::function(__VA_ARGS__);   \
        break;                                         \
    }                                                  \
  } while (false)
#else
#define OCC_DECLARE_ISA(signature) \
  namespace isa_base {             \
  signature;                       \
  }
#define OCC_CALL_ISA(function, ...) ::occ::cpu::isa_base::function(__VA_ARGS__)
#endif

// The same for the versions with bf16 products; OCC_CALL_BF16 falls back to OCC_CALL_ISA where there are none.
#if defined(OCC_HAVE_AVX512_BF16)
#define OCC_CALL_AVX512_BF16(function, ...) ::occ::cpu::isa_avx512bf16::function(__VA_ARGS__)
#else
#define OCC_CALL_AVX512_BF16(function, ...) OCC_CALL_ISA(function, __VA_ARGS__)
#endif
#define OCC_DECLARE_BF16(signature) \
  namespace isa_portablebf16 {      \
  signature;                        \
  }                                 \
  namespace isa_avx512bf16 {        \
  signature;                        \
  }
#define OCC_CALL_BF16(function, ...)                         \
  do {                                                       \
    switch (::occ::active_bf16()) {                          \
      case ::occ::Bf16::kAvx512:                             \
        OCC_CALL_AVX512_BF16(function, __VA_ARGS__);         \
        break;                                               \
      case ::occ::Bf16::kPortable:                           \
        ::occ::cpu::isa_portablebf16::function(__VA_ARGS__); \
        break;                                               \
      default:                                               \
        OCC_CALL_ISA(function, __VA_ARGS__);                 \
        break;                                               \
    }                                                        \
  } while (false)
