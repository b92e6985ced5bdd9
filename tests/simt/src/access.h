// The check of one access, wherever it goes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "byte_state.h"
#include "report.h"

namespace simt::runtime {

// Bounds, initialisation and races of an access of the current thread; anything wrong ends the
// launch. The caller has hooks off.
void check_access(uintptr_t address, size_t bytes, device::Kind kind, Place place);

// The variable or buffer at or near an address, for messages.
std::string describe(uintptr_t address);

}  // namespace simt::runtime
