// Workspace of the CPU kernels: one buffer a thread. It grows to the largest size a call on that
// thread asked for, is kept for the next call (a loop of equal steps allocates nothing) and freed
// when the thread ends. What an earlier call left in it is garbage.
#pragma once

#include <cstddef>
#include <new>

namespace lpd::binding {

class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  ~Workspace() { release(); }

  std::byte* at_least(size_t bytes) {
    if (bytes > size_) {
      release();
      data_ = static_cast<std::byte*>(::operator new(bytes, kAlignment));
      size_ = bytes;
    }
    return data_;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};

  // Leaves a state that a failing allocation may follow.
  void release() {
    ::operator delete(data_, kAlignment);
    data_ = nullptr;
    size_ = 0;
  }

  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// This thread's buffer, 64-byte aligned, until its next call.
inline std::byte* workspace(size_t bytes) {
  static thread_local Workspace of_thread;
  return of_thread.at_least(bytes);
}

}  // namespace lpd::binding
