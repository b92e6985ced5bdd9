// What CUDA kernels of attention compute with.
#pragma once

namespace lpd::cuda {

enum class Arithmetic {
  kFloat32,
  kTensorCores  // of bfloat16 and float16: weights are rounded before they meet the values
};

}  // namespace lpd::cuda
