// group_order on the CPU: one image at a time. Only integers are compared (ranks of scores, squared
// distances, keys), so that every implementation of the rules yields the same bits.
#include "lpd/group_order.h"

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "lpd/philox.h"

namespace lpd::cpu {
namespace {

// Scores as integers: the rank of each pair of counts (orthogonal and diagonal neighbours decoded,
// 0 to 4 each) among the 25 scores, no two of which are equal.
class ScoreTable {
 public:
  explicit ScoreTable(double threshold) {
    // Products that are rounded here leave nothing to fuse with the addition below.
    constexpr double kInverseSqrt2 = 0.70710678118654752440;
    static constexpr double kDiagonal[kCounts] = {0, kInverseSqrt2, 2 * kInverseSqrt2,
                                                  3 * kInverseSqrt2, 4 * kInverseSqrt2};
    std::array<double, kCounts * kCounts> scores;
    for (int i = 0; i < kCounts * kCounts; ++i) scores[i] = i / kCounts + kDiagonal[i % kCounts];
    const auto num_below = [&](double limit) {
      return std::count_if(scores.begin(), scores.end(), [&](double s) { return !(s >= limit); });
    };
    for (int i = 0; i < kCounts * kCounts; ++i) ranks_[i] = num_below(scores[i]);
    least_walked_ = num_below(threshold);
  }

  int32_t rank(int32_t orthogonal, int32_t diagonal) const {
    return ranks_[orthogonal * kCounts + diagonal];
  }

  // The rank from which on scores reach the threshold.
  int32_t least_walked() const { return least_walked_; }

 private:
  static constexpr int kCounts = 5;
  std::array<int32_t, kCounts * kCounts> ranks_;
  int32_t least_walked_;
};

struct Candidate {
  int32_t score;  // its rank
  uint64_t key;
  int32_t position;
  int32_t row;
  int32_t col;
};

// Smallest random key first; the position decides between equal keys.
bool drawn_before(const Candidate& a, const Candidate& b) {
  return a.key != b.key ? a.key < b.key : a.position < b.position;
}

bool walked_before(const Candidate& a, const Candidate& b) {
  return a.score != b.score ? a.score > b.score : drawn_before(a, b);
}

// Workspace of one thread, reused from image to image.
class OrderBuilder {
 public:
  explicit OrderBuilder(const GroupOrderParams& params)
      : params_(params),
        scores_(params.proximity_threshold),
        seq_len_(static_cast<int32_t>(params.height * params.width)),
        orthogonal_(seq_len_),
        diagonal_(seq_len_) {}

  void build(int64_t image) {
    const int64_t seed = params_.seeds[image * params_.seeds_stride];
    int64_t* order = params_.order + image * seq_len_;
    std::fill(orthogonal_.begin(), orthogonal_.end(), 0);
    std::fill(diagonal_.begin(), diagonal_.end(), 0);
    free_.clear();
    picks_.clear();
    for (int32_t position = 0; position < seq_len_; ++position) {
      const Candidate candidate = candidate_at(position);
      (is_known(image, position) ? picks_ : free_).push_back(candidate);
    }
    order = emit(order);
    for (int64_t step = 0; step < params_.num_groups; ++step) {
      pick_group(seed, static_cast<uint32_t>(step), params_.group_sizes[step]);
      order = emit(order);
    }
  }

 private:
  Candidate candidate_at(int32_t position) const {
    const int32_t width = static_cast<int32_t>(params_.width);
    return {.score = 0,
            .key = 0,
            .position = position,
            .row = position / width,
            .col = position % width};
  }

  bool is_known(int64_t image, int32_t position) const {
    return params_.known != nullptr && params_.known[image * params_.known_batch_stride +
                                                     position * params_.known_position_stride] != 0;
  }

  // Picks one group out of free_ into picks_; what was not picked stays in free_.
  void pick_group(int64_t seed, uint32_t step, int64_t group_size) {
    for (Candidate& candidate : free_) {
      candidate.score =
          scores_.rank(orthogonal_[candidate.position], diagonal_[candidate.position]);
      candidate.key = philox_order_key(seed, step, static_cast<uint32_t>(candidate.position));
    }
    std::sort(free_.begin(), free_.end(), walked_before);
    const auto low = std::partition_point(free_.begin(), free_.end(), [this](const Candidate& c) {
      return c.score >= scores_.least_walked();
    });

    // Walk the high scores; then rest_ holds the low scores, those turned away and those not
    // walked, in this sequence.
    const size_t target = static_cast<size_t>(group_size);
    turned_away_.clear();
    auto walk = free_.begin();
    for (; walk != low && picks_.size() < target; ++walk) {
      (is_repelled(*walk) ? turned_away_ : picks_).push_back(*walk);
    }
    rest_.assign(low, free_.end());
    rest_.insert(rest_.end(), turned_away_.begin(), turned_away_.end());
    rest_.insert(rest_.end(), walk, low);
    free_.swap(rest_);

    const size_t missing = target - picks_.size();
    if (missing >= free_.size()) {
      picks_.insert(picks_.end(), free_.begin(), free_.end());
      free_.clear();
    } else if (missing > 0) {
      sample_farthest(target);
    }
  }

  bool is_repelled(const Candidate& candidate) const {
    return std::any_of(picks_.begin(), picks_.end(), [&](const Candidate& pick) {
      const int32_t distance =
          std::max(std::abs(pick.row - candidate.row), std::abs(pick.col - candidate.col));
      return distance <= params_.repulsion_threshold;
    });
  }

  // Fills picks_ up to target from free_: each time the candidate whose squared distance to the
  // nearest pick is largest, the first of equals; with nothing picked yet, a random one.
  void sample_farthest(size_t target) {
    nearest_.assign(free_.size(), std::numeric_limits<int64_t>::max());
    for (const Candidate& pick : picks_) shorten_nearest(pick);
    while (picks_.size() < target) {
      const size_t best =
          picks_.empty()
              ? std::min_element(free_.begin(), free_.end(), drawn_before) - free_.begin()
              : std::max_element(nearest_.begin(), nearest_.end()) - nearest_.begin();
      picks_.push_back(free_[best]);
      shorten_nearest(free_[best]);
      nearest_[best] = kTaken;
    }
    size_t kept = 0;
    for (size_t i = 0; i < free_.size(); ++i) {
      if (nearest_[i] != kTaken) free_[kept++] = free_[i];
    }
    free_.resize(kept);
  }

  void shorten_nearest(const Candidate& pick) {
    for (size_t i = 0; i < free_.size(); ++i) {
      const int64_t rows = free_[i].row - pick.row, cols = free_[i].col - pick.col;
      nearest_[i] = std::min(nearest_[i], rows * rows + cols * cols);
    }
  }

  // Writes the finished group and lets its neighbours know.
  int64_t* emit(int64_t* order) {
    const int32_t height = static_cast<int32_t>(params_.height);
    const int32_t width = static_cast<int32_t>(params_.width);
    for (const Candidate& pick : picks_) {
      *order++ = pick.position;
      for (int32_t row = std::max(pick.row - 1, 0); row <= std::min(pick.row + 1, height - 1);
           ++row) {
        for (int32_t col = std::max(pick.col - 1, 0); col <= std::min(pick.col + 1, width - 1);
             ++col) {
          auto& count = row == pick.row || col == pick.col ? orthogonal_ : diagonal_;
          ++count[row * width + col];
        }
      }
    }
    picks_.clear();
    return order;
  }

  static constexpr int64_t kTaken = -1;

  const GroupOrderParams& params_;
  const ScoreTable scores_;
  const int32_t seq_len_;
  // [seq_len] decoded neighbours at distance 1; a decoded position also counts itself.
  std::vector<int32_t> orthogonal_;
  std::vector<int32_t> diagonal_;  // [seq_len] decoded neighbours at distance sqrt 2
  std::vector<Candidate> free_;    // not decoded yet
  std::vector<Candidate> picks_;   // the group in the making
  std::vector<Candidate> turned_away_;
  std::vector<Candidate> rest_;
  std::vector<int64_t> nearest_;  // squared distance of free_[i] to its nearest pick
};

}  // namespace

void group_order(const GroupOrderParams& params, int64_t begin, int64_t end) {
  OrderBuilder builder(params);
  for (int64_t image = begin; image < end; ++image) builder.build(image);
}

}  // namespace lpd::cpu
