#include "global_memory.h"

#include <algorithm>
#include <iterator>

namespace simt::runtime {

GlobalMemory global_memory;
std::mutex device_mutex;

namespace {

ByteState* states_of(Region& region, const Grant& grant) {
  return region.states.data() + (grant.span.begin - region.span.begin);
}

// Readable if one grant says so, writable likewise.
void set_states(Region& region) {
  std::ranges::fill(region.states, ByteState::kOutside);
  for (const Grant& grant : region.grants) {
    ByteState* states = states_of(region, grant);
    for (size_t i = 0; i < grant.span.bytes; ++i) {
      ByteState& state = states[i];
      const bool readable = state >= ByteState::kInitialised || grant.access != Access::kWrite;
      const bool writable = state == ByteState::kInitialised ||
                            state == ByteState::kUninitialised || grant.access != Access::kRead;
      state = !readable  ? ByteState::kUninitialised
              : writable ? ByteState::kInitialised
                         : ByteState::kConstant;
    }
  }
}

}  // namespace

void GlobalMemory::add(Grant grant) {
  last_found_ = nullptr;
  Span span = grant.span;
  std::vector<Grant> grants;
  // Those that overlap, among them perhaps the last one that begins before.
  auto it = regions_.upper_bound(span.begin);
  if (it != regions_.begin() && std::prev(it)->second.span.end() > span.begin) --it;
  while (it != regions_.end() && it->second.span.begin < grant.span.end()) {
    const Span other = it->second.span;
    const uintptr_t end = std::max(span.end(), other.end());
    span.begin = std::min(span.begin, other.begin);
    span.bytes = end - span.begin;
    std::ranges::move(it->second.grants, std::back_inserter(grants));
    it = regions_.erase(it);
  }
  grants.push_back(std::move(grant));
  const bool constant =
      std::ranges::all_of(grants, [](const Grant& g) { return g.access == Access::kRead; });
  Region region{span, std::move(grants), constant,
                std::vector<ByteState>(constant ? 0 : span.bytes),
                RaceTable(constant ? Span{} : span, RaceTable::Scope::kGrid)};
  if (!constant) set_states(region);
  regions_.emplace(span.begin, std::move(region));
}

void GlobalMemory::remove(uintptr_t pointer) {
  last_found_ = nullptr;
  auto it = regions_.upper_bound(pointer);
  if (it == regions_.begin()) return;
  --it;
  std::vector<Grant> grants = std::move(it->second.grants);
  regions_.erase(it);
  const auto latest = std::find_if(grants.rbegin(), grants.rend(),
                                   [&](const Grant& grant) { return grant.span.begin == pointer; });
  if (latest != grants.rend()) grants.erase(std::next(latest).base());
  for (Grant& grant : grants) add(std::move(grant));  // they may have fallen apart
}

void GlobalMemory::start_launch() {
  for (auto& [begin, region] : regions_) {
    if (region.grants.size() > 1) {
      if (!region.constant) set_states(region);
    } else if (region.grants[0].access == Access::kWrite) {
      std::ranges::fill(region.states, ByteState::kUninitialised);
    }
  }
}

Region* GlobalMemory::find(uintptr_t address, size_t bytes) {
  if (last_found_ && last_found_->span.holds(address, bytes)) return last_found_;
  auto it = regions_.upper_bound(address);
  if (it == regions_.begin()) return nullptr;
  --it;
  if (!it->second.span.holds(address, bytes)) return nullptr;
  return last_found_ = &it->second;
}

std::string GlobalMemory::describe(uintptr_t address) const {
  constexpr size_t kNear = 4096;
  const Grant* nearest = nullptr;
  size_t least = kNear;
  for (const auto& [begin, region] : regions_) {
    for (const Grant& grant : region.grants) {
      const Span span = grant.span;
      const size_t distance = span.holds(address)    ? 0
                              : address < span.begin ? span.begin - address
                                                     : address - span.end() + 1;
      if (distance > least) continue;
      nearest = &grant;
      least = distance;
    }
  }
  if (!nearest) return "";
  return format("global %s%+td (%zu bytes)", nearest->name.c_str(),
                static_cast<ptrdiff_t>(address - nearest->span.begin), nearest->span.bytes);
}

}  // namespace simt::runtime
