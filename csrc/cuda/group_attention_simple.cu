// group_attention in float32 arithmetic, without tensor cores: plain enough to be a second opinion.
//   out_i = sum_{j < n_i} softmax_j(scale q_i . k_j) v_j        (contract: lpd/group_attention.h)
//
// A CTA owns up to 16 rows of one (image, head) and walks the keys, those of the cache, then those
// of the step, in tiles of 32 that it widens into shared memory. A warp owns every fourth row. For
// scores a lane owns one key of the tile, for sums of values every 32nd column; the weights cross
// over in shared memory. The softmax is online: what was summed shrinks when a row's maximum grows.
// Tiles begin at multiples of 32 whatever the rows, so a row's bits depend on its own keys alone.
// The CTA that owns the first rows appends the context rows to the caches as it meets them.
//
// Not yet run on a GPU.
#include <cmath>

#include "dispatch.h"
#include "elements.cuh"
#include "group_attention_kernels.h"
#include "group_attention_pair.cuh"
#include "primitives.cuh"
#include "warp.cuh"

namespace lpd::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kRowsPerWarp = 4;
constexpr int kRows = kWarps * kRowsPerWarp;
constexpr int kKeys = 32;  // of a tile, one a lane
constexpr float kLog2E = 1.44269504f;

template <class T, int kHeadDim>
__global__ void __launch_bounds__(kThreads)
    group_attention_simple_kernel(const GroupAttentionParams params, bool aligned) {
  constexpr int kChunks = kHeadDim / Chunk<T>::kSize;  // of a row
  constexpr int kVectors = kHeadDim / 4;               // of a widened row
  constexpr int kColumns = (kHeadDim + 31) / 32;       // of a lane
  SIMT_SHARED(float4, queries, [kRows][kVectors]);
  SIMT_SHARED(float4, keys, [kKeys][kVectors + 1]);  // + 1: 8 lanes read 8 rows in all banks
  SIMT_SHARED(float4, values, [kKeys][kVectors]);
  SIMT_SHARED(float4, weights, [kRows][kKeys / 4]);

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int num_tiles = (params.q_len + kRows - 1) / kRows;
  const int first_row = blockIdx.x % num_tiles * kRows;
  const GroupAttentionPair<T> pair(params, blockIdx.x / num_tiles);
  const GroupLengths lengths = pair.lengths;
  const int64_t end_row = min(params.q_len, static_cast<int64_t>(first_row + kRows));
  if (!fit(lengths, params)) {
    return fill_rows<T, kHeadDim, kThreads>(pair, first_row, end_row, NAN);
  }
  if (first_row >= lengths.q_len) {
    return fill_rows<T, kHeadDim, kThreads>(pair, first_row, end_row, 0.0f);
  }

  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    Chunk<T> elements{};
    if (first_row + row < lengths.q_len) {
      elements = load_chunk(pair.q + (first_row + row) * pair.row_stride + chunk * Chunk<T>::kSize,
                            aligned);
    }
    widen(elements, params.scale * kLog2E, &queries[row][chunk * Chunk<T>::kSize / 4]);
  }

  // The whole mask. Padding is computed like a query, and not used.
  const auto num_seen = [&](int64_t row) {
    return lengths.cache_len + (row < lengths.context_len ? lengths.context_len : lengths.q_len);
  };
  const int64_t num_keys = num_seen(min(end_row, lengths.q_len) - 1);

  float maxima[kRowsPerWarp], totals[kRowsPerWarp] = {}, sums[kRowsPerWarp][kColumns] = {};
#pragma unroll
  for (float& maximum : maxima) maximum = -INFINITY;

  for (int64_t first_key = 0; first_key < num_keys; first_key += kKeys) {
    const int count = static_cast<int>(min(num_keys - first_key, static_cast<int64_t>(kKeys)));
    __syncthreads();  // the last tile has been read
    for (int i = threadIdx.x; i < count * kChunks; i += kThreads) {
      const int key = i / kChunks, chunk = i % kChunks, column = chunk * Chunk<T>::kSize;
      const int64_t slot = first_key + key;
      const auto new_key = load_chunk(pair.key(slot) + column, aligned);
      const auto new_value = load_chunk(pair.value(slot) + column, aligned);
      if (first_row == 0 && pair.is_new(slot)) {
        store_chunk(pair.k_cache + slot * pair.k_stride + column, new_key, aligned);
        store_chunk(pair.v_cache + slot * pair.v_stride + column, new_value, aligned);
      }
      widen(new_key, 1.0f, &keys[key][column / 4]);
      widen(new_value, 1.0f, &values[key][column / 4]);
    }
    __syncthreads();

    float scores[kRowsPerWarp] = {};
    if (lane < count) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const float4 y = keys[lane][i];
#pragma unroll
        for (int r = 0; r < kRowsPerWarp; ++r) {
          const float4 x = queries[r * kWarps + warp][i];
          scores[r] += x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
        }
      }
    }

    int64_t num_visible[kRowsPerWarp];  // keys of this tile; may be negative
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const int row = r * kWarps + warp;
      num_visible[r] = num_seen(first_row + row) - first_key;
      const bool visible = lane < num_visible[r];
      const float score = visible ? scores[r] : -INFINITY;
      const float maximum = fmaxf(maxima[r], largest_of_warp(score));
      // Where all scores so far are -inf, -inf minus the maximum would be NaN.
      const float base = maximum == -INFINITY ? 0.0f : maximum;
      const float factor = simt::exp2_fast(maxima[r] - base);
      const float weight = visible ? simt::exp2_fast(score - base) : 0.0f;
      maxima[r] = maximum;
      totals[r] = totals[r] * factor + weight;
#pragma unroll
      for (float& sum : sums[r]) sum *= factor;
      reinterpret_cast<float*>(weights[row])[lane] = weight;
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
        for (int c = 0; c < kColumns; ++c) {
          const int column = lane + 32 * c;
          if (column >= kHeadDim) break;
          const float value = reinterpret_cast<const float*>(values[i + j])[column];
          // Hidden keys are skipped, not weighted with 0: their values may be NaN.
#pragma unroll
          for (int r = 0; r < kRowsPerWarp; ++r) {
            if (i + j < num_visible[r]) sums[r][c] += row_weights[r][j] * value;
          }
        }
      }
    }
  }

#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const int64_t row = first_row + r * kWarps + warp;
    const float total = sum_of_warp(totals[r]);
    if (row >= end_row) continue;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int column = lane + 32 * c;
      if (column >= kHeadDim) break;
      const float x = row < lengths.q_len ? sums[r][c] / total : 0.0f;  // padding is 0
      pair.out[row * pair.out_stride + column] = from_float<T>(x);
    }
  }
}

}  // namespace

cudaError_t simple::group_attention(const GroupAttentionParams& params, cudaStream_t stream) {
  const int64_t num_tiles = (params.q_len + kRows - 1) / kRows;
  const int64_t num_blocks = params.batch * params.num_heads * num_tiles;
  if (num_blocks == 0) return cudaSuccess;
  if (num_blocks > INT32_MAX || params.q_len > INT32_MAX) return cudaErrorInvalidValue;
  const dim3 grid(static_cast<unsigned>(num_blocks));
  return with_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    const bool aligned = is_aligned<T>(params);
    return with_constant<32, 64, 80, 96, 128>("head_dim", params.head_dim, [&](auto head_dim) {
      SIMT_LAUNCH((group_attention_simple_kernel<T, head_dim>), grid, dim3(kThreads), 0, stream,
                  params, aligned);
      return cudaGetLastError();
    });
  });
}

}  // namespace lpd::cuda
