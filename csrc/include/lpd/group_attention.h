// group_attention: attention of one decode step (arXiv 2507.01957). The rows are context tokens,
// then position queries; the whole mask is two prefix lengths. Row i sees the keys [0, n_i):
//   context row  n_i = cache_len + context_len             (cache and all context rows)
//   query row    n_i = cache_len + q_len                   (those and all query rows)
//   out_i = sum_j softmax_j(scale * q_i . k_j) v_j
// Context keys and values are appended to the caches, those of the queries leave nothing there.
// In the ragged form every image has lengths of its own. Its rows from its q_len on are padding:
// out is 0 there. Lengths that do not fit (see `fit`) make an image's out NaN and leave its cache
// alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lpd/attention.h"
#include "lpd/cuda_runtime.h"
#include "lpd/dtype.h"
#include "lpd/inline.h"

namespace lpd {

struct GroupAttentionParams {
  int64_t batch;
  int64_t q_len;  // rows an image: context_len + position queries, in the ragged form at least
  int64_t num_heads;
  int64_t head_dim;
  int64_t max_kv_len;
  int64_t cache_len;    // keys in the cache before the step
  int64_t context_len;  // rows appended at cache_len
  float scale;
  Dtype dtype;  // of every tensor; sums are float32

  const int32_t* cache_lens;  // [batch] each, or nullptr: the numbers above for every image
  const int32_t* context_lens;
  const int32_t* q_lens;

  const void* qkv;  // [batch, q_len, 3, num_heads, head_dim], the last three contiguous
  void* k_cache;    // [batch, num_heads, max_kv_len, head_dim]; read below, written from cache_len
  void* v_cache;    // likewise
  void* out;        // [batch, q_len, num_heads * head_dim], contiguous

  int64_t qkv_batch_stride;
  int64_t qkv_row_stride;
  AttentionStrides k_strides;
  AttentionStrides v_strides;
};

struct GroupLengths {
  int64_t cache_len;
  int64_t context_len;
  int64_t q_len;
};

LPD_INLINE GroupLengths lengths_of(const GroupAttentionParams& params, int64_t image) {
  if (params.q_lens == nullptr) return {params.cache_len, params.context_len, params.q_len};
  return {params.cache_lens[image], params.context_lens[image], params.q_lens[image]};
}

// Whether they stay inside the tensors.
LPD_INLINE bool fit(const GroupLengths& lengths, const GroupAttentionParams& params) {
  return lengths.cache_len >= 0 && lengths.context_len >= 0 &&
         lengths.context_len <= lengths.q_len && lengths.q_len <= params.q_len &&
         lengths.cache_len <= params.max_kv_len - lengths.context_len;
}

namespace cpu {

// Bytes of workspace, at a multiple of 64, that one call of group_attention needs.
size_t group_attention_workspace_size(const GroupAttentionParams& params);

// Appends and attends for the (image, head) pairs [begin, end) of batch * num_heads. A pair is
// computed alone and in one order: its bits depend neither on the batch nor on the range.
void group_attention(const GroupAttentionParams& params,
                     int64_t begin,
                     int64_t end,
                     std::byte* workspace);

}  // namespace cpu

#if defined(LPD_CUDA)
namespace cuda {

// Bytes of device memory, at a multiple of 16, that one call of group_attention needs.
size_t group_attention_workspace_size(const GroupAttentionParams& params, Arithmetic arithmetic);

// Appends and attends on `stream`; bits as above. head_dim: 32, 64, 80, 96 or 128.
cudaError_t group_attention(const GroupAttentionParams& params,
                            Arithmetic arithmetic,
                            std::byte* workspace,
                            cudaStream_t stream);

}  // namespace cuda
#endif
}  // namespace lpd
