// How the lanes of a warp meet.
#pragma once

#include <bit>

#include "schedule.h"

namespace simt::runtime {

// Joins the collective of `mask` and returns it once every other lane is there, for the caller to
// compute what all of them wait for and finish() it; null for those lanes, after that.
Collective* join(const char* what, unsigned mask, void* argument, Site site);
void finish(Collective* collective);

// fn(lane, argument) for each lane of a collective.
template <class Argument, class Function>
void for_each_lane(const Collective& collective, Function fn) {
  for (unsigned mask = collective.mask; mask; mask &= mask - 1) {
    const unsigned lane = static_cast<unsigned>(std::countr_zero(mask));
    fn(lane, *static_cast<Argument*>(collective.argument[lane]));
  }
}

// mma and ldmatrix: all 32 lanes.
Collective* join_full_warp(const char* what, void* argument, Site site);

}  // namespace simt::runtime
