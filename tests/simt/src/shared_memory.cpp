#include "shared_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "schedule.h"

namespace simt::runtime {

SharedMemory shared_memory;

namespace {

constexpr size_t kGap = 256;  // between variables
constexpr size_t kMaxVariables = 64;
constexpr size_t kDynamicOffset = 1024;  // and alignment
constexpr size_t kWithoutOptIn = 48 << 10;

}  // namespace

void SharedMemory::reserve(size_t bytes) {
  const size_t size = kDynamicOffset + bytes + kMaxVariables * 2 * kGap;
  if (size <= arena_.bytes) return;
  if (arena_.bytes > 0) munmap(reinterpret_cast<void*>(arena_.begin), arena_.bytes);
  arena_ = {};
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  arena_ = {reinterpret_cast<uintptr_t>(memory), size};
  states_.assign(size, ByteState::kOutside);
  races_ = RaceTable(arena_, RaceTable::Scope::kBlock);
  used_ = 0;
}

void SharedMemory::start_block(size_t dynamic_bytes) {
  std::fill_n(states_.begin(), used_, ByteState::kOutside);
  used_ = kDynamicOffset + dynamic_bytes;
  bytes_in_variables_ = dynamic_bytes;
  variables_.clear();
  variables_.push_back({nullptr, kDynamicOffset, dynamic_bytes, "(dynamic)"});
  std::fill_n(states_.begin() + kDynamicOffset, dynamic_bytes, ByteState::kUninitialised);
}

void* SharedMemory::variable(const void* key, size_t bytes, size_t alignment, const char* name) {
  for (const Variable& v : variables_) {
    if (v.key == key) return reinterpret_cast<void*>(arena_.begin + v.offset);
  }
  alignment = std::max<size_t>(alignment, 16);
  bytes_in_variables_ += bytes;
  if (bytes_in_variables_ > config.max_shared || variables_.size() == kMaxVariables) {
    fail(format("too much shared memory: %zu bytes with %s", bytes_in_variables_, name));
  }
  if (bytes_in_variables_ > kWithoutOptIn && variables_[0].bytes <= kWithoutOptIn) {
    fail(
        format("%zu bytes of shared memory with %s, but a launch opts in to more than 48 KB only "
               "for dynamic memory of more than that",
               bytes_in_variables_, name));
  }
  const size_t offset = (used_ + kGap + alignment - 1) / alignment * alignment;
  if (offset + bytes + kGap > arena_.bytes) fail(format("too much shared memory with %s", name));
  variables_.push_back({key, offset, bytes, name});
  used_ = offset + bytes;
  std::fill_n(states_.begin() + static_cast<ptrdiff_t>(offset), bytes, ByteState::kUninitialised);
  return reinterpret_cast<void*>(arena_.begin + offset);
}

void* SharedMemory::dynamic() const {
  return reinterpret_cast<void*>(arena_.begin + kDynamicOffset);
}

void SharedMemory::check(uintptr_t address, size_t bytes, device::Kind kind, Place place) {
  check_states(states_.data() + (address - arena_.begin), address, bytes, kind, place);
  races_.check(address, bytes, kind, place);
}

void SharedMemory::mark(uintptr_t address, size_t bytes, ByteState state) {
  std::fill_n(states_.data() + (address - arena_.begin), bytes, state);
}

std::string SharedMemory::describe(uintptr_t address) const {
  const size_t offset = address - arena_.begin;
  for (const Variable& v : variables_) {
    if (offset + kGap / 2 < v.offset || offset >= v.offset + v.bytes + kGap / 2) continue;
    return format("shared %s%+td (%zu bytes)", v.name, static_cast<ptrdiff_t>(offset - v.offset),
                  v.bytes);
  }
  return format("shared memory, %zu bytes from its begin", offset - kDynamicOffset);
}

}  // namespace simt::runtime

namespace simt::device {

using namespace simt::runtime;

void* shared_variable(const void* key, size_t bytes, size_t alignment, const char* name) {
  const HooksOff off;
  return shared_memory.variable(key, bytes, alignment, name);
}

void* dynamic_shared() { return shared_memory.dynamic(); }

}  // namespace simt::device
