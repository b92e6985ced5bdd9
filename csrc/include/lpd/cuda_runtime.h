// LPD_CUDA: whether this build has CUDA kernels. What their contracts say of CUDA, a stream and an
// error, comes from CUDA itself or, in the tests, from the emulator that runs kernels on the CPU.
#pragma once

#if defined(SIMT_EMULATE)
#define LPD_CUDA
#include "simt/cuda.h"
#elif defined(USE_CUDA) || defined(__CUDACC__)
#define LPD_CUDA
#include <cuda_runtime_api.h>
#endif
