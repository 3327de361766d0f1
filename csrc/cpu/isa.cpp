// SPDX-License-Identifier: MIT
#include "common/isa.h"

#include <cstdlib>
#include <cstring>

#if defined(OCC_HAVE_X86_ISAS) && defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#endif

namespace occ {
namespace {

Isa detect() {
#if defined(OCC_HAVE_X86_ISAS)
#if defined(_MSC_VER)
  int leaf1[4], leaf7[4];
  __cpuid(leaf1, 1);
  __cpuidex(leaf7, 7, 0);
  const bool os_saves = (leaf1[2] & (1 << 27)) != 0;
  const unsigned long long state = os_saves ? _xgetbv(0) : 0;
  const bool avx2 = (state & 6) == 6 && (leaf7[1] & (1 << 5)) && (leaf1[2] & (1 << 12)) && (leaf1[2] & (1 << 29));
  const int wanted = (1 << 16) | (1 << 17) | (1 << 30) | (1 << 31);  // F, DQ, BW, VL
  const bool avx512 = avx2 && (state & 0xe6) == 0xe6 && (leaf7[1] & wanted) == wanted;
#else
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  if (avx512) return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kBase;
}

// Whether the processor has AVX512_BF16, and this build code for it.
bool detect_bf16() {
#if defined(OCC_HAVE_AVX512_BF16)
  if (detect() != Isa::kAvx512) return false;
#if defined(_MSC_VER)
  int most[4], leaf7[4];
  __cpuidex(most, 7, 0);
  if (most[0] < 1) return false;
  __cpuidex(leaf7, 7, 1);
  return (leaf7[0] & (1 << 5)) != 0;
#else
  return __builtin_cpu_supports("avx512bf16") != 0;
#endif
#else
  return false;
#endif
}

Bf16 choose_bf16() {
  const char* wish = std::getenv("OCC_BF16");
  if (wish != nullptr && std::strcmp(wish, "portable") == 0) return Bf16::kPortable;
  if (wish != nullptr && std::strcmp(wish, "none") == 0) return Bf16::kNone;
  return std::getenv("OCC_SIMD") == nullptr && detect_bf16() ? Bf16::kAvx512 : Bf16::kNone;
}

Isa choose() {
  const Isa best = detect();
  const char* wish = std::getenv("OCC_SIMD");
  if (wish == nullptr) return best;
  Isa wished = best;
  if (std::strcmp(wish, "base") == 0) wished = Isa::kBase;
  if (std::strcmp(wish, "avx2") == 0) wished = Isa::kAvx2;
  return static_cast<int>(wished) < static_cast<int>(best) ? wished : best;
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

Bf16 active_bf16() {
  static const Bf16 bf16 = choose_bf16();
  return bf16;
}

const char* bf16_name(Bf16 bf16) {
  switch (bf16) {
    case Bf16::kAvx512:
      return "avx512_bf16";
    case Bf16::kPortable:
      return "portable";
    default:
      return "none";
  }
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "base";
  }
}

}  // namespace occ
