// Loops of group_order with AVX-512.
#include "group_order_kernels.h"
#include "lpd/inline.h"
#include "lpd/philox.h"
#include "vector_avx512.h"

#if defined(LPD_X86)
LPD_TARGET_BEGIN(LPD_AVX512)
namespace lpd::cpu::avx512 {

#include "draw_keys.inl"
#include "group_order.inl"

}  // namespace lpd::cpu::avx512
LPD_TARGET_END
#endif
