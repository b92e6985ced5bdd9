// What the bindings refuse: anything that would read or write outside a tensor. The Python
// functions raise the typed errors first; these guard direct calls of torch.ops.lpd_ext.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>

#include "lpd/dtype.h"
#include "lpd/layer_norm.h"

namespace lpd::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A size of -1 stands for any.
inline void check_shape(const Tensor& tensor,
                        std::initializer_list<int64_t> shape,
                        const char* op,
                        const char* argument) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t dim = 0;
  for (const int64_t size : shape) {
    if (!same) break;
    same = size == -1 || tensor.size(dim) == size;
    ++dim;
  }
  STD_TORCH_CHECK(same, op, ": argument `", argument, "`: unexpected shape");
}

inline void check_dtype(const Tensor& tensor,
                        ScalarType dtype,
                        const char* op,
                        const char* argument) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, op, ": argument `", argument, "`: expected ",
                  torch::headeronly::toString(dtype), ", got ",
                  torch::headeronly::toString(tensor.scalar_type()));
}

inline Dtype float_dtype(const Tensor& tensor, const char* op, const char* argument) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      STD_TORCH_CHECK(false, op, ": argument `", argument,
                      "`: expected Float, BFloat16 or Half, got ",
                      torch::headeronly::toString(tensor.scalar_type()));
  }
}

inline void check_rows(const Tensor& tensor, const char* op, const char* argument) {
  STD_TORCH_CHECK(tensor.numel() == 0 || tensor.stride(-1) == 1, op, ": argument `", argument,
                  "`: the last dimension must be contiguous");
}

// Of rows that are normalised.
inline void check_norm_dim(int64_t dim, const char* op, const char* argument) {
  STD_TORCH_CHECK(dim >= 16 && dim <= kMaxNormDim && dim % 16 == 0, op, ": argument `", argument,
                  "`: expected a dim of at most ", kMaxNormDim, " that is a multiple of 16, got ",
                  dim);
}

// A bias [features] comes in float32 or in the dtype of what it is added to.
inline Dtype check_bias(const Tensor& bias,
                        int64_t features,
                        ScalarType added_to,
                        const char* op,
                        const char* argument) {
  check_shape(bias, {features}, op, argument);
  if (bias.scalar_type() != ScalarType::Float) check_dtype(bias, added_to, op, argument);
  check_rows(bias, op, argument);
  return float_dtype(bias, op, argument);
}

inline void check_cpu(const Tensor& tensor, const char* op, const char* argument) {
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": argument `", argument, "`: expected a CPU tensor");
}

}  // namespace lpd::binding
