// The published tables (mit-han-lab/lpd@f447b83) are a rounded cosine schedule but for five, which
// stand here as runs of equal sizes.
#include "schedule.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numbers>
#include <numeric>
#include <stdexcept>
#include <string>

namespace lpd::host {
namespace {

struct Run {
  int64_t size;
  int64_t count;
};

struct Table {
  int64_t seq_len;
  int64_t num_steps;
  std::vector<Run> runs;
};

const std::vector<Table>& irregular_tables() {
  static const std::vector<Table> tables = {
      {256, 8, {{1, 1}, {15, 1}, {24, 1}, {32, 1}, {40, 1}, {45, 1}, {49, 1}, {50, 1}}},
      {256,
       12,
       {{1, 1},
        {7, 1},
        {11, 1},
        {15, 1},
        {19, 1},
        {22, 1},
        {25, 1},
        {28, 1},
        {30, 1},
        {32, 1},
        {33, 2}}},
      {256,
       32,
       {{1, 2},
        {2, 2},
        {3, 2},
        {4, 1},
        {5, 2},
        {6, 2},
        {7, 2},
        {8, 2},
        {9, 2},
        {10, 3},
        {11, 4},
        {12, 8}}},
      {1024, 224, {{1, 32}, {2, 21}, {3, 21}, {4, 24}, {5, 27}, {6, 37}, {7, 62}}},
      {1024, 256, {{1, 39}, {2, 28}, {3, 31}, {4, 34}, {5, 44}, {6, 80}}},
  };
  return tables;
}

std::vector<int64_t> cosine_sizes(int64_t seq_len, int64_t num_steps) {
  const auto masked = [&](int64_t step) {
    return std::cos(std::numbers::pi / 2 * static_cast<double>(step) /
                    static_cast<double>(num_steps));
  };
  std::vector<int64_t> sizes(num_steps);
  for (int64_t step = 0; step < num_steps; ++step) {
    const double size = static_cast<double>(seq_len) * (masked(step) - masked(step + 1));
    sizes[step] = std::max(int64_t{1}, static_cast<int64_t>(std::rint(size)));
  }

  // Rounding has left a difference. The last group takes it where that does not disfigure it ...
  int64_t missing = seq_len - std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  if (std::abs(missing) < sizes.back()) {
    sizes.back() += missing;
    std::sort(sizes.begin(), sizes.end());
    return sizes;
  }
  // ... otherwise it is spread by ones: added to the last groups, taken from the largest.
  for (int64_t step = num_steps - 1; missing > 0; --missing) {
    ++sizes[step];
    step = step > 0 ? step - 1 : num_steps - 1;
  }
  for (; missing < 0; ++missing) {
    --*std::lower_bound(sizes.begin(), sizes.end(), sizes.back());
  }
  return sizes;
}

}  // namespace

std::vector<int64_t> group_sizes(int64_t seq_len, int64_t num_steps) {
  if (num_steps < 1 || num_steps > seq_len) {
    throw std::invalid_argument("group_sizes: argument `num_steps`: expected 1 to seq_len = " +
                                std::to_string(seq_len) + ", got " + std::to_string(num_steps));
  }
  for (const Table& table : irregular_tables()) {
    if (table.seq_len != seq_len || table.num_steps != num_steps) continue;
    std::vector<int64_t> sizes;
    for (const Run& run : table.runs) sizes.insert(sizes.end(), run.count, run.size);
    return sizes;
  }
  return cosine_sizes(seq_len, num_steps);
}

}  // namespace lpd::host
