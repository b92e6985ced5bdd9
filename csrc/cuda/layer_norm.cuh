// LayerNorm of a row that a CTA holds in registers: mean first, then the centred squares, in
// float32. A thread owns 8 neighbouring values, 16 bytes of a narrow dtype and twice 16 of float32,
// so a row of 1024 takes 4 warps, and one of kMaxNormDim the largest CTA. Both sums go over the
// lanes of a warp and then over the warps in turn: one order, whatever else runs.
#pragma once

#include <cstdint>

#include "elements.cuh"
#include "lpd/layer_norm.h"
#include "primitives.cuh"
#include "warp.cuh"

namespace lpd::cuda {

constexpr int kRowValues = 8;  // of a thread
constexpr int kMaxRowThreads = kMaxNormDim / kRowValues;
constexpr int kMaxRowWarps = kMaxRowThreads / 32;
static_assert(kMaxRowThreads <= 1024);

// Whole warps for a row.
inline dim3 row_threads(int64_t dim) {
  return dim3(static_cast<unsigned>((dim / kRowValues + 31) / 32 * 32));
}

// Of all threads of the CTA; each receives it. `partials` is used once.
__device__ __forceinline__ float sum_of_block(float x, float (&partials)[kMaxRowWarps]) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = x;
  __syncthreads();
  float total = partials[0];
  const int num_warps = static_cast<int>(blockDim.x / 32);
  for (int warp = 1; warp < num_warps; ++warp) total += partials[warp];
  return total;
}

// What this thread does of a row's LayerNorm. Made before the row itself is there, so that weight
// and bias are on their way meanwhile.
class RowNorm {
 public:
  __device__ __forceinline__
  RowNorm(int64_t dim, const float* weight, const float* bias, float eps, bool aligned)
      : count_(static_cast<float>(dim)),
        eps_(eps),
        first_(static_cast<int>(threadIdx.x) * kRowValues),
        is_mine_(first_ < dim),
        weight_{},
        bias_{} {
    if (!is_mine_) return;
    load_values(weight + first_, aligned, weight_);
    load_values(bias + first_, aligned, bias_);
  }

  // The first of this thread's values, and whether there are any: a row may end amid a warp.
  __device__ __forceinline__ int first() const { return first_; }
  __device__ __forceinline__ bool is_mine() const { return is_mine_; }

  // Called by the whole CTA, once; `values` of a thread without any are 0.
  __device__ __forceinline__ void normalise(float (&values)[kRowValues]) const {
    SIMT_SHARED(float, sums, [kMaxRowWarps]);
    SIMT_SHARED(float, squares, [kMaxRowWarps]);
    float sum = 0.0f, square = 0.0f;
#pragma unroll
    for (const float value : values) sum += value;
    const float mean = sum_of_block(sum, sums) / count_;
#pragma unroll
    for (const float value : values) {
      const float centred = is_mine_ ? value - mean : 0.0f;
      square += centred * centred;
    }
    const float scale = rsqrtf(sum_of_block(square, squares) / count_ + eps_);
#pragma unroll
    for (int i = 0; i < kRowValues; ++i) {
      values[i] = (values[i] - mean) * scale * weight_[i] + bias_[i];
    }
  }

 private:
  float count_;
  float eps_;
  int first_;
  bool is_mine_;
  float weight_[kRowValues];
  float bias_[kRowValues];
};

}  // namespace lpd::cuda
