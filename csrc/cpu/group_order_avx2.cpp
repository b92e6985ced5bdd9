// Loops of group_order with AVX2.
#include "group_order_kernels.h"
#include "lpd/inline.h"
#include "lpd/philox.h"
#include "vector_avx2.h"

#if defined(LPD_X86)
LPD_TARGET_BEGIN(LPD_AVX2)
namespace lpd::cpu::avx2 {

#include "draw_keys.inl"
#include "group_order.inl"

}  // namespace lpd::cpu::avx2
LPD_TARGET_END
#endif
