// SPDX-License-Identifier: MIT
// Which instruction set the *.isa.cpp sources run with. Chosen once from the processor; OCC_SIMD=base|avx2|avx512 in
// the environment lowers it (never raises it), which tests use to run every version.
#pragma once

namespace occ {

enum class Isa : int { kBase = 0, kAvx2 = 1, kAvx512 = 2 };

Isa active_isa();
const char* isa_name(Isa isa);

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
