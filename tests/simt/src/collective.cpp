#include "collective.h"

namespace simt::runtime {
namespace {

constexpr unsigned kFullWarp = ~0u;

// The collective of this very mask in progress, or a new one. Others may overlap it: their lanes
// come here when they are done there.
Collective& find_or_begin(Warp& warp, const char* what, unsigned mask, Site site) {
  for (Collective& c : warp.collectives) {
    if (c.mask == mask) return c;
  }
  Collective& begun = warp.collectives.emplace_back();
  begun.what = what;
  begun.mask = mask;
  begun.arrived = 0;
  begun.site = site;
  return begun;
}

}  // namespace

Collective* join(const char* what, unsigned mask, void* argument, Site site) {
  Thread& self = *current;
  Warp& warp = warp_of(self);
  if (!(mask >> self.lane & 1)) {
    fail(format("%s at %s: the lane is not in its own mask %#x", what, text(site).c_str(), mask));
  }
  if (mask & warp.returned) {
    fail(format("%s at %s: its mask %#x names lanes that have returned", what, text(site).c_str(),
                mask));
  }
  Collective& c = find_or_begin(warp, what, mask & warp.members, site);
  if (c.what != what || !same(c.site, site)) {
    fail(format("divergent warp: in %s at %s while other lanes wait in %s at %s", what,
                text(site).c_str(), c.what, text(c.site).c_str()));
  }
  c.argument[self.lane] = argument;
  c.arrived |= 1u << self.lane;
  if (c.arrived == c.mask) return &c;
  wait(State::kInWarpCollective, what, site);
  return nullptr;
}

void finish(Collective* collective) {
  Warp& warp = warp_of(*current);
  const unsigned mask = collective->mask;
  // The last one takes its place; order means nothing here.
  *collective = warp.collectives.back();
  warp.collectives.pop_back();
  Thread* lanes = &launch.threads[current->warp * 32];
  for (unsigned n = 0; n < 32; ++n) {
    const unsigned lane = config.order == Order::kReverse ? 31 - n : n;
    if (mask >> lane & 1) make_ready(lanes[lane]);
  }
  // All of them wait their turn alike, the caller too.
  wait(State::kReady, "", {});
}

Collective* join_full_warp(const char* what, void* argument, Site site) {
  if (warp_of(*current).members != kFullWarp) {
    fail(format("%s at %s in a warp of fewer than 32 threads", what, text(site).c_str()));
  }
  return join(what, kFullWarp, argument, site);
}

void leave_collectives(Thread& thread) {
  Warp& warp = warp_of(thread);
  for (const Collective& c : warp.collectives) {
    if (!(c.mask >> thread.lane & 1)) continue;
    fail(format("returned while lanes of its warp wait for it in %s at %s", c.what,
                text(c.site).c_str()));
  }
  warp.returned |= 1u << thread.lane;
}

void Warp::reset(unsigned lanes) {
  members = lanes == 32 ? kFullWarp : (1u << lanes) - 1;
  returned = 0;
  collectives.clear();
  clock_ = full_sync_ = 0;
  partial_ = false;
}

void Warp::synchronise(unsigned mask) {
  ++clock_;
  if (mask == (members & ~returned)) {
    full_sync_ = clock_;
    return;
  }
  if (!partial_) last_sync_ = {};
  partial_ = true;
  std::array<uint32_t, 32> latest{};
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    for (unsigned other = 0; other < 32; ++other) {
      latest[other] = std::max(latest[other], last_sync_[lane][other]);
    }
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) latest[lane] = clock_;
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) last_sync_[lane] = latest;
  }
}

}  // namespace simt::runtime
