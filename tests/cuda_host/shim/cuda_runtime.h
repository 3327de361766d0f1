// SPDX-License-Identifier: MIT
// The part of CUDA's runtime and device library that csrc/cuda uses, for the host: the .cu sources compile against it
// as plain C++. Threads of a block run as fibers (scheduler.h); everything below that waits for other threads goes
// there.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "scheduler.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) cuda_host_vector;
template <class T>
struct alignas(sizeof(T) * 2) cuda_host_vector<T, 2> {
  T x, y;
};
template <class T>
struct alignas(sizeof(T) * 4) cuda_host_vector<T, 4> {
  T x, y, z, w;
};
using float2 = cuda_host_vector<float, 2>;
using float4 = cuda_host_vector<float, 4>;
using int2 = cuda_host_vector<int, 2>;
using int4 = cuda_host_vector<int, 4>;
using uint2 = cuda_host_vector<unsigned, 2>;
using uint4 = cuda_host_vector<unsigned, 4>;
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// The running thread's place; the scheduler sets them at every switch.
inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim, gridDim;

using cudaStream_t = struct cuda_host_stream*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorNoKernelImageForDevice = 209
};
inline const char* cudaGetErrorName(cudaError_t) { return "cudaError"; }
inline const char* cudaGetErrorString(cudaError_t) { return "error"; }
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_host::barrier(file, line);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T cuda_host_warp(cuda_host::WarpOp op, unsigned mask, T value, int parameter, int width = 32) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = cuda_host::warp(op, mask, bits, parameter, width);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return cuda_host_warp(cuda_host::WarpOp::kShuffle, mask, value, lane, width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  return cuda_host_warp(cuda_host::WarpOp::kShuffleUp, mask, value, static_cast<int>(distance), width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  return cuda_host_warp(cuda_host::WarpOp::kShuffleDown, mask, value, static_cast<int>(distance), width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return cuda_host_warp(cuda_host::WarpOp::kShuffleXor, mask, value, lanes, width);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(cuda_host::warp(cuda_host::WarpOp::kBallot, mask, predicate != 0, 0, 32));
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  return static_cast<unsigned>(
      cuda_host::warp(cuda_host::WarpOp::kMatchAny, mask, static_cast<uint64_t>(value), 0, 32));
}
inline void __syncwarp(unsigned mask = 0xffffffffu) { cuda_host::warp(cuda_host::WarpOp::kSync, mask, 0, 0, 32); }
inline unsigned __activemask() { return cuda_host::active_mask(); }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
template <class T>
T __ldg(const T* at) {
  return *at;
}

// One fiber runs at a time, so plain reads and writes are atomic. All return the old value.
template <class T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>, "floating-point atomics are not deterministic; use an owner-computes reduction");
  const T old = *at;
  *at = static_cast<T>(old + value);
  return old;
}
template <class T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  if (value > old) *at = value;
  return old;
}
template <class T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  if (value < old) *at = value;
  return old;
}
template <class T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at = old | value;
  return old;
}
template <class T>
T atomicAnd(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at = old & value;
  return old;
}
template <class T>
T atomicExch(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at = value;
  return old;
}
template <class T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  const T old = *at;
  if (old == expected) *at = value;
  return old;
}
