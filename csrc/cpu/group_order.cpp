// group_order on the CPU: one image at a time. Only integers are compared (places of scores,
// squared distances, keys), so that every implementation of the rules yields the same bits.
#include "lpd/group_order.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "group_order_cells.h"
#include "group_order_kernels.h"
#include "lpd/cpu_variant.h"
#include "lpd/group_order_scores.h"
#include "target.h"

namespace lpd::cpu {
namespace {

// Builds the orders of images, one after the other. Number: see OrderKernels.
template <class Number>
class OrderBuilder {
 public:
  OrderBuilder(const GroupOrderParams& params, const OrderKernels<Number>& kernels, Arena& arena)
      : params_(params),
        kernels_(kernels),
        scores_(params.proximity_threshold),
        repulsion_(
            std::clamp(params.repulsion_threshold, int64_t{0}, params.height + params.width)),
        seq_len_(params.height * params.width),
        free_(arena, seq_len_),
        repelled_(arena, params.height, params.width),
        neighbours_(arena, params.height, params.width),
        keys_(arena.take<uint64_t>(seq_len_ + kOrderPadding)),
        places_(arena.take<uint16_t>(seq_len_)),
        nearest_(arena.take<Number>(seq_len_)),
        walked_(arena.take<int32_t>(seq_len_)),
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
    neighbours_.clear();
    free_.clear();
    int32_t position = 0;
    for (int64_t row = 0; row < params_.height; ++row) {
      for (int64_t col = 0; col < params_.width; ++col, ++position) {
        if (is_known(image, position)) {
          *order++ = position;
          neighbours_.add_around(row, col);
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
    for (int place = scores_.first_walked(); place < kNumScores; ++place) {
      int32_t* end = by_place_ + bucket_ends[place];
      walk_bucket(bucket, end, group_size);
      bucket = end;
    }
  }

  using Buckets = std::array<int32_t, kNumScores>;

  // Notes the place of every free cell's score, and sorts the slots of those that are walked into
  // by_place_. Returns where in it each place ends.
  Buckets fill_buckets() {
    const uint16_t first_walked = scores_.first_walked();
    int32_t num_walked = 0;
    for (int32_t slot = 0; slot < free_.count(); ++slot) {
      const uint16_t place = scores_.place(neighbours_.at(free_.rows[slot], free_.cols[slot]));
      places_[slot] = place;
      walked_[num_walked] = slot;  // the next one overwrites it unless it counts
      num_walked += place >= first_walked;
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
      end = drop_repelled(begin, end);
      if (begin == end) return;
      int32_t best = *begin;
      for (const int32_t* slot = begin + 1; slot < end; ++slot) {
        best = drawn_before(*slot, best) ? *slot : best;
      }
      picks_[num_picks_++] = best;
      repelled_.add_around(free_.rows[best], free_.cols[best], repulsion_);
    }
  }

  // Returns the new end. Without a branch, for which way it would go is hard to foresee.
  int32_t* drop_repelled(int32_t* begin, int32_t* end) const {
    int32_t* kept = begin;
    for (const int32_t* slot = begin; slot < end; ++slot) {
      *kept = *slot;
      kept += !repelled_.contains(free_.rows[*kept], free_.cols[*kept]);
    }
    return kept;
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
      neighbours_.add_around(free_.rows[picks_[i]], free_.cols[picks_[i]]);
    }
    // Last, for a removal moves slots.
    for (const int64_t* position = begin; position < order; ++position) {
      free_.remove(static_cast<int32_t>(*position));
    }
    return order;
  }

  static constexpr int32_t kNone = -1;
  static constexpr uint16_t kTaken = kNumScores;

  const GroupOrderParams& params_;
  const OrderKernels<Number>& kernels_;
  const ScoreTable scores_;
  const int64_t repulsion_;
  const int64_t seq_len_;
  FreeCells<Number> free_;
  CellSet repelled_;  // by picks of this group
  NeighbourCounts neighbours_;
  uint64_t* const keys_;     // [free] random keys of this step
  uint16_t* const places_;   // [free]
  Number* const nearest_;    // [free] squared distance to the nearest pick
  int32_t* const walked_;    // [free] slots with a score that reaches the threshold
  int32_t* const by_place_;  // [free] the same, sorted by place
  int32_t* const picks_;     // [group] slots of the group in the making
  int32_t num_picks_ = 0;
};

const OrderKernelSet& kernel_set() {
#if defined(LPD_X86)
  if (variant() >= Variant::kAvx512) return avx512::kOrderKernels;
  if (variant() >= Variant::kAvx2) return avx2::kOrderKernels;
#endif
  return plain::kOrderKernels;
}

// Calls the function with the kernels for the squared distances of the grid.
template <class Function>
auto with_kernels(const GroupOrderParams& params, const Function& function) {
  const int64_t rows = params.height - 1, cols = params.width - 1;
  const bool narrow = rows * rows + cols * cols <= std::numeric_limits<uint16_t>::max();
  return narrow ? function(kernel_set().narrow) : function(kernel_set().wide);
}

}  // namespace

size_t group_order_workspace(const GroupOrderParams& params) {
  return with_kernels(params, [&]<class Number>(const OrderKernels<Number>& kernels) {
    Arena arena(nullptr);
    OrderBuilder<Number>(params, kernels, arena);
    return arena.used();
  });
}

void group_order(const GroupOrderParams& params, int64_t begin, int64_t end, std::byte* workspace) {
  with_kernels(params, [&]<class Number>(const OrderKernels<Number>& kernels) {
    Arena arena(workspace);
    OrderBuilder<Number> builder(params, kernels, arena);
    for (int64_t image = begin; image < end; ++image) builder.build(image);
  });
}

}  // namespace lpd::cpu
