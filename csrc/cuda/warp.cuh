// Reductions over the lanes of a warp; every lane receives the result.
#pragma once

#include "primitives.cuh"

namespace lpd::cuda {

constexpr unsigned kWholeWarp = 0xffffffffu;

__device__ __forceinline__ float largest_of_warp(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, step));
  return x;
}

// Rounded once: its error is that of a whole row.
__device__ __forceinline__ float sum_of_warp(double x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kWholeWarp, x, step);
  return static_cast<float>(x);
}

}  // namespace lpd::cuda
