// group_attention on tensor cores, for bfloat16 and float16 (contract: lpd/group_attention.h).
//
// What there is to do. A step has few rows (2 to 128), short prefixes (to some 1000 keys) and many
// (image, head) pairs. Of a pair at L / 256 px / 20 steps, 40 rows and 257 keys of 64: 66 KB of
// keys and values, 15 KB of projections, 5 KB of results, 3 MFLOP: 30 FLOP a byte, so memory is the
// floor wherever the pairs fill the machine. With few pairs (32 at batch 1 with guidance) it is
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
// From kPartTiles tiles on the keys are divided into parts, by a rule that looks at the image's own
// lengths only, and the parts are merged in their order. Where pairs are few every part has a CTA,
// and a second launch merges; where they are many one CTA walks all parts and merges as it goes,
// by the same operations. That, and how many groups share a CTA, depends on the batch: no bit of a
// row does.
//
// Shared memory and registers leave room for two CTAs a multiprocessor, 37 KB of tiles in flight at
// head_dim 64: what 4.3 TB/s on 132 of them deliver in 1.1 us. Predicted floors of the last step at
// that bandwidth (benchmarks/roofline.py), with guidance, at batch 1, 8, 64 and 256:
//   L / 256 px, 40 rows x 257 keys    0.60   4.8   39   155 us
//   L / 512 px, 67 rows x 1025 keys    2.1    17  137   549 us
// Issue bounds it before memory does: a pair of 40 rows and 257 keys takes 22 200 warp instructions
// with four groups a CTA and 41 400 with one, 31 % and 60 % of them to copy rows (counted by
// running the PTX of nvcc 13.0 for sm_90a on a CPU). The step of L / 256 px at batch 256 is 196 us
// of perfect issue and predicted to take 330 to 390 us, 40 to 47 % of its floor; at batch 1 it is
// predicted to take 6 to 7 us.
//
// Not yet run on a GPU.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "attention_mma.cuh"
#include "attention_softmax.cuh"
#include "dispatch.h"
#include "elements.cuh"
#include "group_attention_division.h"
#include "group_attention_kernels.h"
#include "group_attention_pair.cuh"
#include "lpd/group_attention.h"
#include "primitives.cuh"

namespace lpd::cuda::mma {
namespace {

// The parts of the pairs until they are merged.
struct Parts {
  float4* sums;  // [pairs, num_parts, q_len, head_dim] floats, of weighted values
  float2* rows;  // [pairs, num_parts, q_len]: largest score, sum of weights
};

// What a block that walks all parts has merged so far, behind the tiles: [row][kHeadDim] and, for
// each thread that merges, the row's largest score and sum of weights.
template <class T, int kHeadDim, int kGroups>
struct Running {
  static constexpr int kMergers = kGroups * kGroupRows * (kHeadDim / Chunk<T>::kSize);
  static constexpr size_t kBytes = kMergers * (Chunk<T>::kSize * sizeof(float) + sizeof(float2));
  // What sm_86, sm_89 and sm_120 have.
  static_assert(Layout<T, kHeadDim, kGroups>::kBytes + kBytes <= 99 * 1024);
};

template <class T, int kHeadDim, int kGroups>
__global__ void __launch_bounds__(kThreads, 2)
    group_attention_mma_kernel(const GroupAttentionParams params,
                               const Bounds bounds,
                               bool split,
                               const Parts parts,
                               bool aligned) {
  using L = Layout<T, kHeadDim, kGroups>;
  SIMT_DYN_SHARED(bytes);
  T* const queries = reinterpret_cast<T*>(bytes);
  T* const tiles = queries + L::kQueries;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  const int most_shares = ceil_div(bounds.num_groups, kGroups);
  const int key_blocks = split ? bounds.num_parts : 1, key_block = blockIdx.x % key_blocks;
  const int share = blockIdx.x / key_blocks % most_shares;
  const int number = blockIdx.x / key_blocks / most_shares;
  const GroupAttentionPair<T> pair(params, number);
  const GroupLengths lengths = pair.lengths;
  const bool fits = fit(lengths, params);
  if (share == 0 && key_block == 0) {  // padding, or all rows
    const int64_t first = fits ? lengths.q_len : 0;
    fill_rows<T, kHeadDim, kThreads>(pair, first, params.q_len, fits ? 0.0f : NAN);
  }
  if (!fits) return;
  const Division division = divide(lengths);
  const int shares = ceil_div(division.num_groups, kGroups);
  if (share >= shares || key_block >= division.num_parts) return;

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
  for (int g = 0; g < num_groups; ++g) {
    const int64_t first = first_row(first_group + g);
    const auto query = [&](int row) { return pair.q + (first + row) * pair.row_stride; };
    copy_rows<T, kHeadDim>(static_cast<int>(end_row(first_group + g) - first), kGroupRows, aligned,
                           query, queries + g * kGroupRows * L::kRow);
  }

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
  float4* const running_sums = reinterpret_cast<float4*>(bytes + L::kBytes);
  float2* const running_rows =
      reinterpret_cast<float2*>(running_sums + 2 * Running<T, kHeadDim, kGroups>::kMergers);

  const int first_part = split ? key_block : 0;
  const int end_part = split ? key_block + 1 : division.num_parts;
  for (int part = first_part; part < end_part; ++part) {
    if (part > first_part) __syncthreads();  // what was merged has been read
    // Context groups see the tiles of the context alone.
    const int first_tile = part * division.num_tiles / division.num_parts;
    const int end_of_part = (part + 1) * division.num_tiles / division.num_parts;
    const int end_tile = is_context(first_group + num_groups - 1)
                             ? min(end_of_part, division.context_tiles)
                             : end_of_part;
    const auto keys_of = [&](int tile) {
      return tiles + (tile - first_tile) % L::kStages * 2 * L::kTile;
    };
    const auto load_tile = [&](int tile) {
      if (tile < end_tile) {
        const int64_t first = first_key(tile);
        const int count = num_keys(tile), padded = ceil_div(count, kWarpKeys) * kWarpKeys;
        const auto key = [&](int i) { return pair.key(first + i); };
        const auto value = [&](int i) { return pair.value(first + i); };
        copy_rows<T, kHeadDim>(count, padded, aligned, key, keys_of(tile));
        copy_rows<T, kHeadDim>(count, padded, aligned, value, keys_of(tile) + L::kTile);
      }
      simt::cp_async_commit();
    };

#pragma unroll
    for (int i = 0; i < L::kStages - 1; ++i) load_tile(first_tile + i);
    if (share == 0 && part == 0) append<T, kHeadDim, kThreads>(pair, aligned);
    Softmax<kHeadDim> softmax[kGroups];

    for (int tile = first_tile; tile < end_tile; ++tile) {
      simt::cp_async_wait<L::kStages - 2>();
      __syncthreads();  // the tile is there, and nobody reads the one before it any more
      load_tile(tile + L::kStages - 1);
      const int count = num_keys(tile) - warp * kWarpKeys;  // of this warp
      if (count <= 0) continue;
      const T* const keys = keys_of(tile) + warp * kWarpKeys * L::kRow;
      const Fragments<T, kHeadDim> fragments(keys, keys + L::kTile);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        // Context rows do not see the tiles of the queries.
        const bool hidden = tile >= division.context_tiles && is_context(first_group + g);
        if (g >= num_groups || hidden) continue;
        float scores[2][4] = {};
        fragments.score(queries + g * kGroupRows * L::kRow, scores);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int key = n * 8 + lane % 4 * 2 + e % 2;
            scores[n][e] = key < count ? scores[n][e] * (params.scale * kLog2E) : -INFINITY;
          }
        }
        softmax[g].add(scores);
        fragments.add_values(scores, softmax[g].sums);
      }
    }

    simt::cp_async_wait<0>();
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      if (g >= num_groups) break;
      const int64_t first = first_row(first_group + g);
      const auto take = [&](int row, int column, const Merge<Chunk<T>::kSize>& merge) {
        T* const out = pair.out + (first + row) * pair.out_stride + column;
        if (division.num_parts == 1) {
          store_chunk(out, merge.template result<T>(), aligned);
        } else if (split) {
          const int64_t at =
              (int64_t{number} * bounds.num_parts + part) * params.q_len + first + row;
          merge.keep(parts.sums + (at * kHeadDim + column) / 4);
          if (column == 0) parts.rows[at] = merge.row;
        } else {  // as the second launch does it
          const int merger = ((g * kGroupRows + row) * kHeadDim + column) / Chunk<T>::kSize;
          Merge<Chunk<T>::kSize> running;
          if (part > 0) running.resume(running_rows[merger], running_sums + merger * 2);
          running.add(merge);
          if (part == end_part - 1) {
            store_chunk(out, running.template result<T>(), aligned);
          } else {
            running_rows[merger] = running.row;
            running.keep(running_sums + merger * 2);
          }
        }
      };
      merge_warps(softmax[g], tiles, static_cast<int>(end_row(first_group + g) - first), take);
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

int64_t num_partial_rows(const GroupAttentionParams& params, const Bounds& bounds) {
  if (!is_split(params, bounds)) return 0;
  return params.batch * params.num_heads * bounds.num_parts * params.q_len;
}

template <class T, int kHeadDim, int kGroups>
cudaError_t launch(const GroupAttentionParams& params,
                   const Bounds& bounds,
                   std::byte* workspace,
                   cudaStream_t stream) {
  const int64_t pairs = params.batch * params.num_heads;
  const bool split = is_split(params, bounds), whole = bounds.num_parts > 1 && !split;
  const int64_t blocks =
      pairs * ceil_div(bounds.num_groups, kGroups) * (split ? bounds.num_parts : 1);
  const int64_t merge_blocks = pairs * blocks_of_pair(params.q_len, kHeadDim / Chunk<T>::kSize);
  if (std::max(blocks, merge_blocks) > INT32_MAX) return cudaErrorInvalidValue;
  const bool aligned = is_aligned<T>(params);
  const size_t bytes =
      Layout<T, kHeadDim, kGroups>::kBytes + (whole ? Running<T, kHeadDim, kGroups>::kBytes : 0);
  Parts parts{};
  if (split) {
    parts.sums = reinterpret_cast<float4*>(workspace);
    parts.rows = reinterpret_cast<float2*>(workspace + num_partial_rows(params, bounds) * kHeadDim *
                                                           sizeof(float));
  }
  SIMT_LAUNCH((group_attention_mma_kernel<T, kHeadDim, kGroups>),
              dim3(static_cast<unsigned>(blocks)), dim3(kThreads), bytes, stream, params, bounds,
              split, parts, aligned);
  if (split) {
    SIMT_LAUNCH((group_attention_merge_kernel<T, kHeadDim>),
                dim3(static_cast<unsigned>(merge_blocks)), dim3(kThreads), 0, stream, params,
                bounds.num_parts, parts, aligned);
  }
  return cudaGetLastError();
}

}  // namespace

size_t group_attention_workspace_size(const GroupAttentionParams& params) {
  if (params.batch == 0 || params.q_len == 0) return 0;
  const int64_t rows = num_partial_rows(params, bounds_of(params));
  return static_cast<size_t>(rows) * (sizeof(float2) + params.head_dim * sizeof(float));
}

cudaError_t group_attention(const GroupAttentionParams& params,
                            std::byte* workspace,
                            cudaStream_t stream) {
  if (params.batch * params.num_heads * params.q_len == 0) return cudaSuccess;
  const Bounds bounds = bounds_of(params);
  return with_half(params.dtype, [&](auto element) {
    using T = decltype(element);
    return with_constant<32, 64, 80, 96, 128>("head_dim", params.head_dim, [&](auto head_dim) {
      const auto with = [&](auto groups) {
        return launch<T, head_dim, groups>(params, bounds, workspace, stream);
      };
      const int groups = groups_of_block(params, bounds);
      if (groups == 1) return with(std::integral_constant<int, 1>{});
      // From head_dim 80 on, four groups would not leave registers for a second block.
      if constexpr (head_dim <= 64) {
        if (groups == 4) return with(std::integral_constant<int, 4>{});
      }
      return with(std::integral_constant<int, 2>{});
    });
  });
}

}  // namespace lpd::cuda::mma
