// Shared memory of the one block that is resident: an arena in which variables lie apart, so that a
// step past the end of one does not land in the next.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "byte_state.h"
#include "fiber.h"
#include "race_table.h"

namespace simt::runtime {

class SharedMemory {
 public:
  // Before a launch: makes room for blocks of `bytes`.
  void reserve(size_t bytes);
  // Every byte is gone; the dynamic part is there, and nothing else.
  void start_block(size_t dynamic_bytes);
  // The variable known by `key`, made by the first thread that comes to its declaration.
  void* variable(const void* key, size_t bytes, size_t alignment, const char* name);
  void* dynamic() const;

  bool holds(uintptr_t address) const { return arena_.holds(address); }
  void check(uintptr_t address, size_t bytes, device::Kind kind, Place place);
  void mark(uintptr_t address, size_t bytes, ByteState state);
  std::string describe(uintptr_t address) const;

 private:
  struct Variable {
    const void* key;
    size_t offset, bytes;
    const char* name;
  };

  Span arena_;
  std::vector<ByteState> states_;
  RaceTable races_{{}, RaceTable::Scope::kBlock};
  std::vector<Variable> variables_;  // of the block; the dynamic part comes first
  size_t used_ = 0;                  // end of the last variable
  size_t bytes_in_variables_ = 0;
};

extern SharedMemory shared_memory;

}  // namespace simt::runtime
