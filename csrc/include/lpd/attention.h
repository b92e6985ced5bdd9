// What the kernels of attention share.
#pragma once

#include <cstdint>

#include "lpd/dtype.h"

namespace lpd {

// Of [batch, num_heads, rows, head_dim], in elements; head_dim itself is contiguous.
struct AttentionStrides {
  int64_t batch;
  int64_t head;
  int64_t row;
};

namespace cuda {

enum class Arithmetic {
  kFloat32,
  kTensorCores  // of bfloat16 and float16: weights are rounded before they meet the values
};

inline bool use_tensor_cores(Arithmetic arithmetic, Dtype dtype) {
  return arithmetic == Arithmetic::kTensorCores && dtype != Dtype::kFloat32;
}

}  // namespace cuda
}  // namespace lpd
