// Names under which operators are registered: lpd_ext, and in the tests lpd_ext_simt, whose
// operators run the CUDA kernels in an emulator, on tensors of the CPU.
#pragma once

#include <torch/csrc/stable/library.h>

#include "lpd/cuda_runtime.h"

#if defined(SIMT_EMULATE)
#if !defined(LPD_LIBRARY)
#define LPD_LIBRARY lpd_ext_simt
#endif
#define LPD_CUDA_KEY CPU
#else
#define LPD_LIBRARY lpd_ext
#define LPD_CUDA_KEY CUDA
#endif

// torch's macros make names of their arguments: these expand them first.
#define LPD_TORCH_LIBRARY(name, m) STABLE_TORCH_LIBRARY(name, m)
#define LPD_TORCH_LIBRARY_IMPL(name, key, m) STABLE_TORCH_LIBRARY_IMPL(name, key, m)
