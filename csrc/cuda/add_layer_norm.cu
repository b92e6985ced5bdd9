// add_layer_norm: x += delta + bias, out = layer_norm(x)   (contract: lpd/add_layer_norm.h)
//
// A CTA owns a row and holds it in registers (layer_norm.cuh): x and delta are read once, x and out
// written once. Bound by memory: 12 bytes an element with bfloat16 around a float32 x, some 20
// operations. A row of LPD-L (1024) is 12 KiB. Floor at 4.3 TB/s, predicted: 0.15 us at batch 1
// (2 x 26 rows, where the launch and a round trip to memory are what it takes), 38 us at batch 256.
//
// Not yet run on a GPU.
#include "bias.cuh"
#include "dispatch.h"
#include "elements.cuh"
#include "layer_norm.cuh"
#include "lpd/add_layer_norm.h"
#include "primitives.cuh"

namespace lpd::cuda {
namespace {

template <class Delta, class Out>
__global__ void __launch_bounds__(kMaxRowThreads)
    add_layer_norm_kernel(const AddLayerNormParams params, bool aligned) {
  const int rows = static_cast<int>(params.rows);
  const int64_t image = static_cast<int>(blockIdx.x) / rows;
  const int64_t row = static_cast<int>(blockIdx.x) % rows;
  const RowNorm norm(params.dim, params.norm_weight, params.norm_bias, params.norm_eps, aligned);

  float values[kRowValues] = {};
  if (norm.is_mine()) {
    float* const x =
        params.x + image * params.x_batch_stride + row * params.x_row_stride + norm.first();
    load_values(x, aligned, values);
    if (params.delta != nullptr) {
      float delta[kRowValues];
      load_values(static_cast<const Delta*>(params.delta) + image * params.delta_batch_stride +
                      row * params.delta_row_stride + norm.first(),
                  aligned, delta);
      add_bias<Delta>(params.bias, params.bias_dtype, norm.first(), aligned, delta);
#pragma unroll
      for (int i = 0; i < kRowValues; ++i) values[i] += delta[i];
      store_values(values, aligned, x);
    }
  }
  norm.normalise(values);
  if (norm.is_mine()) {
    store_values(values, aligned,
                 static_cast<Out*>(params.out) + image * params.out_batch_stride +
                     row * params.out_row_stride + norm.first());
  }
}

}  // namespace

cudaError_t add_layer_norm(const AddLayerNormParams& params, cudaStream_t stream) {
  const int64_t num_rows = params.batch * params.rows;
  if (num_rows == 0) return cudaSuccess;
  if (num_rows > INT32_MAX) return cudaErrorInvalidValue;
  return with_dtype(params.delta_dtype, [&](auto delta) {
    return with_dtype(params.out_dtype, [&](auto out) {
      using Delta = decltype(delta);
      using Out = decltype(out);
      const bool aligned =
          is_aligned<float>({params.x, params.norm_weight, params.norm_bias},
                            {params.x_batch_stride, params.x_row_stride}) &&
          is_aligned<Delta>({params.delta, params.bias},
                            {params.delta_batch_stride, params.delta_row_stride}) &&
          is_aligned<Out>({params.out}, {params.out_batch_stride, params.out_row_stride});
      SIMT_LAUNCH((add_layer_norm_kernel<Delta, Out>), dim3(static_cast<unsigned>(num_rows)),
                  row_threads(params.dim), 0, stream, params, aligned);
      return cudaGetLastError();
    });
  });
}

}  // namespace lpd::cuda
