// Memory that a kernel computes in, kept for the next call: no allocation inside a decode loop.
#pragma once

#include <cstddef>
#include <vector>

namespace lpd::binding {

// At least so many bytes, 64-byte aligned, of this thread; valid until its next call.
inline std::byte* workspace(size_t bytes) {
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  thread_local std::vector<Line> lines;
  const size_t num_lines = (bytes + sizeof(Line) - 1) / sizeof(Line);
  if (lines.size() < num_lines) lines = std::vector<Line>(num_lines);
  return reinterpret_cast<std::byte*>(lines.data());
}

}  // namespace lpd::binding
