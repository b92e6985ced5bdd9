// Softmax of a row over keys that come piece by piece, or were seen by different warps and CTAs.
#pragma once

#include <cmath>

#include "elements.cuh"
#include "warp.cuh"

namespace lpd::cuda {

constexpr float kLog2E = 1.44269504f;

// The first `count` keys of a word, a bit each.
template <class Word>
__device__ __forceinline__ Word first_keys(int64_t count) {
  constexpr int kBits = 8 * sizeof(Word);
  if (count <= 0) return 0;
  return count < kBits ? (Word{1} << count) - 1 : ~Word{0};
}

// 2^(score - largest). Where all scores so far are -inf, that difference would be NaN.
__device__ __forceinline__ float weight_of(float score, float largest) {
  return simt::exp2_fast(score - (largest == -INFINITY ? 0.0f : largest));
}

// Running softmax of one group of rows, as the fragments of m16n8k16 have them: a lane holds two
// rows, 8 apart.
template <int kHeadDim>
struct Softmax {
  float largest[2];  // score so far
  float total[2];    // of weights; of this lane's keys
  float sums[kHeadDim / 8][4];

  __device__ __forceinline__ Softmax() : largest{-INFINITY, -INFINITY}, total{0.0f, 0.0f}, sums{} {}

  // Scores become weights.
  __device__ __forceinline__ void add(float (&scores)[2][4]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float most = fmaxf(fmaxf(scores[0][2 * h], scores[0][2 * h + 1]),
                               fmaxf(scores[1][2 * h], scores[1][2 * h + 1]));
      const float before = largest[h];
      largest[h] = fmaxf(before, largest_of_row(most));
      const float factor = weight_of(before, largest[h]);
      total[h] *= factor;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; ++e) {
          scores[n][e] = weight_of(scores[n][e], largest[h]);
          total[h] += scores[n][e];
        }
      }
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        sums[n][2 * h] *= factor;
        sums[n][2 * h + 1] *= factor;
      }
    }
  }
};

// Softmaxes over different keys become one; the order in which they are added is the caller's.
template <int kSize>
struct Merge {
  float2 row = make_float2(-INFINITY, 0.0f);  // largest score, sum of weights
  alignas(16) float sums[kSize] = {};         // of weighted values

  __device__ __forceinline__ void add(float2 other, const float4* other_sums) {
    const float largest = fmaxf(row.x, other.x);
    const float mine = weight_of(row.x, largest), theirs = weight_of(other.x, largest);
    row = make_float2(largest, row.y * mine + other.y * theirs);
#pragma unroll
    for (int i = 0; i < kSize / 4; ++i) {
      const float4 x = other_sums[i];
      float* const sum = sums + 4 * i;
      sum[0] = sum[0] * mine + x.x * theirs;
      sum[1] = sum[1] * mine + x.y * theirs;
      sum[2] = sum[2] * mine + x.z * theirs;
      sum[3] = sum[3] * mine + x.w * theirs;
    }
  }

  __device__ __forceinline__ void add(const Merge& other) {
    add(other.row, reinterpret_cast<const float4*>(other.sums));
  }

  // What `row` and `keep` gave.
  __device__ __forceinline__ void resume(float2 kept_row, const float4* kept) {
    row = kept_row;
#pragma unroll
    for (int i = 0; i < kSize / 4; ++i) {
      const float4 x = kept[i];
      sums[4 * i] = x.x;
      sums[4 * i + 1] = x.y;
      sums[4 * i + 2] = x.z;
      sums[4 * i + 3] = x.w;
    }
  }

  __device__ __forceinline__ void keep(float4* to) const {
#pragma unroll
    for (int i = 0; i < kSize / 4; ++i) {
      to[i] = make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
    }
  }

  template <class T>
  __device__ __forceinline__ Chunk<T> result() const {
    float values[kSize];
#pragma unroll
    for (int i = 0; i < kSize; ++i) values[i] = sums[i] / row.y;
    return to_chunk<T>(values);
  }
};

}  // namespace lpd::cuda
