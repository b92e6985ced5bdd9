// group_embedding on the CPU, in the variant that this machine has.
#include "lpd/group_embedding.h"

#include <algorithm>

#include "lpd/cpu_variant.h"
#include "vector_avx2.h"
#include "vector_avx512.h"
#include "vector_plain.h"

namespace lpd::cpu::plain {

#include "with_dtype.inl"
//
#include "layer_norm.inl"
//
#include "group_embedding.inl"

}  // namespace lpd::cpu::plain

#if defined(LPD_X86)
LPD_TARGET_BEGIN(LPD_AVX2)
namespace lpd::cpu::avx2 {

#include "with_dtype.inl"
//
#include "layer_norm.inl"
//
#include "group_embedding.inl"

}  // namespace lpd::cpu::avx2
LPD_TARGET_END

LPD_TARGET_BEGIN(LPD_AVX512)
namespace lpd::cpu::avx512 {

#include "with_dtype.inl"
//
#include "layer_norm.inl"
//
#include "group_embedding.inl"

}  // namespace lpd::cpu::avx512
LPD_TARGET_END
#endif

namespace lpd::cpu {

void group_embedding(const GroupEmbeddingParams& params, int64_t begin, int64_t end) {
#if defined(LPD_X86)
  if (variant() >= Variant::kAvx512) return avx512::group_embedding(params, begin, end);
  if (variant() >= Variant::kAvx2) return avx2::group_embedding(params, begin, end);
#endif
  plain::group_embedding(params, begin, end);
}

}  // namespace lpd::cpu
