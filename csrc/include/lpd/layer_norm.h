// What the ops with a LayerNorm of their own share.
#pragma once

#include <cstdint>

namespace lpd {

// Rows are a multiple of 16 long and no longer than a block of CUDA threads holds in registers.
constexpr int64_t kMaxNormDim = 8192;

}  // namespace lpd
