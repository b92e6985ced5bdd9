// GELU by the error function, exact.
#pragma once

#include <cmath>

#include "primitives.cuh"

namespace lpd::cuda {

__device__ __forceinline__ float gelu(float x) {
  const float half = 0.5f * x;
  return fmaf(half, erff(x * 0.70710678f), half);
}

}  // namespace lpd::cuda
