// Binding of masked_attention.
#include "lpd/masked_attention.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "attention.h"
#include "checks.h"
#include "cuda_launch.h"
#include "cuda_variant.h"
#include "library.h"
#include "workspace.h"

namespace lpd::binding {
namespace {

constexpr const char* kOp = "masked_attention";

// Every tensor of a call.
struct Tensors {
  const Tensor& q;
  const Tensor& k;
  const Tensor& v;
  const Tensor& mask;
  const Tensor& out;

  // Calls function(tensor, name) for those that are only read.
  template <class Function>
  void for_each_input(const Function& function) const {
    function(q, "q");
    function(k, "k");
    function(v, "v");
    function(mask, "mask");
  }
};

// Fills in the mask, in whichever of its four forms it comes.
void take_mask(const Tensor& mask, MaskedAttentionParams& params) {
  const bool is_prefix = mask.scalar_type() == ScalarType::Int;
  if (!is_prefix) check_dtype(mask, ScalarType::Bool, kOp, "mask");
  const int64_t row_dims = is_prefix ? 1 : 2;
  const bool has_batch = mask.dim() == row_dims + 1;
  const int64_t row = has_batch ? 1 : 0;
  if (is_prefix && has_batch) {
    check_shape(mask, {params.batch, params.q_len}, kOp, "mask");
  } else if (is_prefix) {
    check_shape(mask, {params.q_len}, kOp, "mask");
  } else if (has_batch) {
    check_shape(mask, {params.batch, params.q_len, params.kv_len}, kOp, "mask");
  } else {
    check_shape(mask, {params.q_len, params.kv_len}, kOp, "mask");
  }
  STD_TORCH_CHECK(is_prefix || mask.numel() == 0 || mask.stride(row + 1) == 1, kOp,
                  ": argument `mask`: kv_len must be contiguous");
  params.mask_batch_stride = has_batch ? mask.stride(0) : 0;
  params.mask_row_stride = mask.stride(row);
  if (is_prefix) {
    params.prefix_lens = mask.const_data_ptr<int32_t>();
  } else {
    params.mask = static_cast<const uint8_t*>(mask.const_data_ptr());
  }
}

// Checks everything but devices.
MaskedAttentionParams checked_params(const Tensors& tensors, double scale) {
  const auto& [q, k, v, mask, out] = tensors;
  check_shape(q, {-1, -1, -1, -1}, kOp, "q");
  const int64_t batch = q.size(0), num_heads = q.size(1), q_len = q.size(2), head_dim = q.size(3);
  check_head_dim(head_dim, kOp, "q");
  const Dtype dtype = float_dtype(q, kOp, "q");
  check_shape(k, {batch, num_heads, -1, head_dim}, kOp, "k");
  check_shape(v, {batch, num_heads, k.size(2), head_dim}, kOp, "v");
  check_heads(q, q.scalar_type(), kOp, "q");
  check_heads(k, q.scalar_type(), kOp, "k");
  check_heads(v, q.scalar_type(), kOp, "v");
  check_dtype(out, q.scalar_type(), kOp, "out");
  check_shape(out, {batch, num_heads, q_len, head_dim}, kOp, "out");
  STD_TORCH_CHECK(out.is_contiguous(), kOp, ": argument `out`: must be contiguous");

  MaskedAttentionParams params = {
      .batch = batch,
      .num_heads = num_heads,
      .q_len = q_len,
      .kv_len = k.size(2),
      .head_dim = head_dim,
      .scale = static_cast<float>(scale),
      .dtype = dtype,
      .q = q.const_data_ptr(),
      .k = k.const_data_ptr(),
      .v = v.const_data_ptr(),
      .prefix_lens = nullptr,
      .mask = nullptr,
      .out = out.mutable_data_ptr(),
      .q_strides = strides_of(q),
      .k_strides = strides_of(k),
      .v_strides = strides_of(v),
      .mask_batch_stride = 0,
      .mask_row_stride = 0,
  };
  take_mask(mask, params);
  return params;
}

#if !defined(SIMT_EMULATE)

struct OnCpu {
  static void check(const Tensor& tensor, const Tensor&, const char* argument) {
    check_cpu(tensor, kOp, argument);
  }

  static void run(const MaskedAttentionParams& params, const Tensors&) {
    const size_t bytes = cpu::masked_attention_workspace_size(params);
    for_pairs(params.batch * params.num_heads, params.q_len, params.kv_len, params.head_dim,
              [&](int64_t begin, int64_t end) {
                cpu::masked_attention(params, begin, end, workspace(bytes));
              });
  }
};

#endif
#if defined(LPD_CUDA)

struct OnCuda {
  static void check(const Tensor& tensor, const Tensor& first, const char* argument) {
    check_cuda(tensor, first, kOp, argument);
  }

  static void run(const MaskedAttentionParams& params, const Tensors& tensors) {
    CudaLaunch launch(tensors.q);
    tensors.for_each_input(
        [&](const Tensor& tensor, const char* name) { launch.reads(tensor, name); });
    launch.writes(tensors.out, "out");
    const cuda::Arithmetic chosen = arithmetic();
    const Tensor workspace =
        launch.workspace(cuda::masked_attention_workspace_size(params, chosen), tensors.q);
    check_launch(
        cuda::masked_attention(
            params, chosen, static_cast<std::byte*>(workspace.mutable_data_ptr()), launch.stream()),
        kOp);
  }
};

#endif

template <class Device>
void masked_attention_into(const Tensors& tensors, double scale) {
  const auto check = [&](const Tensor& tensor, const char* name) {
    Device::check(tensor, tensors.q, name);
  };
  tensors.for_each_input(check);
  check(tensors.out, "out");
  Device::run(checked_params(tensors, scale), tensors);
}

template <class Device>
Tensor masked_attention(Tensor q, Tensor k, Tensor v, Tensor mask, double scale) {
  check_shape(q, {-1, -1, -1, -1}, kOp, "q");
  const Tensor out = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2), q.size(3)});
  masked_attention_into<Device>({q, k, v, mask, out}, scale);
  return out;
}

template <class Device>
void masked_attention_out(Tensor q, Tensor k, Tensor v, Tensor mask, Tensor out, double scale) {
  masked_attention_into<Device>({q, k, v, mask, out}, scale);
}

template <class Device>
void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("masked_attention", TORCH_BOX(&masked_attention<Device>));
  m.impl("masked_attention.out", TORCH_BOX(&masked_attention_out<Device>));
}

}  // namespace

#if !defined(SIMT_EMULATE)
STABLE_TORCH_LIBRARY_IMPL(lpd_ext, CPU, m) { implement<OnCpu>(m); }
#endif
#if defined(LPD_CUDA)
LPD_TORCH_LIBRARY_IMPL(LPD_LIBRARY, LPD_CUDA_KEY, m) { implement<OnCuda>(m); }
#endif

}  // namespace lpd::binding
