// fused_linear with AVX2.
#include "fused_linear_layout.h"
#include "vector_avx2.h"

#if defined(LPD_X86)
LPD_TARGET_BEGIN(LPD_AVX2)
namespace lpd::cpu::avx2 {

constexpr int kTileRows = 5;

#include "gelu.inl"
//
#include "layer_norm.inl"
//
#include "fused_linear_ends.inl"
//
#include "fused_linear_product.inl"

}  // namespace lpd::cpu::avx2
LPD_TARGET_END
#endif
