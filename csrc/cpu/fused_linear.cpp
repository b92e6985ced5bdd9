// fused_linear on the CPU: the variant that this machine has.
#include "lpd/fused_linear.h"

#include "fused_linear_rows.h"
#include "lpd/cpu_variant.h"
#include "target.h"

namespace lpd::cpu {

#define LPD_DECLARE(name)                                                              \
  namespace name {                                                                     \
  void fused_linear(const FusedLinearParams&, int64_t begin, int64_t end, std::byte*); \
  }
LPD_DECLARE(plain)
LPD_DECLARE(avx2)
LPD_DECLARE(avx512)
LPD_DECLARE(amx)
#undef LPD_DECLARE

int64_t fused_linear_num_pieces(const FusedLinearParams& params) {
  const int64_t row_blocks = (total_rows(params) + kRowBlock - 1) / kRowBlock;
  return row_blocks * num_panels(params);
}

size_t fused_linear_workspace_size(const FusedLinearParams& params) {
  const int64_t rows = std::min(kRowBlock, total_rows(params));
  return static_cast<size_t>(kAmxSums + rows * num_blocks(params) * kBlock) * sizeof(float);
}

void fused_linear(const FusedLinearParams& params,
                  int64_t begin,
                  int64_t end,
                  std::byte* workspace) {
#if defined(LPD_X86)
  switch (variant()) {
    case Variant::kAmx:
      if (params.dtype == Dtype::kBFloat16) {
        return amx::fused_linear(params, begin, end, workspace);
      }
      [[fallthrough]];
    case Variant::kAvx512:
      return avx512::fused_linear(params, begin, end, workspace);
    case Variant::kAvx2:
      return avx2::fused_linear(params, begin, end, workspace);
    case Variant::kPlain:
      break;
  }
#endif
  plain::fused_linear(params, begin, end, workspace);
}

}  // namespace lpd::cpu
