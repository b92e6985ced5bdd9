// What group_order keeps of the cells of a grid, in workspace of its caller.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "group_order_kernels.h"
#include "lpd/group_order_scores.h"

namespace lpd::cpu {

// Cuts the workspace into arrays. Starting at null it merely adds up what they need.
class Arena {
 public:
  explicit Arena(std::byte* start) : start_(start) {}

  template <class T>
  T* take(int64_t count) {
    constexpr size_t kCacheLine = 64;
    const size_t offset = used_;
    used_ += (count * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
    return start_ == nullptr ? nullptr : reinterpret_cast<T*>(start_ + offset);
  }

  size_t used() const { return used_; }

 private:
  std::byte* start_;
  size_t used_ = 0;
};

// The cells not decoded yet, side by side in arrays. A cell's index in them is its slot.
template <class Number>
class FreeCells {
 public:
  FreeCells(Arena& arena, int64_t seq_len)
      : positions(arena.take<int32_t>(seq_len + kOrderPadding)),
        rows(arena.take<Number>(seq_len)),
        cols(arena.take<Number>(seq_len)),
        slot_of_(arena.take<int32_t>(seq_len)) {}

  void clear() { count_ = 0; }

  void add(int32_t position, Number row, Number col) {
    slot_of_[position] = count_;
    positions[count_] = position;
    rows[count_] = row;
    cols[count_] = col;
    ++count_;
  }

  // The last cell moves into the slot.
  void remove(int32_t position) {
    const int32_t slot = slot_of_[position], last = --count_;
    positions[slot] = positions[last];
    rows[slot] = rows[last];
    cols[slot] = cols[last];
    slot_of_[positions[slot]] = slot;
  }

  int32_t count() const { return count_; }

  int32_t* const positions;
  Number* const rows;
  Number* const cols;

 private:
  int32_t* slot_of_;  // [seq_len] by position
  int32_t count_ = 0;
};

// A set of cells, a bit each.
class CellSet {
 public:
  CellSet(Arena& arena, int64_t height, int64_t width)
      : height_(height),
        width_(width),
        words_per_row_((width + kBits - 1) / kBits),
        words_(arena.take<uint64_t>(height * words_per_row_)) {}

  void clear() { std::fill_n(words_, height_ * words_per_row_, uint64_t{0}); }

  bool contains(uint64_t row, uint64_t col) const {
    return (words_[row * words_per_row_ + col / kBits] >> (col % kBits)) & 1;
  }

  // Adds the cells within `distance` rows and columns.
  void add_around(int64_t row, int64_t col, int64_t distance) {
    const int64_t top = std::max<int64_t>(row - distance, 0);
    const int64_t bottom = std::min(row + distance, height_ - 1);
    const int64_t left = std::max<int64_t>(col - distance, 0);
    const int64_t right = std::min(col + distance, width_ - 1);
    for (int64_t word = left / kBits; word <= right / kBits; ++word) {
      const int64_t from = std::max(left - word * kBits, int64_t{0});
      const int64_t to = std::min(right - word * kBits, kBits - 1);
      const uint64_t bits = (~uint64_t{0} << from) & (~uint64_t{0} >> (kBits - 1 - to));
      for (int64_t r = top; r <= bottom; ++r) words_[r * words_per_row_ + word] |= bits;
    }
  }

 private:
  static constexpr int64_t kBits = 64;

  const int64_t height_;
  const int64_t width_;
  const int64_t words_per_row_;
  uint64_t* const words_;
};

// Decoded neighbours of every cell, and of a frame of cells around the grid that spares the edges
// a treatment of their own. The frame's left column serves as the right one of the row before.
class NeighbourCounts {
 public:
  NeighbourCounts(Arena& arena, int64_t height, int64_t width)
      : stride_(width + 1),
        size_((height + 2) * stride_ + 1),
        counts_(arena.take<uint16_t>(size_)) {}

  void clear() { std::fill_n(counts_, size_, uint16_t{0}); }

  uint16_t at(int64_t row, int64_t col) const { return counts_[(row + 1) * stride_ + col + 1]; }

  // One cell has been decoded. Its own count, which nobody reads any more, stays.
  void add_around(int64_t row, int64_t col) {
    uint16_t* const above = counts_ + row * stride_ + col;
    uint16_t* const beside = above + stride_;
    uint16_t* const below = beside + stride_;
    above[0] += kDiagonal, above[1] += kOrthogonal, above[2] += kDiagonal;
    beside[0] += kOrthogonal, beside[2] += kOrthogonal;
    below[0] += kDiagonal, below[1] += kOrthogonal, below[2] += kDiagonal;
  }

 private:
  const int64_t stride_;
  const int64_t size_;
  uint16_t* const counts_;
};

}  // namespace lpd::cpu
