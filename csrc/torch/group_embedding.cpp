// Binding of group_embedding.
#include "lpd/group_embedding.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "checks.h"
#include "cuda_launch.h"
#include "library.h"

namespace lpd::binding {
namespace {

constexpr const char* kOp = "group_embedding";

// Every tensor of a call.
struct Tensors {
  const Tensor& tokens;
  const Tensor& order;
  const Tensor& token_emb;
  const Tensor& query_token;
  const Tensor& pos_embed;
  const Tensor& norm_weight;
  const Tensor& norm_bias;
  const Tensor& out;

  // Calls function(tensor, name) for those that are only read.
  template <class Function>
  void for_each_input(const Function& function) const {
    function(tokens, "tokens");
    function(order, "order");
    function(token_emb, "token_emb");
    function(query_token, "query_token");
    function(pos_embed, "pos_embed");
    function(norm_weight, "norm_weight");
    function(norm_bias, "norm_bias");
  }
};

// Entries of the order: context from begin to end, then queries.
struct Places {
  int64_t context_begin;
  int64_t context_end;
  int64_t query_end;
};

void check_argument(const Tensor& tensor,
                    std::initializer_list<int64_t> shape,
                    ScalarType dtype,
                    const char* argument) {
  check_shape(tensor, shape, kOp, argument);
  check_dtype(tensor, dtype, kOp, argument);
  check_rows(tensor, kOp, argument);
}

// Checks everything but devices and what is looked up.
GroupEmbeddingParams checked_params(const Tensors& tensors, const Places& places, double norm_eps) {
  const auto& [tokens, order, token_emb, query_token, pos_embed, norm_weight, norm_bias, out] =
      tensors;
  const auto& [context_begin, context_end, query_end] = places;
  const Dtype dtype = float_dtype(token_emb, kOp, "token_emb");
  const ScalarType scalar_type = token_emb.scalar_type();
  check_argument(token_emb, {-1, -1}, scalar_type, "token_emb");
  const int64_t vocab_size = token_emb.size(0), dim = token_emb.size(1);
  STD_TORCH_CHECK(vocab_size >= 1, kOp, ": argument `token_emb`: expected at least one token");
  check_norm_dim(dim, kOp, "token_emb");
  check_argument(tokens, {-1, -1}, ScalarType::Long, "tokens");
  const int64_t batch = tokens.size(0), seq_len = tokens.size(1);
  check_argument(order, {batch, seq_len}, ScalarType::Long, "order");
  check_argument(query_token, {dim}, scalar_type, "query_token");
  check_argument(pos_embed, {seq_len, dim}, scalar_type, "pos_embed");
  check_argument(norm_weight, {dim}, ScalarType::Float, "norm_weight");
  check_argument(norm_bias, {dim}, ScalarType::Float, "norm_bias");
  STD_TORCH_CHECK(0 <= context_begin && context_begin <= context_end && context_end <= query_end &&
                      query_end <= seq_len,
                  kOp, ": context_begin ", context_begin, ", context_end ", context_end,
                  " and query_end ", query_end, " must ascend inside [0, ", seq_len, "]");
  for (const auto& [table, argument] :
       {std::pair(&token_emb, "token_emb"), {&pos_embed, "pos_embed"}}) {
    STD_TORCH_CHECK(table->is_contiguous(), kOp, ": argument `", argument, "`: must be contiguous");
  }
  const int64_t rows = query_end - context_begin;
  check_argument(out, {-1, rows, dim}, ScalarType::Float, "out");
  const int64_t copies = batch == 0 ? 1 : out.size(0) / batch;
  STD_TORCH_CHECK(out.size(0) == copies * batch && (copies >= 1 || batch == 0), kOp,
                  ": argument `out`: expected a whole number of copies of ", batch, " images, got ",
                  out.size(0), " rows");

  return {
      .batch = batch,
      .copies = copies,
      .dim = dim,
      .seq_len = seq_len,
      .vocab_size = vocab_size,
      .context_begin = context_begin,
      .context_end = context_end,
      .query_end = query_end,
      .norm_eps = static_cast<float>(norm_eps),
      .dtype = dtype,
      .tokens = tokens.const_data_ptr<int64_t>(),
      .order = order.const_data_ptr<int64_t>(),
      .token_emb = token_emb.const_data_ptr(),
      .query_token = query_token.const_data_ptr(),
      .pos_embed = pos_embed.const_data_ptr(),
      .norm_weight = norm_weight.const_data_ptr<float>(),
      .norm_bias = norm_bias.const_data_ptr<float>(),
      .out = out.mutable_data_ptr<float>(),
      .tokens_batch_stride = tokens.stride(0),
      .order_batch_stride = order.stride(0),
      .out_batch_stride = out.stride(0),
      .out_row_stride = out.stride(1),
  };
}

#if !defined(SIMT_EMULATE)

// What the kernel looks up must lie inside the tables.
void check_lookups(const GroupEmbeddingParams& params) {
  for (int64_t image = 0; image < params.batch; ++image) {
    for (int64_t place = params.context_begin; place < params.query_end; ++place) {
      const int64_t position = params.order[image * params.order_batch_stride + place];
      STD_TORCH_CHECK(position >= 0 && position < params.seq_len, kOp,
                      ": argument `order`: position ", position, " is outside [0, ", params.seq_len,
                      ")");
      if (place >= params.context_end) continue;
      const int64_t token = params.tokens[image * params.tokens_batch_stride + position];
      STD_TORCH_CHECK(token >= -1 && token < params.vocab_size, kOp, ": argument `tokens`: token ",
                      token, " is outside [-1, ", params.vocab_size, ")");
    }
  }
}

struct OnCpu {
  static void check(const Tensor& tensor, const Tensor&, const char* argument) {
    check_cpu(tensor, kOp, argument);
  }

  static void run(const GroupEmbeddingParams& params, const Tensors&) {
    check_lookups(params);
    // A thread is worth waking for about so many elements.
    constexpr int64_t kElementsPerTask = 16384;
    const int64_t grain_size = std::max<int64_t>(1, kElementsPerTask / params.dim);
    const int64_t num_rows = params.batch * (params.query_end - params.context_begin);
    torch::stable::parallel_for(0, num_rows, grain_size, [&](int64_t begin, int64_t end) {
      cpu::group_embedding(params, begin, end);
    });
  }
};

#endif
#if defined(LPD_CUDA)

struct OnCuda {
  static void check(const Tensor& tensor, const Tensor& first, const char* argument) {
    check_cuda(tensor, first, kOp, argument);
  }

  static void run(const GroupEmbeddingParams& params, const Tensors& tensors) {
    CudaLaunch launch(tensors.out);
    tensors.for_each_input(
        [&](const Tensor& tensor, const char* name) { launch.reads(tensor, name); });
    launch.writes(tensors.out, "out");
    check_launch(cuda::group_embedding(params, launch.stream()), kOp);
  }
};

#endif

template <class Device>
void group_embedding(Tensor tokens,
                     Tensor order,
                     Tensor token_emb,
                     Tensor query_token,
                     Tensor pos_embed,
                     Tensor norm_weight,
                     Tensor norm_bias,
                     int64_t context_begin,
                     int64_t context_end,
                     int64_t query_end,
                     double norm_eps,
                     Tensor out) {
  const Tensors tensors{tokens,    order,       token_emb, query_token,
                        pos_embed, norm_weight, norm_bias, out};
  const auto check = [&](const Tensor& tensor, const char* name) {
    Device::check(tensor, out, name);
  };
  tensors.for_each_input(check);
  check(out, "out");
  Device::run(checked_params(tensors, {context_begin, context_end, query_end}, norm_eps), tensors);
}

}  // namespace

#if !defined(SIMT_EMULATE)
STABLE_TORCH_LIBRARY_IMPL(lpd_ext, CPU, m) {
  m.impl("group_embedding", TORCH_BOX(&group_embedding<OnCpu>));
}
#endif
#if defined(LPD_CUDA)
LPD_TORCH_LIBRARY_IMPL(LPD_LIBRARY, LPD_CUDA_KEY, m) {
  m.impl("group_embedding", TORCH_BOX(&group_embedding<OnCuda>));
}
#endif

}  // namespace lpd::binding
