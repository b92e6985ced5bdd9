// __syncwarp, shuffles, votes and reductions.
#include <algorithm>

#include "collective.h"

namespace simt::device {

using namespace simt::runtime;

namespace {

struct ShuffleArgument {
  uint64_t value, result;
  int argument, width;
};

// The lane that `lane` reads: itself where the source would leave its group of `width` lanes.
int source_lane(Shuffle kind, int lane, const ShuffleArgument& a) {
  const int base = lane & ~(a.width - 1), end = base + a.width;
  switch (kind) {
    case Shuffle::kIndex:
      return base + (a.argument & (a.width - 1));
    case Shuffle::kUp:
      return lane - a.argument < base ? lane : lane - a.argument;
    case Shuffle::kDown:
      return lane + a.argument >= end ? lane : lane + a.argument;
    case Shuffle::kXor:
      return (lane ^ a.argument) >= end ? lane : lane ^ a.argument;
  }
  __builtin_unreachable();
}

const char* name_of(Shuffle kind) {
  constexpr const char* kNames[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync",
                                    "__shfl_xor_sync"};
  return kNames[static_cast<int>(kind)];
}

struct VoteArgument {
  unsigned value, result;
};

const char* name_of(Vote kind) {
  constexpr const char* kNames[] = {"__ballot_sync",     "__any_sync",        "__all_sync",
                                    "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync",
                                    "__reduce_and_sync", "__reduce_or_sync",  "__reduce_xor_sync",
                                    "__reduce_min_sync", "__reduce_max_sync", "__match_any_sync"};
  return kNames[static_cast<int>(kind)];
}

unsigned combine(Vote kind, unsigned a, unsigned b) {
  const int signed_a = static_cast<int>(a), signed_b = static_cast<int>(b);
  switch (kind) {
    case Vote::kAdd:
      return a + b;
    case Vote::kMin:
      return std::min(a, b);
    case Vote::kMax:
      return std::max(a, b);
    case Vote::kAll:
    case Vote::kAnd:
      return a & b;
    case Vote::kAny:
    case Vote::kBallot:
    case Vote::kOr:
      return a | b;
    case Vote::kXor:
      return a ^ b;
    case Vote::kSignedMin:
      return static_cast<unsigned>(std::min(signed_a, signed_b));
    case Vote::kSignedMax:
      return static_cast<unsigned>(std::max(signed_a, signed_b));
    case Vote::kMatchAny:
      break;  // differs between lanes: see match()
  }
  __builtin_unreachable();
}

void match(const Collective& c) {
  for_each_lane<VoteArgument>(c, [&](unsigned, VoteArgument& mine) {
    mine.result = 0;
    for_each_lane<VoteArgument>(c, [&](unsigned lane, const VoteArgument& other) {
      if (other.value == mine.value) mine.result |= 1u << lane;
    });
  });
}

void reduce(const Collective& c, Vote kind) {
  bool first = true;
  unsigned result = 0;
  for_each_lane<VoteArgument>(c, [&](unsigned lane, const VoteArgument& a) {
    const unsigned value = kind == Vote::kBallot ? a.value << lane : a.value;
    result = first ? value : combine(kind, result, value);
    first = false;
  });
  for_each_lane<VoteArgument>(c, [&](unsigned, VoteArgument& a) { a.result = result; });
}

}  // namespace

void sync_warp(unsigned mask, Site site) {
  const HooksOff off;
  if (Collective* c = join("__syncwarp", mask, nullptr, site)) {
    warp_of(*current).synchronise(c->mask);
    finish(c);
  }
}

// Orders no memory, as in CUDA: only __syncwarp does.
uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t value, int argument, int width, Site site) {
  const HooksOff off;
  if (width < 1 || width > 32 || (width & (width - 1))) {
    fail(format("%s at %s: a width of %d", name_of(kind), text(site).c_str(), width));
  }
  ShuffleArgument mine{value, value, argument, width};
  if (Collective* c = join(name_of(kind), mask, &mine, site)) {
    for_each_lane<ShuffleArgument>(*c, [&](unsigned lane, ShuffleArgument& a) {
      const int source = source_lane(kind, static_cast<int>(lane), a);
      if (source < 0 || source > 31 || !(c->mask >> source & 1)) {
        fail(format("%s at %s: lane %u reads lane %d, which is outside its mask %#x", name_of(kind),
                    text(site).c_str(), lane, source, c->mask));
      }
      a.result = static_cast<ShuffleArgument*>(c->argument[source])->value;
    });
    finish(c);
  }
  return mine.result;
}

unsigned vote(Vote kind, unsigned mask, unsigned value, Site site) {
  const HooksOff off;
  VoteArgument mine{value, 0};
  if (Collective* c = join(name_of(kind), mask, &mine, site)) {
    if (kind == Vote::kMatchAny) {
      match(*c);
    } else {
      reduce(*c, kind);
    }
    finish(c);
  }
  return mine.result;
}

unsigned active_mask() {
  const Warp& warp = warp_of(*current);
  return warp.members & ~warp.returned;
}

}  // namespace simt::device
