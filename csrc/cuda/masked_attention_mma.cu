// masked_attention on tensor cores, for bfloat16 and float16 (contract: lpd/masked_attention.h).
//
// What a row sees of a tile of 64 keys is a word. Words come from prefix lengths as they are
// needed; booleans are packed first, by a launch of their own: once for all heads, a byte becomes a
// bit.
//
// A CTA owns 32 rows of an (image, head), in two groups of 16 as m16n8k16 wants them; of head_dim
// 128, where registers hold no more, one group. Its four warps split each tile, 16 keys each, not
// the rows: a warp reads every key and value once, for all groups. Each keeps its own maximum, sum
// and accumulators; they are merged in the order of the warps, at the end. Tiles arrive by
// cp.async, kStages deep, from the first to the last one that any row of the CTA sees; a group of
// which no row sees a warp's keys passes them by.
//
// Hidden scores become -inf, so hidden keys have a weight of 0. That is not enough for their
// values: 0 times NaN is NaN. Where a warp's keys are hidden from some row of the CTA, values that
// are not finite go into the products as 0 and, rare as they are, are added one by one to the rows
// that see them. A row's bits depend on nothing but what it sees.
//
// A pair of 40 rows and 257 keys of 64 moves 76 KB: at 4.3 TB/s a predicted floor of 0.57 us for 32
// pairs, of 145 us for 8192. Keys are not split over CTAs: few pairs with many keys leave part of a
// large GPU idle.
//
// Not yet run on a GPU.
#include <cmath>

#include "attention_mma.cuh"
#include "attention_softmax.cuh"
#include "dispatch.h"
#include "elements.cuh"
#include "masked_attention_kernels.h"
#include "masked_attention_pair.cuh"
#include "primitives.cuh"
#include "warp.cuh"

namespace lpd::cuda::mma {
namespace {

using Word = uint64_t;  // the keys of a tile that a row sees, a bit each
static_assert(kTileKeys == 64);
constexpr uint32_t kAllOfWarp = (1u << kWarpKeys) - 1;  // its part of a word

constexpr int groups_of(int head_dim) { return head_dim <= 96 ? 2 : 1; }

// Of a boolean mask, one word a warp: [images, q_len, num_tiles], images being 1 for one mask.
__global__ void __launch_bounds__(kThreads)
    masked_attention_pack_kernel(const MaskedAttentionParams params,
                                 int64_t num_words,
                                 Word* words) {
  const int64_t number = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (number >= num_words) return;
  const int lane = threadIdx.x % 32, num_tiles = ceil_div(params.kv_len, kTileKeys);
  const int64_t row = number / num_tiles;
  const uint8_t* const mask = params.mask + row / params.q_len * params.mask_batch_stride +
                              row % params.q_len * params.mask_row_stride;
  Word word = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t key = number % num_tiles * kTileKeys + half * 32 + lane;
    const bool seen = key < params.kv_len && mask[key] != 0;
    word |= Word{__ballot_sync(kAllLanes, seen)} << 32 * half;
  }
  if (lane == 0) words[number] = word;
}

// Two elements, those that are infinite or NaN replaced by 0.
template <class T>
__device__ __forceinline__ uint32_t finite_or_zero(uint32_t pair) {
  constexpr uint32_t kLow = std::is_same_v<T, BFloat16> ? 0x7f80 : 0x7c00, kHigh = kLow << 16;
  if ((pair & kLow) == kLow) pair &= 0xffff0000u;
  if ((pair & kHigh) == kHigh) pair &= 0x0000ffffu;
  return pair;
}

// Adds the values of a warp's keys that are not finite to the rows that see them.
template <class T, int kHeadDim, int kRow>
__device__ __forceinline__ void add_infinite(const T* values,
                                             const float (&weights)[2][4],
                                             const uint32_t (&seen)[2],
                                             float (&sums)[kHeadDim / 8][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int key = 0; key < kWarpKeys; ++key) {
    float row_weights[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {  // a lane of the row holds it, in one of four registers
      const float even = key < 8 ? weights[0][2 * h] : weights[1][2 * h];
      const float odd = key < 8 ? weights[0][2 * h + 1] : weights[1][2 * h + 1];
      const int holder = lane / 4 * 4 + key % 8 / 2;
      row_weights[h] = __shfl_sync(kAllLanes, key % 2 == 0 ? even : odd, holder);
    }
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float x = to_float(values[key * kRow + n * 8 + lane % 4 * 2 + e % 2]);
        if (!(fabsf(x) < INFINITY) && (seen[e / 2] >> key & 1)) {
          sums[n][e] += row_weights[e / 2] * x;
        }
      }
    }
  }
}

template <class T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 2)
    masked_attention_mma_kernel(const MaskedAttentionParams params,
                                const Word* packed,
                                bool aligned) {
  constexpr int kGroups = groups_of(kHeadDim), kRows = kGroups * kGroupRows;
  using L = Layout<T, kHeadDim, kGroups>;
  SIMT_DYN_SHARED(bytes);
  SIMT_SHARED(int2, ranges, [kRows]);  // of tiles that a row sees: first, end
  T* const queries = reinterpret_cast<T*>(bytes);
  T* const tiles = queries + L::kQueries;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  const int shares = ceil_div(params.q_len, kRows);
  const int64_t first_row = int64_t{kRows} * (blockIdx.x % shares);
  const MaskedAttentionPair<T> pair(params, blockIdx.x / shares);
  const int num_rows = static_cast<int>(min(params.q_len - first_row, int64_t{kRows}));
  const int num_groups = ceil_div(num_rows, kGroupRows);
  const int num_tiles = ceil_div(params.kv_len, kTileKeys);

  const auto query = [&](int row) { return pair.q + (first_row + row) * params.q_strides.row; };
  copy_rows<T, kHeadDim>(num_rows, num_groups * kGroupRows, aligned, query, queries);

  const auto words_of = [&](int row) {
    const int64_t image = params.mask_batch_stride == 0 ? 0 : pair.image;
    return packed + (image * params.q_len + first_row + row) * num_tiles;
  };
  for (int row = warp; row < num_rows; row += kWarps) {
    int first = num_tiles, end = 0;
    if (params.prefix_lens != nullptr) {
      end = ceil_div(prefix_len(params, pair.image, first_row + row), kTileKeys);
      first = 0;
    } else {
      for (int tile = lane; tile < num_tiles; tile += 32) {
        if (words_of(row)[tile] == 0) continue;
        first = min(first, tile);
        end = tile + 1;
      }
      first = __reduce_min_sync(kAllLanes, first);
      end = __reduce_max_sync(kAllLanes, end);
    }
    if (lane == 0) ranges[row] = make_int2(first, end);
  }
  __syncthreads();
  int first_tile = num_tiles, end_tile = 0;
  for (int row = 0; row < num_rows; ++row) {
    first_tile = min(first_tile, ranges[row].x);
    end_tile = max(end_tile, ranges[row].y);
  }

  const auto num_keys = [&](int tile) {
    return static_cast<int>(min(params.kv_len - int64_t{kTileKeys} * tile, int64_t{kTileKeys}));
  };
  const auto keys_of = [&](int tile) {
    return tiles + (tile - first_tile) % L::kStages * 2 * L::kTile;
  };
  const auto load_tile = [&](int tile) {
    if (tile < end_tile) {
      const int64_t first = int64_t{kTileKeys} * tile;
      const int count = num_keys(tile), padded = ceil_div(count, kWarpKeys) * kWarpKeys;
      const auto key = [&](int i) { return pair.k + (first + i) * params.k_strides.row; };
      const auto value = [&](int i) { return pair.v + (first + i) * params.v_strides.row; };
      copy_rows<T, kHeadDim>(count, padded, aligned, key, keys_of(tile));
      copy_rows<T, kHeadDim>(count, padded, aligned, value, keys_of(tile) + L::kTile);
    }
    simt::cp_async_commit();
  };

  // Of this lane's rows, as fragments have them: two a group, 8 apart.
  const auto row_of = [&](int g, int h) { return g * kGroupRows + h * 8 + lane / 4; };
  int prefixes[kGroups][2] = {};
  uint32_t next_seen[kGroups][2] = {};  // of this warp's keys; asked for a tile ahead
  const auto look_at = [&](int tile) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (tile >= end_tile || row_of(g, h) >= num_rows) continue;
        const Word word = params.prefix_lens == nullptr
                              ? words_of(row_of(g, h))[tile]
                              : first_keys<Word>(prefixes[g][h] - int64_t{kTileKeys} * tile);
        next_seen[g][h] = static_cast<uint32_t>(word >> kWarpKeys * warp) & kAllOfWarp;
      }
    }
  };
  if (params.prefix_lens != nullptr) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = row_of(g, h);
        if (row < num_rows) prefixes[g][h] = prefix_len(params, pair.image, first_row + row);
      }
    }
  }

#pragma unroll
  for (int i = 0; i < L::kStages - 1; ++i) load_tile(first_tile + i);
  look_at(first_tile);
  Softmax<kHeadDim> softmax[kGroups];

  for (int tile = first_tile; tile < end_tile; ++tile) {
    simt::cp_async_wait<L::kStages - 2>();
    __syncthreads();  // the tile is there, and nobody reads the one before it any more
    load_tile(tile + L::kStages - 1);
    uint32_t seen[kGroups][2];
    bool any_seen[kGroups], hides = false;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        seen[g][h] = next_seen[g][h];
        hides = hides || (row_of(g, h) < num_rows && seen[g][h] != kAllOfWarp);
      }
      any_seen[g] = __any_sync(kAllLanes, (seen[g][0] | seen[g][1]) != 0);
    }
    hides = __any_sync(kAllLanes, hides);
    look_at(tile + 1);
    bool passes_by = true;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) passes_by = passes_by && !any_seen[g];
    if (passes_by) continue;

    const T* const keys = keys_of(tile) + warp * kWarpKeys * L::kRow;
    const T* const values = keys + L::kTile;
    Fragments<T, kHeadDim> fragments(keys, values);
    bool infinite = false;
    if (hides) {
#pragma unroll
      for (auto& step : fragments.values) {
#pragma unroll
        for (uint32_t& pair_of_values : step) {
          const uint32_t finite = finite_or_zero<T>(pair_of_values);
          infinite = infinite || finite != pair_of_values;
          pair_of_values = finite;
        }
      }
      infinite = __any_sync(kAllLanes, infinite);
    }
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      if (!any_seen[g]) continue;
      float scores[2][4] = {};
      fragments.score(queries + g * kGroupRows * L::kRow, scores);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int key = n * 8 + lane % 4 * 2 + e % 2;
          const bool visible = seen[g][e / 2] >> key & 1;
          scores[n][e] = visible ? scores[n][e] * (params.scale * kLog2E) : -INFINITY;
        }
      }
      softmax[g].add(scores);
      fragments.add_values(scores, softmax[g].sums);
      if (infinite) add_infinite<T, kHeadDim, L::kRow>(values, scores, seen[g], softmax[g].sums);
    }
  }

  simt::cp_async_wait<0>();
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    if (g >= num_groups) break;
    const auto take = [&](int group_row, int column, const Merge<Chunk<T>::kSize>& merge) {
      const int row = g * kGroupRows + group_row;
      T* const out = pair.out + (first_row + row) * kHeadDim + column;
      if (ranges[row].x < ranges[row].y) {
        return store_chunk(out, merge.template result<T>(), aligned);
      }
      const float of_nothing = fits(params, pair.image, first_row + row) ? 0.0f : NAN;
      for (int i = 0; i < Chunk<T>::kSize; ++i) out[i] = from_float<T>(of_nothing);
    };
    merge_warps(softmax[g], tiles, min(num_rows - g * kGroupRows, kGroupRows), take);
  }
}

int64_t num_words(const MaskedAttentionParams& params) {
  if (params.prefix_lens != nullptr) return 0;
  const int64_t images = params.mask_batch_stride == 0 ? 1 : params.batch;
  return images * params.q_len * ceil_div(params.kv_len, kTileKeys);
}

}  // namespace

size_t masked_attention_workspace_size(const MaskedAttentionParams& params) {
  return static_cast<size_t>(num_words(params) + 1) / 2 * 2 * sizeof(Word);
}

cudaError_t masked_attention(const MaskedAttentionParams& params,
                             std::byte* workspace,
                             cudaStream_t stream) {
  if (params.batch * params.num_heads * params.q_len == 0) return cudaSuccess;
  const int rows = groups_of(static_cast<int>(params.head_dim)) * kGroupRows;
  const int64_t blocks = params.batch * params.num_heads * ceil_div(params.q_len, rows);
  const int64_t words = num_words(params), pack_blocks = (words + kWarps - 1) / kWarps;
  for (const int64_t size : {params.q_len, params.kv_len + kTileKeys, blocks, pack_blocks}) {
    if (size > INT32_MAX) return cudaErrorInvalidValue;
  }
  Word* const packed = reinterpret_cast<Word*>(workspace);
  if (words > 0) {
    SIMT_LAUNCH((masked_attention_pack_kernel), dim3(static_cast<unsigned>(pack_blocks)),
                dim3(kThreads), 0, stream, params, words, packed);
  }
  return with_half(params.dtype, [&](auto element) {
    using T = decltype(element);
    const bool aligned = is_aligned<T>(params);
    return with_constant<32, 64, 80, 96, 128>("head_dim", params.head_dim, [&](auto head_dim) {
      using L = Layout<T, head_dim, groups_of(head_dim)>;
      SIMT_LAUNCH((masked_attention_mma_kernel<T, head_dim>), dim3(static_cast<unsigned>(blocks)),
                  dim3(kThreads), L::kBytes, stream, params, packed, aligned);
      return cudaGetLastError();
    });
  });
}

}  // namespace lpd::cuda::mma
