#include "byte_state.h"

#include "access.h"

namespace simt::runtime {

void update_states(ByteState* states,
                   uintptr_t address,
                   size_t bytes,
                   device::Kind kind,
                   Place place) {
  const bool writes = kind == device::Kind::kWrite || kind == device::Kind::kAtomic;
  const bool reads = kind != device::Kind::kWrite;
  for (size_t i = 0; i < bytes; ++i) {
    const auto complain = [&](const char* what, const char* more = "") {
      fail(format("%s: %s%s at %s", what, describe(address + i).c_str(), more,
                  place.text().c_str()));
    };
    switch (states[i]) {
      case ByteState::kInitialised:
        break;
      case ByteState::kOutside:
        complain(writes ? "write out of bounds" : "read out of bounds");
        break;
      case ByteState::kPending:
        complain(writes ? "write" : "read",
                 " while a cp.async to it is in flight (no wait covers it)");
        break;
      case ByteState::kConstant:
        if (writes) complain("write to read-only memory");
        break;
      case ByteState::kUninitialised:
        if (reads) complain("read of uninitialised memory (not written, or not yet)");
        states[i] = ByteState::kInitialised;
        break;
    }
  }
}

}  // namespace simt::runtime
