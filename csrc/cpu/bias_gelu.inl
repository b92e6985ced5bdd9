// bias_gelu, for the namespace and target of the including file.
#include "gelu.inl"
#include "with_dtype.inl"

// Of kLanes elements.
template <class T, class Bias>
inline void bias_gelu_vector(const T* x, const Bias* bias, T* out) {
  const Vector y = load(x);
  store(out, gelu(bias == nullptr ? y : add(y, load(bias))));
}

template <class T, class Bias>
inline void bias_gelu_row(const T* x, const Bias* bias, int64_t n, T* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    bias_gelu_vector(x + i, bias == nullptr ? nullptr : bias + i, out + i);
  }
  if (i == n) return;
  T rest[kLanes] = {};  // a vector, beside the row
  Bias rest_of_bias[kLanes] = {};
  std::copy(x + i, x + n, rest);
  if (bias != nullptr) std::copy(bias + i, bias + n, rest_of_bias);
  bias_gelu_vector(rest, bias == nullptr ? nullptr : rest_of_bias, rest);
  std::copy_n(rest, n - i, out + i);
}

void bias_gelu(const BiasGeluParams& params, int64_t begin, int64_t end) {
  with_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    for (int64_t i = begin; i < end; ++i) {
      const T* const x = static_cast<const T*>(params.x) + i * params.features;
      T* const out = static_cast<T*>(params.out) + i * params.features;
      if (params.bias_dtype == Dtype::kFloat32) {
        bias_gelu_row(x, static_cast<const float*>(params.bias), params.features, out);
      } else {
        bias_gelu_row(x, static_cast<const T*>(params.bias), params.features, out);
      }
    }
  });
}
