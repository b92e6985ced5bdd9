// What is known of each byte of memory that kernels touch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "report.h"

namespace simt::runtime {

enum class ByteState : uint8_t {
  kOutside,        // of every variable and buffer
  kUninitialised,  // not written yet
  kInitialised,
  kPending,  // a cp.async to it is in flight
  kConstant  // may be read only
};

// Slow half of check_states: byte by byte, to the error or to the new states.
void update_states(ByteState* states,
                   uintptr_t address,
                   size_t bytes,
                   device::Kind kind,
                   Place place);

// Checks an access to `bytes` bytes whose states begin at `states`, and notes what a write does.
inline void check_states(ByteState* states,
                         uintptr_t address,
                         size_t bytes,
                         device::Kind kind,
                         Place place) {
  constexpr uint64_t kEight = 0x0202020202020202;
  static_assert(static_cast<uint8_t>(ByteState::kInitialised) == 2);
  uint64_t low, high;
  uint32_t word;
  switch (bytes) {  // nearly always all bytes are initialised
    case 16:
      std::memcpy(&low, states, 8);
      std::memcpy(&high, states + 8, 8);
      if (low == kEight && high == kEight) return;
      break;
    case 8:
      std::memcpy(&low, states, 8);
      if (low == kEight) return;
      break;
    case 4:
      std::memcpy(&word, states, 4);
      if (word == static_cast<uint32_t>(kEight)) return;
      break;
    default:
      break;
  }
  update_states(states, address, bytes, kind, place);
}

}  // namespace simt::runtime
