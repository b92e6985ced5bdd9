// bias_gelu: what stands between the two matrix products of an MLP.
//   out = gelu(x + bias),  gelu(y) = y / 2 (1 + erf(y / sqrt(2))),  in float32, rounded once
#pragma once

#include <cstdint>

#include "lpd/cuda_runtime.h"
#include "lpd/dtype.h"

namespace lpd {

struct BiasGeluParams {
  int64_t rows;
  int64_t features;
  Dtype dtype;       // of x and out
  Dtype bias_dtype;  // kFloat32 or that of x

  const void* x;     // [rows, features], contiguous
  const void* bias;  // [features]; nullptr: none
  void* out;         // [rows, features], contiguous; may be x
};

namespace cpu {

// Rows [begin, end). An element's bits depend on the element and its bias alone.
void bias_gelu(const BiasGeluParams& params, int64_t begin, int64_t end);

}  // namespace cpu

#if defined(LPD_CUDA)
namespace cuda {

// All rows, on `stream`; bits as above.
cudaError_t bias_gelu(const BiasGeluParams& params, cudaStream_t stream);

}  // namespace cuda
#endif
}  // namespace lpd
