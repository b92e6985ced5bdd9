// What kernels of attention on tensor cores share: 16-bit elements as fragments of m16n8k16, and
// tiles of keys and values in shared memory.
#pragma once

#include <type_traits>

#include "elements.cuh"
#include "primitives.cuh"

namespace lpd::cuda {

constexpr int kGroupRows = 16;  // of queries, as m16n8k16 wants them

// Of `warps` warps that split a tile, 16 keys each: queries, then kStages of keys and values, in
// elements.
template <class T, int kHeadDim, int kGroups, int kWarps>
struct AttentionLayout {
  static constexpr int kRow = kHeadDim + 8;  // eight rows cover all banks for ldmatrix
  static constexpr int kStages = kHeadDim <= 80 ? 3 : 2;
  static constexpr int kQueries = kGroups * kGroupRows * kRow;
  static constexpr int kTile = kWarps * 16 * kRow;
  static constexpr size_t kBytes = (kQueries + 2 * kStages * kTile) * sizeof(T);
  static_assert(2 * (kBytes + 2048) <= 164 * 1024);  // two blocks on a multiprocessor of sm_80
  // Behind the last tile its memory takes what the warps merge: [warp][row][kMergeRow],
  // [warp][row].
  static constexpr int kMergeRow = kHeadDim + 8;  // floats: float2 of four rows in all banks
  static_assert(kWarps * kGroupRows * (kMergeRow * sizeof(float) + sizeof(float2)) <=
                2 * kStages * kTile * sizeof(T));
};

// d += a b, of elements T.
template <class T>
__device__ __forceinline__ void multiply_add(const uint32_t (&a)[4],
                                             uint32_t b0,
                                             uint32_t b1,
                                             float (&d)[4]) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    simt::mma_bf16(d, a, b0, b1);
  } else {
    simt::mma_f16(d, a, b0, b1);
  }
}

template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return simt::pack_bf16(low, high);
  } else {
    return simt::pack_f16(low, high);
  }
}

// Two elements, those that are infinite or NaN replaced by 0.
template <class T>
__device__ __forceinline__ uint32_t finite_or_zero(uint32_t pair) {
  constexpr uint32_t kLow = std::is_same_v<T, BFloat16> ? 0x7f80 : 0x7c00, kHigh = kLow << 16;
  if ((pair & kLow) == kLow) pair &= 0xffff0000u;
  if ((pair & kHigh) == kHigh) pair &= 0x0000ffffu;
  return pair;
}

// 16 bytes on their way to shared memory; zeros where not valid.
template <class T>
__device__ __forceinline__ void copy_chunk(T* to, const T* from, bool valid, bool aligned) {
  if (aligned) return simt::cp_async16(to, from, valid);
  Chunk<T> chunk{};
  if (valid) chunk = load_chunk(from, /*aligned=*/false);
  store_chunk(to, chunk, /*aligned=*/true);
}

}  // namespace lpd::cuda
