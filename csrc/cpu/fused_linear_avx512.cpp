// fused_linear with AVX-512.
#include "fused_linear_layout.h"
#include "vector_avx512.h"

#if defined(LPD_X86)
LPD_TARGET_BEGIN(LPD_AVX512)
namespace lpd::cpu::avx512 {

constexpr int kTileRows = 12;

#include "gelu.inl"
//
#include "layer_norm.inl"
//
#include "fused_linear_ends.inl"
//
#include "fused_linear_product.inl"

}  // namespace lpd::cpu::avx512
LPD_TARGET_END
#endif
