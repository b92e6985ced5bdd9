// linear_gelu, for the namespace and target of the including file. Weights are as torch keeps them,
// for plans as a GPU runs them: fused_linear is the fast one here.
#include "gelu.inl"

// Of n elements in lanes, a multiple of 8 that may end amid a vector.
template <class T>
inline Vector dot_in_lanes(const T* a, const T* b, int64_t n) {
  Vector sums = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sums = multiply_add(load(a + i), load(b + i), sums);
  if (i == n) return sums;
  T rest[2][kLanes] = {};
  std::copy(a + i, a + n, rest[0]);
  std::copy(b + i, b + n, rest[1]);
  return multiply_add(load(rest[0]), load(rest[1]), sums);
}

template <class T, class Bias>
inline void linear_gelu_rows(const LinearGeluParams& params,
                             const Bias* bias,
                             int64_t begin,
                             int64_t end) {
  const int64_t in = params.in_features, out = params.out_features;
  const T* const x = static_cast<const T*>(params.x);
  // A weight is read from memory once, by all rows.
  for (int64_t first = 0; first < out; first += kLanes) {
    const int64_t count = std::min<int64_t>(out - first, kLanes);
    const T* const weight = static_cast<const T*>(params.weight) + first * in;
    for (int64_t row = begin; row < end; ++row) {
      float values[kLanes] = {};
      for (int64_t i = 0; i < count; ++i) {
        values[i] = sum(dot_in_lanes(x + row * in, weight + i * in, in));
        if (bias != nullptr) values[i] += to_float(bias[first + i]);
      }
      T rounded[kLanes];
      store(rounded, gelu(load(values)));
      std::copy_n(rounded, count, static_cast<T*>(params.out) + row * out + first);
    }
  }
}

template <class T>
inline void linear_gelu_of(const LinearGeluParams& params, int64_t begin, int64_t end) {
  if (params.bias_dtype == Dtype::kFloat32) {
    linear_gelu_rows<T>(params, static_cast<const float*>(params.bias), begin, end);
  } else {
    linear_gelu_rows<T>(params, static_cast<const T*>(params.bias), begin, end);
  }
}

void linear_gelu(const LinearGeluParams& params, int64_t begin, int64_t end) {
  if (params.dtype == Dtype::kBFloat16) return linear_gelu_of<BFloat16>(params, begin, end);
  linear_gelu_of<Float16>(params, begin, end);
}
