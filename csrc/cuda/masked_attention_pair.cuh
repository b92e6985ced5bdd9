// One (image, head) of the tensors of masked_attention.
#pragma once

#include "elements.cuh"
#include "lpd/masked_attention.h"

namespace lpd::cuda {

template <class T>
struct MaskedAttentionPair {
  int64_t image;
  const T* q;  // [q_len, head_dim], params.q_strides.row apart; k and v likewise
  const T* k;
  const T* v;
  T* out;  // [q_len, head_dim], contiguous

  __device__ MaskedAttentionPair(const MaskedAttentionParams& params, int number) {
    const int num_heads = static_cast<int>(params.num_heads);
    image = number / num_heads;
    const int64_t head = number % num_heads;
    const auto part = [&](const void* tensor, const AttentionStrides& strides) {
      return static_cast<const T*>(tensor) + image * strides.batch + head * strides.head;
    };
    q = part(params.q, params.q_strides);
    k = part(params.k, params.k_strides);
    v = part(params.v, params.v_strides);
    out = static_cast<T*>(params.out) + number * params.q_len * params.head_dim;
  }
};

// A row's prefix length, 0 where it is none.
__device__ __forceinline__ int prefix_len(const MaskedAttentionParams& params,
                                          int64_t image,
                                          int64_t row) {
  if (!fits(params, image, row)) return 0;
  return params.prefix_lens[image * params.mask_batch_stride + row * params.mask_row_stride];
}

// `out` is contiguous.
template <class T>
bool is_aligned(const MaskedAttentionParams& params) {
  const auto &q = params.q_strides, &k = params.k_strides, &v = params.v_strides;
  return is_aligned<T>({params.q, params.k, params.v, params.out},
                       {q.batch, q.head, q.row, k.batch, k.head, k.row, v.batch, v.head, v.row});
}

}  // namespace lpd::cuda
