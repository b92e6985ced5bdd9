// CUDA's spelling for a compiler of plain C++20: what <cuda_runtime.h> is to nvcc, this is to g++
// when a kernel's source is built for the runtime in tests/simt. Ordinary host files may include it
// too, after the standard library's headers.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

#include "simt/atomics.h"
#include "simt/device.h"
#include "simt/intrinsics.h"
#include "simt/primitives.h"
#include "simt/types.h"

// A variable of the block's shared memory: SIMT_SHARED(float, tile, [32][33]).
#define SIMT_SHARED(type, name, ...)                                                \
  static const char name##_key_ = 0;                                                \
  using name##_type_ = type __VA_ARGS__;                                            \
  name##_type_& name = *static_cast<name##_type_*>(::simt::device::shared_variable( \
      &name##_key_, sizeof(name##_type_), alignof(name##_type_), #name))
// The bytes that the launch asked for, as unsigned char*.
#define SIMT_DYN_SHARED(name) \
  unsigned char* name = static_cast<unsigned char*>(::simt::device::dynamic_shared())
// SIMT_LAUNCH((kernel<T>), grid, block, dynamic_bytes, stream, arguments...). A launch returns when
// the kernel has; arguments are evaluated once, as by <<<>>>.
#define SIMT_LAUNCH(kernel, grid, block, dynamic_bytes, stream, ...)                            \
  (static_cast<void>(stream),                                                                   \
   ::simt::device::launch(#kernel, grid, block, dynamic_bytes,                                  \
                          ::simt::device::bind(SIMT_UNPAREN kernel __VA_OPT__(, ) __VA_ARGS__), \
                          ::simt::Site::here()))
#define SIMT_UNPAREN(...) __VA_ARGS__
