// Attention on tensor cores: what a block does with groups of 16 rows and tiles of 64 keys that lie
// in shared memory, each warp with 16 keys of its own, and how the warps' results become one.
#pragma once

#include "attention_division.h"
#include "attention_softmax.cuh"
#include "elements.cuh"
#include "mma.cuh"
#include "primitives.cuh"
#include "warp.cuh"

namespace lpd::cuda::mma {

// The layout of shared memory: queries, then kStages of keys and values, in elements.
template <class T, int kHeadDim, int kGroups>
struct Layout {
  static constexpr int kRow = kHeadDim + 8;  // eight rows cover all banks for ldmatrix
  static constexpr int kStages = kHeadDim <= 80 ? 3 : 2;
  static constexpr int kQueries = kGroups * kGroupRows * kRow;
  static constexpr int kTile = kTileKeys * kRow;  // of keys, and as much of values
  static constexpr size_t kBytes = (kQueries + 2 * kStages * kTile) * sizeof(T);
  static_assert(2 * (kBytes + 2048) <= 164 * 1024);  // two blocks on a multiprocessor of sm_80
  // Behind the last tile its memory takes what the warps merge: [warp][row][kMergeRow], then
  // [warp][row].
  static constexpr int kMergeRow = kHeadDim + 8;  // floats: float2 of four rows in all banks
  static_assert(kWarps * kGroupRows * (kMergeRow * sizeof(float) + sizeof(float2)) <=
                2 * kStages * kTile * sizeof(T));
};

// Rows on their way to shared memory: `count` of them, then zeros up to `padded`.
template <class T, int kHeadDim, class RowOf>
__device__ __forceinline__ void copy_rows(int count,
                                          int padded,
                                          bool aligned,
                                          const RowOf& row_of,
                                          T* to) {
  constexpr int kRow = Layout<T, kHeadDim, 1>::kRow, kChunks = kHeadDim / Chunk<T>::kSize;
#pragma unroll 1
  for (int i = threadIdx.x; i < padded * kChunks; i += kThreads) {
    const int row = i / kChunks, column = i % kChunks * Chunk<T>::kSize;
    const bool valid = row < count;
    copy_chunk(row_of(valid ? row : 0) + column, aligned, to + row * kRow + column, valid);
  }
}

// A warp's keys and values of a tile, as the right operands of m16n8k16.
template <class T, int kHeadDim>
struct Fragments {
  static constexpr int kSteps = kHeadDim / 16;
  static constexpr int kRow = Layout<T, kHeadDim, 1>::kRow;
  uint32_t keys[kSteps][4];
  uint32_t values[kSteps][4];

  __device__ __forceinline__ Fragments(const T* from_keys, const T* from_values) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int key = lane / 16 * 8 + lane % 8, key_column = i * 16 + lane / 8 % 2 * 8;
      simt::ldmatrix_x4(keys[i], from_keys + key * kRow + key_column);
      simt::ldmatrix_x4_trans(values[i], from_values + lane % 16 * kRow + i * 16 + lane / 16 * 8);
    }
  }

  // Products of a group's queries and the keys.
  __device__ __forceinline__ void score(const T* queries, float (&scores)[2][4]) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      uint32_t rows[4];
      simt::ldmatrix_x4(rows, queries + lane % 16 * kRow + i * 16 + lane / 16 * 8);
      multiply_add<T>(rows, keys[i][0], keys[i][1], scores[0]);
      multiply_add<T>(rows, keys[i][2], keys[i][3], scores[1]);
    }
  }

  // sums += weights @ values; the weights are rounded to T.
  __device__ __forceinline__ void add_values(const float (&weights)[2][4],
                                             float (&sums)[kHeadDim / 8][4]) const {
    const uint32_t rounded[4] = {
        pack<T>(weights[0][0], weights[0][1]), pack<T>(weights[0][2], weights[0][3]),
        pack<T>(weights[1][0], weights[1][1]), pack<T>(weights[1][2], weights[1][3])};
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      multiply_add<T>(rounded, values[i][0], values[i][1], sums[2 * i]);
      multiply_add<T>(rounded, values[i][2], values[i][3], sums[2 * i + 1]);
    }
  }
};

// Merges the warps' results of a group, in the order of the warps, in the memory of the tiles, and
// calls take(row, column, merge) for each chunk of its first `num_rows` rows, on one thread.
template <class T, int kHeadDim, class Take>
__device__ __forceinline__ void merge_warps(const Softmax<kHeadDim>& softmax,
                                            T* tiles,
                                            int num_rows,
                                            const Take& take) {
  constexpr int kMergeRow = Layout<T, kHeadDim, 1>::kMergeRow;
  constexpr int kChunks = kHeadDim / Chunk<T>::kSize;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float* const sums = reinterpret_cast<float*>(tiles);
  float2* const rows = reinterpret_cast<float2*>(sums + kWarps * kGroupRows * kMergeRow);
  __syncthreads();  // tiles, or the group before, have been read
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = warp * kGroupRows + h * 8 + lane / 4;
    const float total = sum_of_row(softmax.total[h]);
    if (lane % 4 == 0) rows[row] = make_float2(softmax.largest[h], total);
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      *reinterpret_cast<float2*>(sums + row * kMergeRow + n * 8 + lane % 4 * 2) =
          make_float2(softmax.sums[n][2 * h], softmax.sums[n][2 * h + 1]);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < num_rows * kChunks; i += kThreads) {
    const int row = i / kChunks, column = i % kChunks * Chunk<T>::kSize;
    Merge<Chunk<T>::kSize> merge;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const int at = w * kGroupRows + row;
      merge.add(rows[at], reinterpret_cast<const float4*>(sums + at * kMergeRow + column));
    }
    take(row, column, merge);
  }
}

}  // namespace lpd::cuda::mma
