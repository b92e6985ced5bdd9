// Attention in float32 arithmetic, without tensor cores: what a block does with a tile of 32 keys
// that lies widened in shared memory. A warp owns every fourth of 16 rows. For scores a lane owns
// one key, for sums of values every 32nd column; the weights cross over in shared memory. The
// softmax is online: what was summed shrinks when a row's maximum grows.
#pragma once

#include <cmath>

#include "attention_softmax.cuh"
#include "elements.cuh"
#include "primitives.cuh"
#include "warp.cuh"

namespace lpd::cuda::simple {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kRowsPerWarp = 4;
constexpr int kRows = kWarps * kRowsPerWarp;
constexpr int kKeys = 32;  // of a tile, one a lane

template <int kHeadDim>
struct Shape {
  static constexpr int kVectors = kHeadDim / 4;          // of a widened row
  static constexpr int kColumns = (kHeadDim + 31) / 32;  // of a lane
  using Queries = float4[kRows][kVectors];
  using Keys = float4[kKeys][kVectors + 1];  // + 1: 8 lanes read 8 rows in all banks
  using Values = float4[kKeys][kVectors];
  using Weights = float4[kRows][kKeys / 4];
};

// Widens `count` rows into shared memory; a row_of(row) of nullptr gives zeros.
template <class T, int kHeadDim, int kStride, class RowOf>
__device__ __forceinline__ void widen_rows(int count,
                                           float factor,
                                           bool aligned,
                                           const RowOf& row_of,
                                           float4 (*to)[kStride]) {
  constexpr int kChunks = kHeadDim / Chunk<T>::kSize;
  for (int i = threadIdx.x; i < count * kChunks; i += kThreads) {
    const int row = i / kChunks, column = i % kChunks * Chunk<T>::kSize;
    const T* const from = row_of(row);
    Chunk<T> chunk{};
    if (from != nullptr) chunk = load_chunk(from + column, aligned);
    widen(chunk, factor, &to[row][column / 4]);
  }
}

// A warp's rows: row r of them is row r * kWarps + warp of the block.
template <int kHeadDim>
struct Rows {
  using S = Shape<kHeadDim>;
  float maxima[kRowsPerWarp];
  float totals[kRowsPerWarp] = {};
  float sums[kRowsPerWarp][S::kColumns] = {};

  __device__ __forceinline__ Rows() {
#pragma unroll
    for (float& maximum : maxima) maximum = -INFINITY;
  }

  // Shows them the first `count` keys of a tile, of which row r sees those of seen[r].
  __device__ __forceinline__ void attend(const typename S::Queries& queries,
                                         const typename S::Keys& keys,
                                         const typename S::Values& values,
                                         typename S::Weights& weights,
                                         const uint32_t (&seen)[kRowsPerWarp],
                                         int count) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float scores[kRowsPerWarp] = {};
    if (lane < count) {
#pragma unroll
      for (int i = 0; i < S::kVectors; ++i) {
        const float4 y = keys[lane][i];
#pragma unroll
        for (int r = 0; r < kRowsPerWarp; ++r) {
          const float4 x = queries[r * kWarps + warp][i];
          scores[r] += x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
        }
      }
    }

#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const float score = seen[r] >> lane & 1 ? scores[r] : -INFINITY;
      const float before = maxima[r];
      maxima[r] = fmaxf(before, largest_of_warp(score));
      const float factor = weight_of(before, maxima[r]), weight = weight_of(score, maxima[r]);
      totals[r] = totals[r] * factor + weight;
#pragma unroll
      for (float& sum : sums[r]) sum *= factor;
      reinterpret_cast<float*>(weights[r * kWarps + warp])[lane] = weight;
    }
    __syncwarp();

    for (int i = 0; i < count; i += 4) {
      float row_weights[kRowsPerWarp][4];
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        memcpy(row_weights[r], &weights[r * kWarps + warp][i / 4], sizeof(float4));
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (i + j >= count) break;
#pragma unroll
        for (int c = 0; c < S::kColumns; ++c) {
          const int column = lane + 32 * c;
          if (column >= kHeadDim) break;
          const float value = reinterpret_cast<const float*>(values[i + j])[column];
          // Hidden keys are skipped, not weighted with 0: their values may be NaN.
#pragma unroll
          for (int r = 0; r < kRowsPerWarp; ++r) {
            if (seen[r] >> (i + j) & 1) sums[r][c] += row_weights[r][j] * value;
          }
        }
      }
    }
  }

  // Writes row r; `otherwise` in place of a row that is not `valid`.
  template <class T>
  __device__ __forceinline__ void store(int r, float total, bool valid, float otherwise, T* out) {
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c) {
      const int column = threadIdx.x % 32 + 32 * c;
      if (column >= kHeadDim) break;
      out[column] = from_float<T>(valid ? sums[r][c] / total : otherwise);
    }
  }
};

}  // namespace lpd::cuda::simple
