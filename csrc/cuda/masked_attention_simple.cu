// masked_attention in float32 arithmetic, without tensor cores: for float32, and a second opinion.
//   out_i = sum_{j seen by i} softmax_j(scale q_i . k_j) v_j   (contract: lpd/masked_attention.h)
//
// A CTA owns 16 rows of one (image, head) and walks the keys in tiles of 32 (attention_simple.cuh);
// tiles that none of its rows sees are passed by. What a row sees of a tile is a word of 32 bits,
// whether it came as a prefix length or as booleans: the same words give the same bits. A row's
// bits depend on what it sees alone.
//
// Not yet run on a GPU.
#include <cmath>

#include "attention_simple.cuh"
#include "dispatch.h"
#include "elements.cuh"
#include "masked_attention_kernels.h"
#include "masked_attention_pair.cuh"
#include "primitives.cuh"
#include "warp.cuh"

namespace lpd::cuda::simple {
namespace {

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
  return __ballot_sync(kAllLanes, key < params.kv_len && params.mask[offset + key] != 0);
}

template <class T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 2)
    masked_attention_simple_kernel(const MaskedAttentionParams params, bool aligned) {
  using S = Shape<kHeadDim>;
  SIMT_SHARED(typename S::Queries, queries);
  SIMT_SHARED(typename S::Keys, keys);
  SIMT_SHARED(typename S::Values, values);
  SIMT_SHARED(typename S::Weights, weights);

  const int warp = threadIdx.x / 32;
  const int num_tiles = (params.q_len + kRows - 1) / kRows;
  const int first_row = blockIdx.x % num_tiles * kRows;
  const MaskedAttentionPair<T> pair(params, blockIdx.x / num_tiles);
  const auto query = [&](int row) {
    return first_row + row < params.q_len ? pair.q + (first_row + row) * params.q_strides.row
                                          : nullptr;
  };
  widen_rows<T, kHeadDim>(kRows, params.scale * kLog2E, aligned, query, queries);

  Rows<kHeadDim> rows;
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
    const auto key = [&](int i) { return pair.k + (first_key + i) * params.k_strides.row; };
    const auto value = [&](int i) { return pair.v + (first_key + i) * params.v_strides.row; };
    widen_rows<T, kHeadDim>(count, 1.0f, aligned, key, keys);
    widen_rows<T, kHeadDim>(count, 1.0f, aligned, value, values);
    __syncthreads();
    if (by_any != 0) rows.attend(queries, keys, values, weights, seen, count);
  }

#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const int64_t row = first_row + r * kWarps + warp;
    const float total = sum_of_warp(rows.totals[r]);
    if (row >= params.q_len) continue;
    const float of_nothing = fits(params, pair.image, row) ? 0.0f : NAN;
    rows.store(r, total, sees_any[r] != 0, of_nothing, pair.out + row * kHeadDim);
  }
}

}  // namespace

cudaError_t masked_attention(const MaskedAttentionParams& params, cudaStream_t stream) {
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

}  // namespace lpd::cuda::simple
