// add_layer_norm on the CPU, in the variant that this machine has.
#include "lpd/add_layer_norm.h"

#include "lpd/cpu_variant.h"
#include "vector_avx2.h"
#include "vector_avx512.h"
#include "vector_plain.h"

namespace lpd::cpu::plain {

#include "with_dtype.inl"
//
#include "layer_norm.inl"
//
#include "add_layer_norm.inl"

}  // namespace lpd::cpu::plain

#if defined(LPD_X86)
LPD_TARGET_BEGIN(LPD_AVX2)
namespace lpd::cpu::avx2 {

#include "with_dtype.inl"
//
#include "layer_norm.inl"
//
#include "add_layer_norm.inl"

}  // namespace lpd::cpu::avx2
LPD_TARGET_END

LPD_TARGET_BEGIN(LPD_AVX512)
namespace lpd::cpu::avx512 {

#include "with_dtype.inl"
//
#include "layer_norm.inl"
//
#include "add_layer_norm.inl"

}  // namespace lpd::cpu::avx512
LPD_TARGET_END
#endif

namespace lpd::cpu {

void add_layer_norm(const AddLayerNormParams& params, int64_t begin, int64_t end) {
#if defined(LPD_X86)
  if (variant() >= Variant::kAvx512) return avx512::add_layer_norm(params, begin, end);
  if (variant() >= Variant::kAvx2) return avx2::add_layer_norm(params, begin, end);
#endif
  plain::add_layer_norm(params, begin, end);
}

}  // namespace lpd::cpu
