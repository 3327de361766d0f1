// SPDX-License-Identifier: MIT
// Prefix sums over all of the device's memory: tiles are summed, the sums scanned by one block, and the tiles scanned
// with their starts. Integers only, so the result does not depend on how blocks are scheduled.
#pragma once

#include <cstdint>

#include "common/cuda_launch.h"

namespace occ::cuda {

constexpr int kScanThreads = 256;
constexpr int kScanEach = 8;  // neighbours added by one thread
constexpr int64_t kScanTile = kScanThreads * kScanEach;

// Sum of the threads before this one in the block; `total` gets the sum of all. `totals`: kScanThreads / kWarp shared
// values. Every thread of the block calls it.
OCC_DEVICE int64_t block_exclusive_sum(int64_t value, int64_t* totals, int64_t& total) {
  const int64_t inclusive = warp_inclusive_sum(value);
  if (lane_id() == kWarp - 1) totals[threadIdx.x / kWarp] = inclusive;
  __syncthreads();
  int64_t before = 0;
  total = 0;
  for (int w = 0; w < kScanThreads / kWarp; ++w) {
    if (w < static_cast<int>(threadIdx.x) / kWarp) before += totals[w];
    total += totals[w];
  }
  __syncthreads();
  return before + inclusive - value;
}

// Scans run on two arrays of the same length at once (blockIdx.y): vertices and triangles.
struct ScanPair {
  int64_t* values[2];  // count + 1 each
  int64_t* sums[2];    // count / kScanTile + 1 each
  int64_t count;
};

OCC_KERNEL inline void __launch_bounds__(kScanThreads) scan_sum_tiles_kernel(ScanPair scan) {
  OCC_SHARED(int64_t, totals, kScanThreads / kWarp);
  const int64_t* values = scan.values[blockIdx.y];
  const int64_t begin = blockIdx.x * kScanTile;
  int64_t sum = 0;
  for (int i = 0; i < kScanEach; ++i) {
    const int64_t at = begin + i * kScanThreads + threadIdx.x;
    if (at < scan.count) sum += values[at];
  }
  int64_t total;
  block_exclusive_sum(sum, totals, total);
  if (threadIdx.x == 0) scan.sums[blockIdx.y][blockIdx.x] = total;
}

OCC_KERNEL inline void __launch_bounds__(kScanThreads) scan_sums_kernel(ScanPair scan) {
  OCC_SHARED(int64_t, totals, kScanThreads / kWarp);
  int64_t* sums = scan.sums[blockIdx.y];
  const int64_t tiles = scan.count / kScanTile + 1;
  int64_t before = 0;
  for (int64_t begin = 0; begin < tiles; begin += kScanThreads) {
    const int64_t at = begin + threadIdx.x;
    int64_t total;
    const int64_t start = block_exclusive_sum(at < tiles ? sums[at] : 0, totals, total);
    if (at < tiles) sums[at] = before + start;
    before += total;
  }
}

OCC_KERNEL inline void __launch_bounds__(kScanThreads) scan_tiles_kernel(ScanPair scan) {
  OCC_SHARED(int64_t, totals, kScanThreads / kWarp);
  int64_t* values = scan.values[blockIdx.y];
  const int64_t first = blockIdx.x * kScanTile + threadIdx.x * kScanEach;
  int64_t own[kScanEach], sum = 0;
  for (int i = 0; i < kScanEach; ++i) {
    own[i] = first + i < scan.count ? values[first + i] : 0;
    sum += own[i];
  }
  int64_t total;
  int64_t running = scan.sums[blockIdx.y][blockIdx.x] + block_exclusive_sum(sum, totals, total);
  for (int i = 0; i < kScanEach; ++i) {
    if (first + i <= scan.count) values[first + i] = running;  // the last one is the total
    running += own[i];
  }
}

// Counts become starts; values[count] of both gets the total. `scratch` holds 2 * (count / kScanTile + 1) numbers.
inline void exclusive_scan(int64_t* first, int64_t* second, int64_t* scratch, int64_t count, Stream stream) {
  const int64_t tiles = count / kScanTile + 1;  // values[count] included
  const ScanPair scan{{first, second}, {scratch, scratch + tiles}, count};
  const dim3 grid(static_cast<unsigned>(tiles), 2);
  OCC_LAUNCH(scan_sum_tiles_kernel, grid, kScanThreads, 0, stream, scan);
  OCC_LAUNCH(scan_sums_kernel, dim3(1, 2), kScanThreads, 0, stream, scan);
  OCC_LAUNCH(scan_tiles_kernel, grid, kScanThreads, 0, stream, scan);
}

}  // namespace occ::cuda
