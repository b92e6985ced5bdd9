// fused_linear with AMX, for weights in bfloat16. Two by two tiles, of up to 16 rows and 16 output
// features each, go down a stretch of a panel and leave their sums in memory for the next stretch:
// the stretch of the weight and that of the inputs, which a group of panels shares, then stay in
// the second level cache. With few rows reading the weight is what takes time: the stretch that
// comes next is fetched while this one is multiplied.
#include "fused_linear_layout.h"
#include "vector_avx512.h"

#if defined(LPD_X86)
LPD_TARGET_BEGIN(LPD_AMX)
namespace lpd::cpu::amx {

using namespace avx512;

// One instruction narrows here. It takes subnormal numbers as 0, as tile products do.
inline void store(BFloat16* to, Vector x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}
inline void store(float* to, Vector x) { avx512::store(to, x); }

#include "gelu.inl"
//
#include "layer_norm.inl"
//
#include "fused_linear_ends.inl"

constexpr int64_t kTileRows = 16;
constexpr int64_t kPassRows = 2 * kTileRows;
constexpr int64_t kWeights = kBlock * kPanel;  // of a panel's block of inputs
constexpr int64_t kLineBytes = 64;
constexpr int64_t kStretch = 32;     // blocks of inputs; one pass alone takes all at once
constexpr int64_t kGroupPanels = 8;  // panels that share a stretch of the inputs
constexpr int64_t kPassSums = kPassRows * kPanel;
constexpr int64_t kMaxSums = kGroupPanels * (kRowBlock / kPassRows) * kPassSums;
// The first store of a tile after about a microsecond without one holds everything up for 0.3 us
// (measured on a Xeon with AMX); a store now and then, to a place that nobody reads, avoids that.
constexpr int64_t kStoreBlocks = 4;  // from one such store to the next
constexpr int64_t kUnread = kTileRows * kTileRows;
constexpr int64_t kStreams = 8;  // places that the next stretch is fetched from in turn

// The rows of a pass, in one or two tiles. All passes over a row block have as many, so that the
// tiles are configured once: the last pass begins early and repeats some rows.
struct Pass {
  int64_t count;
  int64_t rows;
  int64_t upper;  // rows of the first tile

  explicit Pass(int64_t block_rows) {
    count = (block_rows + kPassRows - 1) / kPassRows;
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
  Pending(const FusedLinearParams& params, FinishRow finish_row)
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
  const FinishRow finish_row_;
  std::byte* const* out_ = nullptr;
  std::byte* const* end_ = nullptr;
  int64_t panel_ = 0;
  const float* sums_ = nullptr;
};

// Adds the product of a pass and a stretch of a panel to its sums, kPanel apart, or begins them.
template <bool kTwoTiles>
inline void multiply(const Pass& pass,
                     const InputRows<BFloat16>& rows,
                     int64_t row,
                     int64_t first_block,
                     const BFloat16* stretch,
                     int64_t num_blocks,
                     bool begins,
                     Prefetch& prefetch,
                     Pending& pending,
                     float* unread,
                     float* sums) {
  constexpr int64_t kSumBytes = kPanel * sizeof(float);
  const int64_t row_bytes = rows.row_stride * static_cast<int64_t>(sizeof(BFloat16));
  float* lower_sums = sums + pass.upper * kPanel;
  if (begins) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, kSumBytes);
    _tile_loadd(1, sums + kTileRows, kSumBytes);
    if constexpr (kTwoTiles) {
      _tile_loadd(2, lower_sums, kSumBytes);
      _tile_loadd(3, lower_sums + kTileRows, kSumBytes);
    }
  }
  for (int64_t block = 0; block < num_blocks; ++block) {
    const BFloat16* upper = rows.at(row, first_block + block);
    const BFloat16* left = stretch + block * kWeights;
    _tile_loadd(4, upper, row_bytes);
    _tile_loadd(6, left, kLineBytes);
    if constexpr (kTwoTiles) _tile_loadd(5, upper + pass.upper * rows.row_stride, row_bytes);
    _tile_loadd(7, left + kWeights / 2, kLineBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTwoTiles) _tile_dpbf16ps(2, 5, 6);
    prefetch.slot();
    pending.finish_one();
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTwoTiles) _tile_dpbf16ps(3, 5, 7);
    if (block % kStoreBlocks == kStoreBlocks - 1) _tile_stored(4, unread, kLineBytes);
  }
  _tile_stored(0, sums, kSumBytes);
  _tile_stored(1, sums + kTileRows, kSumBytes);
  if constexpr (kTwoTiles) {
    _tile_stored(2, lower_sums, kSumBytes);
    _tile_stored(3, lower_sums + kTileRows, kSumBytes);
  }
}

// A row block against panels of the weight.
class BlockProduct {
 public:
  BlockProduct(const FusedLinearParams& params,
               int64_t block,
               const std::byte* prepared,
               float* sums)
      : params_(params),
        rows_(input_rows<BFloat16>(params, block, prepared)),
        out_(params, block),
        pass_(out_.count()),
        num_blocks_(num_blocks(params)),
        stretch_(pass_.count == 1 ? num_blocks_ : kStretch),
        sums_(sums),
        pending_(params, finish_row_for(params)) {}

  void run(int64_t begin, int64_t end) {
    configure_tiles(pass_);
    for (int64_t group = begin; group < end; group += kGroupPanels) {
      const int64_t group_end = std::min(end, group + kGroupPanels);
      for (int64_t first = 0; first < num_blocks_; first += stretch_) {
        for (int64_t panel = group; panel < group_end; ++panel) {
          // What comes next; behind the last panel the addresses do no harm.
          const BFloat16* next = panel + 1 < group_end            ? weights(panel + 1, first)
                                 : first + stretch_ < num_blocks_ ? weights(group, first + stretch_)
                                                                  : weights(group_end, 0);
          run_stretch(panel, first, next, sums_ + (panel - group) * pass_.count * kPassSums);
        }
      }
    }
    pending_.finish_all();
    _tile_release();
  }

 private:
  const BFloat16* weights(int64_t panel, int64_t block) const {
    return static_cast<const BFloat16*>(params_.weight) + (panel * num_blocks_ + block) * kWeights;
  }

  void run_stretch(int64_t panel, int64_t first, const BFloat16* next, float* sums) {
    const int64_t blocks = std::min(stretch_, num_blocks_ - first);
    const bool ends = first + blocks == num_blocks_;
    Prefetch prefetch(next, blocks * kWeights * sizeof(BFloat16), pass_.count * blocks, kStreams);
    for (int64_t row = 0; row < out_.count(); row += pass_.rows, sums += kPassSums) {
      const int64_t from = std::min(row, out_.count() - pass_.rows);
      (pass_.lower() > 0 ? multiply<true> : multiply<false>)(pass_, rows_, from, first,
                                                             weights(panel, first), blocks,
                                                             first == 0, prefetch, pending_,
                                                             sums_ + kMaxSums, sums);
      if (!ends) continue;
      pending_.finish_all();
      pending_.set(out_.from(row), from + pass_.rows - row, panel, sums + (row - from) * kPanel);
    }
  }

  const FusedLinearParams& params_;
  const InputRows<BFloat16> rows_;
  const OutputRows out_;
  const Pass pass_;
  const int64_t num_blocks_;
  const int64_t stretch_;
  float* const sums_;
  Pending pending_;
};

void fused_linear_prepare(const FusedLinearParams& params,
                          int64_t block,
                          int64_t begin,
                          int64_t end,
                          std::byte* prepared) {
  prepare<BFloat16>(params, block, begin, end, prepared);
}

size_t fused_linear_workspace_size() { return (kMaxSums + kUnread) * sizeof(float); }

void fused_linear(const FusedLinearParams& params,
                  int64_t block,
                  int64_t begin,
                  int64_t end,
                  const std::byte* prepared,
                  std::byte* workspace) {
  BlockProduct(params, block, prepared, reinterpret_cast<float*>(workspace)).run(begin, end);
}

}  // namespace lpd::cpu::amx
LPD_TARGET_END
#endif
