// group_embedding: the rows a decode step sends through the transformer (arXiv 2507.01957): context
// rows of decoded tokens, then query rows, all at the positions that the order names.
//   context row i  layer_norm(token_emb[tokens[p]] + pos_embed[p]),  p = order[context_begin + i]
//   query row i    layer_norm(query_token + pos_embed[p]),           p = order[context_end + i]
// On the CPU the caller has checked what is looked up; on CUDA, where nobody can without waiting
// for the device, a row whose position or token is outside its table becomes NaN and reads no
// table.
#pragma once

#include <cstdint>

#include "lpd/cuda_runtime.h"
#include "lpd/dtype.h"
#include "lpd/layer_norm.h"

namespace lpd {

struct GroupEmbeddingParams {
  int64_t batch;
  int64_t copies;  // of every image, one after the other: 2 with classifier-free guidance
  int64_t dim;     // a multiple of 16, at most kMaxNormDim
  int64_t seq_len;
  int64_t vocab_size;
  int64_t context_begin;
  int64_t context_end;
  int64_t query_end;
  float norm_eps;
  Dtype dtype;  // of the embeddings: kFloat32, kBFloat16 or kFloat16

  const int64_t* tokens;     // [batch, seq_len] in raster order; -1, no token, reads as token 0
  const int64_t* order;      // [batch, seq_len] raster positions
  const void* token_emb;     // [vocab_size, dim], contiguous
  const void* query_token;   // [dim]
  const void* pos_embed;     // [seq_len, dim], contiguous
  const float* norm_weight;  // [dim]
  const float* norm_bias;    // [dim]
  float* out;                // [copies * batch, query_end - context_begin, dim]

  int64_t tokens_batch_stride;
  int64_t order_batch_stride;
  int64_t out_batch_stride;
  int64_t out_row_stride;
};

namespace cpu {

// Rows [begin, end) of the batch * (query_end - context_begin), each in all its copies.
void group_embedding(const GroupEmbeddingParams& params, int64_t begin, int64_t end);

}  // namespace cpu

#if defined(LPD_CUDA)
namespace cuda {

// All rows, on `stream`.
cudaError_t group_embedding(const GroupEmbeddingParams& params, cudaStream_t stream);

}  // namespace cuda
#endif
}  // namespace lpd
