// Binding of linear_gelu.
#include "lpd/linear_gelu.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "checks.h"
#include "cuda_launch.h"
#include "library.h"

namespace lpd::binding {
namespace {

constexpr const char* kOp = "linear_gelu";

// Checks everything but devices.
LinearGeluParams checked_params(const Tensor& x,
                                const Tensor& weight,
                                const std::optional<Tensor>& bias,
                                const Tensor& out) {
  STD_TORCH_CHECK(x.dim() >= 1, kOp, ": argument `x`: expected [..., in_features]");
  const int64_t in_features = x.size(-1);
  const Dtype dtype = float_dtype(x, kOp, "x");
  STD_TORCH_CHECK(dtype != Dtype::kFloat32, kOp,
                  ": argument `x`: expected BFloat16 or Half, got Float");
  STD_TORCH_CHECK(in_features > 0 && in_features % 8 == 0, kOp,
                  ": argument `x`: expected in_features that are a multiple of 8, got ",
                  in_features);
  check_dtype(weight, x.scalar_type(), kOp, "weight");
  check_shape(weight, {-1, in_features}, kOp, "weight");
  const int64_t out_features = weight.size(0), rows = x.numel() / in_features;
  check_dtype(out, x.scalar_type(), kOp, "out");
  bool same_shape = out.dim() == x.dim() && out.size(-1) == out_features;
  for (int64_t dim = 0; same_shape && dim + 1 < x.dim(); ++dim) {
    same_shape = out.size(dim) == x.size(dim);
  }
  STD_TORCH_CHECK(same_shape, kOp, ": argument `out`: expected [..., out_features]");
  STD_TORCH_CHECK(x.is_contiguous(), kOp, ": argument `x`: must be contiguous");
  STD_TORCH_CHECK(weight.is_contiguous(), kOp, ": argument `weight`: must be contiguous");
  STD_TORCH_CHECK(out.is_contiguous(), kOp, ": argument `out`: must be contiguous");
  return {
      .rows = rows,
      .in_features = in_features,
      .out_features = out_features,
      .dtype = dtype,
      .bias_dtype = bias ? check_bias(*bias, out_features, x.scalar_type(), kOp, "bias") : dtype,
      .x = x.const_data_ptr(),
      .weight = weight.const_data_ptr(),
      .bias = bias ? bias->const_data_ptr() : nullptr,
      .out = out.mutable_data_ptr(),
  };
}

#if !defined(SIMT_EMULATE)

struct OnCpu {
  static void check(const Tensor& tensor, const Tensor&, const char* argument) {
    check_cpu(tensor, kOp, argument);
  }

  static void run(const Tensor& x,
                  const Tensor& weight,
                  const std::optional<Tensor>& bias,
                  const Tensor& out) {
    const LinearGeluParams params = checked_params(x, weight, bias, out);
    // A task reads all weights, so it wants rows to share them.
    constexpr int64_t kRowsPerTask = 4;
    torch::stable::parallel_for(0, params.rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
      cpu::linear_gelu(params, begin, end);
    });
  }
};

#endif
#if defined(LPD_CUDA)

struct OnCuda {
  static void check(const Tensor& tensor, const Tensor& first, const char* argument) {
    check_cuda(tensor, first, kOp, argument);
  }

  static void run(const Tensor& x,
                  const Tensor& weight,
                  const std::optional<Tensor>& bias,
                  const Tensor& out) {
    const LinearGeluParams params = checked_params(x, weight, bias, out);
    CudaLaunch launch(x);
    launch.reads(x, "x");
    launch.reads(weight, "weight");
    if (bias) launch.reads(*bias, "bias");
    launch.writes(out, "out");
    check_launch(cuda::linear_gelu(params, launch.stream()), kOp);
  }
};

#endif

template <class Device>
void linear_gelu(Tensor x, Tensor weight, std::optional<Tensor> bias, Tensor out) {
  Device::check(x, x, "x");
  Device::check(weight, x, "weight");
  if (bias) Device::check(*bias, x, "bias");
  Device::check(out, x, "out");
  Device::run(x, weight, bias, out);
}

template <class Device>
void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("linear_gelu", TORCH_BOX(&linear_gelu<Device>));
}

}  // namespace

#if !defined(SIMT_EMULATE)
STABLE_TORCH_LIBRARY_IMPL(lpd_ext, CPU, m) { implement<OnCpu>(m); }
#endif
#if defined(LPD_CUDA)
LPD_TORCH_LIBRARY_IMPL(LPD_LIBRARY, LPD_CUDA_KEY, m) { implement<OnCuda>(m); }
#endif

}  // namespace lpd::binding
