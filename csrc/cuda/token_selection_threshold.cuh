// The thresholds of top-k and top-p: a radix selection over the ordered bits of a row's values.
//
// A pass divides the values still in question into bins by the leading digit of their distance to
// the largest, adds up each bin's weight and keeps the bin in which the threshold lies. Three
// passes of 11 bits at most; from the second on few values are left. Counts and masses are integers
// of 64 bits kept as two of 32, so that their sums depend on no order and shared memory has atomics
// for them. A lane adds up the weights of tokens in a row that share a bin before it touches
// memory: a row of one value over and over costs an atomic a thread.
#pragma once

#include <cstdint>

#include "lpd/specified_math.h"
#include "primitives.cuh"
#include "token_selection_team.cuh"
#include "warp.cuh"

namespace lpd::cuda {

// Values from `least` on, up to `most`, both themselves among them.
struct Interval {
  float least;
  float most;
};

template <int kWarps>
__device__ __forceinline__ void add_to_bin(const Team<kWarps>& team,
                                           uint32_t bin,
                                           uint64_t weight) {
  const auto low = static_cast<uint32_t>(weight);
  const uint32_t before = atomicAdd(&team.scratch.low[bin], low);
  const uint32_t carry = before + low < before;
  const uint32_t high = static_cast<uint32_t>(weight >> 32) + carry;
  if (high != 0) atomicAdd(&team.scratch.high[bin], high);
}

// The first bin through which the weight, found so far to begin with, is no longer `within`; none
// if it is to the end. Leaves the bins empty.
template <int kWarps, class Within>
__device__ __forceinline__ bool find_bin(const Team<kWarps>& team, const Within& within) {
  using T = Team<kWarps>;
  constexpr int kOwn = T::kBins / T::kThreads;
  uint32_t *const low = team.scratch.low, *const high = team.scratch.high;
  const int first = team.thread * kOwn;
  const auto weight = [&](int bin) { return uint64_t{high[bin]} << 32 | low[bin]; };

  const uint64_t above = team.scratch.found.above;
  uint64_t of_lane = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) of_lane += weight(first + i);
  const uint64_t through = running_sum_of_warp(of_lane);
  const Share share = team.share(__shfl_sync(kAllLanes, through, 31));
  uint64_t before = above + share.before + through - of_lane;
  if (within(before) && !within(before + of_lane)) {
    uint32_t bin = first;
    for (; within(before + weight(bin)); ++bin) before += weight(bin);
    // The weight above a value leaves out its own, which is 1 at least or does not matter.
    team.scratch.found = {before, bin, within(before + weight(bin) - 1)};
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) low[first + i] = high[first + i] = 0;
  team.barrier();
  return !within(above + share.total);
}

// The least value of the interval such that the weight of the values above it is `within`, or a
// number between that and the next value below.
template <int kWarps, class Row, class Weight, class Within>
__device__ __forceinline__ float threshold(const Team<kWarps>& team,
                                           Row& row,
                                           Interval interval,
                                           const Weight& weight,
                                           const Within& within) {
  using T = Team<kWarps>;
  for (int bin = team.thread; bin < T::kBins; bin += T::kThreads) {
    team.scratch.low[bin] = team.scratch.high[bin] = 0;
  }
  if (team.thread == 0) team.scratch.found.above = 0;
  team.barrier();

  uint32_t low = ordered_key(interval.least), high = ordered_key(interval.most);
  while (true) {
    const int width = 32 - __clz(static_cast<int>(high - low));
    const int shift = width > T::kDigitBits ? width - T::kDigitBits : 0;
    const float least = value_of_key(low);
    uint32_t run_bin = 0;
    uint64_t run = 0;
    row.each_chunk([&](int, const auto& values) {
#pragma unroll
      for (const float value : values) {
        if (value < least) continue;
        const uint32_t distance = high - ordered_key(value);
        if (distance > high - low) continue;
        const uint32_t bin = distance >> shift;
        if (bin != run_bin) {
          if (run != 0) add_to_bin(team, run_bin, run);
          run_bin = bin;
          run = 0;
        }
        run += weight(value);
      }
    });
    if (run != 0) add_to_bin(team, run_bin, run);
    team.barrier();

    if (!find_bin(team, within)) return least;
    const Found& found = team.scratch.found;
    const uint32_t rest = (1u << shift) - 1;  // of a bin, behind its first value
    high -= found.bin << shift;
    low = high - low > rest ? high - rest : low;
    if (shift == 0 || found.whole) return value_of_key(low);
  }
}

}  // namespace lpd::cuda
