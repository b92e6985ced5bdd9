// group_embedding: layer_norm(token or query token + position), where an order says
//   (contract: lpd/group_embedding.h)
//
// A CTA owns a row and holds it in registers (layer_norm.cuh); all copies are written from there. A
// row waits for three loads that need each other (order, token, table), which is what the launch
// takes at batch 1; many rows are bound by memory, with bfloat16 tables and two copies 12 KiB a
// row of 1024. Floor at 4.3 TB/s, predicted: 0.07 us at batch 1 (26 rows), 19 us at batch 256.
//
// Not yet run on a GPU.
#include <cmath>

#include "dispatch.h"
#include "elements.cuh"
#include "layer_norm.cuh"
#include "lpd/group_embedding.h"
#include "primitives.cuh"

namespace lpd::cuda {
namespace {

// The two rows of tables whose sum is normalised; none where a position or token leads outside.
template <class T>
struct Summands {
  const T* content = nullptr;
  const T* position = nullptr;

  __device__ __forceinline__ Summands(const GroupEmbeddingParams& params,
                                      int64_t image,
                                      int64_t place) {
    const int64_t where = params.order[image * params.order_batch_stride + place];
    if (where < 0 || where >= params.seq_len) return;
    if (place < params.context_end) {
      const int64_t token = params.tokens[image * params.tokens_batch_stride + where];
      if (token < -1 || token >= params.vocab_size) return;
      content = static_cast<const T*>(params.token_emb) + max(token, int64_t{0}) * params.dim;
    } else {
      content = static_cast<const T*>(params.query_token);
    }
    position = static_cast<const T*>(params.pos_embed) + where * params.dim;
  }
};

template <class T>
__global__ void __launch_bounds__(kMaxRowThreads)
    group_embedding_kernel(const GroupEmbeddingParams params, bool aligned) {
  const int rows = static_cast<int>(params.query_end - params.context_begin);
  const int64_t image = static_cast<int>(blockIdx.x) / rows;
  const int64_t row = static_cast<int>(blockIdx.x) % rows;
  const RowNorm norm(params.dim, params.norm_weight, params.norm_bias, params.norm_eps, aligned);
  const Summands<T> summands(params, image, params.context_begin + row);
  const bool is_inside = summands.content != nullptr;

  float values[kRowValues] = {};
  if (norm.is_mine() && is_inside) {
    float position[kRowValues];
    load_values(summands.content + norm.first(), aligned, values);
    load_values(summands.position + norm.first(), aligned, position);
#pragma unroll
    for (int i = 0; i < kRowValues; ++i) values[i] += position[i];
  }
  norm.normalise(values);
  if (!norm.is_mine()) return;
#pragma unroll
  for (float& value : values) value = is_inside ? value : NAN;
  float* out = params.out + image * params.out_batch_stride + row * params.out_row_stride;
  for (int64_t copy = 0; copy < params.copies; ++copy) {
    store_values(values, aligned, out + norm.first());
    out += params.batch * params.out_batch_stride;
  }
}

}  // namespace

cudaError_t group_embedding(const GroupEmbeddingParams& params, cudaStream_t stream) {
  const int64_t num_rows = params.batch * (params.query_end - params.context_begin);
  if (num_rows == 0) return cudaSuccess;
  if (num_rows > INT32_MAX) return cudaErrorInvalidValue;
  return with_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    const bool aligned =
        is_aligned<T>({params.token_emb, params.query_token, params.pos_embed}, {params.dim}) &&
        is_aligned<float>({params.norm_weight, params.norm_bias, params.out},
                          {params.out_batch_stride, params.out_row_stride});
    SIMT_LAUNCH((group_embedding_kernel<T>), dim3(static_cast<unsigned>(num_rows)),
                row_threads(params.dim), 0, stream, params, aligned);
    return cudaGetLastError();
  });
}

}  // namespace lpd::cuda
