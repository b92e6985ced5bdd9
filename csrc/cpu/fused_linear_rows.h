// What the variants of fused_linear share: how the work is cut and where its parts lie.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "half.h"
#include "lpd/fused_linear.h"

namespace lpd::cpu {

// Rows that go over a panel of the weight together. Enough to hide the reading of it behind
// arithmetic; their inputs stay in the second level cache.
constexpr int64_t kRowBlock = 256;
// Input features of a block: prepared rows lie as [block of inputs][row][kBlock], so that the part
// of neighbouring rows that is multiplied at a time is one stretch of memory.
constexpr int64_t kBlock = 32;

// Sums that the AMX variant keeps in the workspace, before the rows.
constexpr int64_t kAmxSums = 4 * kRowBlock * kPanel;

inline int64_t num_panels(const FusedLinearParams& params) {
  return (params.out_features + kPanel - 1) / kPanel;
}

inline int64_t num_blocks(const FusedLinearParams& params) {
  return (params.in_features + kBlock - 1) / kBlock;
}

// Rows of all sequences, counted through.
inline int64_t total_rows(const FusedLinearParams& params) {
  return params.batch * params.num_rows;
}

inline int64_t row_offset(const FusedLinearParams& params,
                          int64_t row,
                          int64_t batch_stride,
                          int64_t row_stride) {
  return row / params.num_rows * batch_stride + row % params.num_rows * row_stride;
}

// Whether bfloat16 rows can be taken from where they are: even steps, no padding, no norm.
inline bool rows_fit_tiles(const FusedLinearParams& params) {
  const bool even =
      params.batch == 1 || params.x_batch_stride == params.num_rows * params.x_row_stride;
  return even && params.norm_weight == nullptr && params.in_features % kBlock == 0;
}

inline int64_t out_element_size(const FusedLinearParams& params) {
  return params.out_dtype == Dtype::kFloat32 ? sizeof(float) : sizeof(BFloat16);
}

// Fetches the panel that comes next into the second level cache, some lines at a time: with few
// rows reading the weight is what takes time, and it goes on while this panel is multiplied.
class Prefetch {
 public:
  Prefetch(const void* panel, int64_t bytes, int64_t slots)
      : line_(static_cast<const char*>(panel)),
        end_(line_ + bytes),
        bytes_per_slot_(bytes / slots + kLineBytes) {}

  LPD_INLINE void slot() {
    const char* until = std::min(end_, line_ + bytes_per_slot_);
    for (; line_ < until; line_ += kLineBytes) __builtin_prefetch(line_, 0, /*locality=*/2);
  }

 private:
  static constexpr int64_t kLineBytes = 64;
  const char* line_;
  const char* end_;
  int64_t bytes_per_slot_;
};

// The rows of a block and the panels of the weight that go over them.
struct RowBlock {
  int64_t first_row;
  int64_t rows;
  int64_t panel_begin;
  int64_t panel_end;
  std::byte* out[kRowBlock];  // where each row's output begins
};

template <class Body>
inline void for_each_row_block(const FusedLinearParams& params,
                               int64_t begin,
                               int64_t end,
                               const Body& body) {
  const int64_t panels = num_panels(params);
  RowBlock block;
  while (begin < end) {
    block.first_row = begin / panels * kRowBlock;
    block.rows = std::min(kRowBlock, total_rows(params) - block.first_row);
    block.panel_begin = begin % panels;
    block.panel_end = std::min(panels, block.panel_begin + (end - begin));
    for (int64_t i = 0; i < block.rows; ++i) {
      block.out[i] =
          static_cast<std::byte*>(params.out) +
          out_element_size(params) * row_offset(params, block.first_row + i,
                                                params.out_batch_stride, params.out_row_stride);
    }
    body(block);
    begin += block.panel_end - block.panel_begin;
  }
}

}  // namespace lpd::cpu
