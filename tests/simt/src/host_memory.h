// Memory of the host that kernels read without its being registered: the arguments of the launch,
// which lie on the stack of its caller, and constants, which lie in the program.
#pragma once

#include <cstdint>

namespace simt::runtime {

bool in_host_memory(uintptr_t address);

}  // namespace simt::runtime
