// bias_gelu: out = gelu(x + bias), elementwise   (contract: lpd/bias_gelu.h)
//
// A thread takes 8 neighbours of a row, 16 bytes of a narrow dtype. The exact erf is dear: read and
// written in bfloat16 an element is 4 bytes, in whose time at 4.3 TB/s an H200 issues some 27
// instructions for it, and in SASS it has 24 for GELU and 8 around. So memory and arithmetic bound
// it alike. Floor for LPD-L (4096 features) by memory, predicted: 0.2 us at batch 1 (2 x 26 rows,
// where the launch is what it takes), 51 us at batch 256.
//
// Not yet run on a GPU.
#include "bias.cuh"
#include "dispatch.h"
#include "elements.cuh"
#include "gelu.cuh"
#include "lpd/bias_gelu.h"
#include "primitives.cuh"

namespace lpd::cuda {
namespace {

constexpr int kThreads = 128;  // 1024 features a CTA: whole ones for LPD-L and LPD-XL
constexpr int kValues = 8;     // of a thread

template <class T>
__global__ void __launch_bounds__(kThreads)
    bias_gelu_kernel(const BiasGeluParams params, int num_parts, bool aligned) {
  const int64_t row = static_cast<int>(blockIdx.x) / num_parts;
  const int64_t part = static_cast<int>(blockIdx.x) % num_parts;
  const int64_t first = (part * kThreads + threadIdx.x) * kValues;
  if (first >= params.features) return;
  const int count = static_cast<int>(min(params.features - first, int64_t{kValues}));
  const int64_t offset = row * params.features + first;

  float values[kValues] = {};
  load_values(static_cast<const T*>(params.x) + offset, aligned, values, count);
  add_bias<T>(params.bias, params.bias_dtype, first, aligned, values, count);
#pragma unroll
  for (float& value : values) value = gelu(value);
  store_values(values, aligned, static_cast<T*>(params.out) + offset, count);
}

}  // namespace

cudaError_t bias_gelu(const BiasGeluParams& params, cudaStream_t stream) {
  const int64_t num_parts = (params.features + kThreads * kValues - 1) / (kThreads * kValues);
  const int64_t num_blocks = params.rows * num_parts;
  if (num_blocks == 0) return cudaSuccess;
  if (num_blocks > INT32_MAX) return cudaErrorInvalidValue;
  return with_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    const bool aligned = is_aligned<T>({params.x, params.bias, params.out}, {params.features});
    SIMT_LAUNCH((bias_gelu_kernel<T>), dim3(static_cast<unsigned>(num_blocks)), dim3(kThreads), 0,
                stream, params, static_cast<int>(num_parts), aligned);
    return cudaGetLastError();
  });
}

}  // namespace lpd::cuda
