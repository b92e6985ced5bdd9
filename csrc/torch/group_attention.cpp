// Binding of group_attention.
#include "lpd/group_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <memory>
#include <utility>

#include "checks.h"

namespace lpd::binding {
namespace {

constexpr const char* kOp = "group_attention";

CacheStrides cache_strides(const Tensor& cache) {
  return {.batch = cache.stride(0), .head = cache.stride(1), .row = cache.stride(2)};
}

Tensor group_attention_cpu(Tensor qkv,
                           Tensor k_cache,
                           Tensor v_cache,
                           int64_t cache_len,
                           int64_t context_len,
                           double scale) {
  check_cpu(qkv, kOp, "qkv");
  check_shape(qkv, {-1, -1, 3, -1, -1}, kOp, "qkv");
  const int64_t batch = qkv.size(0), q_len = qkv.size(1);
  const int64_t num_heads = qkv.size(3), head_dim = qkv.size(4);
  STD_TORCH_CHECK(
      qkv.numel() == 0 || (qkv.stride(4) == 1 && (num_heads == 1 || qkv.stride(3) == head_dim) &&
                           qkv.stride(2) == num_heads * head_dim),
      kOp, ": argument `qkv`: the last three dimensions must be contiguous");
  const Dtype dtype = float_dtype(qkv, kOp, "qkv");
  check_shape(k_cache, {batch, num_heads, -1, head_dim}, kOp, "k_cache");
  check_shape(v_cache, {batch, num_heads, k_cache.size(2), head_dim}, kOp, "v_cache");
  for (const auto& [cache, argument] : {std::pair(&k_cache, "k_cache"), {&v_cache, "v_cache"}}) {
    check_cpu(*cache, kOp, argument);
    check_dtype(*cache, qkv.scalar_type(), kOp, argument);
    STD_TORCH_CHECK(cache->numel() == 0 || cache->stride(3) == 1, kOp, ": argument `", argument,
                    "`: head_dim must be contiguous");
  }
  STD_TORCH_CHECK(k_cache.numel() == 0 || k_cache.const_data_ptr() != v_cache.const_data_ptr(), kOp,
                  ": argument `v_cache`: must not overlap k_cache");
  STD_TORCH_CHECK(cache_len >= 0 && context_len >= 0 && context_len <= q_len &&
                      cache_len <= k_cache.size(2) - context_len,
                  kOp, ": cache_len ", cache_len, " and context_len ", context_len,
                  " do not fit q_len ", q_len, " and max_kv_len ", k_cache.size(2));

  Tensor out = torch::stable::new_empty(qkv, {batch, q_len, num_heads * head_dim});
  const GroupAttentionParams params{
      .batch = batch,
      .q_len = q_len,
      .num_heads = num_heads,
      .head_dim = head_dim,
      .max_kv_len = k_cache.size(2),
      .cache_len = cache_len,
      .context_len = context_len,
      .scale = static_cast<float>(scale),
      .dtype = dtype,
      .qkv = qkv.const_data_ptr(),
      .k_cache = k_cache.mutable_data_ptr(),
      .v_cache = v_cache.mutable_data_ptr(),
      .out = out.mutable_data_ptr(),
      .qkv_batch_stride = qkv.stride(0),
      .qkv_row_stride = qkv.stride(1),
      .k_strides = cache_strides(k_cache),
      .v_strides = cache_strides(v_cache),
  };
  torch::stable::parallel_for(
      0, batch * num_heads, /*grain_size=*/1, [&](int64_t begin, int64_t end) {
        const auto workspace =
            std::make_unique_for_overwrite<float[]>(cpu::group_attention_workspace_size(params));
        cpu::group_attention(params, begin, end, workspace.get());
      });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lpd_ext, CPU, m) {
  m.impl("group_attention", TORCH_BOX(&group_attention_cpu));
}

}  // namespace lpd::binding
