// One (image, head) of the tensors of group_attention.
#pragma once

#include <cmath>

#include "elements.cuh"
#include "lpd/group_attention.h"

namespace lpd::cuda {

template <class T>
struct GroupAttentionPair {
  GroupLengths lengths;
  const T* q;  // [q_len, head_dim], row_stride apart; k and v likewise
  const T* k;
  const T* v;
  int64_t row_stride;
  T* k_cache;  // [max_kv_len, head_dim]
  T* v_cache;
  int64_t k_stride;
  int64_t v_stride;
  T* out;  // [q_len, head_dim], out_stride apart
  int64_t out_stride;

  __device__ GroupAttentionPair(const GroupAttentionParams& params, int number) {
    const int num_heads = static_cast<int>(params.num_heads);
    const int64_t image = number / num_heads, head = number % num_heads;
    lengths = lengths_of(params, image);
    out_stride = params.num_heads * params.head_dim;
    row_stride = params.qkv_row_stride;
    q = static_cast<const T*>(params.qkv) + image * params.qkv_batch_stride +
        head * params.head_dim;
    k = q + out_stride;
    v = k + out_stride;
    k_cache = static_cast<T*>(params.k_cache) + image * params.k_strides.batch +
              head * params.k_strides.head;
    v_cache = static_cast<T*>(params.v_cache) + image * params.v_strides.batch +
              head * params.v_strides.head;
    k_stride = params.k_strides.row;
    v_stride = params.v_strides.row;
    out = static_cast<T*>(params.out) + image * params.q_len * out_stride + head * params.head_dim;
  }

  // Where key number `slot` is read: in the cache, or among the rows of this step.
  __device__ __forceinline__ const T* key(int64_t slot) const {
    const int64_t row = slot - lengths.cache_len;
    return row < 0 ? k_cache + slot * k_stride : k + row * row_stride;
  }
  __device__ __forceinline__ const T* value(int64_t slot) const {
    const int64_t row = slot - lengths.cache_len;
    return row < 0 ? v_cache + slot * v_stride : v + row * row_stride;
  }
};

// Appends the context rows to the caches, with all threads of a block. Nobody reads them there.
template <class T, int kHeadDim, int kThreads>
__device__ __forceinline__ void append(const GroupAttentionPair<T>& pair, bool aligned) {
  constexpr int kChunks = kHeadDim / Chunk<T>::kSize;
  for (int64_t i = threadIdx.x; i < pair.lengths.context_len * kChunks; i += kThreads) {
    const int64_t row = i / kChunks, slot = pair.lengths.cache_len + row;
    const int64_t column = i % kChunks * Chunk<T>::kSize, from = row * pair.row_stride + column;
    store_chunk(pair.k_cache + slot * pair.k_stride + column, load_chunk(pair.k + from, aligned),
                aligned);
    store_chunk(pair.v_cache + slot * pair.v_stride + column, load_chunk(pair.v + from, aligned),
                aligned);
  }
}

// Writes one value to the rows [first, end) of a pair's output, with all threads of a block.
template <class T, int kHeadDim, int kThreads>
__device__ __forceinline__ void fill_rows(const GroupAttentionPair<T>& pair,
                                          int64_t first,
                                          int64_t end,
                                          float x) {
  for (int64_t i = threadIdx.x; i < (end - first) * kHeadDim; i += kThreads) {
    pair.out[(first + i / kHeadDim) * pair.out_stride + i % kHeadDim] = from_float<T>(x);
  }
}

template <class T>
bool is_aligned(const GroupAttentionParams& params) {
  const auto &k = params.k_strides, &v = params.v_strides;
  return is_aligned<T>({params.qkv, params.k_cache, params.v_cache, params.out},
                       {params.qkv_batch_stride, params.qkv_row_stride, k.batch, k.head, k.row,
                        v.batch, v.head, v.row});
}

}  // namespace lpd::cuda
