// group_norm_silu: what stands before a convolution of the tokenizer, in channels-last memory.
//   y = (x - mean) / sqrt(variance + norm_eps) * norm_weight + norm_bias, over an image's group
//   out = silu ? y / (1 + exp(-y)) : y, in float32, rounded once
// Statistics come first, then they are applied. Both cut the pixels of an image into chunks, by its
// shape alone: partial sums, and the order in which they are added, know of no other image.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lpd/cuda_runtime.h"
#include "lpd/dtype.h"

namespace lpd {

// As many partial sums as a block of CUDA threads holds in shared memory.
constexpr int64_t kMaxGroupNormChannels = 8192;

struct GroupNormSiluParams {
  int64_t batch;
  int64_t pixels;      // of an image
  int64_t channels;    // at most kMaxGroupNormChannels
  int64_t num_groups;  // divides channels
  float norm_eps;
  bool silu;
  Dtype dtype;       // of x and out
  Dtype norm_dtype;  // kFloat32 or that of x

  const void* x;            // [batch, pixels, channels], contiguous
  const void* norm_weight;  // [channels]
  const void* norm_bias;    // [channels]
  void* out;                // [batch, pixels, channels], contiguous; may be x
};

namespace cpu {

// Of an image.
int64_t group_norm_silu_chunks(const GroupNormSiluParams& params);

// Floats that the statistics of all images take, and those that each call of apply computes in.
int64_t group_norm_silu_partials_size(const GroupNormSiluParams& params);
int64_t group_norm_silu_workspace_size(const GroupNormSiluParams& params);

// Chunks [begin, end) of batch * chunks: their part of `partials`, which is written.
void group_norm_silu_statistics(const GroupNormSiluParams& params,
                                int64_t begin,
                                int64_t end,
                                float* partials);

// The same chunks normalised, by all `partials` of their images.
void group_norm_silu_apply(const GroupNormSiluParams& params,
                           int64_t begin,
                           int64_t end,
                           const float* partials,
                           float* workspace);

}  // namespace cpu

#if defined(LPD_CUDA)
namespace cuda {

size_t group_norm_silu_workspace_size(const GroupNormSiluParams& params);

// All images, in two launches on `stream`; bits as above. `workspace` is 8-byte aligned.
cudaError_t group_norm_silu(const GroupNormSiluParams& params,
                            std::byte* workspace,
                            cudaStream_t stream);

}  // namespace cuda
#endif
}  // namespace lpd
