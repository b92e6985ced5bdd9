// Scores of group_order as integers, on every device.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "lpd/inline.h"

namespace lpd {

// A cell's neighbours decoded so far are counted in one number: kOrthogonal for each one at
// distance 1, kDiagonal for each one at distance sqrt 2, up to 4 of either. In 16 bits: a store of
// bytes could alias anything, and loops would load their pointers again after each.
constexpr uint16_t kDiagonal = 1, kOrthogonal = 5;
constexpr int kNumScores = 25;

// By the number of neighbours. The compiler rounds every operation: nothing is fused.
constexpr std::array<double, kNumScores> kScores = [] {
  constexpr double kInverseSqrt2 = 0.70710678118654752440;
  std::array<double, kNumScores> scores{};
  for (int i = 0; i < kNumScores; ++i) {
    scores[i] = i / kOrthogonal + i % kOrthogonal * kInverseSqrt2;
  }
  return scores;
}();

// How many scores are higher; no two are equal.
constexpr std::array<uint16_t, kNumScores> kRanks = [] {
  std::array<uint16_t, kNumScores> ranks{};
  for (int i = 0; i < kNumScores; ++i) {
    for (const double score : kScores) ranks[i] += score > kScores[i];
  }
  return ranks;
}();

// The place of each score in the sequence of all cells that the walk left: scores below the
// threshold, then the others (turned away); in both, high ones first. The walk itself goes by the
// same places.
class ScoreTable {
 public:
  explicit ScoreTable(double threshold) {
    const uint16_t num_walked = static_cast<uint16_t>(std::count_if(
        kScores.begin(), kScores.end(), [&](double score) { return score >= threshold; }));
    first_walked_ = kNumScores - num_walked;
    for (int i = 0; i < kNumScores; ++i) {
      places_[i] = kRanks[i] < num_walked ? first_walked_ + kRanks[i] : kRanks[i] - num_walked;
    }
  }

  LPD_INLINE uint16_t place(uint16_t neighbours) const { return places_[neighbours]; }

  // From this place on scores reach the threshold.
  LPD_INLINE uint16_t first_walked() const { return first_walked_; }

 private:
  uint16_t places_[kNumScores];
  uint16_t first_walked_;
};

}  // namespace lpd
