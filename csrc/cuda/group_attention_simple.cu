// group_attention in float32 arithmetic, without tensor cores: plain enough to be a second opinion.
//   out_i = sum_{j < n_i} softmax_j(scale q_i . k_j) v_j        (contract: lpd/group_attention.h)
//
// A CTA owns up to 16 rows of one (image, head) and walks the keys, those of the cache, then those
// of the step, in tiles of 32 (attention_simple.cuh). Tiles begin at multiples of 32 whatever the
// rows, so a row's bits depend on its own keys alone. The CTA that owns the first rows appends.
//
// Not yet run on a GPU.
#include <cmath>

#include "attention_simple.cuh"
#include "dispatch.h"
#include "elements.cuh"
#include "group_attention_kernels.h"
#include "group_attention_pair.cuh"
#include "primitives.cuh"
#include "warp.cuh"

namespace lpd::cuda::simple {
namespace {

template <class T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 2)
    group_attention_simple_kernel(const GroupAttentionParams params, bool aligned) {
  using S = Shape<kHeadDim>;
  SIMT_SHARED(typename S::Queries, queries);
  SIMT_SHARED(typename S::Keys, keys);
  SIMT_SHARED(typename S::Values, values);
  SIMT_SHARED(typename S::Weights, weights);

  const int warp = threadIdx.x / 32;
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
  if (first_row == 0) append<T, kHeadDim, kThreads>(pair, aligned);

  const auto query = [&](int row) {
    return first_row + row < lengths.q_len ? pair.q + (first_row + row) * pair.row_stride : nullptr;
  };
  widen_rows<T, kHeadDim>(kRows, params.scale * kLog2E, aligned, query, queries);

  // The whole mask. Padding is computed like a query, and not used.
  const auto num_seen = [&](int64_t row) {
    return lengths.cache_len + (row < lengths.context_len ? lengths.context_len : lengths.q_len);
  };
  const int64_t num_keys = num_seen(min(end_row, lengths.q_len) - 1);
  Rows<kHeadDim> rows;
  for (int64_t first_key = 0; first_key < num_keys; first_key += kKeys) {
    const int count = static_cast<int>(min(num_keys - first_key, static_cast<int64_t>(kKeys)));
    __syncthreads();  // the last tile has been read
    const auto key = [&](int i) { return pair.key(first_key + i); };
    const auto value = [&](int i) { return pair.value(first_key + i); };
    widen_rows<T, kHeadDim>(count, 1.0f, aligned, key, keys);
    widen_rows<T, kHeadDim>(count, 1.0f, aligned, value, values);
    __syncthreads();
    uint32_t seen[kRowsPerWarp];
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      seen[r] = first_keys<uint32_t>(num_seen(first_row + r * kWarps + warp) - first_key);
    }
    rows.attend(queries, keys, values, weights, seen, count);
  }

#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const int64_t row = first_row + r * kWarps + warp;
    const float total = sum_of_warp(rows.totals[r]);
    if (row >= end_row) continue;
    rows.store(r, total, row < lengths.q_len, 0.0f, pair.out + row * pair.out_stride);
  }
}

}  // namespace

cudaError_t group_attention(const GroupAttentionParams& params, cudaStream_t stream) {
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

}  // namespace lpd::cuda::simple
