#include "access.h"

#include "global_memory.h"
#include "host_memory.h"
#include "schedule.h"
#include "shared_memory.h"

namespace simt::runtime {

void check_access(uintptr_t address, size_t bytes, device::Kind kind, Place place) {
  if (current->stack.holds(address)) return;
  const bool writes = kind == device::Kind::kWrite || kind == device::Kind::kAtomic;
  ++stats.accesses;
  if (shared_memory.holds(address)) {
    if (config.preempt > 0 && launch.random.below(config.preempt) == 0) yield_thread();
    shared_memory.check(address, bytes, kind, place);
    return;
  }
  if (Region* region = global_memory.find(address, bytes)) {
    if (!region->constant) {
      check_states(&region->states[address - region->span.begin], address, bytes, kind, place);
      region->races.check(address, bytes, kind, place);
    } else if (writes) {
      fail("write to read-only memory: " + describe(address) + " at " + place.text());
    }
    return;
  }
  if (in_host_memory(address)) return;
  fail(format("%s out of bounds: %s at %s", writes ? "write" : "read", describe(address).c_str(),
              place.text().c_str()));
}

std::string describe(uintptr_t address) {
  if (shared_memory.holds(address)) return shared_memory.describe(address);
  const std::string name = global_memory.describe(address);
  if (!name.empty()) return name;
  if (launch.stacks.all().holds(address)) return "a local variable of another thread";
  return format("address %#zx, which no registered memory is near", address);
}

}  // namespace simt::runtime

namespace simt::device {

using namespace simt::runtime;

void access(const void* pointer, size_t bytes, Kind kind, Site site) {
  const HooksOff off;
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  if (address % bytes != 0) {
    fail(format("misaligned access of %zu bytes: %s at %s", bytes, describe(address).c_str(),
                text(site).c_str()));
  }
  check_access(address, bytes, kind, Place(site));
}

}  // namespace simt::device
