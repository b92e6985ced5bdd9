// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as
// 1, 2, 3" (SC 2011): a pure function of (key, counter), so every device draws the same bits.
#pragma once

#include <cstdint>

#include "lpd/inline.h"

namespace lpd {

// What a draw is for; the third counter word, so that no two uses share a block. Stream 1, the
// uniform numbers of token_selection, is drawn in lpd_ext/philox.py.
enum class PhiloxStream : uint32_t { kOrder = 0 };

struct PhiloxBlock {
  uint32_t word[4];
};

namespace philox {

constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
constexpr int kRounds = 10;

LPD_INLINE uint32_t low_half(int64_t seed) { return static_cast<uint32_t>(seed); }
LPD_INLINE uint32_t high_half(int64_t seed) {
  return static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
}

}  // namespace philox

// philox(seed, (c0, c1, stream, 0)) with key = (low, high) half of the seed.
LPD_INLINE PhiloxBlock philox4x32(int64_t seed, uint32_t c0, uint32_t c1, PhiloxStream stream) {
  uint32_t key0 = philox::low_half(seed), key1 = philox::high_half(seed);
  uint32_t c2 = static_cast<uint32_t>(stream), c3 = 0;
  for (int round = 0; round < philox::kRounds; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(philox::kMultiplier0) * c0;
    const uint64_t product1 = static_cast<uint64_t>(philox::kMultiplier1) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    key0 += philox::kWeyl0;
    key1 += philox::kWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

// The 64-bit sort key of a position in one step of an order.
LPD_INLINE uint64_t philox_order_key(int64_t seed, uint32_t step, uint32_t position) {
  const PhiloxBlock block = philox4x32(seed, position, step, PhiloxStream::kOrder);
  return (static_cast<uint64_t>(block.word[1]) << 32) | block.word[0];
}

}  // namespace lpd
