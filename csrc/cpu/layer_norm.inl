// Layer norm of one row, for the namespace and target of the including file. `load_at(i)` gives the
// vector of elements from i on, `store_at(i, y)` takes the result; n is a multiple of kLanes.
template <class LoadAt, class StoreAt>
LPD_INLINE void layer_norm(int64_t n,
                           const float* weight,
                           const float* bias,
                           float eps,
                           const LoadAt& load_at,
                           const StoreAt& store_at) {
  Vector sums = zero();
  for (int64_t i = 0; i < n; i += kLanes) sums = add(sums, load_at(i));
  const Vector mean = broadcast(sum(sums) / static_cast<float>(n));
  sums = zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vector centred = subtract(load_at(i), mean);
    sums = multiply_add(centred, centred, sums);
  }
  const Vector scale = broadcast(1.0f / __builtin_sqrtf(sum(sums) / static_cast<float>(n) + eps));
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vector normal = multiply(subtract(load_at(i), mean), scale);
    store_at(i, multiply_add(normal, load(weight + i), load(bias + i)));
  }
}
