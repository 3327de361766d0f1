// SPDX-License-Identifier: MIT
// Runs a kernel launch on the host: blocks one after another, a block's threads as fibers. A thread is started directly
// on whatever fiber is free and keeps running until it waits for others, so kernels that never synchronise cost no
// switch. Every second block starts its threads in reverse order: results that depend on the order differ from the
// CPU's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

struct dim3;

namespace cuda_host {

enum class WarpOp { kShuffle, kShuffleUp, kShuffleDown, kShuffleXor, kBallot, kMatchAny, kSync };

// Throws std::runtime_error when the threads can never all pass a barrier or a warp operation, or wait at different
// ones.
void launch(const char* name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);
int64_t launch_count();

// What kernels call. Arrays are allocated for every block anew, exactly sized and filled with 0xcd.
void barrier(const char* file, int line);
uint64_t warp(WarpOp op, unsigned mask, uint64_t value, int parameter, int width);
unsigned active_mask();
void* shared_array(const void* key, size_t bytes);
void* dynamic_shared();

}  // namespace cuda_host
