// Who read and wrote what, and the races that follow from it.
//
// Memory is seen in granules of 1 to 16 bytes. A page of 256 bytes keeps one cell a granule, as
// coarse as the accesses to it allow: all of them so far began and ended at its granules. The first
// access that does not splits the cells of the page. So an access costs one cell where a kernel
// keeps to one width, and neighbouring bytes that different threads write are still told apart.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "fiber.h"
#include "report.h"

namespace simt::runtime {

// The last write of a granule, and its readers since the last barrier.
struct RaceCell {
  Place write_place, read_place;
  uint32_t write_epoch, write_clock;  // epoch of the block, clock of the warp; epoch 0: none
  uint32_t read_epoch, read_clock;
  uint32_t read_warps;  // in read_epoch
  uint32_t read_lanes;  // of read_warp, the last to read, at read_clock
  uint16_t write_thread, read_thread;
  uint8_t read_warp;
  uint8_t flags;
};

class RaceTable {
 public:
  enum class Scope { kBlock, kGrid };  // shared memory, global memory

  RaceTable(Span span, Scope scope);

  // Notes an access of the current thread; a race with an earlier one ends the launch.
  void check(uintptr_t address, size_t bytes, device::Kind kind, Place place);

 private:
  struct Page {
    std::unique_ptr<RaceCell[]> cells;
    uint16_t capacity = 0;  // cells allocated
    uint8_t shift = 0;      // log2 of the bytes of a granule
    uint32_t launch = 0;    // of which the cells speak
  };

  Page& page_for(uintptr_t address, unsigned shift);
  void visit(RaceCell& cell, uintptr_t address, device::Kind kind, Place place) const;

  uintptr_t first_page_;
  Scope scope_;
  std::vector<Page> pages_;
};

}  // namespace simt::runtime
