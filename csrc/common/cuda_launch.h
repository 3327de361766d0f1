// SPDX-License-Identifier: MIT
// What every .cu source is written with: one way to launch a kernel, shared arrays, and thin wrappers around warp
// instructions. The same sources compile as plain C++ with OCC_CUDA_HOST defined, against the shim of tests/cuda_host.
// So: launch through OCC_LAUNCH only, declare shared memory with OCC_SHARED or OCC_DYNAMIC_SHARED only, and reach warp
// instructions through the functions below. threadIdx, blockIdx, blockDim, gridDim, __syncthreads(), integer atomicAdd,
// atomicMax, ... are written as usual.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "common/macros.h"

#define OCC_KERNEL __global__
#define OCC_DEVICE __device__ __forceinline__

// Array of `count` (a constant) elements shared by the block, 16-byte aligned, uninitialised. A type with a comma needs
// an alias. OCC_DYNAMIC_SHARED names the memory whose size in bytes is OCC_LAUNCH's fourth argument.
#if defined(OCC_CUDA_HOST)
#define OCC_SHARED(type, name, count)   \
  static constinit char name##_key = 0; \
  type* const name = static_cast<type*>(::cuda_host::shared_array(&name##_key, sizeof(type) * (count)))
#define OCC_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::cuda_host::dynamic_shared())
#else
#define OCC_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define OCC_DYNAMIC_SHARED(type, name)                          \
  extern __shared__ __align__(16) unsigned char occ_dynamic_[]; \
  type* const name = reinterpret_cast<type*>(occ_dynamic_)
#endif

// Grid-stride loop: `for` header over int64 i in [0, count), one item a thread.
#define OCC_GRID_STRIDE(i, count)                                               \
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, \
               occ_stride_##i = static_cast<int64_t>(gridDim.x) * blockDim.x;   \
       i < (count); i += occ_stride_##i)

// OCC_LAUNCH(kernel, grid, block, shared_bytes, stream, args...). `kernel` with a comma in its template arguments goes
// in parentheses: OCC_LAUNCH((scan<T, 4>), ...). An empty grid launches nothing. Throws std::runtime_error naming the
// kernel.
#define OCC_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::occ::cuda::launch(#kernel, kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

namespace occ::cuda {

constexpr int kWarp = 32;
constexpr uint32_t kFullWarp = 0xffffffffu;

// The current stream as Python passes it: an address.
struct Stream {
  cudaStream_t handle;
  Stream(uintptr_t value) : handle(reinterpret_cast<cudaStream_t>(value)) {}
  Stream(void* value) : handle(static_cast<cudaStream_t>(value)) {}
};

// Number of blocks of `block` threads for `count` items, at most `most` (the kernel then strides), at least 0.
inline unsigned grid_for(int64_t count, int block, int64_t most = 0x7fffffff) {
  const int64_t blocks = count > 0 ? (count + block - 1) / block : 0;
  return static_cast<unsigned>(blocks < most ? blocks : most);
}

// Throws std::runtime_error with `what` and CUDA's own words when `error` is one.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::string message = std::string("occkernels: CUDA error in ") + what + ": " + cudaGetErrorName(error) + ", " +
                        cudaGetErrorString(error) + ".";
  if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice) {
    message += " This machine has no CUDA device or no driver for it; use CPU tensors.";
  } else if (error == cudaErrorNoKernelImageForDevice) {
    message +=
        " This build has no code for this device; rebuild with CMAKE_CUDA_ARCHITECTURES set to its architecture.";
  }
  throw std::runtime_error(message);
}

template <class... P>
void launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
            std::type_identity_t<P>... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#if defined(OCC_CUDA_HOST)
  (void)stream;
  ::cuda_host::launch(name, grid, block, shared_bytes, [&] { kernel(arguments...); });
#else
  const void* address = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 48 * 1024) {
    const int bytes = static_cast<int>(shared_bytes);
    check(cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), name);
  }
  void* pointers[] = {static_cast<void*>(&arguments)..., nullptr};
  check(cudaLaunchKernel(address, grid, block, pointers, shared_bytes, stream.handle), name);
  check(cudaGetLastError(), name);
#endif
}

// Warp functions. Every lane of `mask` that has not left the kernel must call them together.
OCC_DEVICE int lane_id() { return static_cast<int>(threadIdx.x % kWarp); }  // blocks are a multiple of 32 wide
OCC_DEVICE uint32_t lanes_below() { return (1u << lane_id()) - 1u; }
template <class T>
OCC_DEVICE T shuffle(T value, int lane, uint32_t mask = kFullWarp) {
  return __shfl_sync(mask, value, lane);
}
template <class T>
OCC_DEVICE T shuffle_up(T value, int distance, uint32_t mask = kFullWarp) {
  return __shfl_up_sync(mask, value, static_cast<unsigned>(distance));
}
template <class T>
OCC_DEVICE T shuffle_down(T value, int distance, uint32_t mask = kFullWarp) {
  return __shfl_down_sync(mask, value, static_cast<unsigned>(distance));
}
template <class T>
OCC_DEVICE T shuffle_xor(T value, int lanes, uint32_t mask = kFullWarp) {
  return __shfl_xor_sync(mask, value, lanes);
}
OCC_DEVICE uint32_t ballot(bool predicate, uint32_t mask = kFullWarp) { return __ballot_sync(mask, predicate); }
OCC_DEVICE uint32_t match_any(uint32_t value, uint32_t mask = kFullWarp) { return __match_any_sync(mask, value); }
OCC_DEVICE void sync_warp(uint32_t mask = kFullWarp) { __syncwarp(mask); }
OCC_DEVICE int popc(uint32_t bits) { return __popc(bits); }
OCC_DEVICE int leading_zeros(uint32_t bits) { return __clz(static_cast<int>(bits)); }
OCC_DEVICE int lowest_bit(uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }  // -1 for 0

// Sum over the warp in a fixed tree order; every lane gets it.
template <class T>
OCC_DEVICE T warp_sum(T value) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += shuffle_xor(value, lanes);
  return value;
}

// Sum of the lanes up to and including this one.
template <class T>
OCC_DEVICE T warp_inclusive_sum(T value) {
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T other = shuffle_up(value, distance);
    if (lane_id() >= distance) value += other;
  }
  return value;
}

}  // namespace occ::cuda
