// Masses of a row of token_selection, and the token that is drawn by them.
#pragma once

#include <cstdint>

#include "lpd/specified_math.h"
#include "lpd/token_selection.h"
#include "primitives.cuh"
#include "token_selection_request.cuh"
#include "token_selection_team.cuh"
#include "warp.cuh"

namespace lpd::cuda {

// The lowest id of the largest guided logit.
template <int kWarps, class Row>
__device__ __forceinline__ void write_first(const Team<kWarps>& team,
                                            Row& row,
                                            float maximum,
                                            const TokenSelectionParams& params,
                                            const Request& request) {
  constexpr auto kNone = static_cast<uint32_t>(kMaxVocabSize);
  uint32_t first = kNone;
  row.each_chunk([&](int token, const auto& values) {
#pragma unroll
    for (int i = 0; i < Row::kSize; ++i) {
      if (values[i] == maximum && first == kNone) first = token + i;
    }
  });
  const uint32_t of_warp = __reduce_min_sync(kAllLanes, first);
  const Share share = team.share(of_warp != kNone);
  if (share.before == 0 && first != kNone && first == of_warp) request.answer(params, first);
}

// The mass of a lane's tokens from `least` on.
template <bool kFiltered, class Row>
__device__ __forceinline__ uint64_t mass_of_lane(Row& row, float maximum, float least) {
  uint64_t sum = 0;
  row.each_chunk([&](int, const auto& values) {
#pragma unroll
    for (const float value : values) {
      if (!kFiltered || value >= least) sum += mass(value, maximum);
    }
  });
  return sum;
}

// The first token of a warp at which the mass, `before` to begin with, exceeds the target. The
// chunk is found first, so that a single one has its masses apart.
template <class Row>
__device__ __forceinline__ void write_drawn(Row& row,
                                            float maximum,
                                            float least,
                                            uint64_t before,
                                            uint64_t target,
                                            const TokenSelectionParams& params,
                                            const Request& request) {
  constexpr int kSize = Row::kSize;
  const auto kept = [&](float value) { return value >= least ? mass(value, maximum) : 0; };
  float chosen[kSize];
  int token = 0;
  uint64_t sum = 0;
  bool passed = false;
  row.each_chunk([&](int first, const float (&values)[kSize]) {
    if (passed) return;
    uint64_t of_lane = 0;
#pragma unroll
    for (const float value : values) of_lane += kept(value);
    const uint64_t through = before + running_sum_of_warp(of_lane);
    before = __shfl_sync(kAllLanes, through, 31);
    passed = target < before;
    if (!passed) return;
    token = first;
    sum = through - of_lane;
#pragma unroll
    for (int i = 0; i < kSize; ++i) chosen[i] = values[i];
  });
  const bool before_lane = target < sum;
#pragma unroll
  for (const float value : chosen) {
    sum += kept(value);
    token += sum <= target;
  }
  if (!before_lane && target < sum) request.answer(params, token);
}

}  // namespace lpd::cuda
