// Binding of bias_gelu.
#include "lpd/bias_gelu.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#include "checks.h"
#include "cuda_launch.h"
#include "library.h"

namespace lpd::binding {
namespace {

constexpr const char* kOp = "bias_gelu";

// Checks everything but devices.
BiasGeluParams checked_params(const Tensor& x,
                              const std::optional<Tensor>& bias,
                              const Tensor& out) {
  STD_TORCH_CHECK(x.dim() >= 1, kOp, ": argument `x`: expected [..., features]");
  const int64_t features = x.size(-1);
  const Dtype dtype = float_dtype(x, kOp, "x");
  check_dtype(out, x.scalar_type(), kOp, "out");
  bool same_shape = out.dim() == x.dim();
  for (int64_t dim = 0; same_shape && dim < x.dim(); ++dim) {
    same_shape = out.size(dim) == x.size(dim);
  }
  STD_TORCH_CHECK(same_shape, kOp, ": argument `out`: expected the shape of x");
  STD_TORCH_CHECK(x.is_contiguous(), kOp, ": argument `x`: must be contiguous");
  STD_TORCH_CHECK(out.is_contiguous(), kOp, ": argument `out`: must be contiguous");
  return {
      .rows = features == 0 ? 0 : x.numel() / features,
      .features = features,
      .dtype = dtype,
      .bias_dtype = bias ? check_bias(*bias, features, x.scalar_type(), kOp, "bias") : dtype,
      .x = x.const_data_ptr(),
      .bias = bias ? bias->const_data_ptr() : nullptr,
      .out = out.mutable_data_ptr(),
  };
}

#if !defined(SIMT_EMULATE)

struct OnCpu {
  static void check(const Tensor& tensor, const Tensor&, const char* argument) {
    check_cpu(tensor, kOp, argument);
  }

  static void run(const Tensor& x, const std::optional<Tensor>& bias, const Tensor& out) {
    const BiasGeluParams params = checked_params(x, bias, out);
    // A thread is worth waking for about so many elements.
    constexpr int64_t kElementsPerTask = 8192;
    const int64_t grain_size = kElementsPerTask / (params.features + 1) + 1;
    torch::stable::parallel_for(0, params.rows, grain_size, [&](int64_t begin, int64_t end) {
      cpu::bias_gelu(params, begin, end);
    });
  }
};

#endif
#if defined(LPD_CUDA)

struct OnCuda {
  static void check(const Tensor& tensor, const Tensor& first, const char* argument) {
    check_cuda(tensor, first, kOp, argument);
  }

  static void run(const Tensor& x, const std::optional<Tensor>& bias, const Tensor& out) {
    const BiasGeluParams params = checked_params(x, bias, out);
    CudaLaunch launch(x);
    if (bias) launch.reads(*bias, "bias");
    if (params.x == params.out) {
      launch.updates(x, "x");
    } else {
      launch.reads(x, "x");
      launch.writes(out, "out");
    }
    check_launch(cuda::bias_gelu(params, launch.stream()), kOp);
  }
};

#endif

template <class Device>
void bias_gelu(Tensor x, std::optional<Tensor> bias, Tensor out) {
  Device::check(x, x, "x");
  if (bias) Device::check(*bias, x, "bias");
  Device::check(out, x, "out");
  Device::run(x, bias, out);
}

template <class Device>
void bias_gelu_inplace(Tensor x, std::optional<Tensor> bias) {
  bias_gelu<Device>(x, bias, x);
}

template <class Device>
void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("bias_gelu", TORCH_BOX(&bias_gelu<Device>));
  m.impl("bias_gelu.inplace", TORCH_BOX(&bias_gelu_inplace<Device>));
}

}  // namespace

#if !defined(SIMT_EMULATE)
STABLE_TORCH_LIBRARY_IMPL(lpd_ext, CPU, m) { implement<OnCpu>(m); }
#endif
#if defined(LPD_CUDA)
LPD_TORCH_LIBRARY_IMPL(LPD_LIBRARY, LPD_CUDA_KEY, m) { implement<OnCuda>(m); }
#endif

}  // namespace lpd::binding
