// The bias of a linear layer: float32, or in the dtype of what it is added to.
#pragma once

#include "elements.cuh"
#include "lpd/dtype.h"
#include "primitives.cuh"

namespace lpd::cuda {

// Adds elements [first, first + count) of a bias, if there is one.
template <class T, int kCount>
__device__ __forceinline__ void add_bias(const void* bias,
                                         Dtype dtype,
                                         int64_t first,
                                         bool aligned,
                                         float (&values)[kCount],
                                         int count = kCount) {
  if (bias == nullptr) return;
  float added[kCount] = {};
  if (dtype == Dtype::kFloat32) {
    load_values(static_cast<const float*>(bias) + first, aligned, added, count);
  } else {
    load_values(static_cast<const T*>(bias) + first, aligned, added, count);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] += added[i];
}

}  // namespace lpd::cuda
