// Binding of group_attention.
#include "lpd/group_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <utility>

#include "checks.h"
#include "workspace.h"

namespace lpd::binding {
namespace {

constexpr const char* kOp = "group_attention";

CacheStrides cache_strides(const Tensor& cache) {
  return {.batch = cache.stride(0), .head = cache.stride(1), .row = cache.stride(2)};
}

// Checks everything but `out`.
GroupAttentionParams checked_params(const Tensor& qkv,
                                    const Tensor& k_cache,
                                    const Tensor& v_cache,
                                    int64_t cache_len,
                                    int64_t context_len,
                                    double scale) {
  check_cpu(qkv, kOp, "qkv");
  check_shape(qkv, {-1, -1, 3, -1, -1}, kOp, "qkv");
  const int64_t batch = qkv.size(0), q_len = qkv.size(1);
  const int64_t num_heads = qkv.size(3), head_dim = qkv.size(4);
  STD_TORCH_CHECK(head_dim % 16 == 0, kOp,
                  ": argument `qkv`: expected a head_dim that is a multiple of 16, got ", head_dim);
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

  return {
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
      .out = nullptr,
      .qkv_batch_stride = qkv.stride(0),
      .qkv_row_stride = qkv.stride(1),
      .k_strides = cache_strides(k_cache),
      .v_strides = cache_strides(v_cache),
  };
}

void run(const GroupAttentionParams& params) {
  // A thread is worth waking for about 20 us of work. Padding makes small pairs dearer than their
  // products.
  constexpr int64_t kProductsPerTask = int64_t{1} << 20;
  const int64_t kv_len = params.cache_len + params.q_len;
  const int64_t products = (params.q_len + 16) * (kv_len + 8) * params.head_dim * 2;
  const int64_t grain_size = kProductsPerTask / (products + 1) + 1;
  torch::stable::parallel_for(
      0, params.batch * params.num_heads, grain_size, [&](int64_t begin, int64_t end) {
        cpu::group_attention(params, begin, end,
                             workspace(cpu::group_attention_workspace_size(params)));
      });
}

Tensor group_attention_cpu(Tensor qkv,
                           Tensor k_cache,
                           Tensor v_cache,
                           int64_t cache_len,
                           int64_t context_len,
                           double scale) {
  GroupAttentionParams params =
      checked_params(qkv, k_cache, v_cache, cache_len, context_len, scale);
  Tensor out = torch::stable::new_empty(
      qkv, {params.batch, params.q_len, params.num_heads * params.head_dim});
  params.out = out.mutable_data_ptr();
  run(params);
  return out;
}

void group_attention_out_cpu(Tensor qkv,
                             Tensor k_cache,
                             Tensor v_cache,
                             Tensor out,
                             int64_t cache_len,
                             int64_t context_len,
                             double scale) {
  GroupAttentionParams params =
      checked_params(qkv, k_cache, v_cache, cache_len, context_len, scale);
  check_cpu(out, kOp, "out");
  check_dtype(out, qkv.scalar_type(), kOp, "out");
  check_shape(out, {params.batch, params.q_len, params.num_heads * params.head_dim}, kOp, "out");
  STD_TORCH_CHECK(out.is_contiguous(), kOp, ": argument `out`: must be contiguous");
  params.out = out.mutable_data_ptr();
  run(params);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lpd_ext, CPU, m) {
  m.impl("group_attention", TORCH_BOX(&group_attention_cpu));
  m.impl("group_attention.out", TORCH_BOX(&group_attention_out_cpu));
}

}  // namespace lpd::binding
