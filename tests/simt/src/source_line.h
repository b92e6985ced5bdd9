// The line of source of an address in code. Runs addr2line: for error messages only.
#pragma once

#include <cstdint>
#include <string>

namespace simt::runtime {

// Of the call that returns to `return_address`; module and offset where no line is known.
std::string source_line(uintptr_t return_address);

}  // namespace simt::runtime
