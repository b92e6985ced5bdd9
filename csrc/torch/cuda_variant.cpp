// The functions behind lpd_ext/cuda_variant.py.
#include "cuda_variant.h"

#if defined(LPD_CUDA)

#include <atomic>

#define LPD_EXPORT extern "C" __attribute__((visibility("default")))

namespace lpd::binding {
namespace {

std::atomic<cuda::Arithmetic> chosen{cuda::Arithmetic::kTensorCores};

}  // namespace

cuda::Arithmetic arithmetic() { return chosen.load(std::memory_order_relaxed); }

LPD_EXPORT int lpd_ext_cuda_variant() { return static_cast<int>(arithmetic()); }

LPD_EXPORT void lpd_ext_set_cuda_variant(int variant) {
  chosen.store(static_cast<cuda::Arithmetic>(variant), std::memory_order_relaxed);
}

}  // namespace lpd::binding

#endif
