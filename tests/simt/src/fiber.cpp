#include "fiber.h"

#include <sys/mman.h>

#include <new>

asm(R"(
.text
.globl simt_switch_fiber
.hidden simt_switch_fiber
.type simt_switch_fiber,@function
simt_switch_fiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_fiber,.-simt_switch_fiber
)");

namespace simt::runtime {
namespace {

constexpr int kSavedRegisters = 6;

}  // namespace

void FiberStacks::reserve(size_t count, size_t bytes) {
  const size_t stride = (bytes + kHostPage - 1) / kHostPage * kHostPage + kHostPage;
  if (stride == stride_ && count * stride <= all_.bytes) return;
  if (all_.bytes > 0) munmap(reinterpret_cast<void*>(all_.begin), all_.bytes);
  all_ = {};
  void* memory = mmap(nullptr, count * stride, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  for (size_t i = 0; i < count; ++i) {
    mprotect(static_cast<char*>(memory) + i * stride, kHostPage, PROT_NONE);
  }
  all_ = {reinterpret_cast<uintptr_t>(memory), count * stride};
  stride_ = stride;
}

Span FiberStacks::stack(size_t index) const {
  return {all_.begin + index * stride_ + kHostPage, stride_ - kHostPage};
}

void* new_fiber(Span stack, void (*entry)()) {
  // Tops a multiple of 4096 apart would meet in the same few sets of the cache.
  const size_t stagger = stack.begin / kHostPage * 5 % 16 * 64;
  void** top = reinterpret_cast<void**>(stack.end() - stagger);
  *--top = nullptr;  // no caller: where a walk up the stack ends, and what aligns it for a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  return top;
}

}  // namespace simt::runtime
