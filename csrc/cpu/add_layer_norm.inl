// add_layer_norm, for the namespace and target of the including file.
#include "layer_norm.inl"
#include "with_dtype.inl"

// x += delta + bias, where there is one.
template <class Delta, class Bias>
inline void add_to_row(const Delta* delta, const Bias* bias, int64_t n, float* x) {
  for (int64_t i = 0; i < n; i += kLanes) {
    Vector added = load(delta + i);
    if (bias != nullptr) added = add(added, load(bias + i));
    store(x + i, add(load(x + i), added));
  }
}

void add_layer_norm(const AddLayerNormParams& params, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t image = i / params.rows, row = i % params.rows;
    float* const x = params.x + image * params.x_batch_stride + row * params.x_row_stride;
    if (params.delta != nullptr) {
      with_dtype(params.delta_dtype, [&](auto element) {
        using Delta = decltype(element);
        const Delta* const delta = static_cast<const Delta*>(params.delta) +
                                   image * params.delta_batch_stride +
                                   row * params.delta_row_stride;
        if (params.bias_dtype == Dtype::kFloat32) {
          add_to_row(delta, static_cast<const float*>(params.bias), params.dim, x);
        } else {
          add_to_row(delta, static_cast<const Delta*>(params.bias), params.dim, x);
        }
      });
    }
    with_dtype(params.out_dtype, [&](auto element) {
      using Out = decltype(element);
      Out* const out = static_cast<Out*>(params.out) + image * params.out_batch_stride +
                       row * params.out_row_stride;
      layer_norm(
          params.dim, params.norm_weight, params.norm_bias, params.norm_eps,
          [&](int64_t j) { return load(x + j); }, [&](int64_t j, Vector y) { store(out + j, y); });
    });
  }
}
