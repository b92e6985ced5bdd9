// group_attention written against the names of vector_<variant>.h, which come first, with
// kTileRows and kTileVectors, the register tile. For one (image, head), keys are taken in blocks
// that stay in the first cache: transposed, so that scores of neighbouring keys fill a vector, and
// shown to all rows before the next block (a running maximum and sum a row; float32).
#include "group_attention_pair.inl"
#include "vector_math.inl"

namespace {

constexpr int64_t kBlock = 64;  // keys
static_assert(kBlock % (kLanes * kTileVectors) == 0);

struct Space {
  Cutter cutter;
  float* queries;  // [q_len, head_dim], scaled
  float* sums;     // [q_len, head_dim], of weighted values
  float* totals;   // [q_len, kLanes], of weights
  float* maxima;   // [q_len], of scores
  float* keys;     // [head_dim, kBlock]
  float* values;   // [kBlock, head_dim]
  float* weights;  // [kTileRows, kBlock], scores at first

  Space(const GroupAttentionParams& params, std::byte* workspace) : cutter(workspace) {
    queries = cutter.cut<float>(params.q_len * params.head_dim);
    sums = cutter.cut<float>(params.q_len * params.head_dim);
    totals = cutter.cut<float>(params.q_len * kLanes);
    maxima = cutter.cut<float>(params.q_len);
    keys = cutter.cut<float>(params.head_dim * kBlock);
    values = cutter.cut<float>(params.head_dim * kBlock);
    weights = cutter.cut<float>(kTileRows * kBlock);
  }
};

// Values of a block, widened.
struct Values {
  const float* rows;
  int64_t stride;
};

// Calls function with n, 1 <= n <= kMost, as a constant.
template <int kMost, class Function>
inline void with_constant(int64_t n, const Function& function) {
  if constexpr (kMost > 1) {
    if (n < kMost) return with_constant<kMost - 1>(n, function);
  }
  function(std::integral_constant<int, kMost>{});
}

// Keys behind the last one, up to a full vector, are 0: their scores are computed and not used.
template <class T>
inline void transpose_keys(const T* k,
                           int64_t stride,
                           int64_t count,
                           int64_t head_dim,
                           float* keys) {
  for (int64_t first = 0; first < count; first += kLanes) {
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      Vector rows[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        rows[i] = first + i < count ? load(k + (first + i) * stride + d) : zero();
      }
      transpose(rows);
      for (int64_t i = 0; i < kLanes; ++i) store(keys + (d + i) * kBlock + first, rows[i]);
    }
  }
}

inline Values widen(const float* v, int64_t stride, int64_t, int64_t, float*) {
  return {.rows = v, .stride = stride};
}

template <class T>
inline Values widen(const T* v, int64_t stride, int64_t count, int64_t head_dim, float* values) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      store(values + i * head_dim + d, load(v + i * stride + d));
    }
  }
  return {.rows = values, .stride = head_dim};
}

template <int kRows, int kVectors>
inline void score_tile(const float* queries, const float* keys, int64_t head_dim, float* scores) {
  Vector sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) sums[r][c] = zero();
  }
  for (int64_t d = 0; d < head_dim; ++d) {
    Vector key[kVectors];
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) key[c] = load(keys + d * kBlock + c * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vector query = broadcast(queries[r * head_dim + d]);
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) sums[r][c] = multiply_add(query, key[c], sums[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) store(scores + r * kBlock + c * kLanes, sums[r][c]);
  }
}

// sums = factor * sums + weights @ values, for some columns of head_dim.
template <int kRows, int kVectors>
inline void value_tile(const float* weights,
                       int64_t count,
                       const Values& values,
                       const float* factors,
                       int64_t head_dim,
                       float* sums) {
  Vector tile[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const Vector factor = broadcast(factors[r]);
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) {
      tile[r][c] = multiply(factor, load(sums + r * head_dim + c * kLanes));
    }
  }
  for (int64_t key = 0; key < count; ++key) {
    Vector value[kVectors];
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c)
      value[c] = load(values.rows + key * values.stride + c * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vector weight = broadcast(weights[r * kBlock + key]);
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) tile[r][c] = multiply_add(weight, value[c], tile[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) store(sums + r * head_dim + c * kLanes, tile[r][c]);
  }
}

// Scores become weights, e^(score - maximum); factors: what earlier sums are to be multiplied by.
template <int kRows>
inline void weigh(float* weights, int64_t count, float* maxima, float* totals, float* factors) {
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  float changes[kLanes] = {};
  for (int r = 0; r < kRows; ++r) {
    float* row = weights + r * kBlock;
    std::fill(row + count, row + padded, -std::numeric_limits<float>::infinity());
    Vector most = broadcast(maxima[r]);
    for (int64_t i = 0; i < padded; i += kLanes) most = maximum(load(row + i), most);  // skips NaN
    const float before = maxima[r];
    maxima[r] = largest(most);
    changes[r] = before - maxima[r];
  }
  store(factors, exp_nonpositive(load(changes)));
  for (int r = 0; r < kRows; ++r) {
    float* row = weights + r * kBlock;
    const Vector most = broadcast(maxima[r]);
    Vector total = zero();
    for (int64_t i = 0; i < padded; i += kLanes) {
      const Vector weight = exp_nonpositive(subtract(load(row + i), most));
      store(row + i, weight);
      total = add(total, weight);
    }
    const Vector before = load(totals + r * kLanes);
    store(totals + r * kLanes, multiply_add(broadcast(factors[r]), before, total));
  }
}

// Shows a block of keys to rows [first_row, first_row + kRows).
template <int kRows>
inline void attend(const Space& space,
                   int64_t first_row,
                   int64_t count,
                   const Values& values,
                   int64_t head_dim) {
  const float* queries = space.queries + first_row * head_dim;
  float* sums = space.sums + first_row * head_dim;
  const int64_t vectors = (count + kLanes - 1) / kLanes;
  for (int64_t i = 0; i < vectors; i += kTileVectors) {
    with_constant<kTileVectors>(vectors - i, [&](auto n) {
      score_tile<kRows, n>(queries, space.keys + i * kLanes, head_dim, space.weights + i * kLanes);
    });
  }
  float factors[kLanes];
  weigh<kRows>(space.weights, count, space.maxima + first_row, space.totals + first_row * kLanes,
               factors);
  const int64_t columns = head_dim / kLanes;
  for (int64_t i = 0; i < columns; i += kTileVectors) {
    with_constant<kTileVectors>(columns - i, [&](auto n) {
      const Values part{.rows = values.rows + i * kLanes, .stride = values.stride};
      value_tile<kRows, n>(space.weights, count, part, factors, head_dim, sums + i * kLanes);
    });
  }
}

template <class T>
inline void run_pair(const GroupAttentionParams& params, int64_t number, const Space& space) {
  const int64_t head_dim = params.head_dim, q_len = params.q_len;
  const Pair<T> pair = append_and_find<T>(params, number);
  const Vector scale = broadcast(params.scale);
  for (int64_t row = 0; row < q_len; ++row) {
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      store(space.queries + row * head_dim + d,
            multiply(scale, load(pair.q + row * pair.q_stride + d)));
    }
  }
  std::fill_n(space.sums, q_len * head_dim, 0.0f);
  std::fill_n(space.totals, q_len * kLanes, 0.0f);
  std::fill_n(space.maxima, q_len, kNoMaximum);

  for (const KeyRun<T>& run : pair.runs) {
    for (int64_t first = 0; first < run.count; first += kBlock) {
      const int64_t count = std::min(kBlock, run.count - first);
      transpose_keys(run.k + first * run.k_stride, run.k_stride, count, head_dim, space.keys);
      const Values values =
          widen(run.v + first * run.v_stride, run.v_stride, count, head_dim, space.values);
      for (int64_t row = run.first_row; row < q_len; row += kTileRows) {
        with_constant<kTileRows>(
            q_len - row, [&](auto rows) { attend<rows>(space, row, count, values, head_dim); });
      }
    }
  }

  for (int64_t row = 0; row < q_len; ++row) {
    const Vector total = broadcast(total_of<kLanes>(space.totals + row * kLanes));
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      store(pair.out + row * pair.out_stride + d,
            divide(load(space.sums + row * head_dim + d), total));
    }
  }
}

template <class T>
inline void run(const GroupAttentionParams& params,
                int64_t begin,
                int64_t end,
                std::byte* workspace) {
  const Space space(params, workspace);
  for (int64_t number = begin; number < end; ++number) run_pair<T>(params, number, space);
}

}  // namespace

size_t group_attention_workspace_size(const GroupAttentionParams& params) {
  return Space(params, nullptr).cutter.size();
}

void group_attention(const GroupAttentionParams& params,
                     int64_t begin,
                     int64_t end,
                     std::byte* workspace) {
  switch (params.dtype) {
    case Dtype::kFloat32:
      return run<float>(params, begin, end, workspace);
    case Dtype::kBFloat16:
      return run<BFloat16>(params, begin, end, workspace);
    case Dtype::kFloat16:
      return run<Float16>(params, begin, end, workspace);
  }
}
