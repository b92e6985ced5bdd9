// LPD_INLINE: a function inlined into every caller, so that one compiled for a wider instruction
// set gets it for that too; under nvcc also a device function.
#pragma once

#if defined(__CUDACC__)
#define LPD_INLINE __host__ __device__ __forceinline__
#else
#define LPD_INLINE __attribute__((always_inline)) inline
#endif
