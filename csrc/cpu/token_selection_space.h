// Workspace of token_selection, the same for all variants.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lpd::cpu {

constexpr int kDigitBits = 10;    // of the radix selection, at most
constexpr int kTileVectors = 16;  // vectors summed up, and searched, together
constexpr int64_t kMaxLanes = 16;

// Parts of the workspace of one row. [vocab_size] is rounded up to whole vectors; the lists have a
// vector to spare, as store_where writes whole ones.
struct RowSpace {
  uint64_t* masses;       // [vocab_size], of the tile in question or of the listed tokens
  uint64_t* tile_masses;  // [number of tiles]
  uint64_t* histogram;    // [2^kDigitBits]
  float* values;          // [vocab_size], guided, not scaled; -inf behind the vocabulary
  float* maxima;          // [number of tiles, kLanes], of values
  float* listed_values;   // [vocab_size], scaled, of the tokens that may be drawn
  float* listed_ids;      // [vocab_size]: numbers below 2^24 are exact
  uint32_t* keys;         // [vocab_size], order-preserving, of what is selected from
  uint32_t* members;      // [vocab_size], indices still in question while selecting
  size_t size;            // in bytes
};

// Without a workspace, only its size is right.
LPD_INLINE RowSpace row_space(std::byte* workspace, int64_t vocab_size) {
  const auto whole_vectors = [](int64_t size) {
    return (size + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
  };
  const int64_t tokens = whole_vectors(vocab_size) + kMaxLanes;
  const int64_t maxima = whole_vectors(tokens / kTileVectors + kMaxLanes);
  RowSpace space{};
  const auto cut = [&]<class Part>(Part*& part, int64_t count) {
    if (workspace != nullptr) part = reinterpret_cast<Part*>(workspace + space.size);
    space.size += static_cast<size_t>(count) * sizeof(Part);
  };
  cut(space.masses, tokens);
  cut(space.tile_masses, maxima);
  cut(space.histogram, int64_t{1} << kDigitBits);
  cut(space.values, tokens);
  cut(space.maxima, maxima);
  cut(space.listed_values, tokens);
  cut(space.listed_ids, tokens);
  cut(space.keys, tokens);
  cut(space.members, tokens);
  return space;
}

}  // namespace lpd::cpu
