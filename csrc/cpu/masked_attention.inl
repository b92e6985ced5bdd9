// masked_attention written against the names of vector_<variant>.h, which come first, with
// kTileRows and kTileVectors, the register tile. Each block of keys of an (image, head) is shown to
// the tiles of rows of which one sees some of it. Where a tile's rows do not all see the whole
// block, hidden scores become -inf and hidden values are skipped: 0 times NaN would be NaN.
#include "attention_tiles.inl"

namespace {

using Params = MaskedAttentionParams;
using Seen = uint64_t;  // the keys of a block that a row sees, a bit each
static_assert(kBlock == 64);

struct Space {
  Cutter cutter;
  float* queries;  // [q_len, head_dim], times scale and log2(e)
  float* sums;     // [q_len, head_dim], of weighted values
  float* totals;   // [q_len, kLanes], of weights
  float* maxima;   // [q_len], of scores
  Seen* seen;      // [q_len], of the block at hand
  bool* sees;      // [q_len], anything so far
  float* keys;     // [head_dim, kBlock]
  float* values;   // [kBlock, head_dim]
  float* weights;  // [kTileRows, kBlock], scores at first

  Space(const Params& params, std::byte* workspace) : cutter(workspace) {
    queries = cutter.cut<float>(params.q_len * params.head_dim);
    sums = cutter.cut<float>(params.q_len * params.head_dim);
    totals = cutter.cut<float>(params.q_len * kLanes);
    maxima = cutter.cut<float>(params.q_len);
    seen = cutter.cut<Seen>(params.q_len);
    sees = cutter.cut<bool>(params.q_len);
    keys = cutter.cut<float>(params.head_dim * kBlock);
    values = cutter.cut<float>(params.head_dim * kBlock);
    weights = cutter.cut<float>(kTileRows * kBlock);
  }
};

// The lowest `count` bits, all of them from 64 on.
inline Seen first_keys(int64_t count) {
  if (count <= 0) return 0;
  return count < kBlock ? (Seen{1} << count) - 1 : ~Seen{0};
}

// What a row sees of the keys [first, first + count).
inline Seen seen_keys(const Params& params,
                      int64_t image,
                      int64_t row,
                      int64_t first,
                      int64_t count) {
  const int64_t offset = image * params.mask_batch_stride + row * params.mask_row_stride;
  if (params.prefix_lens != nullptr) {
    return fits(params, image, row) ? first_keys(params.prefix_lens[offset] - first) : 0;
  }
  Seen seen = 0;
  for (int64_t i = 0; i < count; ++i) {
    seen |= static_cast<Seen>(params.mask[offset + first + i] != 0) << i;
  }
  return seen;
}

// attention_tiles.inl offers time to prefetch something in; it is not taken here.
struct NothingAhead {
  void slot() {}
};

// Shows a block of keys to rows [first_row, first_row + kRows).
template <int kRows, class T>
inline void attend(const Space& space,
                   int64_t first_row,
                   const KeyRun<T>& block,
                   const float* values,
                   int64_t head_dim) {
  const Seen* seen = space.seen + first_row;
  const Seen whole = first_keys(block.count);
  Seen by_all = whole, by_any = 0;
  for (int r = 0; r < kRows; ++r) {
    by_all &= seen[r];
    by_any |= seen[r];
  }
  if (by_any == 0) return;
  score_block<kRows>(space.queries + first_row * head_dim, block, space.keys, head_dim,
                     space.weights);
  for (int r = 0; r < kRows; ++r) {
    for (Seen hidden = whole & ~seen[r]; hidden != 0; hidden &= hidden - 1) {
      space.weights[r * kBlock + __builtin_ctzll(hidden)] = -std::numeric_limits<float>::infinity();
    }
  }
  float factors[kLanes];
  NothingAhead ahead;
  weigh<kRows>(space.weights, block.count, space.maxima + first_row,
               space.totals + first_row * kLanes, factors, ahead);
  const auto add_values = [&](const auto& sees) {
    value_block<kRows>(space.weights, block.count, values, factors, head_dim,
                       space.sums + first_row * head_dim, sees);
  };
  if (by_all == whole) return add_values([](int, int64_t) { return true; });
  add_values([&](int r, int64_t key) { return (seen[r] >> key & 1) != 0; });
}

template <class T>
inline void run_pair(const Params& params, int64_t number, const Space& space) {
  const int64_t image = number / params.num_heads, head = number % params.num_heads;
  const int64_t head_dim = params.head_dim, q_len = params.q_len;
  const auto part = [&](const void* tensor, const AttentionStrides& strides) {
    return static_cast<const T*>(tensor) + image * strides.batch + head * strides.head;
  };
  load_queries(part(params.q, params.q_strides), params.q_strides.row, q_len, head_dim,
               params.scale, space.queries);
  std::fill_n(space.sums, q_len * head_dim, 0.0f);
  std::fill_n(space.totals, q_len * kLanes, 0.0f);
  std::fill_n(space.maxima, q_len, kNoMaximum);
  std::fill_n(space.sees, q_len, false);

  const KeyRun<T> run = {.k = part(params.k, params.k_strides),
                         .v = part(params.v, params.v_strides),
                         .k_stride = params.k_strides.row,
                         .v_stride = params.v_strides.row,
                         .count = params.kv_len};
  for (int64_t first = 0; first < run.count; first += kBlock) {
    const KeyRun<T> block = run.part(first, kBlock);
    Seen by_any = 0;
    for (int64_t row = 0; row < q_len; ++row) {
      space.seen[row] = seen_keys(params, image, row, first, block.count);
      space.sees[row] |= space.seen[row] != 0;
      by_any |= space.seen[row];
    }
    if (by_any == 0) continue;
    if (block.count > kFewKeys) transpose_keys(block, head_dim, space.keys);
    const float* values = gather_values(block, head_dim, space.values);
    // Tiles as equal as can be: one of few rows would cost as much as a full one.
    const int64_t tiles = (q_len + kTileRows - 1) / kTileRows;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t begin = q_len * tile / tiles, end = q_len * (tile + 1) / tiles;
      with_constant<kTileRows>(end - begin,
                               [&](auto n) { attend<n>(space, begin, block, values, head_dim); });
    }
  }

  T* out = static_cast<T*>(params.out) + number * q_len * head_dim;
  for (int64_t row = 0; row < q_len; ++row, out += head_dim) {
    if (space.sees[row]) {
      store_row(space.sums + row * head_dim, space.totals + row * kLanes, head_dim, out);
      continue;
    }
    const float x = fits(params, image, row) ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    for (int64_t d = 0; d < head_dim; d += kLanes) store(out + d, broadcast(x));
  }
}

template <class T>
inline void run(const Params& params, int64_t begin, int64_t end, const Space& space) {
  for (int64_t number = begin; number < end; ++number) run_pair<T>(params, number, space);
}

}  // namespace

size_t masked_attention_workspace_size(const Params& params) {
  return Space(params, nullptr).cutter.size();
}

void masked_attention(const Params& params, int64_t begin, int64_t end, std::byte* workspace) {
  const Space space(params, workspace);
  switch (params.dtype) {
    case Dtype::kFloat32:
      return run<float>(params, begin, end, space);
    case Dtype::kBFloat16:
      return run<BFloat16>(params, begin, end, space);
    case Dtype::kFloat16:
      return run<Float16>(params, begin, end, space);
  }
}
