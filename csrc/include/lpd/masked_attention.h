// masked_attention: attention under any mask, for parallel decoders whose rows see each other
// otherwise than those of group_attention do.
//   out_i = sum_{j seen by i} softmax_j(scale * q_i . k_j) v_j
// Which keys a row sees is told by its prefix length (keys [0, n_i)) or by a row of booleans. A row
// that sees none gives 0, one whose prefix length is not in [0, kv_len] NaN. What a row does not
// see is skipped, whatever it holds.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lpd/attention.h"
#include "lpd/cuda_runtime.h"
#include "lpd/dtype.h"
#include "lpd/inline.h"

namespace lpd {

struct MaskedAttentionParams {
  int64_t batch;
  int64_t num_heads;
  int64_t q_len;
  int64_t kv_len;
  int64_t head_dim;
  float scale;
  Dtype dtype;  // of q, k, v and out; sums are float32

  const void* q;  // [batch, num_heads, q_len, head_dim]
  const void* k;  // [batch, num_heads, kv_len, head_dim]
  const void* v;  // likewise
  // One of the two, for all heads; a batch stride of 0: for all images.
  const int32_t* prefix_lens;  // [batch, q_len]
  const uint8_t* mask;         // [batch, q_len, kv_len], the last contiguous; not 0: seen
  void* out;                   // [batch, num_heads, q_len, head_dim], contiguous

  AttentionStrides q_strides;
  AttentionStrides k_strides;
  AttentionStrides v_strides;
  int64_t mask_batch_stride;  // of prefix_lens or mask
  int64_t mask_row_stride;
};

// Whether a row's prefix length is one.
LPD_INLINE bool fits(const MaskedAttentionParams& params, int64_t image, int64_t row) {
  if (params.prefix_lens == nullptr) return true;
  const int64_t length =
      params.prefix_lens[image * params.mask_batch_stride + row * params.mask_row_stride];
  return length >= 0 && length <= params.kv_len;
}

namespace cpu {

// Bytes of workspace, at a multiple of 64, that one call of masked_attention needs.
size_t masked_attention_workspace_size(const MaskedAttentionParams& params);

// Attends for the (image, head) pairs [begin, end) of batch * num_heads. A pair is computed alone
// and in one order: its bits depend neither on the batch, nor on the range, nor on how its mask is
// told.
void masked_attention(const MaskedAttentionParams& params,
                      int64_t begin,
                      int64_t end,
                      std::byte* workspace);

}  // namespace cpu

#if defined(LPD_CUDA)
namespace cuda {

// Bytes of device memory, at a multiple of 16, that one call of masked_attention needs.
size_t masked_attention_workspace_size(const MaskedAttentionParams& params, Arithmetic arithmetic);

// Attends on `stream`; bits as above. head_dim: 32, 64, 80, 96 or 128.
cudaError_t masked_attention(const MaskedAttentionParams& params,
                             Arithmetic arithmetic,
                             std::byte* workspace,
                             cudaStream_t stream);

}  // namespace cuda
#endif
}  // namespace lpd
