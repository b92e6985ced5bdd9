// Not yet run on a GPU.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "dispatch.h"
#include "elements.cuh"
#include "lpd/specified_math.h"
#include "lpd/token_selection.h"
#include "primitives.cuh"
#include "token_selection_row.cuh"
#include "token_selection_team.cuh"
#include "token_selection_threshold.cuh"
#include "warp.cuh"

namespace lpd::cuda {
namespace {

// What turns guided logits into masses.
struct Scale {
  float inverse_temperature;
  float maximum;  // scaled

  __device__ float scaled(float logit) const { return scaled_logit(logit, inverse_temperature); }
  __device__ uint64_t mass(float scaled) const { return lpd::mass(scaled, maximum); }
};

// What is asked of a row, in shared memory: the registers are for the row.
struct Request {
  float temperature;
  float top_p;
  int64_t top_k;
  double uniform;
  int64_t place;  // among the ids of the image
  int64_t* ids;

  __device__ bool valid() const {
    return temperature >= 0.0f && temperature < kInfinity && top_p >= 0.0f && uniform >= 0.0 &&
           uniform < 1.0;
  }
  __device__ void answer(const TokenSelectionParams& params, int64_t token) const {
    if (place >= 0 && place < params.seq_len) ids[place * params.ids_stride] = token;
  }
};

template <class T>
__device__ __forceinline__ void copy_async(T& shared, const T* global) {
#pragma unroll
  for (size_t i = 0; i < sizeof(T); i += 4) {
    simt::cp_async4(reinterpret_cast<std::byte*>(&shared) + i,
                    reinterpret_cast<const std::byte*>(global) + i);
  }
}

// Arrives while the row does.
__device__ __forceinline__ void fetch_request(const TokenSelectionParams& params,
                                              int64_t image,
                                              int64_t query,
                                              Request& request) {
  copy_async(request.temperature, params.temperature + image * params.temperature_stride);
  copy_async(request.top_p, params.top_p + image * params.top_p_stride);
  copy_async(request.top_k, params.top_k + image * params.top_k_stride);
  copy_async(request.uniform, params.uniform + image * params.uniform_batch_stride +
                                  query * params.uniform_group_stride);
  request.ids = params.ids + image * params.ids_batch_stride;
  if (params.positions != nullptr) {
    copy_async(request.place, params.positions + image * params.positions_batch_stride +
                                  query * params.positions_group_stride);
  } else {
    request.place = query;
  }
  simt::cp_async_commit();
}

// The lowest id of the largest guided logit.
template <int kWarps, class Row>
__device__ __forceinline__ void write_first(const Team<kWarps>& team,
                                            const Row& row,
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
  first = __reduce_min_sync(kAllLanes, first);
  const bool has = first != kNone;
  const Share share = team.share(has);
  if (has && share.before == 0 && team.lane == 0) request.answer(params, first);
}

// The mass of a lane's tokens from `least` on.
template <bool kFiltered, class Row>
__device__ __forceinline__ uint64_t mass_of_lane(const Row& row, const Scale& scale, float least) {
  uint64_t sum = 0;
  row.each_chunk([&](int, const auto& values) {
#pragma unroll
    for (const float value : values) {
      const float scaled = scale.scaled(value);
      if (!kFiltered || scaled >= least) sum += scale.mass(scaled);
    }
  });
  return sum;
}

// The first token of a warp at which the mass, `before` to begin with, exceeds the target. The
// chunk is found first, so that a single one has its masses apart.
template <class Row>
__device__ __forceinline__ void write_drawn(const Row& row,
                                            const Scale& scale,
                                            float least,
                                            uint64_t before,
                                            uint64_t target,
                                            const TokenSelectionParams& params,
                                            const Request& request) {
  constexpr int kSize = Row::kSize;
  const auto mass = [&](float value) {
    const float scaled = scale.scaled(value);
    return scaled >= least ? scale.mass(scaled) : 0;
  };
  float chosen[kSize];
  int token = 0;
  uint64_t sum = 0;
  bool passed = false;
  row.each_chunk([&](int first, const float (&values)[kSize]) {
    if (passed) return;
    uint64_t of_lane = 0;
#pragma unroll
    for (const float value : values) of_lane += mass(value);
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
    sum += mass(value);
    token += sum <= target;
  }
  if (!before_lane && target < sum) request.answer(params, token);
}

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
                                       const Row& row,
                                       const TokenSelectionParams& params,
                                       const Request& request) {
  constexpr uint32_t kInvalid = ~0u;  // the key of a NaN
  const Largest& largest = row.largest();
  const uint32_t key = team.largest(largest.valid() ? ordered_key(largest.guided) : kInvalid);
  if (key == kInvalid || key == ordered_key(-kInfinity) || !request.valid()) {
    if (team.thread == 0) request.answer(params, kNoToken);
    return;
  }
  const float maximum = value_of_key(key);
  const float inverse = inverse_temperature(request.temperature);
  const Scale scale{inverse, scaled_logit(maximum, inverse)};
  if (!(fabsf(scale.maximum) < kInfinity)) {  // temperature 0, or so small as to overflow
    return write_first(team, row, maximum, params, request);
  }

  const auto top_k = static_cast<uint64_t>(request.top_k);
  const bool has_top_k = request.top_k > 0 && request.top_k < params.vocab_size;
  const bool has_top_p = request.top_p < 1.0f;
  float least = -kInfinity;
  uint64_t of_lane;
  if (!has_top_k && !has_top_p) {
    of_lane = mass_of_lane<false>(row, scale, least);
  } else {
    least = scale.maximum + kNegligible;  // the masses below are 0
    if (has_top_k) {
      least = threshold(
          team, row, inverse, {least, scale.maximum}, [](float) { return uint64_t{1}; },
          [&](uint64_t count_above) { return count_above < top_k; });
    }
    of_lane = mass_of_lane<true>(row, scale, least);
    if (has_top_p) {
      const uint64_t total = team.total(of_lane);
      const double limit = top_p_limit(request.top_p, total);
      const float bound = scale.maximum + top_p_bound(request.top_p, total, params.vocab_size);
      least = threshold(
          team, row, inverse, {fmaxf(least, bound), scale.maximum},
          [&](float scaled) { return scale.mass(scaled); },
          [&](uint64_t mass_above) { return within_top_p(mass_above, limit); });
      of_lane = mass_of_lane<true>(row, scale, least);
    }
  }
  const uint64_t of_warp = sum_of_warp(of_lane);
  const Share share = team.share(of_warp);
  const uint64_t target = draw_target(request.uniform, share.total);
  if (share.before <= target && target < share.before + of_warp) {
    write_drawn(row, scale, least, share.before, target, params, request);
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
  const uint32_t nth = blockIdx.x * B::kRows + warp / kWarps;
  if (nth >= params.batch * params.group_size) return;  // all warps of a row alike
  const auto group_size = static_cast<uint32_t>(params.group_size);
  const uint32_t image = nth / group_size, query = nth % group_size;

  const Team<kWarps> team(scratch[warp / kWarps], warp % kWarps, lane);
  Request& request = requests[warp / kWarps];
  if (team.thread == 0) fetch_request(params, image, query, request);
  const RowLogits<T> logits(params, image, query);
  const Row row(logits, team.warp, lane);
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
