// Every operator of lpd_ext. The kernels are registered beside their bindings, one file an op.
#include "library.h"

LPD_TORCH_LIBRARY(LPD_LIBRARY, m) {
  m.def(
      "group_attention(Tensor qkv, Tensor(a!) k_cache, Tensor(b!) v_cache, SymInt cache_len, "
      "SymInt context_len, float scale) -> Tensor");
  m.def(
      "group_attention.out(Tensor qkv, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor(c!) out, "
      "SymInt cache_len, SymInt context_len, float scale) -> ()");
  m.def(
      "group_attention.ragged(Tensor qkv, Tensor(a!) k_cache, Tensor(b!) v_cache, "
      "Tensor cache_len, Tensor context_len, Tensor q_len, float scale) -> Tensor");
  m.def(
      "group_attention.ragged_out(Tensor qkv, Tensor(a!) k_cache, Tensor(b!) v_cache, "
      "Tensor(c!) out, Tensor cache_len, Tensor context_len, Tensor q_len, float scale) -> ()");
  m.def("masked_attention(Tensor q, Tensor k, Tensor v, Tensor mask, float scale) -> Tensor");
  m.def(
      "masked_attention.out(Tensor q, Tensor k, Tensor v, Tensor mask, Tensor(a!) out, "
      "float scale) -> ()");
  m.def(
      "token_selection(Tensor logits, Tensor uniform, Tensor? cfg_scale, Tensor temperature, "
      "Tensor top_k, Tensor top_p) -> Tensor");
  m.def(
      "token_selection_(Tensor(a!) tokens, Tensor positions, Tensor logits, Tensor uniform, "
      "Tensor? cfg_scale, Tensor temperature, Tensor top_k, Tensor top_p) -> ()");
  m.def(
      "group_order(Tensor seeds, SymInt[2] grid, SymInt[] group_sizes, float proximity_threshold, "
      "int repulsion_threshold, Tensor? known) -> Tensor");
  m.def(
      "group_embedding(Tensor tokens, Tensor order, Tensor token_emb, Tensor query_token, "
      "Tensor pos_embed, Tensor norm_weight, Tensor norm_bias, SymInt context_begin, "
      "SymInt context_end, SymInt query_end, float norm_eps, Tensor(a!) out) -> ()");
  m.def(
      "add_layer_norm(Tensor(a!) x, Tensor? delta, Tensor? bias, Tensor norm_weight, "
      "Tensor norm_bias, float norm_eps, Tensor(b!) out) -> ()");
  m.def("bias_gelu(Tensor x, Tensor? bias, Tensor(a!) out) -> ()");
  m.def("bias_gelu.inplace(Tensor(a!) x, Tensor? bias) -> ()");
  m.def(
      "group_norm_silu(Tensor x, Tensor norm_weight, Tensor norm_bias, int num_groups, "
      "float norm_eps, bool silu, Tensor(a!) out) -> ()");
  m.def(
      "group_norm_silu.inplace(Tensor(a!) x, Tensor norm_weight, Tensor norm_bias, int num_groups, "
      "float norm_eps, bool silu) -> ()");
  m.def("linear_gelu(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) out) -> ()");
  m.def(
      "fused_linear(Tensor x, Tensor weight, Tensor bias, Tensor? norm_weight, "
      "Tensor? norm_bias, float norm_eps, int epilogue, Tensor(a!) out) -> ()");
}

// Read by lpd_ext/_binary.py before it trusts the operators.
extern "C" __attribute__((visibility("default"))) const char* lpd_ext_version() {
  return LPD_VERSION;
}
