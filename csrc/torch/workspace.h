// Scratch memory of the calling thread. Kernels do not allocate: they write into this, which only
// grows and is kept from call to call.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace lpd::binding {

// At least `bytes` bytes on a cache line of their own, valid until the thread asks again.
inline std::byte* workspace(size_t bytes) {
  constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete(memory, kAlignment); }
  };
  thread_local std::unique_ptr<std::byte, Free> memory;
  thread_local size_t capacity = 0;
  if (bytes > capacity) {
    capacity = 0;
    memory.reset();  // before the new one, so that never both are held
    memory.reset(static_cast<std::byte*>(::operator new(bytes, kAlignment)));
    capacity = bytes;
  }
  return memory.get();
}

}  // namespace lpd::binding
