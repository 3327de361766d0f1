// SPDX-License-Identifier: MIT
// Vendor attributes behind macros; OCC_HD marks functions shared by the CPU and the CUDA code.
#pragma once

#if defined(__CUDACC__)
#define OCC_HD __host__ __device__
#else
#define OCC_HD
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#define OCC_INLINE __forceinline
#define OCC_RESTRICT __restrict
#else
#define OCC_INLINE inline __attribute__((always_inline))
#define OCC_RESTRICT __restrict__
#endif

// Sources named *.isa.cpp are compiled once per instruction set. Everything they include from csrc/common and csrc/math
// lives in an inline namespace of that set, so that the linker can never merge an AVX-512 copy of an inline function
// into code that must run on any machine.
#if defined(OCC_ISA)
#define OCC_BEGIN_SHARED inline namespace OCC_ISA {
#else
#define OCC_BEGIN_SHARED inline namespace isa_any {
#endif
#define OCC_END_SHARED }
