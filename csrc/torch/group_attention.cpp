// Binding of group_attention.
#include "lpd/group_attention.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <utility>

#include "attention.h"
#include "checks.h"
#include "cuda_launch.h"
#include "cuda_variant.h"
#include "library.h"
#include "workspace.h"

namespace lpd::binding {
namespace {

constexpr const char* kOp = "group_attention";

// What an image's rows and keys are: numbers for all, or in the ragged form tensors [batch].
struct Lengths {
  int64_t cache_len = 0;
  int64_t context_len = 0;
  const Tensor* cache_lens = nullptr;
  const Tensor* context_lens = nullptr;
  const Tensor* q_lens = nullptr;
};

const int32_t* checked_lengths(const Tensor* lengths, int64_t batch, const char* argument) {
  if (lengths == nullptr) return nullptr;
  check_dtype(*lengths, ScalarType::Int, kOp, argument);
  check_shape(*lengths, {batch}, kOp, argument);
  STD_TORCH_CHECK(lengths->is_contiguous(), kOp, ": argument `", argument, "`: must be contiguous");
  return lengths->const_data_ptr<int32_t>();
}

// Checks everything but devices and `out`.
GroupAttentionParams checked_params(const Tensor& qkv,
                                    const Tensor& k_cache,
                                    const Tensor& v_cache,
                                    const Lengths& lengths,
                                    double scale) {
  check_shape(qkv, {-1, -1, 3, -1, -1}, kOp, "qkv");
  const int64_t batch = qkv.size(0), q_len = qkv.size(1);
  const int64_t num_heads = qkv.size(3), head_dim = qkv.size(4);
  check_head_dim(head_dim, kOp, "qkv");
  STD_TORCH_CHECK(
      qkv.numel() == 0 || (qkv.stride(4) == 1 && (num_heads == 1 || qkv.stride(3) == head_dim) &&
                           qkv.stride(2) == num_heads * head_dim),
      kOp, ": argument `qkv`: the last three dimensions must be contiguous");
  const Dtype dtype = float_dtype(qkv, kOp, "qkv");
  check_shape(k_cache, {batch, num_heads, -1, head_dim}, kOp, "k_cache");
  check_shape(v_cache, {batch, num_heads, k_cache.size(2), head_dim}, kOp, "v_cache");
  check_heads(k_cache, qkv.scalar_type(), kOp, "k_cache");
  check_heads(v_cache, qkv.scalar_type(), kOp, "v_cache");
  STD_TORCH_CHECK(k_cache.numel() == 0 || k_cache.const_data_ptr() != v_cache.const_data_ptr(), kOp,
                  ": argument `v_cache`: must not overlap k_cache");
  const int64_t cache_len = lengths.cache_len, context_len = lengths.context_len;
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
      .cache_lens = checked_lengths(lengths.cache_lens, batch, "cache_len"),
      .context_lens = checked_lengths(lengths.context_lens, batch, "context_len"),
      .q_lens = checked_lengths(lengths.q_lens, batch, "q_len"),
      .qkv = qkv.const_data_ptr(),
      .k_cache = k_cache.mutable_data_ptr(),
      .v_cache = v_cache.mutable_data_ptr(),
      .out = nullptr,
      .qkv_batch_stride = qkv.stride(0),
      .qkv_row_stride = qkv.stride(1),
      .k_strides = strides_of(k_cache),
      .v_strides = strides_of(v_cache),
  };
}

// Every tensor of a call.
struct Tensors {
  const Tensor& qkv;
  const Tensor& k_cache;
  const Tensor& v_cache;
  const Tensor& out;
  const Lengths& lengths;

  // Calls function(tensor, name) for those that are only read.
  template <class Function>
  void for_each_input(const Function& function) const {
    function(qkv, "qkv");
    for (const auto& [tensor, name] : {std::pair(lengths.cache_lens, "cache_len"),
                                       {lengths.context_lens, "context_len"},
                                       {lengths.q_lens, "q_len"}}) {
      if (tensor != nullptr) function(*tensor, name);
    }
  }
};

#if !defined(SIMT_EMULATE)

struct OnCpu {
  static void check(const Tensor& tensor, const Tensor&, const char* argument) {
    check_cpu(tensor, kOp, argument);
  }

  static void run(const GroupAttentionParams& params, const Tensors&) {
    const int64_t cache_len = params.q_lens == nullptr ? params.cache_len : params.max_kv_len;
    const size_t bytes = cpu::group_attention_workspace_size(params);
    for_pairs(params.batch * params.num_heads, params.q_len, cache_len + params.q_len,
              params.head_dim, [&](int64_t begin, int64_t end) {
                cpu::group_attention(params, begin, end, workspace(bytes));
              });
  }
};

#endif
#if defined(LPD_CUDA)

struct OnCuda {
  static void check(const Tensor& tensor, const Tensor& first, const char* argument) {
    check_cuda(tensor, first, kOp, argument);
  }

  static void run(const GroupAttentionParams& params, const Tensors& tensors) {
    CudaLaunch launch(tensors.qkv);
    tensors.for_each_input(
        [&](const Tensor& tensor, const char* name) { launch.reads(tensor, name); });
    launch.updates(tensors.k_cache, "k_cache");
    launch.updates(tensors.v_cache, "v_cache");
    launch.writes(tensors.out, "out");
    const cuda::Arithmetic chosen = arithmetic();
    const Tensor workspace =
        launch.workspace(cuda::group_attention_workspace_size(params, chosen), tensors.qkv);
    check_launch(
        cuda::group_attention(params, chosen, static_cast<std::byte*>(workspace.mutable_data_ptr()),
                              launch.stream()),
        kOp);
  }
};

#endif

template <class Device>
void group_attention_into(const Tensors& tensors, double scale) {
  const auto& [qkv, k_cache, v_cache, out, lengths] = tensors;
  const auto check = [&](const Tensor& tensor, const char* name) {
    Device::check(tensor, qkv, name);
  };
  tensors.for_each_input(check);
  check(k_cache, "k_cache");
  check(v_cache, "v_cache");
  check(out, "out");
  GroupAttentionParams params = checked_params(qkv, k_cache, v_cache, lengths, scale);
  check_dtype(out, qkv.scalar_type(), kOp, "out");
  check_shape(out, {params.batch, params.q_len, params.num_heads * params.head_dim}, kOp, "out");
  STD_TORCH_CHECK(out.is_contiguous(), kOp, ": argument `out`: must be contiguous");
  params.out = out.mutable_data_ptr();
  Device::run(params, tensors);
}

template <class Device>
Tensor group_attention_new(const Tensor& qkv,
                           const Tensor& k_cache,
                           const Tensor& v_cache,
                           const Lengths& lengths,
                           double scale) {
  check_shape(qkv, {-1, -1, 3, -1, -1}, kOp, "qkv");
  Tensor out = torch::stable::new_empty(qkv, {qkv.size(0), qkv.size(1), qkv.size(3) * qkv.size(4)});
  group_attention_into<Device>({qkv, k_cache, v_cache, out, lengths}, scale);
  return out;
}

template <class Device>
Tensor group_attention(Tensor qkv,
                       Tensor k_cache,
                       Tensor v_cache,
                       int64_t cache_len,
                       int64_t context_len,
                       double scale) {
  const Lengths lengths{.cache_len = cache_len, .context_len = context_len};
  return group_attention_new<Device>(qkv, k_cache, v_cache, lengths, scale);
}

template <class Device>
void group_attention_out(Tensor qkv,
                         Tensor k_cache,
                         Tensor v_cache,
                         Tensor out,
                         int64_t cache_len,
                         int64_t context_len,
                         double scale) {
  const Lengths lengths{.cache_len = cache_len, .context_len = context_len};
  group_attention_into<Device>({qkv, k_cache, v_cache, out, lengths}, scale);
}

template <class Device>
Tensor group_attention_ragged(Tensor qkv,
                              Tensor k_cache,
                              Tensor v_cache,
                              Tensor cache_len,
                              Tensor context_len,
                              Tensor q_len,
                              double scale) {
  const Lengths lengths{.cache_lens = &cache_len, .context_lens = &context_len, .q_lens = &q_len};
  return group_attention_new<Device>(qkv, k_cache, v_cache, lengths, scale);
}

template <class Device>
void group_attention_ragged_out(Tensor qkv,
                                Tensor k_cache,
                                Tensor v_cache,
                                Tensor out,
                                Tensor cache_len,
                                Tensor context_len,
                                Tensor q_len,
                                double scale) {
  const Lengths lengths{.cache_lens = &cache_len, .context_lens = &context_len, .q_lens = &q_len};
  group_attention_into<Device>({qkv, k_cache, v_cache, out, lengths}, scale);
}

template <class Device>
void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("group_attention", TORCH_BOX(&group_attention<Device>));
  m.impl("group_attention.out", TORCH_BOX(&group_attention_out<Device>));
  m.impl("group_attention.ragged", TORCH_BOX(&group_attention_ragged<Device>));
  m.impl("group_attention.ragged_out", TORCH_BOX(&group_attention_ragged_out<Device>));
}

}  // namespace

#if !defined(SIMT_EMULATE)
STABLE_TORCH_LIBRARY_IMPL(lpd_ext, CPU, m) { implement<OnCpu>(m); }
#endif
#if defined(LPD_CUDA)
LPD_TORCH_LIBRARY_IMPL(LPD_LIBRARY, LPD_CUDA_KEY, m) { implement<OnCuda>(m); }
#endif

}  // namespace lpd::binding
