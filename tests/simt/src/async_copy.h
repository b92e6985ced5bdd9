// cp.async: what a thread has issued, in groups; bytes land when a wait covers their group.
#pragma once

#include <cstddef>
#include <vector>

#include "simt/device.h"

namespace simt::runtime {

struct AsyncCopy {
  void* shared;
  const void* global;
  size_t bytes, source_bytes;
  Site site;
};

class CopyQueue {
 public:
  void push(const AsyncCopy& copy) { copies_.push_back(copy); }
  void commit() { group_ends_.push_back(copies_.size()); }
  // Lets groups land, oldest first, until `left` are in flight.
  void wait(size_t left);
  // An error if copies are in flight: the thread returns.
  void check_done() const;
  void clear();

 private:
  void land(const AsyncCopy& copy);

  std::vector<AsyncCopy> copies_;   // [landed_, ...) are in flight
  std::vector<size_t> group_ends_;  // in copies_; the first groups_landed_ have landed
  size_t landed_ = 0, groups_landed_ = 0;
};

}  // namespace simt::runtime
