// SPDX-License-Identifier: MIT
// A fiber: a stack of its own and a switch to and from the scheduler, announced to AddressSanitizer.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_host {

constexpr size_t kStackBytes = 256 * 1024;  // reserved, committed by use

#if defined(__x86_64__)
// Saves the callee-saved registers on the current stack and its pointer in *from, and goes on at `to`. Unlike
// swapcontext it makes no system call, which is what makes shuffles affordable.
extern "C" void cuda_host_switch(void** from, void* to);
#endif

class Fiber {
 public:
  explicit Fiber(void (*entry)());
  Fiber(const Fiber&) = delete;
  ~Fiber() { munmap(stack_, kStackBytes); }

  // From the scheduler into the fiber; returns when it leaves.
  void enter();
  // From the fiber back to the scheduler.
  void leave();
  // First statement of `entry`.
  void arrived();

  int thread = -1;  // the kernel thread it runs

 private:
  void* stack_;
#if defined(__x86_64__)
  void* own_ = nullptr;
  void* scheduler_ = nullptr;
#else
  ucontext_t own_{}, scheduler_{};
#endif
  void* fake_ = nullptr;
  void* scheduler_fake_ = nullptr;
  const void* scheduler_bottom_ = nullptr;
  size_t scheduler_bytes_ = 0;
};

}  // namespace cuda_host
