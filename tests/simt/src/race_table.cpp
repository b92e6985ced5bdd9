#include "race_table.h"

#include <algorithm>
#include <bit>

#include "access.h"
#include "schedule.h"

namespace simt::runtime {
namespace {

constexpr unsigned kPageShift = 8;
constexpr size_t kPageBytes = size_t{1} << kPageShift;
constexpr unsigned kCoarsest = 4;  // 16 bytes

enum Flag : uint8_t {
  kAtomicWrite = 1,     // the last write was atomic
  kSeveralLanes = 2,    // so were writes of other lanes of its warp, unordered with it
  kSeveralWarps = 4,    // or of other warps
  kForeignAtomic = 8,   // an atomic of another block came before those of this block
  kForeignReader = 16,  // another block read it
};

// Whether nothing orders what `thread` did at `clock` of its warp, since the last barrier, before
// the current thread.
bool unordered(unsigned thread, uint32_t clock) {
  const Thread& self = *current;
  if (thread == self.linear) return false;
  if (thread / 32 != self.warp) return true;
  return !warp_of(self).ordered(self.lane, thread % 32, clock);
}

bool unordered_writers(const RaceCell& cell) {
  if (cell.flags & kSeveralWarps) return true;
  if (unordered(cell.write_thread, cell.write_clock)) return true;
  return (cell.flags & kSeveralLanes) && !warp_of(*current).all_ordered(cell.write_clock);
}

bool unordered_readers(const RaceCell& cell) {
  const Thread& self = *current;
  if (cell.read_warps & ~(1u << self.warp)) return true;
  for (unsigned lanes = cell.read_lanes & ~(1u << self.lane); lanes; lanes &= lanes - 1) {
    const unsigned lane = static_cast<unsigned>(std::countr_zero(lanes));
    if (unordered(self.warp * 32 + lane, cell.read_clock)) return true;
  }
  return false;
}

// "thread 3" of this block, or of the block that `epoch` belongs to.
std::string culprit(unsigned thread, uint32_t epoch) {
  const Epochs& epochs = launch.epochs;
  if (epoch >= epochs.of_block) return format("thread %u", thread);
  const auto next = std::upper_bound(epochs.of_start.begin(), epochs.of_start.end(), epoch);
  const unsigned block = epochs.blocks[static_cast<size_t>(next - epochs.of_start.begin()) - 1];
  const dim3 grid = launch.grid;
  return format("thread %u of block (%u,%u,%u)", thread, block % grid.x, block / grid.x % grid.y,
                block / grid.x / grid.y);
}

[[noreturn]] void fail_race(uintptr_t address,
                            const char* verb,
                            Place place,
                            const char* other_verb,
                            const std::string& other,
                            Place other_place) {
  fail(format("data race on %s: %s at %s against a %s by %s at %s", describe(address).c_str(), verb,
              place.text().c_str(), other_verb, other.c_str(), other_place.text().c_str()));
}

void note_read(RaceCell& cell, bool global, Place place) {
  const Thread& self = *current;
  const uint32_t epoch = launch.epochs.now, clock = warp_of(self).clock();
  if (cell.read_epoch != epoch) {
    if (global && cell.read_epoch != 0 && cell.read_epoch < launch.epochs.of_block) {
      cell.flags |= kForeignReader;
    }
    cell.read_epoch = epoch;
    cell.read_warps = 0;
    cell.read_lanes = 0;
  }
  cell.read_warps |= 1u << self.warp;
  if (cell.read_warp != self.warp || cell.read_clock != clock) {
    cell.read_warp = static_cast<uint8_t>(self.warp);
    cell.read_clock = clock;
    cell.read_lanes = 0;
  }
  cell.read_lanes |= 1u << self.lane;
  cell.read_thread = static_cast<uint16_t>(self.linear);
  cell.read_place = place;
}

void note_write(RaceCell& cell, bool global, bool atomic, Place place) {
  const Thread& self = *current;
  const Epochs& epochs = launch.epochs;
  if (global && cell.write_epoch != 0 && cell.write_epoch < epochs.of_block) {
    cell.flags |= kForeignAtomic;  // a plain write after it would have been a race
  }
  const bool continues = atomic && cell.write_epoch == epochs.now &&
                         cell.write_thread != self.linear && (cell.flags & kAtomicWrite);
  if (cell.write_epoch != epochs.now || !atomic) cell.flags &= ~(kSeveralLanes | kSeveralWarps);
  if (continues && cell.write_thread / 32 != self.warp) {
    cell.flags |= kSeveralWarps;
  } else if (continues && unordered(cell.write_thread, cell.write_clock)) {
    cell.flags |= kSeveralLanes;
  }
  cell.flags =
      static_cast<uint8_t>(atomic ? cell.flags | kAtomicWrite : cell.flags & ~kAtomicWrite);
  cell.write_epoch = epochs.now;
  cell.write_clock = warp_of(self).clock();
  cell.write_thread = static_cast<uint16_t>(self.linear);
  cell.write_place = place;
}

}  // namespace

RaceTable::RaceTable(Span span, Scope scope)
    : first_page_(span.begin >> kPageShift),
      scope_(scope),
      pages_(span.bytes == 0 ? 0 : ((span.end() - 1) >> kPageShift) - first_page_ + 1) {}

RaceTable::Page& RaceTable::page_for(uintptr_t address, unsigned shift) {
  Page& page = pages_[(address >> kPageShift) - first_page_];
  const bool fresh = page.launch != launch.number;
  if (!fresh && shift >= page.shift) return page;
  const size_t count = kPageBytes >> shift;
  if (fresh) {
    if (page.capacity < count) {
      page.cells = std::make_unique<RaceCell[]>(count);
      page.capacity = static_cast<uint16_t>(count);
    } else {
      std::fill_n(page.cells.get(), count, RaceCell{});
    }
  } else {  // each cell speaks for all the smaller granules in its place
    auto finer = std::make_unique<RaceCell[]>(count);
    for (size_t i = 0; i < count; ++i) finer[i] = page.cells[i >> (page.shift - shift)];
    page.cells = std::move(finer);
    page.capacity = static_cast<uint16_t>(count);
  }
  page.shift = static_cast<uint8_t>(shift);
  page.launch = launch.number;
  return page;
}

void RaceTable::check(uintptr_t address, size_t bytes, device::Kind kind, Place place) {
  while (bytes > 0) {
    const size_t here = std::min(bytes, kPageBytes - address % kPageBytes);
    const auto alignment = static_cast<unsigned>(std::countr_zero(address | here));
    const Page& page = page_for(address, std::min(alignment, kCoarsest));
    RaceCell* cell = page.cells.get() + (address % kPageBytes >> page.shift);
    const size_t granule = size_t{1} << page.shift;
    for (size_t i = 0; i < here; i += granule) visit(*cell++, address + i, kind, place);
    address += here;
    bytes -= here;
  }
}

void RaceTable::visit(RaceCell& cell, uintptr_t address, device::Kind kind, Place place) const {
  const Epochs& epochs = launch.epochs;
  const bool global = scope_ == Scope::kGrid;
  const bool writes = kind == device::Kind::kWrite || kind == device::Kind::kAtomic;
  const bool coherent = kind == device::Kind::kAtomic || kind == device::Kind::kCoherentRead;
  const char* verb = writes ? "write" : "read";

  // Against writes: of this block since its last barrier; of other blocks at any time, unless the
  // access is of a kind that can be ordered by a fence (which is not looked for).
  bool race = false;
  if (cell.write_epoch >= epochs.of_block) {
    race = cell.write_epoch == epochs.now && !(coherent && (cell.flags & kAtomicWrite)) &&
           unordered_writers(cell);
    race |= global && !coherent && (cell.flags & kForeignAtomic);
  } else if (global) {
    race = cell.write_epoch != 0 && !coherent;
  }
  if (race) {
    fail_race(address, verb, place, "write", culprit(cell.write_thread, cell.write_epoch),
              cell.write_place);
  }
  if (!writes) {
    if (kind == device::Kind::kRead) note_read(cell, global, place);
    return;
  }

  // Against reads, likewise.
  race = cell.read_epoch == epochs.now && unordered_readers(cell);
  if (global && !coherent) {
    race |= (cell.read_epoch != 0 && cell.read_epoch < epochs.of_block) ||
            (cell.flags & kForeignReader);
  }
  if (race) {
    fail_race(address, verb, place, "read", culprit(cell.read_thread, cell.read_epoch),
              cell.read_place);
  }
  note_write(cell, global, coherent, place);
}

}  // namespace simt::runtime
