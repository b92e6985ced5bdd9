// group_attention written against the names of vector_<variant>.h, which come first, with
// kTileRows and kTileVectors, the register tile. For one (image, head), keys are taken in blocks
// that stay in the first cache: transposed, so that scores of neighbouring keys fill a vector, and
// shown to all rows before the next block (a running maximum and sum a row; float32).
#include "group_attention_pair.inl"
#include "vector_math.inl"

namespace {

constexpr int64_t kBlock = 64;   // keys
constexpr int64_t kFewKeys = 4;  // up to here a transposition costs more than it saves
static_assert(kBlock % (kLanes * kTileVectors) == 0);

struct Space {
  Cutter cutter;
  float* queries;  // [q_len, head_dim], times scale and log2(e)
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

// Calls function with n, 1 <= n <= kMost, as a constant.
template <int kMost, class Function>
inline void with_constant(int64_t n, const Function& function) {
  if constexpr (kMost > 1) {
    if (n < kMost) return with_constant<kMost - 1>(n, function);
  }
  function(std::integral_constant<int, kMost>{});
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

// sums = factor * sums + weights @ values, for some columns of head_dim.
template <int kRows, int kVectors>
inline void value_tile(const float* weights,
                       int64_t count,
                       const float* values,
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
    for (int c = 0; c < kVectors; ++c) value[c] = load(values + key * head_dim + c * kLanes);
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

// Scores become weights, 2^(score - maximum); factors: what earlier sums are to be multiplied by.
template <int kRows, class T>
inline void weigh(float* weights,
                  int64_t count,
                  float* maxima,
                  float* totals,
                  float* factors,
                  Ahead<T>& ahead) {
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
  store(factors, exp2_nonpositive(load(changes)));
  for (int r = 0; r < kRows; ++r) {
    ahead.slot();
    float* row = weights + r * kBlock;
    const Vector most = broadcast(maxima[r]);
    Vector total = zero();
    for (int64_t i = 0; i < padded; i += kLanes) {
      const Vector weight = exp2_nonpositive(subtract(load(row + i), most));
      store(row + i, weight);
      total = add(total, weight);
    }
    const Vector before = load(totals + r * kLanes);
    store(totals + r * kLanes, multiply_add(broadcast(factors[r]), before, total));
  }
}

// Shows a block of keys to rows [first_row, first_row + kRows).
template <int kRows, class T>
inline void attend(const Space& space,
                   int64_t first_row,
                   const KeyRun<T>& block,
                   const float* values,
                   int64_t head_dim,
                   Ahead<T>& ahead) {
  const float* queries = space.queries + first_row * head_dim;
  float* sums = space.sums + first_row * head_dim;
  if (block.count <= kFewKeys) {
    for (int r = 0; r < kRows; ++r) {
      score_few(queries + r * head_dim, block.k, block.k_stride, block.count, head_dim,
                space.weights + r * kBlock);
    }
  } else {
    const int64_t vectors = (block.count + kLanes - 1) / kLanes;
    for (int64_t i = 0; i < vectors; i += kTileVectors) {
      with_constant<kTileVectors>(vectors - i, [&](auto n) {
        score_tile<kRows, n>(queries, space.keys + i * kLanes, head_dim,
                             space.weights + i * kLanes);
      });
    }
  }
  float factors[kLanes];
  weigh<kRows>(space.weights, block.count, space.maxima + first_row,
               space.totals + first_row * kLanes, factors, ahead);
  const int64_t columns = head_dim / kLanes;
  for (int64_t i = 0; i < columns; i += kTileVectors) {
    with_constant<kTileVectors>(columns - i, [&](auto n) {
      value_tile<kRows, n>(space.weights, block.count, values + i * kLanes, factors, head_dim,
                           sums + i * kLanes);
    });
  }
}

template <class T>
inline void run_pair(const GroupAttentionParams& params,
                     const Pair<T>& pair,
                     const Pair<T>& next,
                     const Space& space) {
  const int64_t head_dim = params.head_dim, q_len = params.q_len;
  append(params, pair);
  const Vector scale = broadcast(params.scale * 1.44269504f);
  for (int64_t row = 0; row < q_len; ++row) {
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      store(space.queries + row * head_dim + d,
            multiply(scale, load(pair.q + row * pair.row_stride + d)));
    }
  }
  std::fill_n(space.sums, q_len * head_dim, 0.0f);
  std::fill_n(space.totals, q_len * kLanes, 0.0f);
  std::fill_n(space.maxima, q_len, kNoMaximum);

  Ahead<T> ahead(next, head_dim, slots_of(pair, kBlock));
  for (const KeyRun<T>& run : pair.runs) {
    for (int64_t first = 0; first < run.count; first += kBlock) {
      const KeyRun<T> block = run.part(first, kBlock);
      if (block.count > kFewKeys) transpose_keys(block, head_dim, space.keys);
      const float* values = gather_values(block, head_dim, space.values);
      // Tiles as equal as can be: one of few rows would cost as much as a full one.
      const int64_t rows = q_len - run.first_row, tiles = (rows + kTileRows - 1) / kTileRows;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t begin = run.first_row + rows * tile / tiles;
        const int64_t end = run.first_row + rows * (tile + 1) / tiles;
        const auto show = [&](auto n) { attend<n>(space, begin, block, values, head_dim, ahead); };
        with_constant<kTileRows>(end - begin, show);
      }
    }
  }

  for (int64_t row = 0; row < q_len; ++row) {
    // One division a row: they are slow.
    const Vector factor = broadcast(1.0f / total_of<kLanes>(space.totals + row * kLanes));
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      store(pair.out + row * pair.out_stride + d,
            multiply(factor, load(space.sums + row * head_dim + d)));
    }
  }
}

template <class T>
inline void run(const GroupAttentionParams& params,
                int64_t begin,
                int64_t end,
                std::byte* workspace) {
  const Space space(params, workspace);
  Pair<T> pair = find_pair<T>(params, begin);
  for (int64_t number = begin + 1; number <= end; ++number) {
    const Pair<T> next = number < end ? find_pair<T>(params, number) : Pair<T>{};
    run_pair<T>(params, pair, next, space);
    pair = next;
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
  switch (params.dtype) {
    case Dtype::kFloat32:
      return run<float>(params, begin, end, workspace);
    case Dtype::kBFloat16:
      return run<BFloat16>(params, begin, end, workspace);
    case Dtype::kFloat16:
      return run<Float16>(params, begin, end, workspace);
  }
}
