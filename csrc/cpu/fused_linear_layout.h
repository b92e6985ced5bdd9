// What the variants of fused_linear share: how the work is cut and where its parts lie.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "half.h"
#include "lpd/fused_linear.h"

namespace lpd::cpu {

// Rows that go over a panel of the weight together: enough that reading it takes less time than the
// arithmetic, and all rows of LPD-L with guidance up to a batch of 4 in one block.
constexpr int64_t kRowBlock = 384;
// Input features that are multiplied at a time.
constexpr int64_t kBlock = 32;
// Prepared rows are padded with zeros to whole blocks and lie as [chunk of inputs][row][kChunk]:
// whole rows would touch a page each where they are multiplied, single blocks where they are
// written.
constexpr int64_t kChunkBlocks = 8;
constexpr int64_t kChunk = kChunkBlocks * kBlock;
// Up to so many rows are multiplied where they are: they touch few pages.
constexpr int64_t kInPlaceRows = 64;

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

// Whether the rows of x follow each other in even steps, so that one stride tells where they are.
inline bool rows_are_even(const FusedLinearParams& params) {
  return params.batch == 1 || params.x_batch_stride == params.num_rows * params.x_row_stride;
}

// The rows of a block as the product reads them.
template <class T>
struct InputRows {
  const T* first;
  int64_t row_stride;
  int64_t chunk_stride;

  const T* at(int64_t row, int64_t block) const {
    return first + row * row_stride + block / kChunkBlocks * chunk_stride +
           block % kChunkBlocks * kBlock;
  }
};

template <class T>
inline InputRows<T> input_rows(const FusedLinearParams& params,
                               int64_t block,
                               const std::byte* prepared) {
  if (prepared != nullptr) {
    const int64_t rows = fused_linear_num_rows(params, block);
    return {reinterpret_cast<const T*>(prepared), kChunk, rows * kChunk};
  }
  return {static_cast<const T*>(params.x) + block * kRowBlock * params.x_row_stride,
          params.x_row_stride, kChunk};
}

// The rows of a block's output.
class OutputRows {
 public:
  OutputRows(const FusedLinearParams& params, int64_t block)
      : count_(fused_linear_num_rows(params, block)) {
    const int64_t size = params.out_dtype == Dtype::kFloat32 ? sizeof(float) : sizeof(BFloat16);
    for (int64_t i = 0; i < count_; ++i) {
      rows_[i] = static_cast<std::byte*>(params.out) +
                 size * row_offset(params, block * kRowBlock + i, params.out_batch_stride,
                                   params.out_row_stride);
    }
  }

  int64_t count() const { return count_; }
  std::byte* const* from(int64_t row) const { return rows_ + row; }

 private:
  int64_t count_;
  std::byte* rows_[kRowBlock];
};

// Fetches the part of the weight that comes next into the second level cache, some lines at a time:
// with few rows reading the weight is what takes time, and it goes on while this part is
// multiplied.
class Prefetch {
 public:
  Prefetch(const void* next, int64_t bytes, int64_t slots)
      : line_(static_cast<const char*>(next)),
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

}  // namespace lpd::cpu
