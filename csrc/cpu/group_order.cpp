// group_order on the CPU: one image at a time. Only integers are compared (places of scores, squared
// distances, keys), so that every implementation of the rules yields the same bits.
#include "lpd/group_order.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "group_order_kernels.h"
#include "lpd/cpu_variant.h"
#include "target.h"

namespace lpd::cpu {
namespace {

// Scores as integers. A cell's neighbours decoded so far are counted in one number: kOrthogonal for
// each one at distance 1, kDiagonal for each one at distance sqrt 2, up to 4 of either.
class ScoreTable {
 public:
  static constexpr uint8_t kDiagonal = 1, kOrthogonal = 5;
  static constexpr int kNumPlaces = 25;

  explicit ScoreTable(double threshold) {
    // Products that are rounded here leave nothing to fuse with the addition below.
    constexpr double kInverseSqrt2 = 0.70710678118654752440;
    static constexpr double kDiagonals[] = {0, kInverseSqrt2, 2 * kInverseSqrt2, 3 * kInverseSqrt2,
                                            4 * kInverseSqrt2};
    std::array<double, kNumPlaces> scores;
    for (int i = 0; i < kNumPlaces; ++i) {
      scores[i] = i / kOrthogonal + kDiagonals[i % kOrthogonal];
    }
    const auto comes_before = [&](double a, double b) {
      const bool a_walked = a >= threshold, b_walked = b >= threshold;
      return a_walked != b_walked ? b_walked : a > b;
    };
    for (int i = 0; i < kNumPlaces; ++i) {
      places_[i] = static_cast<uint8_t>(std::count_if(
          scores.begin(), scores.end(), [&](double s) { return comes_before(s, scores[i]); }));
    }
    first_walked_ = static_cast<uint8_t>(
        std::count_if(scores.begin(), scores.end(), [&](double s) { return !(s >= threshold); }));
  }

  // The place of a score in the sequence that group_order takes cells in when it does not walk them:
  // those below the threshold, then the others, high scores first in both. No two scores are equal.
  uint8_t place(uint8_t neighbours) const { return places_[neighbours]; }

  // From this place on scores reach the threshold.
  uint8_t first_walked() const { return first_walked_; }

 private:
  std::array<uint8_t, kNumPlaces> places_;
  uint8_t first_walked_;
};

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

  bool contains(int64_t row, int64_t col) const {
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

// Reused from image to image.
template <class Number>
class OrderBuilder {
 public:
  OrderBuilder(const GroupOrderParams& params, const OrderKernels<Number>& kernels, Arena& arena)
      : params_(params),
        kernels_(kernels),
        scores_(params.proximity_threshold),
        repulsion_(std::min(params.repulsion_threshold, std::max(params.height, params.width))),
        seq_len_(static_cast<int32_t>(params.height * params.width)),
        free_(arena, seq_len_),
        repelled_(arena, params.height, params.width),
        neighbours_(arena.take<uint8_t>(seq_len_)),
        keys_(arena.take<uint64_t>(seq_len_ + kOrderPadding)),
        places_(arena.take<uint8_t>(seq_len_)),
        nearest_(arena.take<Number>(seq_len_)),
        walked_(arena.take<int32_t>(seq_len_ + 1)),
        by_place_(arena.take<int32_t>(seq_len_)),
        picks_(arena.take<int32_t>(seq_len_)) {}

  void build(int64_t image) {
    const int64_t seed = params_.seeds[image * params_.seeds_stride];
    int64_t* order = begin_with_known(image, params_.order + image * seq_len_);
    for (int64_t step = 0; step < params_.num_groups; ++step) {
      pick_group(seed, static_cast<uint32_t>(step),
                 static_cast<int32_t>(params_.group_sizes[step]));
      order = emit_group(order);
    }
  }

 private:
  int64_t* begin_with_known(int64_t image, int64_t* order) {
    std::fill_n(neighbours_, seq_len_, uint8_t{0});
    free_.clear();
    int32_t position = 0;
    for (int64_t row = 0; row < params_.height; ++row) {
      for (int64_t col = 0; col < params_.width; ++col, ++position) {
        if (is_known(image, position)) {
          *order++ = position;
          tell_neighbours(row, col);
        } else {
          free_.add(position, static_cast<Number>(row), static_cast<Number>(col));
        }
      }
    }
    return order;
  }

  bool is_known(int64_t image, int32_t position) const {
    return params_.known != nullptr && params_.known[image * params_.known_batch_stride +
                                                     position * params_.known_position_stride] != 0;
  }

  // Picks the slots of one group.
  void pick_group(int64_t seed, uint32_t step, int32_t group_size) {
    num_picks_ = 0;
    kernels_.draw_keys(seed, step, free_.positions, free_.count(), keys_);
    walk(group_size);
    if (group_size >= free_.count()) {
      take_all();
    } else {
      sample_farthest(group_size);
    }
  }

  // Takes cells whose score reaches the threshold, the best first, unless a pick repels them.
  void walk(int32_t group_size) {
    repelled_.clear();
    const Buckets bucket_ends = fill_buckets();
    int32_t* bucket = by_place_;
    for (int place = scores_.first_walked(); place < ScoreTable::kNumPlaces; ++place) {
      int32_t* end = by_place_ + bucket_ends[place];
      walk_bucket(bucket, end, group_size);
      bucket = end;
    }
  }

  using Buckets = std::array<int32_t, ScoreTable::kNumPlaces>;

  // Notes the place of every free cell's score, and sorts the slots of those that are walked into
  // by_place_. Returns where in it each place ends.
  Buckets fill_buckets() {
    const uint8_t first_walked = scores_.first_walked();
    int32_t num_walked = 0;
    for (int32_t slot = 0; slot < free_.count(); ++slot) {
      places_[slot] = scores_.place(neighbours_[free_.positions[slot]]);
      walked_[num_walked] = slot;  // stays if the next one does not overwrite it
      num_walked += places_[slot] >= first_walked;
    }
    Buckets ends{};
    for (int32_t i = 0; i < num_walked; ++i) ++ends[places_[walked_[i]]];
    int32_t end = 0;
    for (int32_t& size : ends) size = std::exchange(end, end + size);
    for (int32_t i = 0; i < num_walked; ++i) by_place_[ends[places_[walked_[i]]]++] = walked_[i];
    return ends;
  }

  // Equal scores: takes the one drawn first until all are taken or repelled. Not sorted, for a pick
  // mostly turns away many of the others.
  void walk_bucket(int32_t* begin, int32_t* end, int32_t group_size) {
    while (num_picks_ < group_size) {
      int32_t best = kNone;
      int32_t* kept = begin;
      for (const int32_t* slot = begin; slot < end; ++slot) {
        if (repelled_.contains(free_.rows[*slot], free_.cols[*slot])) continue;
        *kept++ = *slot;
        if (best == kNone || drawn_before(*slot, best)) best = *slot;
      }
      if (best == kNone) return;
      end = kept;
      picks_[num_picks_++] = best;
      repelled_.add_around(free_.rows[best], free_.cols[best], repulsion_);
    }
  }

  // Adds all that is left, in sequence.
  void take_all() {
    for (int32_t i = 0; i < num_picks_; ++i) places_[picks_[i]] = kTaken;
    int32_t* const begin = picks_ + num_picks_;
    for (int32_t slot = 0; slot < free_.count(); ++slot) {
      if (places_[slot] != kTaken) picks_[num_picks_++] = slot;
    }
    std::sort(begin, picks_ + num_picks_, [this](int32_t a, int32_t b) { return precedes(a, b); });
  }

  // Fills the group: each time the cell whose squared distance to the nearest pick is largest, the
  // first in sequence of equals; with nothing picked yet, the one drawn first.
  void sample_farthest(int32_t group_size) {
    if (num_picks_ == group_size) return;
    if (num_picks_ == 0) picks_[num_picks_++] = drawn_first();
    std::fill_n(nearest_, free_.count(), std::numeric_limits<Number>::max());
    Number farthest = 0;
    for (int32_t i = 0; i < num_picks_; ++i) farthest = shorten_nearest(picks_[i]);
    while (num_picks_ < group_size) {
      picks_[num_picks_] = first_at(farthest);
      farthest = shorten_nearest(picks_[num_picks_++]);
    }
  }

  Number shorten_nearest(int32_t pick) {
    return kernels_.shorten_nearest(free_.rows, free_.cols, free_.count(), free_.rows[pick],
                                    free_.cols[pick], nearest_);
  }

  int32_t drawn_first() const {
    int32_t first = 0;
    for (int32_t slot = 1; slot < free_.count(); ++slot) {
      if (drawn_before(slot, first)) first = slot;
    }
    return first;
  }

  // Of the cells this far from their nearest pick; there is one.
  int32_t first_at(Number distance) const {
    int32_t first = kNone;
    for (int32_t slot = 0; slot < free_.count(); ++slot) {
      if (nearest_[slot] == distance && (first == kNone || precedes(slot, first))) first = slot;
    }
    return first;
  }

  // Smallest random key first; the position decides between equal keys.
  bool drawn_before(int32_t a, int32_t b) const {
    return keys_[a] != keys_[b] ? keys_[a] < keys_[b] : free_.positions[a] < free_.positions[b];
  }

  bool precedes(int32_t a, int32_t b) const {
    return places_[a] != places_[b] ? places_[a] < places_[b] : drawn_before(a, b);
  }

  // Writes the finished group, which is free no longer, and lets its neighbours know.
  int64_t* emit_group(int64_t* order) {
    int64_t* const begin = order;
    for (int32_t i = 0; i < num_picks_; ++i) {
      *order++ = free_.positions[picks_[i]];
      tell_neighbours(free_.rows[picks_[i]], free_.cols[picks_[i]]);
    }
    // Last, for a removal moves slots.
    for (const int64_t* position = begin; position < order; ++position) {
      free_.remove(static_cast<int32_t>(*position));
    }
    return order;
  }

  // A decoded cell also counts itself, which nobody reads.
  void tell_neighbours(int64_t row, int64_t col) {
    const int64_t bottom = std::min(row + 1, params_.height - 1);
    const int64_t right = std::min(col + 1, params_.width - 1);
    for (int64_t r = std::max<int64_t>(row - 1, 0); r <= bottom; ++r) {
      for (int64_t c = std::max<int64_t>(col - 1, 0); c <= right; ++c) {
        neighbours_[r * params_.width + c] +=
            r == row || c == col ? ScoreTable::kOrthogonal : ScoreTable::kDiagonal;
      }
    }
  }

  static constexpr int32_t kNone = -1;
  static constexpr uint8_t kTaken = ScoreTable::kNumPlaces;

  const GroupOrderParams& params_;
  const OrderKernels<Number>& kernels_;
  const ScoreTable scores_;
  const int64_t repulsion_;
  const int32_t seq_len_;
  FreeCells<Number> free_;
  CellSet repelled_;            // by picks of this group
  uint8_t* const neighbours_;   // [seq_len] decoded ones of a position, as ScoreTable counts them
  uint64_t* const keys_;        // [free] random keys of this step
  uint8_t* const places_;       // [free]
  Number* const nearest_;       // [free] squared distance to the nearest pick
  int32_t* const walked_;       // [free] slots with a score that reaches the threshold
  int32_t* const by_place_;     // [free] the same, sorted by place
  int32_t* const picks_;        // [group] slots of the group in the making
  int32_t num_picks_ = 0;
};

template <class Number>
const OrderKernels<Number>& order_kernels();

template <>
const OrderKernels<uint16_t>& order_kernels() {
#if defined(LPD_X86)
  if (variant() >= Variant::kAvx512) return avx512::kOrderKernels16;
  if (variant() >= Variant::kAvx2) return avx2::kOrderKernels16;
#endif
  return plain::kOrderKernels16;
}

template <>
const OrderKernels<uint64_t>& order_kernels() {
#if defined(LPD_X86)
  if (variant() >= Variant::kAvx512) return avx512::kOrderKernels64;
  if (variant() >= Variant::kAvx2) return avx2::kOrderKernels64;
#endif
  return plain::kOrderKernels64;
}

// Calls the function with a zero of the Number that holds the squared distances of the grid.
template <class Function>
auto with_number(const GroupOrderParams& params, const Function& function) {
  const int64_t rows = params.height - 1, cols = params.width - 1;
  const bool small = rows * rows + cols * cols <= std::numeric_limits<uint16_t>::max();
  return small ? function(uint16_t{0}) : function(uint64_t{0});
}

}  // namespace

size_t group_order_workspace(const GroupOrderParams& params) {
  return with_number(params, [&](auto zero) {
    Arena arena(nullptr);
    OrderBuilder<decltype(zero)>(params, order_kernels<decltype(zero)>(), arena);
    return arena.used();
  });
}

void group_order(const GroupOrderParams& params, int64_t begin, int64_t end, std::byte* workspace) {
  with_number(params, [&](auto zero) {
    Arena arena(workspace);
    OrderBuilder<decltype(zero)> builder(params, order_kernels<decltype(zero)>(), arena);
    for (int64_t image = begin; image < end; ++image) builder.build(image);
  });
}

}  // namespace lpd::cpu
