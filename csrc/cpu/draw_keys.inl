// draw_keys of group_order_kernels.h for instruction sets with Words (vector_avx2.h).

// Philox of philox.h with each counter word in a lane of 64 bits: products are as wide as that and
// take the lower halves only, so that whatever is left in the upper halves does no harm.
void draw_keys(int64_t seed,
               uint32_t step,
               const int32_t* positions,
               int32_t count,
               uint64_t* keys) {
  const Words multiplier0 = broadcast_word(philox::kMultiplier0);
  const Words multiplier1 = broadcast_word(philox::kMultiplier1);
  for (int64_t i = 0; i < count; i += kWords) {
    uint32_t key0 = philox::low_half(seed), key1 = philox::high_half(seed);
    Words c0 = load_words(positions + i), c1 = broadcast_word(step);
    Words c2 = broadcast_word(static_cast<uint32_t>(PhiloxStream::kOrder)), c3 = broadcast_word(0);
    for (int round = 0; round < philox::kRounds; ++round) {
      const Words product0 = multiply_low_halves(multiplier0, c0);
      const Words product1 = multiply_low_halves(multiplier1, c2);
      c0 = exclusive_or(exclusive_or(upper_halves(product1), c1), broadcast_word(key0));
      c2 = exclusive_or(exclusive_or(upper_halves(product0), c3), broadcast_word(key1));
      c1 = product1;
      c3 = product0;
      key0 += philox::kWeyl0;
      key1 += philox::kWeyl1;
    }
    store_words(keys + i, join_low_halves(c1, c0));
  }
}
