// How many positions each step decodes.
#pragma once

#include <cstdint>
#include <vector>

namespace lpd::host {

// The published schedule where there is one (256 and 1024 positions), a cosine schedule otherwise:
// num_steps sizes of at least 1, never falling, that sum to seq_len. Throws std::invalid_argument
// where num_steps is not in 1..seq_len.
std::vector<int64_t> group_sizes(int64_t seq_len, int64_t num_steps);

}  // namespace lpd::host
