// SPDX-License-Identifier: MIT
#include "scheduler.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"

namespace cuda_host {
namespace {

constexpr int kLanes = 32;
enum class Status { kUnstarted, kRunning, kBarrier, kWarp, kDone };

struct Thread {
  Status status = Status::kUnstarted;
  Fiber* fiber = nullptr;
  const char* file = nullptr;  // of the barrier it waits at
  int line = 0;
  WarpOp op = WarpOp::kSync;
  unsigned mask = 0;
  uint64_t value = 0, result = 0;
  int parameter = 0, width = kLanes;
};

struct SharedArray {
  const void* key;
  std::unique_ptr<void, decltype(&std::free)> memory;
};

// All state of the launch that runs; launches are serialised by `mutex`.
struct Machine {
  std::mutex mutex;
  int64_t launches = 0;
  const char* name = "";
  const std::function<void()>* body = nullptr;
  size_t shared_bytes = 0;
  std::vector<Thread> threads;
  int started = 0, done = 0, at_barrier = 0;
  bool reversed = false;
  Fiber* running = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> idle;
  std::deque<int> ready;
  std::vector<SharedArray> arrays;
  std::string failure;
} machine;

int current() { return machine.running->thread; }

std::string place(int thread) {
  return "kernel " + std::string(machine.name) + ", block (" + std::to_string(blockIdx.x) + ", " +
         std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + "), thread " + std::to_string(thread);
}

void make_current(Fiber* fiber, int thread) {
  fiber->thread = thread;
  const unsigned t = static_cast<unsigned>(thread);
  threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
}

// Leaves the running fiber until the scheduler resumes its thread.
void wait_for_others() {
  Fiber* fiber = machine.running;
  fiber->leave();
  make_current(fiber, fiber->thread);
}

void wake(int thread) {
  machine.threads[thread].status = Status::kRunning;
  if (thread != current()) machine.ready.push_back(thread);
}

// Lets everybody pass when all threads that have not ended wait at the barrier.
bool try_barrier() {
  const int alive = static_cast<int>(machine.threads.size()) - machine.done;
  if (alive == 0 || machine.at_barrier < alive) return false;
  const Thread* first = nullptr;
  for (int t = 0; t < static_cast<int>(machine.threads.size()); ++t) {
    const Thread& thread = machine.threads[t];
    if (thread.status != Status::kBarrier) continue;
    if (first == nullptr) first = &thread;
    if (thread.line != first->line || std::strcmp(thread.file, first->file) != 0) {
      throw std::runtime_error(place(t) + ": divergent barrier: it waits in __syncthreads() of line " +
                               std::to_string(thread.line) + " while others wait in that of line " +
                               std::to_string(first->line));
    }
  }
  machine.at_barrier = 0;
  for (int t = 0; t < static_cast<int>(machine.threads.size()); ++t) {
    if (machine.threads[t].status == Status::kBarrier) wake(t);
  }
  return true;
}

int source_lane(const Thread& thread, int lane) {
  const int first = lane / thread.width * thread.width;
  const int last = first + thread.width - 1;
  int source = lane;
  switch (thread.op) {
    case WarpOp::kShuffle:
      return first + (thread.parameter & (thread.width - 1));
    case WarpOp::kShuffleUp:
      source = lane - thread.parameter;
      break;
    case WarpOp::kShuffleDown:
      source = lane + thread.parameter;
      break;
    default:
      source = lane ^ thread.parameter;
      break;
  }
  return source >= first && source <= last ? source : lane;
}

uint64_t warp_result(const Thread* lanes, int lane, unsigned present) {
  const Thread& own = lanes[lane];
  uint64_t result = 0;
  switch (own.op) {
    case WarpOp::kSync:
      return 0;
    case WarpOp::kBallot:
    case WarpOp::kMatchAny:
      for (int other = 0; other < kLanes; ++other) {
        if ((present >> other & 1u) == 0) continue;
        const bool set = own.op == WarpOp::kBallot ? lanes[other].value != 0 : lanes[other].value == own.value;
        result |= static_cast<uint64_t>(set) << other;
      }
      return result;
    default: {
      const int source = source_lane(own, lane);
      // Reading a lane that does not take part is undefined on a device.
      return (present >> source & 1u) != 0 ? lanes[source].value : 0xcdcdcdcdcdcdcdcdull;
    }
  }
}

// Completes the warp operation that `mask`'s lanes wait in when none is missing.
void try_warp(int any_thread, unsigned mask) {
  const int base = any_thread / kLanes * kLanes;
  const int count = std::min(kLanes, static_cast<int>(machine.threads.size()) - base);
  Thread* lanes = &machine.threads[base];
  unsigned present = 0;
  int first = -1;
  for (int lane = 0; lane < count; ++lane) {
    if ((mask >> lane & 1u) == 0 || lanes[lane].status == Status::kDone) continue;
    if (lanes[lane].status != Status::kWarp || lanes[lane].mask != mask) return;
    if (first < 0) first = lane;
    if (lanes[lane].op != lanes[first].op) {
      throw std::runtime_error(place(base + lane) + ": lanes of one warp wait in different warp operations");
    }
    present |= 1u << lane;
  }
  if (present == 0) return;
  for (int lane = 0; lane < count; ++lane) {
    if (present >> lane & 1u) lanes[lane].result = warp_result(lanes, lane, present);
  }
  for (int lane = 0; lane < count; ++lane) {
    if (present >> lane & 1u) wake(base + lane);
  }
}

// A thread that ends may be the one the others were waiting for.
void finish(int thread) {
  machine.threads[thread].status = Status::kDone;
  ++machine.done;
  const int base = thread / kLanes * kLanes;
  const int end = std::min(base + kLanes, static_cast<int>(machine.threads.size()));
  for (int t = base; t < end; ++t) {
    if (machine.threads[t].status == Status::kWarp) try_warp(t, machine.threads[t].mask);
  }
  try_barrier();
}

void run_threads(Fiber* fiber) {
  const int count = static_cast<int>(machine.threads.size());
  while (machine.started < count && machine.failure.empty()) {
    const int number = machine.started++;
    const int thread = machine.reversed ? count - 1 - number : number;
    machine.threads[thread].status = Status::kRunning;
    machine.threads[thread].fiber = fiber;
    make_current(fiber, thread);
    (*machine.body)();
    finish(fiber->thread);
    if (!machine.ready.empty()) return;  // waiting threads first: fewer fibers in use
  }
}

void fiber_main() {
  Fiber* fiber = machine.running;
  fiber->arrived();
  for (;;) {
    try {
      run_threads(fiber);
    } catch (const std::exception& error) {
      machine.failure = error.what();
    }
    machine.idle.push_back(fiber);
    fiber->leave();
  }
}

Fiber* free_fiber() {
  if (machine.idle.empty()) {
    machine.fibers.push_back(std::make_unique<Fiber>(&fiber_main));
    return machine.fibers.back().get();
  }
  Fiber* fiber = machine.idle.back();
  machine.idle.pop_back();
  return fiber;
}

// Every thread has ended or waits, and nobody can go on: names one that waits of either kind.
std::string describe_deadlock() {
  std::string text = "divergent barrier";
  for (const Status status : {Status::kBarrier, Status::kWarp}) {
    for (int t = 0; t < static_cast<int>(machine.threads.size()); ++t) {
      const Thread& thread = machine.threads[t];
      if (thread.status != status) continue;
      text += ": " + place(t) + " waits in " +
              (status == Status::kBarrier ? "__syncthreads() of line " + std::to_string(thread.line)
                                          : "a warp operation with mask " + std::to_string(thread.mask));
      break;
    }
  }
  return text + ", and the threads it waits for never come";
}

void run_block(int count) {
  machine.threads.assign(static_cast<size_t>(count), Thread{});
  machine.started = machine.done = machine.at_barrier = 0;
  while (machine.done < count && machine.failure.empty()) {
    Fiber* fiber = nullptr;
    if (!machine.ready.empty()) {
      fiber = machine.threads[machine.ready.front()].fiber;
      machine.ready.pop_front();
    } else if (machine.started < count) {
      fiber = free_fiber();
    } else {
      machine.failure = describe_deadlock();
      return;
    }
    machine.running = fiber;
    fiber->enter();
  }
}

}  // namespace

void launch(const char* name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  const int64_t threads = static_cast<int64_t>(block.x) * block.y * block.z;
  if (threads < 1 || threads > 1024 || grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffffu ||
      shared_bytes > 227 * 1024) {
    throw std::runtime_error(std::string("kernel ") + name + ": invalid launch configuration");
  }
  const std::lock_guard<std::mutex> guard(machine.mutex);
  ++machine.launches;
  machine.name = name;
  machine.body = &thread;
  machine.shared_bytes = shared_bytes;
  gridDim = grid;
  blockDim = block;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        machine.reversed = (machine.launches + x + y + z) % 2 == 1;
        run_block(static_cast<int>(threads));
        machine.arrays.clear();
        if (!machine.failure.empty()) {
          // The fibers that still wait are given up with their stacks.
          const std::string failure = std::exchange(machine.failure, {});
          machine.ready.clear();
          machine.idle.clear();
          machine.fibers.clear();
          throw std::runtime_error("occkernels cuda_host: " + failure);
        }
      }
    }
  }
}

int64_t launch_count() { return machine.launches; }

void barrier(const char* file, int line) {
  Thread& thread = machine.threads[current()];
  thread.status = Status::kBarrier;
  thread.file = file;
  thread.line = line;
  ++machine.at_barrier;
  if (!try_barrier()) wait_for_others();
}

uint64_t warp(WarpOp op, unsigned mask, uint64_t value, int parameter, int width) {
  const int number = current();
  Thread& thread = machine.threads[number];
  if ((mask >> (number % kLanes) & 1u) == 0) {
    throw std::runtime_error(place(number) + ": the mask of a warp operation leaves out the calling lane");
  }
  thread.op = op;
  thread.mask = mask;
  thread.value = value;
  thread.parameter = parameter;
  thread.width = width;
  thread.status = Status::kWarp;
  try_warp(number, mask);
  if (thread.status == Status::kWarp) wait_for_others();
  return thread.result;
}

unsigned active_mask() {
  const int base = current() / kLanes * kLanes;
  unsigned mask = 0;
  for (int t = base; t < std::min(base + kLanes, static_cast<int>(machine.threads.size())); ++t) {
    if (machine.threads[t].status != Status::kDone) mask |= 1u << (t - base);
  }
  return mask;
}

void* shared_array(const void* key, size_t bytes) {
  for (const SharedArray& array : machine.arrays) {
    if (array.key == key) return array.memory.get();
  }
  machine.arrays.push_back({key, {std::malloc(bytes), &std::free}});
  std::memset(machine.arrays.back().memory.get(), 0xcd, bytes);
  return machine.arrays.back().memory.get();
}

void* dynamic_shared() {
  static const char key = 0;
  return shared_array(&key, machine.shared_bytes);
}

}  // namespace cuda_host
