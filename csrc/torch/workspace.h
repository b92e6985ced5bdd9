// Memory that CPU kernels compute in, kept from call to call: a loop of equal steps allocates
// nothing. What an earlier call left in it is garbage.
#pragma once

#include <cstddef>
#include <vector>

namespace lpd::binding {

// What a thread computes in itself, and what it lets the threads of one call share.
enum class Workspace { kOwn, kShared };

// At least so many bytes of this thread, 64-byte aligned, valid until its next call for that
// workspace; nullptr for none.
inline std::byte* workspace(size_t bytes, Workspace which = Workspace::kOwn) {
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  thread_local std::vector<Line> spaces[2];
  std::vector<Line>& lines = spaces[static_cast<int>(which)];
  const size_t num_lines = (bytes + sizeof(Line) - 1) / sizeof(Line);
  if (lines.size() < num_lines) lines = std::vector<Line>(num_lines);
  return bytes == 0 ? nullptr : reinterpret_cast<std::byte*>(lines.data());
}

}  // namespace lpd::binding
