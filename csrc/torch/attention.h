// What the bindings of attention share.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "checks.h"
#include "lpd/attention.h"

namespace lpd::binding {

// What the kernels take at a time.
inline void check_head_dim(int64_t head_dim, const char* op, const char* argument) {
  STD_TORCH_CHECK(head_dim % 16 == 0, op, ": argument `", argument,
                  "`: expected a head_dim that is a multiple of 16, got ", head_dim);
}

// Rows of heads: [batch, num_heads, rows, head_dim].
inline void check_heads(const Tensor& tensor,
                        ScalarType dtype,
                        const char* op,
                        const char* argument) {
  check_dtype(tensor, dtype, op, argument);
  STD_TORCH_CHECK(tensor.numel() == 0 || tensor.stride(3) == 1, op, ": argument `", argument,
                  "`: head_dim must be contiguous");
}

inline AttentionStrides strides_of(const Tensor& tensor) {
  return {.batch = tensor.stride(0), .head = tensor.stride(1), .row = tensor.stride(2)};
}

// Calls function(begin, end) for ranges of (image, head) pairs on the threads of torch. A thread is
// worth waking for about 20 us of work; padding makes small pairs dearer than their products.
template <class Function>
void for_pairs(int64_t pairs,
               int64_t q_len,
               int64_t kv_len,
               int64_t head_dim,
               const Function& function) {
  constexpr int64_t kProductsPerTask = int64_t{1} << 20;
  const int64_t products = (q_len + 16) * (kv_len + 8) * head_dim * 2;
  torch::stable::parallel_for(0, pairs, kProductsPerTask / (products + 1) + 1, function);
}

}  // namespace lpd::binding
