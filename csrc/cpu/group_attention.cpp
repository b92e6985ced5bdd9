// group_attention on the CPU. For one (image, head): append the context rows, widen all visible
// keys (transposed in tiles, so that scores of neighbouring keys fill a vector) and values to float
// once, then a two-pass softmax per row.
#include "lpd/group_attention.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "half.h"
#include "lpd/inline.h"

// The vector width changes no bit: lanes are independent sums and nothing is contracted to fma.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#define LPD_VECTOR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define LPD_VECTOR_CLONES
#endif

namespace lpd::cpu {
namespace {

constexpr int64_t kTile = 32;  // keys of a transposed tile

int64_t padded(int64_t kv_len) { return (kv_len + kTile - 1) / kTile * kTile; }

// Parts of the workspace.
struct Space {
  float* keys;    // [padded(kv_len) / kTile, head_dim, kTile]
  float* values;  // [kv_len, head_dim]
  float* scores;  // [padded(kv_len)]
  float* row;     // [head_dim]: the scaled query, then the output

  Space(const GroupAttentionParams& params, float* workspace) {
    const int64_t kv_len = params.cache_len + params.q_len;
    keys = workspace;
    values = keys + padded(kv_len) * params.head_dim;
    scores = values + kv_len * params.head_dim;
    row = scores + padded(kv_len);
  }
};

// e^x for x <= 0, relative error at most 1.1e-7; 0 below -87. Plain arithmetic, so that it
// vectorises.
LPD_INLINE float exp_nonpositive(float x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // n * high is exact
  constexpr float kShift = 0x1.8p+23f;  // adding it rounds to an integer, found in the low bits
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * kLog2E + kShift;
  const float n = shifted - kShift;
  const float f = (clamped - n * kLn2High) - n * kLn2Low;
  // Taylor polynomial on |f| <= ln(2) / 2.
  float power = 1.0f / 5040;
  power = power * f + 1.0f / 720;
  power = power * f + 1.0f / 120;
  power = power * f + 1.0f / 24;
  power = power * f + 1.0f / 6;
  power = power * f + 0.5f;
  power = power * f + 1.0f;
  power = power * f + 1.0f;
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kShift);
  const float result = std::bit_cast<float>(std::bit_cast<int32_t>(power) + (exponent << 23));
  const float flushed = x < -87.0f ? 0.0f : result;
  return x == x ? flushed : x;  // the exponent arithmetic could turn a NaN into a number
}

// Lays `count` rows out as keys and values number [first, first + count).
template <class T>
LPD_INLINE void widen(const T* __restrict k,
                      int64_t k_stride,
                      const T* __restrict v,
                      int64_t v_stride,
                      int64_t first,
                      int64_t count,
                      int64_t head_dim,
                      const Space& space) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t key = first + i;
    float* __restrict column = space.keys + key / kTile * kTile * head_dim + key % kTile;
    float* __restrict value = space.values + key * head_dim;
    for (int64_t d = 0; d < head_dim; ++d) column[d * kTile] = to_float(k[i * k_stride + d]);
    for (int64_t d = 0; d < head_dim; ++d) value[d] = to_float(v[i * v_stride + d]);
  }
}

// space.row: the scaled query, replaced by the output.
LPD_INLINE void attend(int64_t kv_len, int64_t head_dim, const Space& space) {
  float* __restrict scores = space.scores;
  float* __restrict row = space.row;
  for (int64_t first = 0; first < kv_len; first += kTile) {
    const float* __restrict keys = space.keys + first * head_dim;
    float sums[kTile] = {};
    for (int64_t d = 0; d < head_dim; ++d) {
      for (int64_t key = 0; key < kTile; ++key) sums[key] += row[d] * keys[d * kTile + key];
    }
    std::copy(sums, sums + kTile, scores + first);
  }

  float maximum = -std::numeric_limits<float>::infinity();
  for (int64_t key = 0; key < kv_len; ++key) maximum = std::max(maximum, scores[key]);
  for (int64_t key = 0; key < kv_len; ++key) scores[key] = exp_nonpositive(scores[key] - maximum);

  std::fill(row, row + head_dim, 0.0f);
  float total = 0.0f;
  for (int64_t key = 0; key < kv_len; ++key) {
    const float* __restrict value = space.values + key * head_dim;
    const float weight = scores[key];
    total += weight;
    for (int64_t d = 0; d < head_dim; ++d) row[d] += weight * value[d];
  }
  const float inverse = 1.0f / total;
  for (int64_t d = 0; d < head_dim; ++d) row[d] *= inverse;
}

template <class T>
LPD_INLINE void run_pair(const GroupAttentionParams& params,
                         int64_t image,
                         int64_t head,
                         const Space& space) {
  const int64_t head_dim = params.head_dim;
  const int64_t context_end = params.cache_len + params.context_len;
  const int64_t num_queries = params.q_len - params.context_len;
  const int64_t row_stride = params.qkv_row_stride;
  const T* q =
      static_cast<const T*>(params.qkv) + image * params.qkv_batch_stride + head * head_dim;
  const T* k = q + params.num_heads * head_dim;
  const T* v = k + params.num_heads * head_dim;
  T* k_cache = static_cast<T*>(params.k_cache) + image * params.k_strides.batch +
               head * params.k_strides.head;
  T* v_cache = static_cast<T*>(params.v_cache) + image * params.v_strides.batch +
               head * params.v_strides.head;

  for (int64_t i = 0; i < params.context_len; ++i) {
    const int64_t slot = params.cache_len + i;
    std::memcpy(k_cache + slot * params.k_strides.row, k + i * row_stride, head_dim * sizeof(T));
    std::memcpy(v_cache + slot * params.v_strides.row, v + i * row_stride, head_dim * sizeof(T));
  }
  widen(k_cache, params.k_strides.row, v_cache, params.v_strides.row, 0, context_end, head_dim,
        space);
  widen(k + params.context_len * row_stride, row_stride, v + params.context_len * row_stride,
        row_stride, context_end, num_queries, head_dim, space);

  T* out =
      static_cast<T*>(params.out) + (image * params.q_len * params.num_heads + head) * head_dim;
  for (int64_t i = 0; i < params.q_len; ++i) {
    const int64_t kv_len = i < params.context_len ? context_end : context_end + num_queries;
    for (int64_t d = 0; d < head_dim; ++d) {
      space.row[d] = to_float(q[i * row_stride + d]) * params.scale;
    }
    attend(kv_len, head_dim, space);
    for (int64_t d = 0; d < head_dim; ++d) {
      out[i * params.num_heads * head_dim + d] = from_float<T>(space.row[d]);
    }
  }
}

template <class T>
LPD_INLINE void run(const GroupAttentionParams& params,
                    int64_t begin,
                    int64_t end,
                    float* workspace) {
  const Space space(params, workspace);
  // Scores of the padding are computed and not used: they must be numbers a multiplication is
  // quick with.
  const int64_t kv_len = params.cache_len + params.q_len;
  float* last_tile = space.keys + (padded(kv_len) - kTile) * params.head_dim;
  std::fill(last_tile, last_tile + kTile * params.head_dim, 0.0f);
  for (int64_t pair = begin; pair < end; ++pair) {
    run_pair<T>(params, pair / params.num_heads, pair % params.num_heads, space);
  }
}

LPD_VECTOR_CLONES void run_float32(const GroupAttentionParams& params,
                                   int64_t begin,
                                   int64_t end,
                                   float* workspace) {
  run<float>(params, begin, end, workspace);
}

LPD_VECTOR_CLONES void run_bfloat16(const GroupAttentionParams& params,
                                    int64_t begin,
                                    int64_t end,
                                    float* workspace) {
  run<BFloat16>(params, begin, end, workspace);
}

LPD_VECTOR_CLONES void run_float16(const GroupAttentionParams& params,
                                   int64_t begin,
                                   int64_t end,
                                   float* workspace) {
  run<Float16>(params, begin, end, workspace);
}

}  // namespace

size_t group_attention_workspace_size(const GroupAttentionParams& params) {
  const int64_t kv_len = params.cache_len + params.q_len;
  return static_cast<size_t>((padded(kv_len) + kv_len + 1) * params.head_dim + padded(kv_len));
}

void group_attention(const GroupAttentionParams& params,
                     int64_t begin,
                     int64_t end,
                     float* workspace) {
  if (begin >= end || params.q_len == 0) return;
  switch (params.dtype) {
    case Dtype::kFloat32:
      return run_float32(params, begin, end, workspace);
    case Dtype::kBFloat16:
      return run_bfloat16(params, begin, end, workspace);
    case Dtype::kFloat16:
      return run_float16(params, begin, end, workspace);
  }
}

}  // namespace lpd::cpu
