// The warps that share a row of token_selection, and what they tell each other.
#pragma once

#include <cstdint>

#include "primitives.cuh"
#include "warp.cuh"

namespace lpd::cuda {

// Where a warp's numbers stand among those of all warps, in the order of the vocabulary.
struct Share {
  uint64_t before;
  uint64_t total;
};

// Where a pass of a radix selection ended.
struct alignas(16) Found {
  uint64_t above;  // the weight before the bin
  uint32_t bin;
  bool whole;  // all of the bin's values stay
};

// Either all warps of a block or a single one.
template <int kWarps>
class Team {
 public:
  static constexpr int kThreads = kWarps * 32;
  // About four bins a thread; few for a single warp, as many of those share a block's memory.
  static constexpr int kDigitBits = kWarps == 1 ? 8 : kWarps < 16 ? 9 : 11;
  static constexpr int kBins = 1 << kDigitBits;

  struct Scratch {
    uint64_t sums[kWarps];
    Found found;
    uint32_t largest[kWarps];
    uint32_t low[kBins];  // of 64-bit counters
    uint32_t high[kBins];
  };

  __device__ Team(Scratch& scratch, int warp, int lane)
      : scratch(scratch), warp(warp), lane(lane), thread(warp * 32 + lane) {}

  __device__ void barrier() const {
    if constexpr (kWarps == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  // Of all threads, and a barrier. Once a row: nothing keeps a second call from overtaking the
  // first.
  __device__ uint32_t largest(uint32_t x) const {
    x = __reduce_max_sync(kAllLanes, x);
    if (lane == 0) scratch.largest[warp] = x;
    barrier();
    return __reduce_max_sync(kAllLanes, lane < kWarps ? scratch.largest[lane] : 0);
  }

  // Of a number a warp, and a barrier. Another one between two calls is the caller's.
  __device__ Share share(uint64_t of_warp) const {
    if (lane == 0) scratch.sums[warp] = of_warp;
    barrier();
    const uint64_t own = lane < kWarps ? scratch.sums[lane] : 0;
    const uint64_t through = running_sum_of_warp(own);
    return {__shfl_sync(kAllLanes, through - own, warp), __shfl_sync(kAllLanes, through, 31)};
  }

  __device__ uint64_t total(uint64_t of_lane) const { return share(sum_of_warp(of_lane)).total; }

  Scratch& scratch;
  const int warp, lane, thread;
};

}  // namespace lpd::cuda
