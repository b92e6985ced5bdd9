// token_selection: one token a row, the id of the CPU kernel to the bit.
//
// Decomposition. A block has a row, with up to 1024 tokens a warp has one. Rows of up to 32768
// tokens are read once, guided on the way in and kept as 32 float32 a thread: 16 warps at 16384
// tokens, 64 registers a thread, two blocks a multiprocessor. Longer rows are read anew in every
// pass. A warp has consecutive tokens, so an unfiltered draw takes two barriers: the largest logit
// of all warps, then the mass of each; the warp that the target falls into walks its own tokens.
// top-k and top-p are radix selections before that (token_selection_threshold.cuh). What is asked
// of the row, five numbers from five tensors, arrives in shared memory meanwhile.
//
// Exactness. All arithmetic is lpd/specified_math.h, where nothing is left to contract; masses are
// integers, whose sums know no order. Shared memory sees atomics of 32 bits only.
//
// What bounds it. With guidance in bfloat16 a row of 16384 tokens is 64 KiB. By the SASS for sm_90a
// a token takes 28 instructions unfiltered, 11 to guide and 17 to weigh; in a pass of a selection
// 5, and about 40 where it is still in question. Predicted, for an H200 (4.3 TB/s, 132
// multiprocessors at 1.7 GHz):
//   20 rows: latency, of one multiprocessor a row, four warps a scheduler. A warp has at most 2490
//     instructions unfiltered, 10 800 with both filters: 6 to 7 us and 12 to 17 us.
//   5120 rows: 335 MB are 78 us of bandwidth and 82 us of issue, of which two blocks at once hide
//     most in each other: 110 us.
//
// Not yet run on a GPU.
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "dispatch.h"
#include "elements.cuh"
#include "lpd/specified_math.h"
#include "lpd/token_selection.h"
#include "primitives.cuh"
#include "token_selection_draw.cuh"
#include "token_selection_request.cuh"
#include "token_selection_row.cuh"
#include "token_selection_team.cuh"
#include "token_selection_threshold.cuh"
#include "warp.cuh"

namespace lpd::cuda {
namespace {

// How far below the maximum tokens hold, all together, less mass than top-p may drop: its threshold
// lies above. A cheap bound that spares the selection most tokens and changes no result.
__device__ __forceinline__ float top_p_bound(float top_p, uint64_t total, int vocab_size) {
  const float droppable =
      (1.0f - top_p) * static_cast<float>(total) / static_cast<float>(vocab_size);
  if (droppable < 1024.0f) return kNegligible;
  // The hundredth is for all roundings, those of masses to integers included.
  return fmaxf(kNegligible, logf(0.99f * droppable) - kMassBits * 0.69314718f);
}

template <int kWarps, class Row>
__device__ __forceinline__ void select(const Team<kWarps>& team,
                                       Row& row,
                                       const TokenSelectionParams& params,
                                       const Request& request) {
  constexpr uint32_t kInvalid = ~0u;  // the key of a NaN
  const Largest& largest = row.largest();
  const uint32_t key = team.largest(largest.valid() ? ordered_key(largest.guided) : kInvalid);
  if (key == kInvalid || key == ordered_key(-kInfinity) || !request.valid()) {
    if (team.thread == 0) request.answer(params, kNoToken);
    return;
  }
  const float inverse = inverse_temperature(request.temperature);
  const float maximum = scaled_logit(value_of_key(key), inverse);
  if (!(fabsf(maximum) < kInfinity)) {  // temperature 0, or so small as to overflow
    return write_first(team, row, value_of_key(key), params, request);
  }
  row.scale(inverse);

  const auto top_k = static_cast<uint64_t>(request.top_k);
  const bool has_top_k = request.top_k > 0 && request.top_k < params.vocab_size;
  const bool has_top_p = request.top_p < 1.0f;
  float least = -kInfinity;
  uint64_t of_lane;
  if (!has_top_k && !has_top_p) {
    of_lane = mass_of_lane<false>(row, maximum, least);
  } else {
    least = maximum + kNegligible;  // the masses below are 0
    if (has_top_k) {
      least = threshold(
          team, row, {least, maximum}, [](float) { return uint64_t{1}; },
          [&](uint64_t count_above) { return count_above < top_k; });
    }
    of_lane = mass_of_lane<true>(row, maximum, least);
    if (has_top_p) {
      const uint64_t total = team.total(of_lane);
      const double limit = top_p_limit(request.top_p, total);
      const float bound = maximum + top_p_bound(request.top_p, total, params.vocab_size);
      least = threshold(
          team, row, {fmaxf(least, bound), maximum},
          [&](float value) { return mass(value, maximum); },
          [&](uint64_t mass_above) { return within_top_p(mass_above, limit); });
      of_lane = mass_of_lane<true>(row, maximum, least);
    }
  }
  const uint64_t of_warp = sum_of_warp(of_lane);
  const Share share = team.share(of_warp);
  const uint64_t target = draw_target(request.uniform, share.total);
  if (share.before <= target && target < share.before + of_warp) {
    write_drawn(row, maximum, least, share.before, target, params, request);
  }
}

// A block has a row; of small vocabularies a row a warp. Registers for two full-size rows at once.
template <int kWarps>
struct Block {
  static constexpr int kRows = kWarps == 1 ? 8 : 1;
  static constexpr int kThreads = kRows * kWarps * 32;
  static constexpr int kAtOnce = kWarps == 1 ? 3 : 1024 / kThreads;
};

// Without chunks in registers the row is read anew in every pass.
template <class T, int kWarps, int kChunks>
__global__ void __launch_bounds__(Block<kWarps>::kThreads, Block<kWarps>::kAtOnce)
    token_selection_kernel(const TokenSelectionParams params) {
  using B = Block<kWarps>;
  using Row =
      std::conditional_t<kChunks == 0, RowInMemory<T, kWarps>, RowInRegisters<T, kWarps, kChunks>>;
  SIMT_SHARED(typename Team<kWarps>::Scratch, scratch, [B::kRows]);
  SIMT_SHARED(Request, requests, [B::kRows]);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // Of a block with one row a constant: what depends on it takes no registers.
  const int row_of_block = B::kRows == 1 ? 0 : warp / kWarps;
  const uint32_t nth = blockIdx.x * B::kRows + row_of_block;
  if (nth >= params.batch * params.group_size) return;  // all warps of a row alike
  const auto group_size = static_cast<uint32_t>(params.group_size);
  const uint32_t image = nth / group_size, query = nth % group_size;

  const Team<kWarps> team(scratch[row_of_block], warp - row_of_block * kWarps, lane);
  Request& request = requests[row_of_block];
  if (team.thread == 0) fetch_request(params, image, query, request);
  const RowLogits<T> logits(params, image, query);
  Row row(logits, team.warp, lane);
  simt::cp_async_wait<0>();
  select(team, row, params, request);
}

template <class T, int kWarps, int kChunks>
cudaError_t launch(const TokenSelectionParams& params, cudaStream_t stream) {
  using B = Block<kWarps>;
  const int64_t rows = params.batch * params.group_size;
  if (rows == 0) return cudaSuccess;
  if (rows > INT32_MAX) return cudaErrorInvalidValue;
  SIMT_LAUNCH((token_selection_kernel<T, kWarps, kChunks>), dim3((rows + B::kRows - 1) / B::kRows),
              dim3(B::kThreads), 0, stream, params);
  return cudaGetLastError();
}

}  // namespace

cudaError_t token_selection(const TokenSelectionParams& params, cudaStream_t stream) {
  return with_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int kChunks = 32 / Chunk<T>::kSize;
    if (params.vocab_size <= 1024) return launch<T, 1, kChunks>(params, stream);
    if (params.vocab_size <= 4096) return launch<T, 4, kChunks>(params, stream);
    if (params.vocab_size <= 16384) return launch<T, 16, kChunks>(params, stream);
    if (params.vocab_size <= 32768) return launch<T, 32, kChunks>(params, stream);
    return launch<T, 32, 0>(params, stream);
  });
}

}  // namespace lpd::cuda
