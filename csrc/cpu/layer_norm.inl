// Layer norm of one row, for the namespace and target of the including file. `load_at(i)` gives the
// vector of elements from i on, `store_at(i, y)` takes the result; n is a multiple of kLanes.

// Sum of term(i) over the vectors of a row, in four chains that do not wait for one another.
template <class Term>
LPD_INLINE float sum_vectors(int64_t n, const Term& term) {
  constexpr int64_t kChains = 4, kStep = kChains * kLanes;
  Vector chains[kChains] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    for (int64_t chain = 0; chain < kChains; ++chain) {
      chains[chain] = add(chains[chain], term(i + chain * kLanes));
    }
  }
  for (; i < n; i += kLanes) chains[0] = add(chains[0], term(i));
  return sum(add(add(chains[0], chains[1]), add(chains[2], chains[3])));
}

template <class LoadAt, class StoreAt>
LPD_INLINE void layer_norm(int64_t n,
                           const float* weight,
                           const float* bias,
                           float eps,
                           const LoadAt& load_at,
                           const StoreAt& store_at) {
  const float count = static_cast<float>(n);
  const Vector mean = broadcast(sum_vectors(n, load_at) / count);
  const float variance = sum_vectors(n,
                                     [&](int64_t i) {
                                       const Vector centred = subtract(load_at(i), mean);
                                       return multiply(centred, centred);
                                     }) /
                         count;
  const Vector scale = broadcast(1.0f / __builtin_sqrtf(variance + eps));
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vector normal = multiply(subtract(load_at(i), mean), scale);
    store_at(i, multiply_add(normal, load(weight + i), load(bias + i)));
  }
}
