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
// Keys are not split over CTAs: few pairs with many keys leave part of a large GPU idle.
//
// Not yet run on a GPU.
#include <cmath>

#include "attention_mma.cuh"
#include "dispatch.h"
#include "elements.cuh"
#include "group_attention_softmax.cuh"
#include "masked_attention_kernels.h"
#include "masked_attention_pair.cuh"
#include "primitives.cuh"

namespace lpd::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kWarpKeys = 16;
constexpr int kTileKeys = kWarps * kWarpKeys;
constexpr float kLog2E = 1.44269504f;

using Word = uint64_t;  // the keys of a tile that a row sees, a bit each
static_assert(kTileKeys == 64);
constexpr uint32_t kAllOfWarp = (1u << kWarpKeys) - 1;  // its part of a word

constexpr int groups_of(int head_dim) { return head_dim <= 96 ? 2 : 1; }

LPD_INLINE int ceil_div(int64_t a, int b) { return static_cast<int>((a + b - 1) / b); }

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
  using L = AttentionLayout<T, kHeadDim, kGroups, kWarps>;
  constexpr int kChunks = kHeadDim / Chunk<T>::kSize;
  constexpr int kSteps = kHeadDim / 16;
  SIMT_DYN_SHARED(bytes);
  SIMT_SHARED(int2, ranges, [kRows]);  // of tiles that a row sees: first, end
  T* const queries = reinterpret_cast<T*>(bytes);
  T* const tiles = queries + L::kQueries;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;

  const int shares = ceil_div(params.q_len, kRows);
  const int64_t first_row = int64_t{kRows} * (blockIdx.x % shares);
  const MaskedAttentionPair<T> pair(params, blockIdx.x / shares);
  const int num_rows = static_cast<int>(min(params.q_len - first_row, int64_t{kRows}));
  const int num_groups = ceil_div(num_rows, kGroupRows);
  const int num_tiles = ceil_div(params.kv_len, kTileKeys);

  for (int i = thread; i < num_groups * kGroupRows * kChunks; i += kThreads) {
    const int row = i / kChunks, column = i % kChunks * Chunk<T>::kSize;
    const bool valid = row < num_rows;
    copy_chunk(queries + row * L::kRow + column,
               pair.q + (first_row + (valid ? row : 0)) * params.q_strides.row + column, valid,
               aligned);
  }

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
      T* const keys = keys_of(tile);
      const int count = num_keys(tile);
      const int padded = ceil_div(count, kWarpKeys) * kWarpKeys;
      for (int i = thread; i < padded * kChunks; i += kThreads) {
        const int key = i / kChunks, column = i % kChunks * Chunk<T>::kSize;
        const bool valid = key < count;
        const int64_t slot = int64_t{kTileKeys} * tile + (valid ? key : 0);
        T* const to = keys + key * L::kRow + column;
        copy_chunk(to, pair.k + slot * params.k_strides.row + column, valid, aligned);
        copy_chunk(to + L::kTile, pair.v + slot * params.v_strides.row + column, valid, aligned);
      }
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
    uint32_t key_parts[kSteps][4], value_parts[kSteps][4];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      simt::ldmatrix_x4(key_parts[i],
                        keys + (lane / 16 * 8 + lane % 8) * L::kRow + i * 16 + lane / 8 % 2 * 8);
      simt::ldmatrix_x4_trans(value_parts[i],
                              values + lane % 16 * L::kRow + i * 16 + lane / 16 * 8);
    }
    bool infinite = false;
    if (hides) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
#pragma unroll
        for (uint32_t& pair_of_values : value_parts[i]) {
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
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        uint32_t rows[4];
        simt::ldmatrix_x4(
            rows, queries + (g * kGroupRows + lane % 16) * L::kRow + i * 16 + lane / 16 * 8);
        multiply_add<T>(rows, key_parts[i][0], key_parts[i][1], scores[0]);
        multiply_add<T>(rows, key_parts[i][2], key_parts[i][3], scores[1]);
      }
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
      const uint32_t weights[4] = {
          pack<T>(scores[0][0], scores[0][1]), pack<T>(scores[0][2], scores[0][3]),
          pack<T>(scores[1][0], scores[1][1]), pack<T>(scores[1][2], scores[1][3])};
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        multiply_add<T>(weights, value_parts[i][0], value_parts[i][1], softmax[g].sums[2 * i]);
        multiply_add<T>(weights, value_parts[i][2], value_parts[i][3], softmax[g].sums[2 * i + 1]);
      }
      if (infinite) add_infinite<T, kHeadDim, L::kRow>(values, scores, seen[g], softmax[g].sums);
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
    const int count = min(num_rows - g * kGroupRows, kGroupRows);
    for (int i = thread; i < count * kChunks; i += kThreads) {
      const int row = i / kChunks, column = i % kChunks * Chunk<T>::kSize;
      const int2 range = ranges[g * kGroupRows + row];
      const int64_t out_row = first_row + g * kGroupRows + row;
      T* const out = pair.out + out_row * kHeadDim + column;
      if (range.x >= range.y) {  // it sees nothing
        const float x = fits(params, pair.image, out_row) ? 0.0f : NAN;
        for (int j = 0; j < Chunk<T>::kSize; ++j) out[j] = from_float<T>(x);
        continue;
      }
      Merge<Chunk<T>::kSize> merge;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const int at = w * kGroupRows + row;
        merge.add(rows[at], reinterpret_cast<const float4*>(merged + at * L::kMergeRow + column));
      }
      store_chunk(out, merge.template result<T>(), aligned);
    }
  }
}

int64_t num_words(const MaskedAttentionParams& params) {
  if (params.prefix_lens != nullptr) return 0;
  const int64_t images = params.mask_batch_stride == 0 ? 1 : params.batch;
  return images * params.q_len * ceil_div(params.kv_len, kTileKeys);
}

}  // namespace

size_t mma::masked_attention_workspace_size(const MaskedAttentionParams& params) {
  return static_cast<size_t>(num_words(params) + 1) / 2 * 2 * sizeof(Word);
}

cudaError_t mma::masked_attention(const MaskedAttentionParams& params,
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
      using L = AttentionLayout<T, head_dim, groups_of(head_dim), kWarps>;
      SIMT_LAUNCH((masked_attention_mma_kernel<T, head_dim>), dim3(static_cast<unsigned>(blocks)),
                  dim3(kThreads), L::kBytes, stream, params, packed, aligned);
      return cudaGetLastError();
    });
  });
}

}  // namespace lpd::cuda
