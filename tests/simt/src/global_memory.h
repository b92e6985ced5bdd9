// Registered memory: what kernels may read and write outside shared memory.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "byte_state.h"
#include "fiber.h"
#include "race_table.h"
#include "simt/runtime.h"

namespace simt::runtime {

// One call of register_memory.
struct Grant {
  Span span;
  Access access;
  std::string name;
};

// Memory covered by one grant, or by several that overlap.
struct Region {
  Span span;
  std::vector<Grant> grants;
  bool constant;                  // nobody may write: no states, no races
  std::vector<ByteState> states;  // a byte each
  RaceTable races;
};

class GlobalMemory {
 public:
  void add(Grant grant);
  // The latest grant that begins at `pointer`, if there is one.
  void remove(uintptr_t pointer);
  // Results count as unwritten again.
  void start_launch();
  // The region that holds all of an access, or null.
  Region* find(uintptr_t address, size_t bytes);
  // "global name+offset (size bytes)" of an address in or near a region; empty if there is none.
  std::string describe(uintptr_t address) const;

 private:
  std::map<uintptr_t, Region> regions_;  // by first address
  Region* last_found_ = nullptr;
};

extern GlobalMemory global_memory;
// Held through a launch and through every change of what it works on.
extern std::mutex device_mutex;

}  // namespace simt::runtime
