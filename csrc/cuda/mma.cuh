// The tensor cores' product of 16-bit elements.
#pragma once

#include <type_traits>

#include "elements.cuh"
#include "primitives.cuh"

namespace lpd::cuda {

// d += a b, of elements T.
template <class T>
__device__ __forceinline__ void multiply_add(const uint32_t (&a)[4],
                                             uint32_t b0,
                                             uint32_t b1,
                                             float (&d)[4]) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    simt::mma_bf16(d, a, b0, b1);
  } else {
    simt::mma_f16(d, a, b0, b1);
  }
}

}  // namespace lpd::cuda
