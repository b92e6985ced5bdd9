// masked_attention in float32 arithmetic, without tensor cores: for float32, and a second opinion.
//   out_i = sum_{j seen by i} softmax_j(scale q_i . k_j) v_j   (contract: lpd/masked_attention.h)
//
// A CTA owns 16 rows of one (image, head) and walks the keys in tiles of 32 that it widens into
// shared memory; tiles that none of its rows sees are passed by. A warp owns every fourth row. What
// a row sees of a tile is a word of 32 bits, whether it came as a prefix length or as booleans: the
// same words give the same bits. For scores a lane owns one key of the tile, for sums of values
// every 32nd column; the weights cross over in shared memory. The softmax is online: what was
// summed shrinks when a row's maximum grows. A row's bits depend on what it sees alone.
//
// Not yet run on a GPU.
#include <cmath>

#include "dispatch.h"
#include "elements.cuh"
#include "masked_attention_kernels.h"
#include "masked_attention_pair.cuh"
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

// The keys [first, first + 32) that a row sees, a bit each; all lanes ask for the same row.
__device__ __forceinline__ uint32_t seen_keys(const MaskedAttentionParams& params,
                                              int64_t image,
                                              int64_t row,
                                              int64_t first) {
  if (row >= params.q_len) return 0;
  if (params.prefix_lens != nullptr)
    return first_keys<uint32_t>(prefix_len(params, image, row) - first);
  const int64_t offset = image * params.mask_batch_stride + row * params.mask_row_stride;
  const int64_t key = first + threadIdx.x % 32;
  return __ballot_sync(kWholeWarp, key < params.kv_len && params.mask[offset + key] != 0);
}

template <class T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 2)
    masked_attention_simple_kernel(const MaskedAttentionParams params, bool aligned) {
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
  const MaskedAttentionPair<T> pair(params, blockIdx.x / num_tiles);

  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, column = i % kChunks * Chunk<T>::kSize;
    Chunk<T> chunk{};
    if (first_row + row < params.q_len) {
      chunk = load_chunk(pair.q + (first_row + row) * params.q_strides.row + column, aligned);
    }
    widen(chunk, params.scale * kLog2E, &queries[row][column / 4]);
  }

  float maxima[kRowsPerWarp], totals[kRowsPerWarp] = {}, sums[kRowsPerWarp][kColumns] = {};
#pragma unroll
  for (float& maximum : maxima) maximum = -INFINITY;
  uint32_t sees_any[kRowsPerWarp] = {};  // not 0: a key of any tile

  for (int64_t first_key = 0; first_key < params.kv_len; first_key += kKeys) {
    uint32_t seen[kRowsPerWarp], by_any = 0;
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      seen[r] = seen_keys(params, pair.image, first_row + r * kWarps + warp, first_key);
      sees_any[r] |= seen[r];
      by_any |= seen[r];
    }
    if (!__syncthreads_or(by_any != 0)) continue;  // and the last tile has been read
    const int count = static_cast<int>(min(params.kv_len - first_key, static_cast<int64_t>(kKeys)));
    for (int i = threadIdx.x; i < count * kChunks; i += kThreads) {
      const int key = i / kChunks, column = i % kChunks * Chunk<T>::kSize;
      const int64_t slot = first_key + key;
      widen(load_chunk(pair.k + slot * params.k_strides.row + column, aligned), 1.0f,
            &keys[key][column / 4]);
      widen(load_chunk(pair.v + slot * params.v_strides.row + column, aligned), 1.0f,
            &values[key][column / 4]);
    }
    __syncthreads();
    if (by_any == 0) continue;

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

#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const bool visible = seen[r] >> lane & 1;
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
        for (int c = 0; c < kColumns; ++c) {
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

#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const int64_t row = first_row + r * kWarps + warp;
    const float total = sum_of_warp(totals[r]);
    if (row >= params.q_len) continue;
    const float of_nothing = fits(params, pair.image, row) ? 0.0f : NAN;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int column = lane + 32 * c;
      if (column >= kHeadDim) break;
      const float x = sees_any[r] != 0 ? sums[r][c] / total : of_nothing;
      pair.out[row * kHeadDim + column] = from_float<T>(x);
    }
  }
}

}  // namespace

cudaError_t simple::masked_attention(const MaskedAttentionParams& params, cudaStream_t stream) {
  const int64_t num_tiles = (params.q_len + kRows - 1) / kRows;
  const int64_t num_blocks = params.batch * params.num_heads * num_tiles;
  if (num_blocks == 0) return cudaSuccess;
  if (num_blocks > INT32_MAX || params.q_len > INT32_MAX) return cudaErrorInvalidValue;
  const dim3 grid(static_cast<unsigned>(num_blocks));
  return with_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    const bool aligned = is_aligned<T>(params);
    return with_constant<32, 64, 80, 96, 128>("head_dim", params.head_dim, [&](auto head_dim) {
      SIMT_LAUNCH((masked_attention_simple_kernel<T, head_dim>), grid, dim3(kThreads), 0, stream,
                  params, aligned);
      return cudaGetLastError();
    });
  });
}

}  // namespace lpd::cuda
