// add_layer_norm: the residual stream between two layers of a pre-norm transformer. In float32:
//   x += delta + bias           where there is a delta
//   out = layer_norm(x)         rounded once, to the dtype of the next matrix product
#pragma once

#include <cstdint>

#include "lpd/cuda_runtime.h"
#include "lpd/dtype.h"
#include "lpd/layer_norm.h"

namespace lpd {

struct AddLayerNormParams {
  int64_t batch;
  int64_t rows;  // of an image
  int64_t dim;   // a multiple of 16, at most kMaxNormDim
  float norm_eps;
  Dtype delta_dtype;
  Dtype bias_dtype;  // kFloat32 or that of delta
  Dtype out_dtype;

  float* x;                  // [batch, rows, dim]
  const void* delta;         // likewise; nullptr: x stays as it is
  const void* bias;          // [dim]; nullptr: none
  const float* norm_weight;  // [dim]
  const float* norm_bias;    // [dim]
  void* out;                 // [batch, rows, dim]

  int64_t x_batch_stride;
  int64_t x_row_stride;
  int64_t delta_batch_stride;
  int64_t delta_row_stride;
  int64_t out_batch_stride;
  int64_t out_row_stride;
};

namespace cpu {

// Rows [begin, end) of batch * rows. A row's bits depend on the row alone.
void add_layer_norm(const AddLayerNormParams& params, int64_t begin, int64_t end);

}  // namespace cpu

#if defined(LPD_CUDA)
namespace cuda {

// All rows, on `stream`; bits as above.
cudaError_t add_layer_norm(const AddLayerNormParams& params, cudaStream_t stream);

}  // namespace cuda
#endif
}  // namespace lpd
