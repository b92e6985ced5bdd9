// group_attention in bfloat16 with tile products (AMX). For one (image, head), keys are taken in
// blocks that stay in the first caches, keys and values laid out once as right operands (pairs
// along the dimension that is summed), and shown to 16 rows at a time: scores by tiles, softmax in
// float32 vectors, weights narrowed to bfloat16, weighted sum by tiles. A row is divided by the sum
// of its narrowed weights, so that they add up to 1. Tile products take subnormal numbers as 0.
#include <algorithm>
#include <cstring>
#include <limits>

#include "lpd/group_attention.h"
#include "vector_avx512.h"

#if defined(LPD_X86)
LPD_TARGET_BEGIN(LPD_AMX)
namespace lpd::cpu::amx {
#include "attention_block.inl"
#include "group_attention_pair.inl"
namespace {

using namespace avx512;

constexpr int64_t kRows = 16;          // of a tile; also float32 or bfloat16 pairs in a row
constexpr int64_t kPairs = 16;         // of bfloat16 in a row of a tile
constexpr int64_t kStep = 2 * kPairs;  // of the summed dimension, in a tile product
constexpr int64_t kTile = kRows * kPairs;
constexpr int64_t kBlock = 128;      // keys
constexpr int64_t kMostColumns = 4;  // of tiles, in one product

int64_t steps(int64_t size) { return (size + kStep - 1) / kStep; }

struct Space {
  Cutter cutter;
  BFloat16* queries;  // [q_len + 15, steps(head_dim) * kStep]
  float* sums;        // [q_len + 15, head_dim], of weighted values
  float* totals;      // [q_len, kLanes], of weights
  float* maxima;      // [q_len + 15], of scores times log2(e)
  float* keys;        // tiles [kBlock / 16, steps(head_dim)] of pairs
  float* values;      // tiles [head_dim / 16, kBlock / kStep] of pairs
  float* scores;      // [16, kBlock]
  BFloat16* weights;  // [16, kBlock]

  Space(const GroupAttentionParams& params, std::byte* workspace) : cutter(workspace) {
    const int64_t rows = params.q_len + kRows - 1, head_steps = steps(params.head_dim);
    queries = cutter.cut<BFloat16>(rows * head_steps * kStep);
    sums = cutter.cut<float>(rows * params.head_dim);
    totals = cutter.cut<float>(params.q_len * kLanes);
    maxima = cutter.cut<float>(rows);
    keys = cutter.cut<float>(kBlock / kRows * head_steps * kTile);
    values = cutter.cut<float>(params.head_dim / kRows * (kBlock / kStep) * kTile);
    scores = cutter.cut<float>(kRows * kBlock);
    weights = cutter.cut<BFloat16>(kRows * kBlock);
  }
};

// Tiles of 16 rows of 64 bytes, from construction to destruction.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) Config {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    const Config config;
    __asm__ volatile("" ::"m"(config));  // GCC takes the load for one of the first bytes only
    _tile_loadconfig(&config);
  }
  Tiles(const Tiles&) = delete;
  ~Tiles() { _tile_release(); }
};

// out [16, kColumns * 16] (+)= left [16, steps * kStep] @ right, whose tiles of one column follow
// each other. Strides in bytes.
template <int kColumns>
inline void multiply_tiles(const BFloat16* left,
                           int64_t left_stride,
                           const float* right,
                           int64_t right_column,
                           int64_t num_steps,
                           bool accumulate,
                           float* out,
                           int64_t out_stride) {
  __asm__ volatile("" ::: "memory");  // tile loads do not say that they read
  if (accumulate) {
    _tile_loadd(0, out, out_stride);
    if constexpr (kColumns > 1) _tile_loadd(1, out + kPairs, out_stride);
    if constexpr (kColumns > 2) _tile_loadd(2, out + 2 * kPairs, out_stride);
    if constexpr (kColumns > 3) _tile_loadd(3, out + 3 * kPairs, out_stride);
  } else {
    _tile_zero(0);
    if constexpr (kColumns > 1) _tile_zero(1);
    if constexpr (kColumns > 2) _tile_zero(2);
    if constexpr (kColumns > 3) _tile_zero(3);
  }
  for (int64_t step = 0; step < num_steps; ++step) {
    const float* tile = right + step * kTile;
    _tile_loadd(4, left + step * kStep, left_stride);
    _tile_loadd(5, tile, 64);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (kColumns > 1) {
      _tile_loadd(6, tile + right_column, 64);
      _tile_dpbf16ps(1, 4, 6);
    }
    if constexpr (kColumns > 2) {
      _tile_loadd(7, tile + 2 * right_column, 64);
      _tile_dpbf16ps(2, 4, 7);
    }
    if constexpr (kColumns > 3) {
      _tile_loadd(5, tile + 3 * right_column, 64);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
  _tile_stored(0, out, out_stride);
  if constexpr (kColumns > 1) _tile_stored(1, out + kPairs, out_stride);
  if constexpr (kColumns > 2) _tile_stored(2, out + 2 * kPairs, out_stride);
  if constexpr (kColumns > 3) _tile_stored(3, out + 3 * kPairs, out_stride);
}

// Any number of columns.
inline void multiply(const BFloat16* left,
                     int64_t left_stride,
                     const float* right,
                     int64_t right_column,
                     int64_t num_steps,
                     int64_t columns,
                     bool accumulate,
                     float* out,
                     int64_t out_stride) {
  const auto part = [&]<int kColumns>(int64_t first) {
    multiply_tiles<kColumns>(left, left_stride, right + first * right_column, right_column,
                             num_steps, accumulate, out + first * kPairs, out_stride);
  };
  int64_t first = 0;
  for (; columns - first >= 4; first += 4) part.template operator()<4>(first);
  if (columns - first >= 2) {
    part.template operator()<2>(first);
    first += 2;
  }
  if (columns - first == 1) part.template operator()<1>(first);
}

// How often `ahead` has a slot while keys and values are laid.
constexpr int64_t kKeysPerSlot = 8;
inline int64_t slots_of_laying(const Pair<BFloat16>& pair, int64_t head_dim) {
  int64_t count = 0;
  for (const SeenRun<BFloat16>& run : pair.runs) {
    for (int64_t first = 0; first < run.count; first += kBlock) {
      const int64_t laid = steps(std::min(kBlock, run.count - first)) * kStep;
      count += laid / kRows * steps(head_dim) + laid / kKeysPerSlot;
    }
  }
  return count;
}

// Keys as the right operand of queries: a 16 x 16 transposition of pairs a tile. Behind the last
// key and behind head_dim: 0.
inline void lay_keys(const BFloat16* k,
                     int64_t stride,
                     int64_t count,
                     int64_t head_dim,
                     Ahead<BFloat16>& ahead,
                     float* keys) {
  const int64_t columns = steps(count) * 2, head_steps = steps(head_dim);
  for (int64_t column = 0; column < columns; ++column) {
    for (int64_t step = 0; step < head_steps; ++step) {
      ahead.slot();
      const __mmask16 present = head_dim - step * kStep >= kStep ? 0xffff : 0x00ff;
      Vector rows[kRows];
      for (int64_t i = 0; i < kRows; ++i) {
        const int64_t key = column * kRows + i;
        rows[i] =
            key < count ? _mm512_maskz_loadu_ps(present, k + key * stride + step * kStep) : zero();
      }
      transpose(rows);
      float* tile = keys + (column * head_steps + step) * kTile;
      for (int64_t i = 0; i < kRows; ++i) store(tile + i * kPairs, rows[i]);
    }
  }
}

// Values as the right operand of weights: neighbouring rows interleaved.
inline void lay_values(const BFloat16* v,
                       int64_t stride,
                       int64_t count,
                       int64_t head_dim,
                       Ahead<BFloat16>& ahead,
                       float* values) {
  const int64_t padded = steps(count) * kStep;
  const auto row = [&](int64_t key, int64_t d) {
    const auto* from = reinterpret_cast<const __m256i*>(v + key * stride + d);
    return key < count ? _mm512_cvtepu16_epi32(_mm256_loadu_si256(from)) : _mm512_setzero_si512();
  };
  for (int64_t key = 0; key < padded; key += 2) {
    if (key % kKeysPerSlot == 0) ahead.slot();
    for (int64_t d = 0; d < head_dim; d += kPairs) {
      const __m512i pairs = _mm512_or_si512(row(key, d), _mm512_slli_epi32(row(key + 1, d), 16));
      float* to = values + (d / kPairs * (kBlock / kStep)) * kTile + key / 2 * kPairs;
      store(to, _mm512_castsi512_ps(pairs));
    }
  }
}

// 2^x for x <= 0, relative error at most 3e-6; 0 below -126, NaN stays NaN.
inline Vector exp2_nonpositive(Vector x) {
  const Vector f = fraction(x);
  Vector power = broadcast(0.0134266848f);
  power = multiply_add(power, f, broadcast(0.0522424728f));
  power = multiply_add(power, f, broadcast(0.241280198f));
  power = multiply_add(power, f, broadcast(0.693044841f));
  power = multiply_add(power, f, broadcast(1.0f));
  return scale_by_floor(power, x);
}

// The scores of `rows` rows become weights; what was summed under another maximum is scaled.
inline void weigh(const Space& space,
                  int64_t first_row,
                  int64_t rows,
                  int64_t count,
                  int64_t head_dim,
                  float scale,
                  Ahead<BFloat16>& ahead) {
  const int64_t padded = steps(count) * kStep;
  const Vector factor_of_scores = broadcast(scale * 1.44269504f);
  float most_of_rows[kRows] = {};
  for (int64_t r = 0; r < rows; ++r) {
    float* row = space.scores + r * kBlock;
    Vector most = broadcast(kNoMaximum);
    for (int64_t i = 0; i < padded; i += kLanes) {
      Vector score = avx512::multiply(load(row + i), factor_of_scores);
      const int64_t left = std::clamp<int64_t>(count - i, 0, kLanes);
      const Mask present = static_cast<Mask>((1u << left) - 1);
      score = select(present, score, broadcast(-std::numeric_limits<float>::infinity()));
      store(row + i, score);
      most = maximum(score, most);  // skips NaN
    }
    most_of_rows[r] = largest(most);
  }
  float* maxima = space.maxima + first_row;
  const Vector before = load(maxima);
  const Vector after = maximum(load(most_of_rows), before);
  store(maxima, after);
  float factors[kRows];
  store(factors, exp2_nonpositive(subtract(before, after)));

  for (int64_t r = 0; r < rows; ++r) {
    ahead.slot();
    const Vector most = broadcast(maxima[r]), factor = broadcast(factors[r]);
    Vector total = zero();
    for (int64_t i = 0; i < padded; i += kStep) {
      const float* row = space.scores + r * kBlock + i;
      const Vector low = exp2_nonpositive(subtract(load(row), most));
      const Vector high = exp2_nonpositive(subtract(load(row + kLanes), most));
      const __m512i narrow = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
      _mm512_storeu_si512(space.weights + r * kBlock + i, narrow);
      total = add(total, _mm512_castsi512_ps(_mm512_slli_epi32(narrow, 16)));
      total =
          add(total,
              _mm512_castsi512_ps(_mm512_and_si512(narrow, _mm512_set1_epi32(int(0xffff0000u)))));
    }
    float* totals = space.totals + (first_row + r) * kLanes;
    store(totals, multiply_add(factor, load(totals), total));
    if (factors[r] == 1.0f) continue;
    float* sums = space.sums + (first_row + r) * head_dim;
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      store(sums + d, avx512::multiply(factor, load(sums + d)));
    }
  }
}

void run_pair(const GroupAttentionParams& params,
              const Pair<BFloat16>& pair,
              const Pair<BFloat16>& next,
              const Space& space) {
  const int64_t head_dim = params.head_dim, q_len = params.q_len;
  append(params, pair);
  const int64_t head_steps = steps(head_dim), padded_dim = head_steps * kStep;
  for (int64_t row = 0; row < q_len; ++row) {
    copy_row(pair.q + row * pair.row_stride, head_dim, space.queries + row * padded_dim);
  }
  std::fill_n(space.sums, q_len * head_dim, 0.0f);
  std::fill_n(space.totals, q_len * kLanes, 0.0f);
  std::fill_n(space.maxima, q_len + kRows - 1, kNoMaximum);

  Ahead<BFloat16> ahead(next, head_dim, slots_of(pair, kBlock) + slots_of_laying(pair, head_dim));
  for (const SeenRun<BFloat16>& run : pair.runs) {
    for (int64_t first = 0; first < run.count; first += kBlock) {
      const int64_t count = std::min(kBlock, run.count - first);
      lay_keys(run.k + first * run.k_stride, run.k_stride, count, head_dim, ahead, space.keys);
      lay_values(run.v + first * run.v_stride, run.v_stride, count, head_dim, ahead, space.values);
      for (int64_t row = run.first_row; row < q_len; row += kRows) {
        multiply(space.queries + row * padded_dim, padded_dim * sizeof(BFloat16), space.keys,
                 head_steps * kTile, head_steps, 2 * steps(count), false, space.scores,
                 kBlock * sizeof(float));
        weigh(space, row, std::min(kRows, q_len - row), count, head_dim, params.scale, ahead);
        multiply(space.weights, kBlock * sizeof(BFloat16), space.values, kBlock / kStep * kTile,
                 steps(count), head_dim / kPairs, true, space.sums + row * head_dim,
                 head_dim * sizeof(float));
      }
    }
  }

  for (int64_t row = 0; row < q_len; ++row) {
    // One division a row: they are slow.
    const Vector factor = broadcast(1.0f / total_of<kLanes>(space.totals + row * kLanes));
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      store(pair.out + row * pair.out_stride + d,
            avx512::multiply(factor, load(space.sums + row * head_dim + d)));
    }
  }
}

}  // namespace

size_t group_attention_workspace_size(const GroupAttentionParams& params) {
  return Space(params, nullptr).cutter.size();
}

void group_attention(const GroupAttentionParams& params,
                     int64_t begin,
                     int64_t end,
                     std::byte* workspace) {
  const Space space(params, workspace);
  // Of the rows of a tile that are no rows of the tensor, and of the columns behind head_dim.
  std::fill_n(space.queries, (params.q_len + kRows - 1) * steps(params.head_dim) * kStep,
              BFloat16{0});
  const Tiles tiles;
  Pair<BFloat16> pair = find_pair<BFloat16>(params, begin);
  for (int64_t number = begin + 1; number <= end; ++number) {
    const Pair<BFloat16> next =
        number < end ? find_pair<BFloat16>(params, number) : Pair<BFloat16>{};
    run_pair(params, pair, next, space);
    pair = next;
  }
}

}  // namespace lpd::cpu::amx
LPD_TARGET_END
#endif
