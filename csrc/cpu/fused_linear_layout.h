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
// Up to so many whole rows are multiplied where they are: they touch few pages. More are first laid
// in blocks, padded with zeros to whole ones.
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
  int64_t block_stride;

  const T* at(int64_t row, int64_t block) const {
    return first + row * row_stride + block * block_stride;
  }
};

template <class T>
inline InputRows<T> input_rows(const FusedLinearParams& params,
                               int64_t block,
                               const std::byte* prepared) {
  if (prepared != nullptr) {
    const int64_t rows = fused_linear_num_rows(params, block);
    return {reinterpret_cast<const T*>(prepared), kBlock, rows * kBlock};
  }
  return {static_cast<const T*>(params.x) + block * kRowBlock * params.x_row_stride,
          params.x_row_stride, params.x_block_stride};
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

// Fetches a part of the weight into the second level cache, some lines at a time: with few rows
// reading the weight is what takes time, and it goes on while another part is multiplied. The lines
// are taken from `streams` places in turn: the prefetcher of the hardware runs ahead in each, and
// the requests made here find more of their lines already there.
class Prefetch {
 public:
  Prefetch(const void* begin, int64_t bytes, int64_t slots, int64_t streams)
      : line_(static_cast<const char*>(begin)),
        streams_(streams),
        stride_(bytes / streams),
        left_(bytes / kLineBytes),
        per_slot_(left_ / slots + 1) {}

  LPD_INLINE void slot() {
    const int64_t count = std::min(left_, per_slot_);
    left_ -= count;
    for (int64_t i = 0; i < count; ++i) {
      __builtin_prefetch(line_ + stream_ * stride_, 0, /*locality=*/2);
      if (++stream_ == streams_) {
        stream_ = 0;
        line_ += kLineBytes;
      }
    }
  }

 private:
  static constexpr int64_t kLineBytes = 64;
  const char* line_;
  int64_t streams_;
  int64_t stride_;
  int64_t left_;
  int64_t per_slot_;
  int64_t stream_ = 0;
};

}  // namespace lpd::cpu
