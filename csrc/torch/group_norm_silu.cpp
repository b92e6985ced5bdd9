// Binding of group_norm_silu.
#include "lpd/group_norm_silu.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstddef>

#include "checks.h"
#include "cuda_launch.h"
#include "library.h"
#include "workspace.h"

namespace lpd::binding {
namespace {

constexpr const char* kOp = "group_norm_silu";

// Every tensor of a call.
struct Tensors {
  const Tensor& x;
  const Tensor& norm_weight;
  const Tensor& norm_bias;
  const Tensor& out;
};

// A dimension of a single element may have any stride.
void check_channels_last(const Tensor& tensor, const char* argument) {
  int64_t stride = 1;
  bool dense = true;
  for (const int64_t dim : {1, 3, 2, 0}) {
    dense = dense && (tensor.size(dim) == 1 || tensor.stride(dim) == stride);
    stride *= tensor.size(dim);
  }
  STD_TORCH_CHECK(dense || tensor.numel() == 0, kOp, ": argument `", argument,
                  "`: expected channels-last memory");
}

// Checks everything but devices.
GroupNormSiluParams checked_params(const Tensors& tensors,
                                   int64_t num_groups,
                                   double norm_eps,
                                   bool silu) {
  const auto& [x, norm_weight, norm_bias, out] = tensors;
  check_shape(x, {-1, -1, -1, -1}, kOp, "x");
  check_channels_last(x, "x");
  const int64_t channels = x.size(1);
  STD_TORCH_CHECK(channels >= 1 && channels <= kMaxGroupNormChannels, kOp,
                  ": argument `x`: expected 1 to ", kMaxGroupNormChannels, " channels, got ",
                  channels);
  STD_TORCH_CHECK(num_groups >= 1 && channels % num_groups == 0, kOp,
                  ": argument `num_groups`: expected a divisor of ", channels, ", got ",
                  num_groups);
  check_shape(out, {x.size(0), channels, x.size(2), x.size(3)}, kOp, "out");
  check_dtype(out, x.scalar_type(), kOp, "out");
  check_channels_last(out, "out");
  check_bias(norm_weight, channels, x.scalar_type(), kOp, "norm_weight");
  check_bias(norm_bias, channels, x.scalar_type(), kOp, "norm_bias");
  check_dtype(norm_bias, norm_weight.scalar_type(), kOp, "norm_bias");
  return {
      .batch = x.size(0),
      .pixels = x.size(2) * x.size(3),
      .channels = channels,
      .num_groups = num_groups,
      .norm_eps = static_cast<float>(norm_eps),
      .silu = silu,
      .dtype = float_dtype(x, kOp, "x"),
      .norm_dtype = float_dtype(norm_weight, kOp, "norm_weight"),
      .x = x.const_data_ptr(),
      .norm_weight = norm_weight.const_data_ptr(),
      .norm_bias = norm_bias.const_data_ptr(),
      .out = out.mutable_data_ptr(),
  };
}

#if !defined(SIMT_EMULATE)

struct OnCpu {
  static void check(const Tensor& tensor, const Tensor&, const char* argument) {
    check_cpu(tensor, kOp, argument);
  }

  static void run(const GroupNormSiluParams& params, const Tensors&) {
    const auto floats = [](int64_t count, Workspace which) {
      return reinterpret_cast<float*>(workspace(static_cast<size_t>(count) * sizeof(float), which));
    };
    const int64_t chunks = params.batch * cpu::group_norm_silu_chunks(params);
    float* const partials = floats(cpu::group_norm_silu_partials_size(params), Workspace::kShared);
    torch::stable::parallel_for(0, chunks, /*grain_size=*/1, [&](int64_t begin, int64_t end) {
      cpu::group_norm_silu_statistics(params, begin, end, partials);
    });
    const int64_t workspace_size = cpu::group_norm_silu_workspace_size(params);
    torch::stable::parallel_for(0, chunks, /*grain_size=*/1, [&](int64_t begin, int64_t end) {
      cpu::group_norm_silu_apply(params, begin, end, partials,
                                 floats(workspace_size, Workspace::kOwn));
    });
  }
};

#endif
#if defined(LPD_CUDA)

struct OnCuda {
  static void check(const Tensor& tensor, const Tensor& first, const char* argument) {
    check_cuda(tensor, first, kOp, argument);
  }

  static void run(const GroupNormSiluParams& params, const Tensors& tensors) {
    CudaLaunch launch(tensors.x);
    launch.reads(tensors.norm_weight, "norm_weight");
    launch.reads(tensors.norm_bias, "norm_bias");
    if (params.x == params.out) {
      launch.updates(tensors.x, "x");
    } else {
      launch.reads(tensors.x, "x");
      launch.writes(tensors.out, "out");
    }
    const Tensor workspace =
        launch.workspace(cuda::group_norm_silu_workspace_size(params), tensors.x);
    check_launch(
        cuda::group_norm_silu(params, static_cast<std::byte*>(workspace.mutable_data_ptr()),
                              launch.stream()),
        kOp);
  }
};

#endif

template <class Device>
void group_norm_silu(Tensor x,
                     Tensor norm_weight,
                     Tensor norm_bias,
                     int64_t num_groups,
                     double norm_eps,
                     bool silu,
                     Tensor out) {
  Device::check(x, x, "x");
  Device::check(norm_weight, x, "norm_weight");
  Device::check(norm_bias, x, "norm_bias");
  Device::check(out, x, "out");
  const Tensors tensors{x, norm_weight, norm_bias, out};
  Device::run(checked_params(tensors, num_groups, norm_eps, silu), tensors);
}

template <class Device>
void group_norm_silu_inplace(Tensor x,
                             Tensor norm_weight,
                             Tensor norm_bias,
                             int64_t num_groups,
                             double norm_eps,
                             bool silu) {
  group_norm_silu<Device>(x, norm_weight, norm_bias, num_groups, norm_eps, silu, x);
}

template <class Device>
void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("group_norm_silu", TORCH_BOX(&group_norm_silu<Device>));
  m.impl("group_norm_silu.inplace", TORCH_BOX(&group_norm_silu_inplace<Device>));
}

}  // namespace

#if !defined(SIMT_EMULATE)
STABLE_TORCH_LIBRARY_IMPL(lpd_ext, CPU, m) { implement<OnCpu>(m); }
#endif
#if defined(LPD_CUDA)
LPD_TORCH_LIBRARY_IMPL(LPD_LIBRARY, LPD_CUDA_KEY, m) { implement<OnCuda>(m); }
#endif

}  // namespace lpd::binding
