// Binding of group_embedding.
#include "lpd/group_embedding.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <utility>

#include "checks.h"

namespace lpd::binding {
namespace {

constexpr const char* kOp = "group_embedding";

void check_argument(const Tensor& tensor,
                    std::initializer_list<int64_t> shape,
                    ScalarType dtype,
                    const char* argument) {
  check_cpu(tensor, kOp, argument);
  check_shape(tensor, shape, kOp, argument);
  check_dtype(tensor, dtype, kOp, argument);
  STD_TORCH_CHECK(tensor.numel() == 0 || tensor.stride(-1) == 1, kOp, ": argument `", argument,
                  "`: the last dimension must be contiguous");
}

// What the kernel looks up must lie inside the tables.
void check_lookups(const GroupEmbeddingParams& params, int64_t seq_len, int64_t vocab_size) {
  for (int64_t image = 0; image < params.batch; ++image) {
    for (int64_t place = params.context_begin; place < params.query_end; ++place) {
      const int64_t position = params.order[image * params.order_batch_stride + place];
      STD_TORCH_CHECK(position >= 0 && position < seq_len, kOp, ": argument `order`: position ",
                      position, " is outside [0, ", seq_len, ")");
      if (place >= params.context_end) continue;
      const int64_t token = params.tokens[image * params.tokens_batch_stride + position];
      STD_TORCH_CHECK(token >= -1 && token < vocab_size, kOp, ": argument `tokens`: token ", token,
                      " is outside [-1, ", vocab_size, ")");
    }
  }
}

void group_embedding_cpu(Tensor tokens,
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
  const Dtype dtype = float_dtype(token_emb, kOp, "token_emb");
  const ScalarType scalar_type = token_emb.scalar_type();
  check_argument(token_emb, {-1, -1}, scalar_type, "token_emb");
  const int64_t vocab_size = token_emb.size(0), dim = token_emb.size(1);
  STD_TORCH_CHECK(vocab_size >= 1 && dim >= 16 && dim % 16 == 0, kOp,
                  ": argument `token_emb`: expected tokens and a dim that is a multiple of 16");
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

  const GroupEmbeddingParams params{
      .batch = batch,
      .copies = copies,
      .dim = dim,
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
  check_lookups(params, seq_len, vocab_size);
  // A thread is worth waking for about so many elements.
  constexpr int64_t kElementsPerTask = 16384;
  const int64_t grain_size = std::max<int64_t>(1, kElementsPerTask / dim);
  torch::stable::parallel_for(0, batch * rows, grain_size, [&](int64_t begin, int64_t end) {
    cpu::group_embedding(params, begin, end);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lpd_ext, CPU, m) {
  m.impl("group_embedding", TORCH_BOX(&group_embedding_cpu));
}

}  // namespace lpd::binding
