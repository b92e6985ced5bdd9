// Binding of token_selection, with ids returned or written to their positions.
#include "lpd/token_selection.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <optional>

#include "checks.h"
#include "cuda_launch.h"
#include "library.h"
#include "workspace.h"

namespace lpd::binding {
namespace {

// Every tensor that a call reads.
struct Tensors {
  const Tensor& logits;
  const Tensor& uniform;
  const std::optional<Tensor>& cfg_scale;
  const Tensor& temperature;
  const Tensor& top_k;
  const Tensor& top_p;
  const Tensor* positions = nullptr;  // of token_selection_

  template <class Function>
  void for_each(const Function& function) const {
    function(logits, "logits");
    function(uniform, "uniform");
    if (cfg_scale) function(*cfg_scale, "cfg_scale");
    function(temperature, "temperature");
    function(top_k, "top_k");
    function(top_p, "top_p");
    if (positions != nullptr) function(*positions, "positions");
  }
};

void check_argument(const Tensor& tensor,
                    std::initializer_list<int64_t> shape,
                    ScalarType dtype,
                    const char* op,
                    const char* argument) {
  check_shape(tensor, shape, op, argument);
  check_dtype(tensor, dtype, op, argument);
}

// All but devices and the destination.
TokenSelectionParams checked_params(const char* op, const Tensors& tensors) {
  const auto& [logits, uniform, cfg_scale, temperature, top_k, top_p, positions] = tensors;
  const Dtype dtype = float_dtype(logits, op, "logits");
  check_shape(logits, {-1, -1, -1}, op, "logits");
  const int64_t halves = cfg_scale ? 2 : 1;
  const int64_t batch = logits.size(0) / halves;
  const int64_t group_size = logits.size(1);
  const int64_t vocab_size = logits.size(2);
  STD_TORCH_CHECK(logits.size(0) == halves * batch, op,
                  ": argument `logits`: expected an even first size (cond, uncond), got ",
                  logits.size(0));
  STD_TORCH_CHECK(vocab_size >= 1 && vocab_size <= kMaxVocabSize, op,
                  ": argument `logits`: expected a vocabulary of 1 to ", kMaxVocabSize, ", got ",
                  vocab_size);
  STD_TORCH_CHECK(vocab_size == 1 || logits.stride(2) == 1, op,
                  ": argument `logits`: expected a contiguous vocabulary");
  check_argument(uniform, {batch, group_size}, ScalarType::Double, op, "uniform");
  check_argument(temperature, {batch}, ScalarType::Float, op, "temperature");
  check_argument(top_k, {batch}, ScalarType::Long, op, "top_k");
  check_argument(top_p, {batch}, ScalarType::Float, op, "top_p");
  const bool scale_per_image = cfg_scale && cfg_scale->dim() == 2;
  if (scale_per_image) {
    check_argument(*cfg_scale, {batch, group_size}, ScalarType::Float, op, "cfg_scale");
  } else if (cfg_scale) {
    check_argument(*cfg_scale, {group_size}, ScalarType::Float, op, "cfg_scale");
  }

  const auto* logits_bytes = static_cast<const std::byte*>(logits.const_data_ptr());
  const int64_t uncond_offset = batch * logits.stride(0) * logits.element_size();
  return {
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
      .positions = nullptr,
      .ids = nullptr,
      .seq_len = 0,
      .logits_batch_stride = logits.stride(0),
      .logits_group_stride = logits.stride(1),
      .uniform_batch_stride = uniform.stride(0),
      .uniform_group_stride = uniform.stride(1),
      .cfg_scale_batch_stride = scale_per_image ? cfg_scale->stride(0) : 0,
      .cfg_scale_group_stride = cfg_scale ? cfg_scale->stride(-1) : 0,
      .temperature_stride = temperature.stride(0),
      .top_k_stride = top_k.stride(0),
      .top_p_stride = top_p.stride(0),
      .positions_batch_stride = 0,
      .positions_group_stride = 0,
      .ids_batch_stride = 0,
      .ids_stride = 0,
  };
}

// The address behind the last element.
const int64_t* end_of(const Tensor& tensor) {
  const int64_t* end = tensor.const_data_ptr<int64_t>();
  if (tensor.numel() == 0) return end;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    end += (tensor.size(dim) - 1) * tensor.stride(dim);
  }
  return end + 1;
}

#if !defined(SIMT_EMULATE)

struct OnCpu {
  static void check(const Tensor& tensor, const Tensor&, const char* op, const char* argument) {
    check_cpu(tensor, op, argument);
  }

  static void check_positions(const TokenSelectionParams& params, const char* op) {
    for (int64_t image = 0; image < params.batch; ++image) {
      for (int64_t query = 0; query < params.group_size; ++query) {
        const int64_t position = params.positions[image * params.positions_batch_stride +
                                                  query * params.positions_group_stride];
        STD_TORCH_CHECK(position >= 0 && position < params.seq_len, op,
                        ": argument `positions`: expected values in [0, ", params.seq_len,
                        "), got ", position);
      }
    }
  }

  static void run(const TokenSelectionParams& params,
                  const Tensors&,
                  const Tensor&,
                  const char* op) {
    if (params.positions != nullptr) check_positions(params, op);
    // A thread is worth waking for about a full-size row.
    constexpr int64_t kTokensPerTask = 16384;
    const int64_t grain_size = std::max<int64_t>(1, kTokensPerTask / params.vocab_size);
    const size_t bytes = cpu::token_selection_workspace_size(params.vocab_size);
    torch::stable::parallel_for(0, params.batch * params.group_size, grain_size,
                                [&](int64_t begin, int64_t end) {
                                  cpu::token_selection(params, begin, end, workspace(bytes));
                                });
  }
};

#endif
#if defined(LPD_CUDA)

// Positions stay where they are: a look at them would wait for all that the stream has to do.
struct OnCuda {
  static void check(const Tensor& tensor,
                    const Tensor& first,
                    const char* op,
                    const char* argument) {
    check_cuda(tensor, first, op, argument);
  }

  static void run(const TokenSelectionParams& params,
                  const Tensors& tensors,
                  const Tensor& ids,
                  const char* op) {
    CudaLaunch launch(tensors.logits);
    tensors.for_each([&](const Tensor& tensor, const char* name) { launch.reads(tensor, name); });
    launch.writes(ids, "ids");
    check_launch(cuda::token_selection(params, launch.stream()), op);
  }
};

#endif

template <class Device>
void check_devices(const Tensors& tensors, const char* op) {
  tensors.for_each([&](const Tensor& tensor, const char* name) {
    Device::check(tensor, tensors.logits, op, name);
  });
}

template <class Device>
Tensor token_selection(Tensor logits,
                       Tensor uniform,
                       std::optional<Tensor> cfg_scale,
                       Tensor temperature,
                       Tensor top_k,
                       Tensor top_p) {
  constexpr const char* kOp = "token_selection";
  const Tensors tensors{logits, uniform, cfg_scale, temperature, top_k, top_p};
  check_devices<Device>(tensors, kOp);
  TokenSelectionParams params = checked_params(kOp, tensors);
  Tensor ids =
      torch::stable::new_empty(logits, {params.batch, params.group_size}, ScalarType::Long);
  params.ids = ids.mutable_data_ptr<int64_t>();
  params.seq_len = params.group_size;
  params.ids_batch_stride = ids.stride(0);
  params.ids_stride = ids.stride(1);
  Device::run(params, tensors, ids, kOp);
  return ids;
}

template <class Device>
void token_selection_inplace(Tensor tokens,
                             Tensor positions,
                             Tensor logits,
                             Tensor uniform,
                             std::optional<Tensor> cfg_scale,
                             Tensor temperature,
                             Tensor top_k,
                             Tensor top_p) {
  constexpr const char* kOp = "token_selection_";
  const Tensors tensors{logits, uniform, cfg_scale, temperature, top_k, top_p, &positions};
  check_devices<Device>(tensors, kOp);
  Device::check(tokens, logits, kOp, "tokens");
  TokenSelectionParams params = checked_params(kOp, tensors);
  check_argument(tokens, {params.batch, -1}, ScalarType::Long, kOp, "tokens");
  check_argument(positions, {params.batch, params.group_size}, ScalarType::Long, kOp, "positions");
  params.positions = positions.const_data_ptr<int64_t>();
  params.ids = tokens.mutable_data_ptr<int64_t>();
  params.seq_len = tokens.size(1);
  params.positions_batch_stride = positions.stride(0);
  params.positions_group_stride = positions.stride(1);
  params.ids_batch_stride = tokens.stride(0);
  params.ids_stride = tokens.stride(1);
  // A token written over a position would be taken for one.
  const std::less<const int64_t*> before;
  STD_TORCH_CHECK(
      !before(params.positions, end_of(tokens)) || !before(params.ids, end_of(positions)), kOp,
      ": argument `positions`: expected memory apart from tokens, got an overlap");
  Device::run(params, tensors, tokens, kOp);
}

template <class Device>
void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("token_selection", TORCH_BOX(&token_selection<Device>));
  m.impl("token_selection_", TORCH_BOX(&token_selection_inplace<Device>));
}

}  // namespace

#if !defined(SIMT_EMULATE)
STABLE_TORCH_LIBRARY_IMPL(lpd_ext, CPU, m) { implement<OnCpu>(m); }
#endif
#if defined(LPD_CUDA)
LPD_TORCH_LIBRARY_IMPL(LPD_LIBRARY, LPD_CUDA_KEY, m) { implement<OnCuda>(m); }
#endif

}  // namespace lpd::binding
