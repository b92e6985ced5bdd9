// A warp: the collectives in progress, and which accesses of its lanes are ordered.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "simt/device.h"

namespace simt::runtime {

struct Thread;

// Lanes of `mask` meet; the last one to arrive computes for all.
struct Collective {
  const char* what;
  unsigned mask;
  unsigned arrived;
  Site site;
  std::array<void*, 32> argument;  // of each lane, on its stack
};

class Warp {
 public:
  unsigned members = 0;   // lanes that exist
  unsigned returned = 0;  // lanes that are done
  std::vector<Collective> collectives;

  void reset(unsigned lanes);

  // Time in a warp: the number of __syncwarp that have completed.
  uint32_t clock() const { return clock_; }
  // Whether an access that lane `other` made at `clock` is ordered before what `lane` does now.
  bool ordered(unsigned lane, unsigned other, uint32_t clock) const {
    return full_sync_ > clock || (partial_ && last_sync_[lane][other] > clock);
  }
  // Whether what any lane did at `clock` is.
  bool all_ordered(uint32_t clock) const { return full_sync_ > clock; }
  void synchronise(unsigned mask);

 private:
  uint32_t clock_ = 0;
  uint32_t full_sync_ = 0;  // clock of the last __syncwarp of all lanes
  bool partial_ = false;    // one of a part of the lanes has come; only then is the table kept
  // The last clock by which a lane is ordered after another one, through whatever chain of lanes.
  std::array<std::array<uint32_t, 32>, 32> last_sync_;
};

// An error where lanes wait in a collective for `thread`, which returns.
void leave_collectives(Thread& thread);

}  // namespace simt::runtime
