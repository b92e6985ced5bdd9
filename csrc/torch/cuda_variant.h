// Which CUDA kernels run: read by the bindings at each call, set from Python.
#pragma once

#include "lpd/cuda_runtime.h"

#if defined(LPD_CUDA)

#include "lpd/attention.h"

namespace lpd::binding {

cuda::Arithmetic arithmetic();

}  // namespace lpd::binding

#endif
