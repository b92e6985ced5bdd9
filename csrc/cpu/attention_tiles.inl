// Attention in float32 of some rows over a block of keys, written against the names of
// vector_<variant>.h, which come first, with kTileRows and kTileVectors, the register tile. Blocks
// stay in the first cache: transposed, so that scores of neighbouring keys fill a vector. The
// softmax runs from block to block: a maximum and a sum of weights a row.
#include "attention_block.inl"
#include "vector_math.inl"

namespace {

constexpr int64_t kBlock = 64;   // keys
constexpr int64_t kFewKeys = 4;  // up to here a transposition costs more than it saves
static_assert(kBlock % (kLanes * kTileVectors) == 0);

// Calls function with n, 1 <= n <= kMost, as a constant.
template <int kMost, class Function>
inline void with_constant(int64_t n, const Function& function) {
  if constexpr (kMost > 1) {
    if (n < kMost) return with_constant<kMost - 1>(n, function);
  }
  function(std::integral_constant<int, kMost>{});
}

// Rows of queries, times scale and log2(e).
template <class T>
inline void load_queries(const T* q,
                         int64_t row_stride,
                         int64_t q_len,
                         int64_t head_dim,
                         float scale,
                         float* queries) {
  const Vector factor = broadcast(scale * 1.44269504f);
  for (int64_t row = 0; row < q_len; ++row) {
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      store(queries + row * head_dim + d, multiply(factor, load(q + row * row_stride + d)));
    }
  }
}

// Up to a full vector, the last key is repeated: the scores are computed and not used.
template <class T>
inline void transpose_keys(const KeyRun<T>& block, int64_t head_dim, float* keys) {
  for (int64_t first = 0; first < block.count; first += kLanes) {
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      Vector rows[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t key = std::min(first + i, block.count - 1);
        rows[i] = load(block.k + key * block.k_stride + d);
      }
      transpose(rows);
      for (int64_t i = 0; i < kLanes; ++i) store(keys + (d + i) * kBlock + first, rows[i]);
    }
  }
}

// Rows far from each other are gathered too: at a stride of some KB they share few cache lines.
template <class T>
inline const float* gather_values(const KeyRun<T>& block, int64_t head_dim, float* values) {
  if constexpr (std::is_same_v<T, float>) {
    if (block.v_stride == head_dim) return block.v;
  }
  for (int64_t i = 0; i < block.count; ++i) {
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      store(values + i * head_dim + d, load(block.v + i * block.v_stride + d));
    }
  }
  return values;
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

// Scores of a few keys with one row: dot products, for which no keys are transposed.
template <class T>
inline void score_few(const float* query,
                      const T* k,
                      int64_t stride,
                      int64_t count,
                      int64_t head_dim,
                      float* scores) {
  for (int64_t key = 0; key < count; ++key) {
    Vector products = zero();
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      products = multiply_add(load(query + d), load(k + key * stride + d), products);
    }
    scores[key] = sum(products);
  }
}

// Scores of a block of keys with kRows rows, [kRows, kBlock]; `keys` are those of transpose_keys.
template <int kRows, class T>
inline void score_block(const float* queries,
                        const KeyRun<T>& block,
                        const float* keys,
                        int64_t head_dim,
                        float* scores) {
  if (block.count <= kFewKeys) {
    for (int r = 0; r < kRows; ++r) {
      score_few(queries + r * head_dim, block.k, block.k_stride, block.count, head_dim,
                scores + r * kBlock);
    }
    return;
  }
  const int64_t vectors = (block.count + kLanes - 1) / kLanes;
  for (int64_t i = 0; i < vectors; i += kTileVectors) {
    with_constant<kTileVectors>(vectors - i, [&](auto n) {
      score_tile<kRows, n>(queries, keys + i * kLanes, head_dim, scores + i * kLanes);
    });
  }
}

// sums = factor * sums + weights @ values, for some columns of head_dim. A value that sees(row,
// key) hides from a row does not meet it.
template <int kRows, int kVectors, class Sees>
inline void value_tile(const float* weights,
                       int64_t count,
                       const float* values,
                       const float* factors,
                       int64_t head_dim,
                       float* sums,
                       const Sees& sees) {
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
    for (int c = 0; c < kVectors; ++c) value[c] = load(values + key * head_dim + c * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      if (!sees(r, key)) continue;
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

// value_tile for all columns.
template <int kRows, class Sees>
inline void value_block(const float* weights,
                        int64_t count,
                        const float* values,
                        const float* factors,
                        int64_t head_dim,
                        float* sums,
                        const Sees& sees) {
  const int64_t columns = head_dim / kLanes;
  for (int64_t i = 0; i < columns; i += kTileVectors) {
    with_constant<kTileVectors>(columns - i, [&](auto n) {
      value_tile<kRows, n>(weights, count, values + i * kLanes, factors, head_dim,
                           sums + i * kLanes, sees);
    });
  }
}

// Scores become weights, 2^(score - maximum); factors: what earlier sums are to be multiplied by.
// `ahead` has a slot for other work once a row.
template <int kRows, class Ahead>
inline void weigh(float* weights,
                  int64_t count,
                  float* maxima,
                  float* totals,
                  float* factors,
                  Ahead& ahead) {
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
  store(factors, exp2_below_127(load(changes)));
  for (int r = 0; r < kRows; ++r) {
    ahead.slot();
    float* row = weights + r * kBlock;
    const Vector most = broadcast(maxima[r]);
    Vector total = zero();
    for (int64_t i = 0; i < padded; i += kLanes) {
      const Vector weight = exp2_below_127(subtract(load(row + i), most));
      store(row + i, weight);
      total = add(total, weight);
    }
    const Vector before = load(totals + r * kLanes);
    store(totals + r * kLanes, multiply_add(broadcast(factors[r]), before, total));
  }
}

// A row of the result.
template <class T>
inline void store_row(const float* sums, const float* totals, int64_t head_dim, T* out) {
  // One division a row: they are slow.
  const Vector factor = broadcast(1.0f / total_of<kLanes>(totals));
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    store(out + d, multiply(factor, load(sums + d)));
  }
}

}  // namespace
