// token_selection: one token a row by guidance, temperature, top-k, top-p and inverse-CDF sampling
// (arXiv 2507.01957). The arithmetic is specified in lpd/specified_math.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lpd/cuda_runtime.h"
#include "lpd/dtype.h"

namespace lpd {

struct TokenSelectionParams {
  int64_t batch;
  int64_t group_size;
  int64_t vocab_size;  // 1 .. 2^22, so that 2^40 a token sums up inside uint64
  Dtype dtype;

  const void* logits;         // [batch, group_size, vocab_size], vocabulary contiguous
  const void* uncond_logits;  // likewise and with the strides of logits, or null: no guidance
  const double* uniform;      // [batch, group_size]
  const float* cfg_scale;     // [batch, group_size]; read only with uncond_logits
  const float* temperature;   // [batch]; 0: the largest guided logit, lowest id first
  const int64_t* top_k;       // [batch]; <= 0 or >= vocab_size: off
  const float* top_p;         // [batch]; >= 1: off
  const int64_t* positions;   // [batch, group_size], or null: ids is [batch, group_size]
  int64_t* ids;               // [batch, seq_len]: the id of row j goes to place positions[j]
  int64_t seq_len;            // on CUDA a row whose place is not in [0, seq_len) writes nothing

  int64_t logits_batch_stride;
  int64_t logits_group_stride;
  int64_t uniform_batch_stride;
  int64_t uniform_group_stride;
  int64_t cfg_scale_batch_stride;  // 0 where a scale is shared by the batch
  int64_t cfg_scale_group_stride;
  int64_t temperature_stride;
  int64_t top_k_stride;
  int64_t top_p_stride;
  int64_t positions_batch_stride;
  int64_t positions_group_stride;
  int64_t ids_batch_stride;
  int64_t ids_stride;
};

// Id of a row that holds no distribution: a NaN or +inf logit (in either half or after guidance),
// nothing but -inf, or a temperature, top_p or uniform that is NaN or out of range.
constexpr int64_t kNoToken = -1;
constexpr int64_t kMaxVocabSize = int64_t{1} << 22;

namespace cpu {

// Bytes of workspace, at a multiple of 64, that one call of token_selection needs.
size_t token_selection_workspace_size(int64_t vocab_size);

// Ids of the rows [begin, end) of the batch * group_size rows.
void token_selection(const TokenSelectionParams& params,
                     int64_t begin,
                     int64_t end,
                     std::byte* workspace);

}  // namespace cpu

#if defined(LPD_CUDA)
namespace cuda {

// Ids of all rows, on `stream`: those of the CPU, to the bit.
cudaError_t token_selection(const TokenSelectionParams& params, cudaStream_t stream);

}  // namespace cuda
#endif
}  // namespace lpd
