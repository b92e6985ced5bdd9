// Workspace of token_selection, the same for all variants.

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
};

LPD_INLINE int64_t padded_size(int64_t vocab_size) {
  return (vocab_size + kMaxLanes - 1) / kMaxLanes * kMaxLanes + kMaxLanes;
}

LPD_INLINE size_t row_space_size(int64_t vocab_size) {
  const size_t per_token = 2 * sizeof(uint64_t) + 4 * sizeof(float) + 2 * sizeof(uint32_t);
  return static_cast<size_t>(padded_size(vocab_size)) * per_token +
         (sizeof(uint64_t) << kDigitBits);
}

LPD_INLINE RowSpace row_space(void* workspace, int64_t vocab_size) {
  std::byte* next = static_cast<std::byte*>(workspace);
  const auto take = [&]<class T>(T*& part, int64_t count) {
    part = reinterpret_cast<T*>(next);
    next += count * sizeof(T);
  };
  const int64_t size = padded_size(vocab_size);
  RowSpace space;
  take(space.masses, size);
  take(space.tile_masses, size);
  take(space.histogram, int64_t{1} << kDigitBits);
  take(space.values, size);
  take(space.maxima, size);
  take(space.listed_values, size);
  take(space.listed_ids, size);
  take(space.keys, size);
  take(space.members, size);
  return space;
}

}  // namespace lpd::cpu
