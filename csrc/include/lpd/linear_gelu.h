// linear_gelu: the first matrix product of an MLP and what stands behind it.
//   out = gelu(x weight^T + bias),  gelu as in lpd/bias_gelu.h,  sums in float32, rounded once
#pragma once

#include <cstdint>

#include "lpd/cuda_runtime.h"
#include "lpd/dtype.h"

namespace lpd {

struct LinearGeluParams {
  int64_t rows;
  int64_t in_features;  // a multiple of 8
  int64_t out_features;
  Dtype dtype;       // of x, weight and out: kBFloat16 or kFloat16
  Dtype bias_dtype;  // kFloat32 or that of x

  const void* x;       // [rows, in_features], contiguous
  const void* weight;  // [out_features, in_features], contiguous
  const void* bias;    // [out_features]; nullptr: none
  void* out;           // [rows, out_features], contiguous
};

namespace cpu {

// Rows [begin, end). A row's bits depend on the row, weight and bias alone.
void linear_gelu(const LinearGeluParams& params, int64_t begin, int64_t end);

}  // namespace cpu

#if defined(LPD_CUDA)
namespace cuda {

// All rows, on `stream`; bits as above.
cudaError_t linear_gelu(const LinearGeluParams& params, cudaStream_t stream);

}  // namespace cuda
#endif
}  // namespace lpd
