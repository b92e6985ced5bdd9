// fused_linear with AMX, for weights in bfloat16. Two by two tiles of 16 rows and 16 output
// features go down a panel; its blocks of 32 input features lie in memory in the order of reading.
// With few rows the reading is what takes time: while a panel is multiplied, the next one is
// fetched into the second level cache.
#include <utility>

#include "fused_linear_rows.h"
#include "vector_avx512.h"

#if defined(LPD_X86)
LPD_TARGET_BEGIN(LPD_AVX512)
namespace lpd::cpu::avx512 {

#include "vector_math.inl"
//
#include "layer_norm.inl"
//
#include "fused_linear_rows.inl"

}  // namespace lpd::cpu::avx512
LPD_TARGET_END

LPD_TARGET_BEGIN(LPD_AMX)
namespace lpd::cpu::amx {

constexpr int64_t kTileRows = 16;
constexpr int64_t kWeights = kBlock * kPanel;  // of a panel's block of inputs
constexpr int64_t kLineBytes = 64;
// Up to so many rows that need no norm are multiplied where they are.
constexpr int64_t kInPlaceRows = 64;

// The rows of a pass, in one or two tiles. All passes over a row block have as many, so that the
// tiles are configured once: the last pass begins early and repeats some rows.
struct Pass {
  int64_t count;
  int64_t rows;
  int64_t upper;  // rows of the first tile

  explicit Pass(int64_t block_rows) {
    count = (block_rows + 2 * kTileRows - 1) / (2 * kTileRows);
    rows = (block_rows + count - 1) / count;
    upper = rows <= kTileRows ? rows : (rows + 1) / 2;
  }

  int64_t lower() const { return rows - upper; }
};

// Tiles 0 to 3: sums, [upper or lower rows][left or right outputs]. 4, 5: upper and lower rows of
// the input. 6, 7: left and right outputs of the weight.
void configure_tiles(const Pass& pass) {
  alignas(64) uint8_t config[64] = {};
  config[0] = 1;  // palette
  uint16_t* bytes_per_row = reinterpret_cast<uint16_t*>(config + 16);
  uint8_t* rows = config + 48;
  for (int tile = 0; tile < 8; ++tile) bytes_per_row[tile] = kLineBytes;
  rows[0] = rows[1] = rows[4] = static_cast<uint8_t>(pass.upper);
  rows[2] = rows[3] = rows[5] = static_cast<uint8_t>(std::max<int64_t>(pass.lower(), 1));
  rows[6] = rows[7] = kTileRows;
  asm volatile("" : : "r"(config) : "memory");  // the intrinsic reads more than it declares
  _tile_loadconfig(config);
}

// Sums that wait to become output: row by row, while the next pass multiplies.
class Pending {
 public:
  Pending(const FusedLinearParams& params, avx512::FinishRow finish_row)
      : params_(params), finish_row_(finish_row) {}

  void set(std::byte* const* out, int64_t rows, int64_t panel, const float* sums) {
    out_ = out;
    end_ = out + rows;
    panel_ = panel;
    sums_ = sums;
  }

  void finish_one() {
    if (out_ == end_) return;
    finish_row_(params_, *out_, panel_, sums_);
    ++out_;
    sums_ += kPanel;
  }

  void finish_all() {
    while (out_ != end_) finish_one();
  }

 private:
  const FusedLinearParams& params_;
  const avx512::FinishRow finish_row_;
  std::byte* const* out_ = nullptr;
  std::byte* const* end_ = nullptr;
  int64_t panel_ = 0;
  const float* sums_ = nullptr;
};

// Elements between neighbouring rows, and blocks of inputs, of what a pass multiplies.
struct InputStrides {
  int64_t row;
  int64_t block;
};

// Sums of a pass over a panel, kPanel apart.
template <bool kTwoTiles>
inline void multiply(const Pass& pass,
                     const BFloat16* a,
                     const InputStrides& strides,
                     const BFloat16* panel,
                     int64_t num_blocks,
                     Prefetch& prefetch,
                     Pending& pending,
                     float* sums) {
  const int64_t row_bytes = strides.row * static_cast<int64_t>(sizeof(BFloat16));
  const BFloat16* lower = a + pass.upper * strides.row;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kTwoTiles) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t block = 0; block < num_blocks; ++block) {
    _tile_loadd(6, panel + block * kWeights, kLineBytes);
    _tile_loadd(4, a + block * strides.block, row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, panel + block * kWeights + kWeights / 2, kLineBytes);
    _tile_dpbf16ps(1, 4, 7);
    prefetch.slot();
    pending.finish_one();
    if constexpr (kTwoTiles) {
      _tile_loadd(5, lower + block * strides.block, row_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  constexpr int64_t kSumBytes = kPanel * sizeof(float);
  _tile_stored(0, sums, kSumBytes);
  _tile_stored(1, sums + kTileRows, kSumBytes);
  if constexpr (kTwoTiles) {
    _tile_stored(2, sums + pass.upper * kPanel, kSumBytes);
    _tile_stored(3, sums + pass.upper * kPanel + kTileRows, kSumBytes);
  }
}

void fused_linear(const FusedLinearParams& params,
                  int64_t begin,
                  int64_t end,
                  std::byte* workspace) {
  BFloat16* prepared = reinterpret_cast<BFloat16*>(workspace);
  const int64_t blocks = num_blocks(params);
  const BFloat16* weight = static_cast<const BFloat16*>(params.weight);
  const bool in_place = rows_fit_tiles(params);
  alignas(64) float buffers[2][2 * kTileRows * kPanel];
  float *sums = buffers[0], *finished = buffers[1];
  Pending pending(params, avx512::finish_row_for(params));
  for_each_row_block(params, begin, end, [&](const RowBlock& block) {
    const BFloat16* a = prepared;
    InputStrides strides{kBlock, block.rows * kBlock};
    if (in_place && block.rows <= kInPlaceRows) {
      strides = {params.x_row_stride, kBlock};
      a = static_cast<const BFloat16*>(params.x) + block.first_row * strides.row;
    } else if (params.norm_weight != nullptr) {
      avx512::prepare_rows<float>(params, block.first_row, block.rows, prepared);
    } else {
      avx512::prepare_rows<BFloat16>(params, block.first_row, block.rows, prepared);
    }
    asm volatile("" ::: "memory");  // the compiler does not know that tiles are loaded from memory
    const Pass pass(block.rows);
    configure_tiles(pass);
    for (int64_t panel = block.panel_begin; panel < block.panel_end; ++panel) {
      const BFloat16* b = weight + panel * blocks * kWeights;
      // Behind the last panel the addresses are harmless: a prefetch never faults.
      Prefetch prefetch(b + blocks * kWeights, blocks * kWeights * sizeof(BFloat16),
                        pass.count * blocks);
      for (int64_t row = 0; row < block.rows; row += pass.rows) {
        const int64_t from = std::min(row, block.rows - pass.rows);
        const BFloat16* pass_rows = a + from * strides.row;
        std::swap(sums, finished);
        if (pass.lower() > 0) {
          multiply<true>(pass, pass_rows, strides, b, blocks, prefetch, pending, sums);
        } else {
          multiply<false>(pass, pass_rows, strides, b, blocks, prefetch, pending, sums);
        }
        pending.finish_all();
        pending.set(block.out + row, from + pass.rows - row, panel, sums + (row - from) * kPanel);
      }
    }
    pending.finish_all();
    _tile_release();
  });
}

}  // namespace lpd::cpu::amx
LPD_TARGET_END
#endif
