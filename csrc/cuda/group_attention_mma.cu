// group_attention on tensor cores, for bfloat16 and float16 (contract: lpd/group_attention.h).
//
// What there is to do. A step has few rows (2 to 128), short prefixes (to some 1000 keys) and many
// (image, head) pairs. Of a pair at L / 256 px / 20 steps, 40 rows and 257 keys of 64: 66 KB of
// keys and values, 15 KB of projections, 5 KB of results, 3 MFLOP: 30 FLOP a byte, so memory bounds
// it wherever the pairs fill the machine. With few pairs (32 at batch 1 with guidance) it is
// latency: one pass over the keys, nothing waited for twice.
//
// Rows come in groups of 16, as m16n8k16 wants them. Context rows and query rows never share a
// group, keys that context rows see and the others never share a tile: the mask is then which tiles
// a group skips, and no weight of 0 meets a value it should not see (0 times NaN is NaN). A row's
// bits depend on its own keys alone.
//
// A CTA owns up to kGroups groups of a pair and a part of the tiles, of 64 keys. Its four warps
// split the keys, 16 each, not the rows: a warp reads every key and value once, for all groups, and
// with few rows no warp is idle. Each keeps its own maximum, sum and accumulators; they are merged
// in the order of the warps, at the end. Tiles arrive by cp.async, kStages deep. Rows in shared
// memory are 16 bytes longer than head_dim: eight of them then cover all banks for ldmatrix.
//
// Keys are split over CTAs from kPartTiles tiles on, by a rule that looks at the image's own
// lengths only; a second launch merges the parts in their order.
//
// Not yet run on a GPU.
#include <algorithm>
#include <cmath>

#include "dispatch.h"
#include "elements.cuh"
#include "group_attention_kernels.h"
#include "group_attention_pair.cuh"
#include "group_attention_softmax.cuh"
#include "lpd/group_attention.h"
#include "primitives.cuh"

namespace lpd::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kGroupRows = 16;
constexpr int kWarpKeys = 16;
constexpr int kTileKeys = kWarps * kWarpKeys;
constexpr int kPartTiles = 6;
constexpr float kLog2E = 1.44269504f;

// Of one pair: groups of rows and tiles of keys, those of the context first.
struct Division {
  int context_groups;
  int num_groups;
  int context_tiles;
  int num_tiles;
  int num_parts;
};

LPD_INLINE int ceil_div(int64_t a, int b) { return static_cast<int>((a + b - 1) / b); }

LPD_INLINE Division divide(const GroupLengths& lengths) {
  const int64_t queries = lengths.q_len - lengths.context_len;
  Division division;
  division.context_groups = ceil_div(lengths.context_len, kGroupRows);
  division.num_groups = division.context_groups + ceil_div(queries, kGroupRows);
  division.context_tiles = ceil_div(lengths.cache_len + lengths.context_len, kTileKeys);
  division.num_tiles = division.context_tiles + ceil_div(queries, kTileKeys);
  division.num_parts = ceil_div(division.num_tiles, kPartTiles);
  return division;
}

// What holds for all images of a call: none of them has more.
struct Bounds {
  int num_groups;
  int num_parts;
};

// The parts of the pairs until they are merged.
struct Parts {
  float4* sums;  // [pairs, num_parts, q_len, head_dim] floats, of weighted values
  float2* rows;  // [pairs, num_parts, q_len]: largest score, sum of weights
};

// The layout of shared memory: queries, then kStages of keys and values, in elements.
template <class T, int kHeadDim, int kGroups>
struct Layout {
  static constexpr int kRow = kHeadDim + 8;
  static constexpr int kStages = kHeadDim <= 80 ? 3 : 2;
  static constexpr int kQueries = kGroups * kGroupRows * kRow;
  static constexpr int kTile = kTileKeys * kRow;
  static constexpr size_t kBytes = (kQueries + 2 * kStages * kTile) * sizeof(T);
  static_assert(2 * (kBytes + 1024) <= 164 * 1024);  // two blocks on a multiprocessor of sm_80
  // Behind the last tile its memory takes what the warps merge: [warp][row][kMergeRow],
  // [warp][row].
  static constexpr int kMergeRow = kHeadDim + 8;  // floats: float2 of four rows in all banks
  static_assert(kWarps * kGroupRows * (kMergeRow * sizeof(float) + sizeof(float2)) <=
                2 * kStages * kTile * sizeof(T));
};

__device__ __forceinline__ void multiply_add(BFloat16,
                                             const uint32_t (&a)[4],
                                             uint32_t b0,
                                             uint32_t b1,
                                             float (&d)[4]) {
  simt::mma_bf16(d, a, b0, b1);
}
__device__ __forceinline__ void multiply_add(Float16,
                                             const uint32_t (&a)[4],
                                             uint32_t b0,
                                             uint32_t b1,
                                             float (&d)[4]) {
  simt::mma_f16(d, a, b0, b1);
}
__device__ __forceinline__ uint32_t pack(BFloat16, float low, float high) {
  return simt::pack_bf16(low, high);
}
__device__ __forceinline__ uint32_t pack(Float16, float low, float high) {
  return simt::pack_f16(low, high);
}

// 16 bytes on their way to shared memory; zeros where not valid.
template <class T>
__device__ __forceinline__ void copy_chunk(T* to, const T* from, bool valid, bool aligned) {
  if (aligned) return simt::cp_async16(to, from, valid);
  Chunk<T> chunk{};
  if (valid) chunk = load_chunk(from, /*aligned=*/false);
  store_chunk(to, chunk, /*aligned=*/true);
}

template <class T, int kHeadDim, int kGroups>
__global__ void __launch_bounds__(kThreads, 2)
    group_attention_mma_kernel(const GroupAttentionParams params,
                               const Bounds bounds,
                               const Parts parts,
                               bool aligned) {
  using L = Layout<T, kHeadDim, kGroups>;
  constexpr int kChunks = kHeadDim / Chunk<T>::kSize;
  constexpr int kSteps = kHeadDim / 16;
  SIMT_DYN_SHARED(bytes);
  T* const queries = reinterpret_cast<T*>(bytes);
  T* const tiles = queries + L::kQueries;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;

  const int most_shares = ceil_div(bounds.num_groups, kGroups);
  const int part = blockIdx.x % bounds.num_parts;
  const int share = blockIdx.x / bounds.num_parts % most_shares;
  const int number = blockIdx.x / bounds.num_parts / most_shares;
  const GroupAttentionPair<T> pair(params, number);
  const GroupLengths lengths = pair.lengths;
  const bool fits = fit(lengths, params);
  if (share == 0 && part == 0) {  // padding, or all rows
    const int64_t first = fits ? lengths.q_len : 0;
    fill_rows<T, kHeadDim, kThreads>(pair, first, params.q_len, fits ? 0.0f : NAN);
  }
  if (!fits) return;
  const Division division = divide(lengths);
  const int shares = ceil_div(division.num_groups, kGroups);
  if (share >= shares || part >= division.num_parts) return;

  const int first_group = share * division.num_groups / shares;
  const int num_groups = (share + 1) * division.num_groups / shares - first_group;
  const auto is_context = [&](int group) { return group < division.context_groups; };
  const auto first_row = [&](int group) {
    return is_context(group)
               ? int64_t{kGroupRows} * group
               : lengths.context_len + int64_t{kGroupRows} * (group - division.context_groups);
  };
  const auto end_row = [&](int group) {
    return min(first_row(group) + kGroupRows,
               is_context(group) ? lengths.context_len : lengths.q_len);
  };
  for (int i = thread; i < num_groups * kGroupRows * kChunks; i += kThreads) {
    const int slot = i / kChunks, column = i % kChunks * Chunk<T>::kSize;
    const int group = first_group + slot / kGroupRows;
    const int64_t row = first_row(group) + slot % kGroupRows;
    const bool valid = row < end_row(group);
    copy_chunk(queries + slot * L::kRow + column,
               pair.q + (valid ? row : 0) * pair.row_stride + column, valid, aligned);
  }

  // Context groups see the tiles of the context alone.
  const int first_tile = part * division.num_tiles / division.num_parts;
  const int end_of_part = (part + 1) * division.num_tiles / division.num_parts;
  const int end_tile = is_context(first_group + num_groups - 1)
                           ? min(end_of_part, division.context_tiles)
                           : end_of_part;
  const int64_t num_context_keys = lengths.cache_len + lengths.context_len;
  const auto first_key = [&](int tile) {
    return tile < division.context_tiles
               ? int64_t{kTileKeys} * tile
               : num_context_keys + int64_t{kTileKeys} * (tile - division.context_tiles);
  };
  const auto num_keys = [&](int tile) {
    const int64_t end =
        tile < division.context_tiles ? num_context_keys : lengths.cache_len + lengths.q_len;
    return static_cast<int>(min(end - first_key(tile), int64_t{kTileKeys}));
  };
  const auto keys_of = [&](int tile) {
    return tiles + (tile - first_tile) % L::kStages * 2 * L::kTile;
  };
  const auto load_tile = [&](int tile) {
    if (tile < end_tile) {
      T* const keys = keys_of(tile);
      const int64_t first = first_key(tile);
      const int count = num_keys(tile);
      const int padded = ceil_div(count, kWarpKeys) * kWarpKeys;
      for (int i = thread; i < padded * kChunks; i += kThreads) {
        const int key = i / kChunks, column = i % kChunks * Chunk<T>::kSize;
        const bool valid = key < count;
        const int64_t slot = first + (valid ? key : 0);
        T* const to = keys + key * L::kRow + column;
        copy_chunk(to, pair.key(slot) + column, valid, aligned);
        copy_chunk(to + L::kTile, pair.value(slot) + column, valid, aligned);
      }
    }
    simt::cp_async_commit();
  };

#pragma unroll
  for (int i = 0; i < L::kStages - 1; ++i) load_tile(first_tile + i);
  Softmax<kHeadDim> softmax[kGroups];

  for (int tile = first_tile; tile < end_tile; ++tile) {
    simt::cp_async_wait<L::kStages - 2>();
    __syncthreads();  // the tile is there, and nobody reads the one before it any more
    load_tile(tile + L::kStages - 1);
    const T* const keys = keys_of(tile);
    const T* const values = keys + L::kTile;
    const int count = num_keys(tile);
    if (share == 0 && tile < division.context_tiles) {
      const int64_t first = first_key(tile);
      const int first_new = static_cast<int>(max(lengths.cache_len - first, int64_t{0}));
      for (int i = first_new * kChunks + thread; i < count * kChunks; i += kThreads) {
        const int key = i / kChunks, column = i % kChunks * Chunk<T>::kSize;
        const T* const from = keys + key * L::kRow + column;
        store_chunk(pair.k_cache + (first + key) * pair.k_stride + column,
                    load_chunk(from, /*aligned=*/true), aligned);
        store_chunk(pair.v_cache + (first + key) * pair.v_stride + column,
                    load_chunk(from + L::kTile, /*aligned=*/true), aligned);
      }
    }
    if (warp * kWarpKeys >= count) continue;

    uint32_t key_parts[kSteps][4], value_parts[kSteps][4];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      simt::ldmatrix_x4(key_parts[i], keys +
                                          (warp * kWarpKeys + lane / 16 * 8 + lane % 8) * L::kRow +
                                          i * 16 + lane / 8 % 2 * 8);
      simt::ldmatrix_x4_trans(value_parts[i], values + (warp * kWarpKeys + lane % 16) * L::kRow +
                                                  i * 16 + lane / 16 * 8);
    }
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const bool hidden = tile >= division.context_tiles && is_context(first_group + g);
      if (g >= num_groups || hidden) continue;
      float scores[2][4] = {};
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        uint32_t rows[4];
        simt::ldmatrix_x4(
            rows, queries + (g * kGroupRows + lane % 16) * L::kRow + i * 16 + lane / 16 * 8);
        multiply_add(T{}, rows, key_parts[i][0], key_parts[i][1], scores[0]);
        multiply_add(T{}, rows, key_parts[i][2], key_parts[i][3], scores[1]);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int key = warp * kWarpKeys + n * 8 + lane % 4 * 2 + e % 2;
          scores[n][e] = key < count ? scores[n][e] * (params.scale * kLog2E) : -INFINITY;
        }
      }
      softmax[g].add(scores);
      const uint32_t weights[4] = {
          pack(T{}, scores[0][0], scores[0][1]), pack(T{}, scores[0][2], scores[0][3]),
          pack(T{}, scores[1][0], scores[1][1]), pack(T{}, scores[1][2], scores[1][3])};
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        multiply_add(T{}, weights, value_parts[i][0], value_parts[i][1], softmax[g].sums[2 * i]);
        multiply_add(T{}, weights, value_parts[i][2], value_parts[i][3],
                     softmax[g].sums[2 * i + 1]);
      }
    }
  }

  // The warps' results, group after group.
  simt::cp_async_wait<0>();
  float* const merged = reinterpret_cast<float*>(tiles);
  float2* const rows = reinterpret_cast<float2*>(merged + kWarps * kGroupRows * L::kMergeRow);
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    if (g >= num_groups) break;
    __syncthreads();  // tiles, or the group before, have been read
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = warp * kGroupRows + h * 8 + lane / 4;
      const float total = sum_of_row(softmax[g].total[h]);
      if (lane % 4 == 0) rows[row] = make_float2(softmax[g].largest[h], total);
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        *reinterpret_cast<float2*>(merged + row * L::kMergeRow + n * 8 + lane % 4 * 2) =
            make_float2(softmax[g].sums[n][2 * h], softmax[g].sums[n][2 * h + 1]);
      }
    }
    __syncthreads();
    const int64_t first = first_row(first_group + g);
    const int num_rows = static_cast<int>(end_row(first_group + g) - first);
    for (int i = thread; i < num_rows * kChunks; i += kThreads) {
      const int row = i / kChunks, column = i % kChunks * Chunk<T>::kSize;
      Merge<Chunk<T>::kSize> merge;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const int at = w * kGroupRows + row;
        merge.add(rows[at], reinterpret_cast<const float4*>(merged + at * L::kMergeRow + column));
      }
      if (division.num_parts == 1) {
        store_chunk(pair.out + (first + row) * pair.out_stride + column, merge.template result<T>(),
                    aligned);
      } else {
        const int64_t at = (int64_t{number} * bounds.num_parts + part) * params.q_len + first + row;
        merge.keep(parts.sums + (at * kHeadDim + column) / 4);
        if (column == 0) parts.rows[at] = merge.row;
      }
    }
  }
}

LPD_INLINE int blocks_of_pair(int64_t q_len, int chunks) {
  return ceil_div(q_len * chunks, kThreads);
}

// Merges the parts of the pairs that have several, a chunk of a row a thread.
template <class T, int kHeadDim>
__global__ void __launch_bounds__(kThreads)
    group_attention_merge_kernel(const GroupAttentionParams params,
                                 int num_parts,
                                 const Parts parts,
                                 bool aligned) {
  constexpr int kChunks = kHeadDim / Chunk<T>::kSize;
  const int blocks = blocks_of_pair(params.q_len, kChunks), number = blockIdx.x / blocks;
  const int i = blockIdx.x % blocks * kThreads + threadIdx.x;
  const int row = i / kChunks, column = i % kChunks * Chunk<T>::kSize;
  const GroupAttentionPair<T> pair(params, number);
  if (!fit(pair.lengths, params) || row >= pair.lengths.q_len) return;
  const int count = divide(pair.lengths).num_parts;
  if (count == 1) return;
  Merge<Chunk<T>::kSize> merge;
  for (int part = 0; part < count; ++part) {
    const int64_t at = (int64_t{number} * num_parts + part) * params.q_len + row;
    merge.add(parts.rows[at], parts.sums + (at * kHeadDim + column) / 4);
  }
  store_chunk(pair.out + row * pair.out_stride + column, merge.template result<T>(), aligned);
}

Bounds bounds_of(const GroupAttentionParams& params) {
  if (params.q_lens == nullptr) {
    const Division division = divide(lengths_of(params, 0));
    return {.num_groups = division.num_groups, .num_parts = division.num_parts};
  }
  const int tiles = ceil_div(params.max_kv_len, kTileKeys) + ceil_div(params.q_len, kTileKeys);
  return {.num_groups = ceil_div(params.q_len, kGroupRows) + 1,  // one more where both kinds begin
          .num_parts = ceil_div(tiles, kPartTiles)};
}

int64_t num_partial_rows(const GroupAttentionParams& params, const Bounds& bounds) {
  if (bounds.num_parts == 1) return 0;
  return params.batch * params.num_heads * bounds.num_parts * params.q_len;
}

template <class T, int kHeadDim, int kGroups>
cudaError_t launch(const GroupAttentionParams& params,
                   const Bounds& bounds,
                   std::byte* workspace,
                   cudaStream_t stream) {
  const int64_t pairs = params.batch * params.num_heads;
  const int64_t blocks = pairs * ceil_div(bounds.num_groups, kGroups) * bounds.num_parts;
  const int64_t merge_blocks = pairs * blocks_of_pair(params.q_len, kHeadDim / Chunk<T>::kSize);
  if (std::max(blocks, merge_blocks) > INT32_MAX) return cudaErrorInvalidValue;
  const bool aligned = is_aligned<T>(params);
  Parts parts{};
  if (bounds.num_parts > 1) {
    parts.sums = reinterpret_cast<float4*>(workspace);
    parts.rows = reinterpret_cast<float2*>(workspace + num_partial_rows(params, bounds) * kHeadDim *
                                                           sizeof(float));
  }
  SIMT_LAUNCH((group_attention_mma_kernel<T, kHeadDim, kGroups>),
              dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
              (Layout<T, kHeadDim, kGroups>::kBytes), stream, params, bounds, parts, aligned);
  if (bounds.num_parts > 1) {
    SIMT_LAUNCH((group_attention_merge_kernel<T, kHeadDim>),
                dim3(static_cast<unsigned>(merge_blocks)), dim3(kThreads), 0, stream, params,
                bounds.num_parts, parts, aligned);
  }
  return cudaGetLastError();
}

}  // namespace

size_t mma::group_attention_workspace_size(const GroupAttentionParams& params) {
  if (params.batch == 0 || params.q_len == 0) return 0;
  const int64_t rows = num_partial_rows(params, bounds_of(params));
  return static_cast<size_t>(rows) * (sizeof(float2) + params.head_dim * sizeof(float));
}

cudaError_t mma::group_attention(const GroupAttentionParams& params,
                                 std::byte* workspace,
                                 cudaStream_t stream) {
  if (params.batch * params.num_heads * params.q_len == 0) return cudaSuccess;
  const Bounds bounds = bounds_of(params);
  return with_half(params.dtype, [&](auto element) {
    using T = decltype(element);
    return with_constant<32, 64, 80, 96, 128>("head_dim", params.head_dim, [&](auto head_dim) {
      if constexpr (head_dim <= 64) {
        // Half the registers where there are few rows.
        if (bounds.num_groups > 2) return launch<T, head_dim, 4>(params, bounds, workspace, stream);
      }
      return launch<T, head_dim, 2>(params, bounds, workspace, stream);
    });
  });
}

}  // namespace lpd::cuda
