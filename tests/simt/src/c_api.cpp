// The flat C functions of runtime.h, exported from a shared library built with hidden symbols.
#include <algorithm>
#include <iterator>
#include <mutex>

#include "global_memory.h"
#include "simt/runtime.h"

#define SIMT_EXPORT __attribute__((visibility("default")))

SIMT_EXPORT int simt_configure(int order, uint64_t seed, unsigned preempt) {
  if (order < 0 || order > 2) return 1;
  const std::lock_guard lock(simt::runtime::device_mutex);
  simt::config.order = static_cast<simt::Order>(order);
  simt::config.seed = seed;
  simt::config.preempt = preempt;
  return 0;
}

SIMT_EXPORT int simt_stats(uint64_t* out, int count) {
  const std::lock_guard lock(simt::runtime::device_mutex);
  const simt::Stats& s = simt::stats;
  const uint64_t fields[] = {s.launches, s.accesses,     s.switches,        s.barriers,
                             s.mma,      s.async_copies, s.ldmatrix_phases, s.bank_conflicts};
  constexpr int kFields = static_cast<int>(std::size(fields));
  std::copy_n(fields, std::clamp(count, 0, kFields), out);
  return kFields;
}
