#include "async_copy.h"

#include <cstring>

#include "access.h"
#include "schedule.h"
#include "shared_memory.h"

namespace simt::runtime {

void CopyQueue::wait(size_t left) {
  for (; group_ends_.size() - groups_landed_ > left; ++groups_landed_) {
    for (; landed_ < group_ends_[groups_landed_]; ++landed_) land(copies_[landed_]);
  }
  if (landed_ == copies_.size() && groups_landed_ == group_ends_.size()) clear();
}

// Seen by others as a write at this moment: who touched the bytes without a barrier raced with it.
void CopyQueue::land(const AsyncCopy& copy) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(copy.shared);
  shared_memory.mark(address, copy.bytes, ByteState::kInitialised);
  check_access(address, copy.bytes, device::Kind::kWrite, Place(copy.site));
  std::memcpy(copy.shared, copy.global, copy.source_bytes);
  std::memset(static_cast<char*>(copy.shared) + copy.source_bytes, 0,
              copy.bytes - copy.source_bytes);
}

void CopyQueue::check_done() const {
  if (landed_ == copies_.size()) return;
  fail("returned with cp.async in flight, issued at " + text(copies_[landed_].site));
}

void CopyQueue::clear() {
  copies_.clear();
  group_ends_.clear();
  landed_ = groups_landed_ = 0;
}

}  // namespace simt::runtime

namespace simt::device {

using namespace simt::runtime;

void copy_async(void* shared, const void* global, size_t bytes, size_t source_bytes, Site site) {
  const HooksOff off;
  ++stats.async_copies;
  const uintptr_t to = reinterpret_cast<uintptr_t>(shared);
  const uintptr_t from = reinterpret_cast<uintptr_t>(global);
  if (!shared_memory.holds(to)) {
    fail("cp.async: the destination is not in shared memory, at " + text(site));
  }
  if (to % bytes != 0 || (source_bytes > 0 && from % bytes != 0)) {
    fail(format("cp.async: misaligned, not at a multiple of %zu: %s at %s", bytes,
                describe(to % bytes != 0 ? to : from).c_str(), text(site).c_str()));
  }
  check_access(to, bytes, Kind::kWrite, Place(site));
  if (source_bytes > 0) check_access(from, source_bytes, Kind::kRead, Place(site));
  shared_memory.mark(to, bytes, ByteState::kPending);
  std::memset(shared, 0xff, bytes);  // a NaN, should anything escape the checks
  current->copies.push({shared, global, bytes, source_bytes, site});
}

void commit_copies() {
  const HooksOff off;
  current->copies.commit();
}

void wait_copies(size_t groups_left) {
  const HooksOff off;
  current->copies.wait(groups_left);
}

}  // namespace simt::device
