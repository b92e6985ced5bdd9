// fused_linear on the CPU, in the variant that this machine has.
#include "lpd/fused_linear.h"

#include "fused_linear_layout.h"
#include "lpd/cpu_variant.h"
#include "target.h"

namespace lpd::cpu {

#define LPD_DECLARE(name)                                                                     \
  namespace name {                                                                            \
  void fused_linear_prepare(const FusedLinearParams&, int64_t, int64_t, int64_t, std::byte*); \
  void fused_linear(const FusedLinearParams&, int64_t, int64_t, int64_t, const std::byte*);   \
  }
LPD_DECLARE(plain)
LPD_DECLARE(avx2)
LPD_DECLARE(avx512)
#undef LPD_DECLARE

namespace amx {
size_t fused_linear_workspace_size();
void fused_linear_prepare(const FusedLinearParams&, int64_t, int64_t, int64_t, std::byte*);
void fused_linear(const FusedLinearParams&,
                  int64_t,
                  int64_t,
                  int64_t,
                  const std::byte*,
                  std::byte*);
}  // namespace amx

namespace {

// AMX multiplies bfloat16, all other variants float32.
bool use_amx(const FusedLinearParams& params, Variant variant) {
  return variant == Variant::kAmx && params.dtype == Dtype::kBFloat16;
}

}  // namespace

int64_t fused_linear_num_blocks(const FusedLinearParams& params) {
  return (total_rows(params) + kRowBlock - 1) / kRowBlock;
}

int64_t fused_linear_num_rows(const FusedLinearParams& params, int64_t block) {
  return std::min(kRowBlock, total_rows(params) - block * kRowBlock);
}

int64_t fused_linear_num_panels(const FusedLinearParams& params) { return num_panels(params); }

size_t fused_linear_prepared_size(const FusedLinearParams& params, Variant variant) {
  const bool narrow = use_amx(params, variant);  // as the product wants the rows
  const bool as_wanted = params.norm_weight == nullptr && params.in_features % kBlock == 0 &&
                         rows_are_even(params) && narrow == (params.dtype == Dtype::kBFloat16);
  const bool in_place = total_rows(params) <= kInPlaceRows || params.x_block_stride != kBlock;
  if (as_wanted && in_place) return 0;
  const int64_t elements = fused_linear_num_rows(params, 0) * num_blocks(params) * kBlock;
  return static_cast<size_t>(elements) * (narrow ? sizeof(BFloat16) : sizeof(float));
}

size_t fused_linear_workspace_size([[maybe_unused]] const FusedLinearParams& params,
                                   [[maybe_unused]] Variant variant) {
#if defined(LPD_X86)
  if (use_amx(params, variant)) return amx::fused_linear_workspace_size();
#endif
  return 0;
}

void fused_linear_prepare(const FusedLinearParams& params,
                          [[maybe_unused]] Variant variant,
                          int64_t block,
                          int64_t begin,
                          int64_t end,
                          std::byte* prepared) {
#if defined(LPD_X86)
  if (use_amx(params, variant))
    return amx::fused_linear_prepare(params, block, begin, end, prepared);
  if (variant >= Variant::kAvx512) {
    return avx512::fused_linear_prepare(params, block, begin, end, prepared);
  }
  if (variant >= Variant::kAvx2) {
    return avx2::fused_linear_prepare(params, block, begin, end, prepared);
  }
#endif
  plain::fused_linear_prepare(params, block, begin, end, prepared);
}

void fused_linear(const FusedLinearParams& params,
                  [[maybe_unused]] Variant variant,
                  int64_t block,
                  int64_t begin,
                  int64_t end,
                  const std::byte* prepared,
                  [[maybe_unused]] std::byte* workspace) {
#if defined(LPD_X86)
  if (use_amx(params, variant))
    return amx::fused_linear(params, block, begin, end, prepared, workspace);
  if (variant >= Variant::kAvx512) {
    return avx512::fused_linear(params, block, begin, end, prepared);
  }
  if (variant >= Variant::kAvx2) return avx2::fused_linear(params, block, begin, end, prepared);
#endif
  plain::fused_linear(params, block, begin, end, prepared);
}

}  // namespace lpd::cpu
