// fused_linear by vector arithmetic, for the namespace and target of the including file, which sets
// kTileRows. The product goes tile by tile: kTileRows rows times two vectors of output features,
// whose sums stay in registers over a stretch of input features.

constexpr int64_t kTileOutputs = 2 * kLanes;
// Blocks of inputs summed in one chain; chains are added up afterwards, which rounds less.
constexpr int64_t kChain = 16;

// The sums of a tile.
template <int kRows>
struct Tile {
  Vector low[kRows];
  Vector high[kRows];
};

template <int kRows>
LPD_INLINE void accumulate(Tile<kRows>& tile,
                           const float* a,
                           int64_t stride,
                           Vector b0,
                           Vector b1) {
  for (int row = 0; row < kRows; ++row) {
    const Vector value = broadcast(a[row * stride]);
    tile.low[row] = multiply_add(value, b0, tile.low[row]);
    tile.high[row] = multiply_add(value, b1, tile.high[row]);
  }
}

// Adds one block of inputs; panel: of the weight, from the tile's first output on.
template <int kRows>
LPD_INLINE void multiply_block(Tile<kRows>& tile,
                               const float* a,
                               int64_t stride,
                               const float* panel,
                               int64_t inputs) {
  for (int64_t k = 0; k < inputs; ++k, panel += kPanel) {
    accumulate(tile, a + k, stride, load(panel), load(panel + kLanes));
  }
}

template <int kRows>
LPD_INLINE void multiply_block(Tile<kRows>& tile,
                               const float* a,
                               int64_t stride,
                               const BFloat16* panel,
                               int64_t) {
  // Vectors narrower than a tile's 16 outputs lie side by side in it, others in the next tile.
  constexpr int64_t kNext = kLanes == 16 ? 16 * kBlock : 2 * kLanes;
  for (int64_t k = 0; k < kBlock; k += 2, panel += 32) {
    Vector even0, odd0, even1, odd1;
    load_pairs(panel, even0, odd0);
    load_pairs(panel + kNext, even1, odd1);
    accumulate(tile, a + k, stride, even0, even1);
    accumulate(tile, a + k + 1, stride, odd0, odd1);
  }
}

// The panel's part from the output feature `first` of it on.
inline const float* tile_of(const float* panel, int64_t first) { return panel + first; }
inline const BFloat16* tile_of(const BFloat16* panel, int64_t first) {
  return panel + first / 16 * (16 * kBlock) + first % 16 * 2;
}

// Sums of the first kRows of some rows and a panel, kPanel apart.
template <int kRows, class Weight>
inline void multiply_tile(const FusedLinearParams& params,
                          const InputRows<float>& rows,
                          const Weight* panel,
                          Prefetch& prefetch,
                          float* sums) {
  const int64_t blocks = num_blocks(params);
  for (int64_t first = 0; first < kPanel; first += kTileOutputs) {
    const Weight* weight = tile_of(panel, first);
    for (int64_t begin = 0; begin < blocks; begin += kChain) {
      Tile<kRows> tile;
      for (int row = 0; row < kRows; ++row) tile.low[row] = tile.high[row] = zero();
      for (int64_t block = begin; block < std::min(blocks, begin + kChain); ++block) {
        prefetch.slot();
        multiply_block(tile, rows.at(0, block), rows.row_stride, weight + block * kBlock * kPanel,
                       std::min(kBlock, params.in_features - block * kBlock));
      }
      for (int row = 0; row < kRows; ++row) {
        float* to = sums + row * kPanel + first;
        store(to, begin == 0 ? tile.low[row] : add(load(to), tile.low[row]));
        store(to + kLanes, begin == 0 ? tile.high[row] : add(load(to + kLanes), tile.high[row]));
      }
    }
  }
}

// The rows that are left fill a smaller tile.
template <int kRows, class Weight>
inline void multiply_rows(const FusedLinearParams& params,
                          const InputRows<float>& rows,
                          int64_t left,
                          const Weight* panel,
                          Prefetch& prefetch,
                          float* sums) {
  if (left >= kRows) return multiply_tile<kRows>(params, rows, panel, prefetch, sums);
  if constexpr (kRows > 1) {
    multiply_rows<kRows - 1>(params, rows, left, panel, prefetch, sums);
  }
}

template <class Weight>
inline void run(const FusedLinearParams& params,
                int64_t block,
                int64_t begin,
                int64_t end,
                const std::byte* prepared) {
  const InputRows<float> rows = input_rows<float>(params, block, prepared);
  const OutputRows out(params, block);
  const FinishRow finish_row = finish_row_for(params);
  // A float32 panel has no padding along the inputs.
  const int64_t depth =
      sizeof(Weight) == sizeof(float) ? params.in_features : num_blocks(params) * kBlock;
  const int64_t tiles = (out.count() + kTileRows - 1) / kTileRows * (kPanel / kTileOutputs);
  alignas(64) float sums[kTileRows * kPanel];
  for (int64_t panel = begin; panel < end; ++panel) {
    const Weight* weight = static_cast<const Weight*>(params.weight) + panel * depth * kPanel;
    // Behind the last panel the addresses do no harm.
    Prefetch prefetch(weight + depth * kPanel, depth * kPanel * sizeof(Weight),
                      tiles * num_blocks(params), /*streams=*/1);
    for (int64_t row = 0; row < out.count(); row += kTileRows) {
      const int64_t count = std::min<int64_t>(kTileRows, out.count() - row);
      const InputRows<float> left{rows.at(row, 0), rows.row_stride, rows.block_stride};
      multiply_rows<kTileRows>(params, left, count, weight, prefetch, sums);
      for (int64_t i = 0; i < count; ++i) {
        finish_row(params, *out.from(row + i), panel, sums + i * kPanel);
      }
    }
  }
}

void fused_linear_prepare(const FusedLinearParams& params,
                          int64_t block,
                          int64_t begin,
                          int64_t end,
                          std::byte* prepared) {
  prepare<float>(params, block, begin, end, prepared);
}

void fused_linear(const FusedLinearParams& params,
                  int64_t block,
                  int64_t begin,
                  int64_t end,
                  const std::byte* prepared) {
  if (params.dtype == Dtype::kFloat32) {
    run<float>(params, block, begin, end, prepared);
  } else {
    run<BFloat16>(params, block, begin, end, prepared);
  }
}
