// A small op, compiled in each variant by one file, and the choice among them. That file includes
// the op's contract and what its body needs of the standard library, and names
//   LPD_OP      the op, called as LPD_OP(params, begin, end)
//   LPD_PARAMS  the type of its params
//   LPD_BODY    the .inl that defines it
#include "lpd/cpu_variant.h"
#include "vector_avx2.h"
#include "vector_avx512.h"
#include "vector_plain.h"

namespace lpd::cpu::plain {
#include LPD_BODY
}  // namespace lpd::cpu::plain

#if defined(LPD_X86)
LPD_TARGET_BEGIN(LPD_AVX2)
namespace lpd::cpu::avx2 {
#include LPD_BODY
}  // namespace lpd::cpu::avx2
LPD_TARGET_END

LPD_TARGET_BEGIN(LPD_AVX512)
namespace lpd::cpu::avx512 {
#include LPD_BODY
}  // namespace lpd::cpu::avx512
LPD_TARGET_END
#endif

namespace lpd::cpu {

void LPD_OP(const LPD_PARAMS& params, int64_t begin, int64_t end) {
#if defined(LPD_X86)
  if (variant() >= Variant::kAvx512) return avx512::LPD_OP(params, begin, end);
  if (variant() >= Variant::kAvx2) return avx2::LPD_OP(params, begin, end);
#endif
  plain::LPD_OP(params, begin, end);
}

}  // namespace lpd::cpu
