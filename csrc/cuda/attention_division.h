// How tensor-core kernels of attention divide their work: groups of rows, tiles of keys.
#pragma once

#include <cstdint>

#include "lpd/inline.h"

namespace lpd::cuda::mma {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kGroupRows = 16;  // as m16n8k16 wants them
constexpr int kWarpKeys = 16;   // of a tile: warps split the keys, not the rows
constexpr int kTileKeys = kWarps * kWarpKeys;

LPD_INLINE int ceil_div(int64_t a, int b) { return static_cast<int>((a + b - 1) / b); }

}  // namespace lpd::cuda::mma
