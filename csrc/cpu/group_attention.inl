// group_attention written against the names of vector_<variant>.h, which come first, with
// kTileRows and kTileVectors, the register tile. Each block of keys of an (image, head) is shown to
// all rows before the next one.
#include "attention_tiles.inl"
#include "group_attention_pair.inl"

namespace {

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
  score_block<kRows>(queries, block, space.keys, head_dim, space.weights);
  float factors[kLanes];
  weigh<kRows>(space.weights, block.count, space.maxima + first_row,
               space.totals + first_row * kLanes, factors, ahead);
  value_block<kRows>(space.weights, block.count, values, factors, head_dim, sums,
                     [](int, int64_t) { return true; });
}

template <class T>
inline void run_pair(const GroupAttentionParams& params,
                     const Pair<T>& pair,
                     const Pair<T>& next,
                     const Space& space) {
  const int64_t head_dim = params.head_dim, q_len = params.q_len;
  append(params, pair);
  load_queries(pair.q, pair.row_stride, q_len, head_dim, params.scale, space.queries);
  std::fill_n(space.sums, q_len * head_dim, 0.0f);
  std::fill_n(space.totals, q_len * kLanes, 0.0f);
  std::fill_n(space.maxima, q_len, kNoMaximum);

  Ahead<T> ahead(next, head_dim, slots_of(pair, kBlock));
  for (const SeenRun<T>& run : pair.runs) {
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
    store_row(space.sums + row * head_dim, space.totals + row * kLanes, head_dim,
              pair.out + row * pair.out_stride);
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
