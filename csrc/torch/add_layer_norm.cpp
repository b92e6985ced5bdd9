// Binding of add_layer_norm.
#include "lpd/add_layer_norm.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#include "checks.h"
#include "cuda_launch.h"
#include "library.h"

namespace lpd::binding {
namespace {

constexpr const char* kOp = "add_layer_norm";

// Every tensor of a call.
struct Tensors {
  const Tensor& x;
  const std::optional<Tensor>& delta;
  const std::optional<Tensor>& bias;
  const Tensor& norm_weight;
  const Tensor& norm_bias;
  const Tensor& out;

  // Calls function(tensor, name) for those that are only read.
  template <class Function>
  void for_each_input(const Function& function) const {
    if (delta) function(*delta, "delta");
    if (bias) function(*bias, "bias");
    function(norm_weight, "norm_weight");
    function(norm_bias, "norm_bias");
  }
};

// Checks everything but devices.
AddLayerNormParams checked_params(const Tensors& tensors, double norm_eps) {
  const auto& [x, delta, bias, norm_weight, norm_bias, out] = tensors;
  check_shape(x, {-1, -1, -1}, kOp, "x");
  check_dtype(x, ScalarType::Float, kOp, "x");
  const int64_t batch = x.size(0), rows = x.size(1), dim = x.size(2);
  check_norm_dim(dim, kOp, "x");
  check_rows(x, kOp, "x");
  for (const Tensor* part : {&norm_weight, &norm_bias}) {
    check_shape(*part, {dim}, kOp, "norm");
    check_dtype(*part, ScalarType::Float, kOp, "norm");
    check_rows(*part, kOp, "norm");
  }
  check_shape(out, {batch, rows, dim}, kOp, "out");
  check_rows(out, kOp, "out");
  AddLayerNormParams params{
      .batch = batch,
      .rows = rows,
      .dim = dim,
      .norm_eps = static_cast<float>(norm_eps),
      .delta_dtype = Dtype::kFloat32,
      .bias_dtype = Dtype::kFloat32,
      .out_dtype = float_dtype(out, kOp, "out"),
      .x = x.mutable_data_ptr<float>(),
      .delta = nullptr,
      .bias = nullptr,
      .norm_weight = norm_weight.const_data_ptr<float>(),
      .norm_bias = norm_bias.const_data_ptr<float>(),
      .out = out.mutable_data_ptr(),
      .x_batch_stride = x.stride(0),
      .x_row_stride = x.stride(1),
      .delta_batch_stride = 0,
      .delta_row_stride = 0,
      .out_batch_stride = out.stride(0),
      .out_row_stride = out.stride(1),
  };
  if (delta) {
    check_shape(*delta, {batch, rows, dim}, kOp, "delta");
    check_rows(*delta, kOp, "delta");
    params.delta_dtype = float_dtype(*delta, kOp, "delta");
    params.delta = delta->const_data_ptr();
    params.delta_batch_stride = delta->stride(0);
    params.delta_row_stride = delta->stride(1);
  }
  if (bias) {
    STD_TORCH_CHECK(delta, kOp, ": argument `bias`: expected none without a delta");
    params.bias_dtype = check_bias(*bias, dim, delta->scalar_type(), kOp, "bias");
    params.bias = bias->const_data_ptr();
  }
  return params;
}

#if !defined(SIMT_EMULATE)

struct OnCpu {
  static void check(const Tensor& tensor, const Tensor&, const char* argument) {
    check_cpu(tensor, kOp, argument);
  }

  static void run(const AddLayerNormParams& params, const Tensors&) {
    // A thread is worth waking for about so many elements.
    constexpr int64_t kElementsPerTask = 16384;
    const int64_t grain_size = std::max<int64_t>(1, kElementsPerTask / params.dim);
    torch::stable::parallel_for(
        0, params.batch * params.rows, grain_size,
        [&](int64_t begin, int64_t end) { cpu::add_layer_norm(params, begin, end); });
  }
};

#endif
#if defined(LPD_CUDA)

struct OnCuda {
  static void check(const Tensor& tensor, const Tensor& first, const char* argument) {
    check_cuda(tensor, first, kOp, argument);
  }

  static void run(const AddLayerNormParams& params, const Tensors& tensors) {
    CudaLaunch launch(tensors.x);
    tensors.for_each_input(
        [&](const Tensor& tensor, const char* name) { launch.reads(tensor, name); });
    if (tensors.delta) {
      launch.updates(tensors.x, "x");
    } else {
      launch.reads(tensors.x, "x");
    }
    launch.writes(tensors.out, "out");
    check_launch(cuda::add_layer_norm(params, launch.stream()), kOp);
  }
};

#endif

template <class Device>
void add_layer_norm(Tensor x,
                    std::optional<Tensor> delta,
                    std::optional<Tensor> bias,
                    Tensor norm_weight,
                    Tensor norm_bias,
                    double norm_eps,
                    Tensor out) {
  const Tensors tensors{x, delta, bias, norm_weight, norm_bias, out};
  const auto check = [&](const Tensor& tensor, const char* name) {
    Device::check(tensor, x, name);
  };
  check(x, "x");
  tensors.for_each_input(check);
  check(out, "out");
  Device::run(checked_params(tensors, norm_eps), tensors);
}

}  // namespace

#if !defined(SIMT_EMULATE)
STABLE_TORCH_LIBRARY_IMPL(lpd_ext, CPU, m) {
  m.impl("add_layer_norm", TORCH_BOX(&add_layer_norm<OnCpu>));
}
#endif
#if defined(LPD_CUDA)
LPD_TORCH_LIBRARY_IMPL(LPD_LIBRARY, LPD_CUDA_KEY, m) {
  m.impl("add_layer_norm", TORCH_BOX(&add_layer_norm<OnCuda>));
}
#endif

}  // namespace lpd::binding
