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
    const auto part = [&](const void* tensor, const MaskedAttentionParams::Strides& strides) {
      return static_cast<const T*>(tensor) + image * strides.batch + head * strides.head;
    };
    q = part(params.q, params.q_strides);
    k = part(params.k, params.k_strides);
    v = part(params.v, params.v_strides);
    out = static_cast<T*>(params.out) + number * params.q_len * params.head_dim;
  }
};

// The first `count` of kBits keys, a bit each.
template <class Word>
__device__ __forceinline__ Word first_keys(int64_t count) {
  constexpr int kBits = 8 * sizeof(Word);
  if (count <= 0) return 0;
  return count < kBits ? (Word{1} << count) - 1 : ~Word{0};
}

// A row's prefix length, 0 where it is none.
__device__ __forceinline__ int prefix_len(const MaskedAttentionParams& params,
                                          int64_t image,
                                          int64_t row) {
  if (!fits(params, image, row)) return 0;
  return params.prefix_lens[image * params.mask_batch_stride + row * params.mask_row_stride];
}

// Whether chunks of 16 bytes can be read at once, whichever tensor they are of. `out` is
// contiguous.
template <class T>
bool is_aligned(const MaskedAttentionParams& params) {
  uint64_t bits = 0;
  const void* const pointers[] = {params.q, params.k, params.v, params.out};
  for (const void* pointer : pointers) bits |= reinterpret_cast<uintptr_t>(pointer);
  for (const auto& strides : {params.q_strides, params.k_strides, params.v_strides}) {
    bits |= static_cast<uint64_t>(strides.batch | strides.head | strides.row) * sizeof(T);
  }
  return bits % 16 == 0;
}

}  // namespace lpd::cuda
