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

  // Whether a key is one that this step appends.
  __device__ __forceinline__ bool is_new(int64_t slot) const {
    return slot >= lengths.cache_len && slot < lengths.cache_len + lengths.context_len;
  }
};

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

// Whether chunks of 16 bytes can be moved at once, whichever tensor they are of.
template <class T>
bool is_aligned(const GroupAttentionParams& params) {
  uint64_t bits = 0;
  const void* const pointers[] = {params.qkv, params.k_cache, params.v_cache, params.out};
  for (const void* pointer : pointers) bits |= reinterpret_cast<uintptr_t>(pointer);
  const int64_t strides[] = {params.qkv_batch_stride, params.qkv_row_stride, params.k_strides.batch,
                             params.k_strides.head,   params.k_strides.row,  params.v_strides.batch,
                             params.v_strides.head,   params.v_strides.row};
  for (const int64_t stride : strides) bits |= static_cast<uint64_t>(stride) * sizeof(T);
  return bits % 16 == 0;
}

}  // namespace lpd::cuda
