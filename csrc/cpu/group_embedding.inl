// group_embedding, for the namespace and target of the including file.
#include "layer_norm.inl"
#include "with_dtype.inl"

template <class T>
inline void embed_row(const GroupEmbeddingParams& params, int64_t image, int64_t row) {
  const int64_t place = params.context_begin + row;
  const int64_t position = params.order[image * params.order_batch_stride + place];
  const T* content = static_cast<const T*>(params.query_token);
  if (place < params.context_end) {
    const int64_t token = params.tokens[image * params.tokens_batch_stride + position];
    content = static_cast<const T*>(params.token_emb) + std::max<int64_t>(token, 0) * params.dim;
  }
  const T* where = static_cast<const T*>(params.pos_embed) + position * params.dim;
  float* out = params.out + image * params.out_batch_stride + row * params.out_row_stride;
  layer_norm(
      params.dim, params.norm_weight, params.norm_bias, params.norm_eps,
      [&](int64_t i) { return add(load(content + i), load(where + i)); },
      [&](int64_t i, Vector y) { store(out + i, y); });
  for (int64_t copy = 1; copy < params.copies; ++copy) {
    std::copy_n(out, params.dim, out + copy * params.batch * params.out_batch_stride);
  }
}

void group_embedding(const GroupEmbeddingParams& params, int64_t begin, int64_t end) {
  const int64_t rows = params.query_end - params.context_begin;
  with_dtype(params.dtype, [&](auto element) {
    for (int64_t i = begin; i < end; ++i) embed_row<decltype(element)>(params, i / rows, i % rows);
  });
}
