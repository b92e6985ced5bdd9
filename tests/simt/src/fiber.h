// Fibers: stacks of their own and a switch between them, on one thread of the host.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) || !defined(__linux__)
#error "simt: fiber.cpp holds a context switch for x86-64 Linux only; add one for this machine"
#endif

// Saves the registers that a function must keep, stores the stack pointer in *save and goes on
// where `load` was saved (or where a fiber begins).
extern "C" void simt_switch_fiber(void** save, void* load);

namespace simt::runtime {

inline constexpr size_t kHostPage = 4096;

// A range of addresses.
struct Span {
  uintptr_t begin = 0;
  size_t bytes = 0;

  bool holds(uintptr_t address) const { return address - begin < bytes; }
  bool holds(uintptr_t address, size_t n) const {
    return address - begin < bytes && bytes - (address - begin) >= n;
  }
  uintptr_t end() const { return begin + bytes; }
};

// Stacks, each above an inaccessible page: an overflow stops the program instead of spreading.
// Kept between launches; grown when a launch wants more.
class FiberStacks {
 public:
  void reserve(size_t count, size_t bytes);
  Span all() const { return all_; }
  Span stack(size_t index) const;

 private:
  Span all_;
  size_t stride_ = 0;
};

// What to switch to for `entry` to begin on an empty stack. It must never return.
void* new_fiber(Span stack, void (*entry)());

}  // namespace simt::runtime
