// Binding of fused_linear.
#include "lpd/fused_linear.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "checks.h"
#include "workspace.h"

namespace lpd::binding {
namespace {

constexpr const char* kOp = "fused_linear";
constexpr int64_t kRowsPerTask = 16;  // a thread is worth waking for

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void check_contiguous(const Tensor& tensor, const char* argument) {
  check_cpu(tensor, kOp, argument);
  STD_TORCH_CHECK(tensor.is_contiguous(), kOp, ": argument `", argument, "`: must be contiguous");
}

// Rows as they are given: whole, or in blocks of features.
struct Rows {
  int64_t batch;
  int64_t num_rows;
  int64_t features;
  int64_t batch_stride;
  int64_t row_stride;
  int64_t block_stride;
};

Rows checked_rows(const Tensor& tensor, const char* argument) {
  check_cpu(tensor, kOp, argument);
  const bool in_blocks = tensor.dim() == 4;
  if (in_blocks) {
    check_shape(tensor, {-1, -1, -1, kBlock}, kOp, argument);
  } else {
    check_shape(tensor, {-1, -1, -1}, kOp, argument);
  }
  STD_TORCH_CHECK(tensor.numel() == 0 || tensor.stride(tensor.dim() - 1) == 1, kOp, ": argument `",
                  argument, "`: the last dimension must be contiguous");
  const int64_t first = in_blocks ? 1 : 0;
  return {.batch = tensor.size(first),
          .num_rows = tensor.size(first + 1),
          .features = in_blocks ? tensor.size(0) * kBlock : tensor.size(2),
          .batch_stride = tensor.stride(first),
          .row_stride = tensor.stride(first + 1),
          .block_stride = in_blocks ? tensor.stride(0) : kBlock};
}

void fused_linear_cpu(Tensor x,
                      Tensor weight,
                      Tensor bias,
                      std::optional<Tensor> norm_weight,
                      std::optional<Tensor> norm_bias,
                      double norm_eps,
                      int64_t epilogue,
                      Tensor out) {
  const Rows rows = checked_rows(x, "x"), out_rows = checked_rows(out, "out");
  const int64_t batch = rows.batch, num_rows = rows.num_rows, in_features = rows.features;
  STD_TORCH_CHECK(in_features >= 16 && in_features % 16 == 0, kOp,
                  ": argument `x`: expected in_features that are a multiple of 16, got ",
                  in_features);
  STD_TORCH_CHECK(out_rows.batch == batch && out_rows.num_rows == num_rows, kOp,
                  ": argument `out`: expected ", batch, " x ", num_rows, " rows, as in x, got ",
                  out_rows.batch, " x ", out_rows.num_rows);
  const int64_t out_features = out_rows.features, panels = ceil_div(out_features, kPanel);
  const Dtype dtype = float_dtype(weight, kOp, "weight"), out_dtype = float_dtype(out, kOp, "out");
  STD_TORCH_CHECK(dtype != Dtype::kFloat16 && out_dtype != Dtype::kFloat16, kOp,
                  ": `weight` and `out`: expected Float or BFloat16, got Half");
  if (dtype == Dtype::kFloat32) {
    check_shape(weight, {panels, in_features, kPanel}, kOp, "weight");
  } else {
    check_shape(weight, {panels, ceil_div(in_features, 32), 2, 16, 16, 2}, kOp, "weight");
  }
  check_contiguous(weight, "weight");
  check_shape(bias, {panels * kPanel}, kOp, "bias");
  check_dtype(bias, ScalarType::Float, kOp, "bias");
  check_contiguous(bias, "bias");
  STD_TORCH_CHECK(norm_weight.has_value() == norm_bias.has_value(), kOp,
                  ": `norm_weight` and `norm_bias` belong together");
  if (norm_weight) {
    for (const auto& [norm, argument] :
         {std::pair(&*norm_weight, "norm_weight"), {&*norm_bias, "norm_bias"}}) {
      check_shape(*norm, {in_features}, kOp, argument);
      check_dtype(*norm, ScalarType::Float, kOp, argument);
      check_contiguous(*norm, argument);
    }
  }
  check_dtype(x, norm_weight ? ScalarType::Float : weight.scalar_type(), kOp, "x");
  STD_TORCH_CHECK(epilogue >= 0 && epilogue <= static_cast<int64_t>(Epilogue::kAdd), kOp,
                  ": argument `epilogue`: expected 0 to 2, got ", epilogue);

  const FusedLinearParams params{
      .batch = batch,
      .num_rows = num_rows,
      .in_features = in_features,
      .out_features = out_features,
      .norm_eps = static_cast<float>(norm_eps),
      .epilogue = static_cast<Epilogue>(epilogue),
      .dtype = dtype,
      .out_dtype = out_dtype,
      .x = x.const_data_ptr(),
      .weight = weight.const_data_ptr(),
      .bias = bias.const_data_ptr<float>(),
      .norm_weight = norm_weight ? norm_weight->const_data_ptr<float>() : nullptr,
      .norm_bias = norm_bias ? norm_bias->const_data_ptr<float>() : nullptr,
      .out = out.mutable_data_ptr(),
      .x_batch_stride = rows.batch_stride,
      .x_row_stride = rows.row_stride,
      .x_block_stride = rows.block_stride,
      .out_batch_stride = out_rows.batch_stride,
      .out_row_stride = out_rows.row_stride,
      .out_block_stride = out_rows.block_stride,
  };
  const int64_t num_blocks = batch * num_rows == 0 ? 0 : cpu::fused_linear_num_blocks(params);
  const cpu::Variant variant = cpu::variant();
  std::byte* prepared =
      workspace(cpu::fused_linear_prepared_size(params, variant), Workspace::kShared);
  for (int64_t block = 0; block < num_blocks; ++block) {
    if (prepared != nullptr) {
      torch::stable::parallel_for(0, cpu::fused_linear_num_rows(params, block), kRowsPerTask,
                                  [&](int64_t begin, int64_t end) {
                                    cpu::fused_linear_prepare(params, variant, block, begin, end,
                                                              prepared);
                                  });
    }
    torch::stable::parallel_for(
        0, cpu::fused_linear_num_panels(params), /*grain_size=*/1, [&](int64_t begin, int64_t end) {
          std::byte* space = workspace(cpu::fused_linear_workspace_size(params, variant));
          cpu::fused_linear(params, variant, block, begin, end, prepared, space);
        });
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lpd_ext, CPU, m) { m.impl("fused_linear", TORCH_BOX(&fused_linear_cpu)); }

}  // namespace lpd::binding
