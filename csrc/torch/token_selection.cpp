// Binding of token_selection.
#include "lpd/token_selection.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <vector>

#include "checks.h"

namespace lpd::binding {
namespace {

constexpr const char* kOp = "token_selection";

void check_argument(const Tensor& tensor,
                    std::initializer_list<int64_t> shape,
                    ScalarType dtype,
                    const char* argument) {
  check_cpu(tensor, kOp, argument);
  check_shape(tensor, shape, kOp, argument);
  check_dtype(tensor, dtype, kOp, argument);
}

Tensor token_selection_cpu(Tensor logits,
                           Tensor uniform,
                           std::optional<Tensor> cfg_scale,
                           Tensor temperature,
                           Tensor top_k,
                           Tensor top_p) {
  check_cpu(logits, kOp, "logits");
  const Dtype dtype = float_dtype(logits, kOp, "logits");
  check_shape(logits, {-1, -1, -1}, kOp, "logits");
  const int64_t halves = cfg_scale ? 2 : 1;
  const int64_t batch = logits.size(0) / halves;
  const int64_t group_size = logits.size(1);
  const int64_t vocab_size = logits.size(2);
  STD_TORCH_CHECK(logits.size(0) == halves * batch, kOp,
                  ": argument `logits`: expected an even first size (cond, uncond), got ",
                  logits.size(0));
  STD_TORCH_CHECK(vocab_size >= 1 && vocab_size <= kMaxVocabSize, kOp,
                  ": argument `logits`: expected a vocabulary of 1 to ", kMaxVocabSize, ", got ",
                  vocab_size);
  STD_TORCH_CHECK(vocab_size == 1 || logits.stride(2) == 1, kOp,
                  ": argument `logits`: expected a contiguous vocabulary");
  check_argument(uniform, {batch, group_size}, ScalarType::Double, "uniform");
  check_argument(temperature, {batch}, ScalarType::Float, "temperature");
  check_argument(top_k, {batch}, ScalarType::Long, "top_k");
  check_argument(top_p, {batch}, ScalarType::Float, "top_p");
  const bool scale_per_image = cfg_scale && cfg_scale->dim() == 2;
  if (scale_per_image) {
    check_argument(*cfg_scale, {batch, group_size}, ScalarType::Float, "cfg_scale");
  } else if (cfg_scale) {
    check_argument(*cfg_scale, {group_size}, ScalarType::Float, "cfg_scale");
  }

  Tensor ids = torch::stable::new_empty(logits, {batch, group_size}, ScalarType::Long);
  const auto* logits_bytes = static_cast<const std::byte*>(logits.const_data_ptr());
  const int64_t uncond_offset = batch * logits.stride(0) * logits.element_size();
  const TokenSelectionParams params{
      .batch = batch,
      .group_size = group_size,
      .vocab_size = vocab_size,
      .dtype = dtype,
      .logits = logits_bytes,
      .uncond_logits = cfg_scale ? logits_bytes + uncond_offset : nullptr,
      .uniform = uniform.const_data_ptr<double>(),
      .cfg_scale = cfg_scale ? cfg_scale->const_data_ptr<float>() : nullptr,
      .temperature = temperature.const_data_ptr<float>(),
      .top_k = top_k.const_data_ptr<int64_t>(),
      .top_p = top_p.const_data_ptr<float>(),
      .ids = ids.mutable_data_ptr<int64_t>(),
      .logits_batch_stride = logits.stride(0),
      .logits_group_stride = logits.stride(1),
      .uniform_batch_stride = uniform.stride(0),
      .uniform_group_stride = uniform.stride(1),
      .cfg_scale_batch_stride = scale_per_image ? cfg_scale->stride(0) : 0,
      .cfg_scale_group_stride = cfg_scale ? cfg_scale->stride(-1) : 0,
      .temperature_stride = temperature.stride(0),
      .top_k_stride = top_k.stride(0),
      .top_p_stride = top_p.stride(0),
  };
  // A thread is worth waking for about a full-size row.
  constexpr int64_t kTokensPerTask = 16384;
  const int64_t grain_size = std::max<int64_t>(1, kTokensPerTask / vocab_size);
  torch::stable::parallel_for(0, batch * group_size, grain_size, [&](int64_t begin, int64_t end) {
    std::vector<std::byte> workspace(cpu::token_selection_workspace_size(vocab_size));
    cpu::token_selection(params, begin, end, workspace.data());
  });
  return ids;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lpd_ext, CPU, m) {
  m.impl("token_selection", TORCH_BOX(&token_selection_cpu));
}

}  // namespace lpd::binding
