// masked_attention for AVX2.
#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "lpd/masked_attention.h"
#include "vector_avx2.h"

#if defined(LPD_X86)
LPD_TARGET_BEGIN(LPD_AVX2)
namespace lpd::cpu::avx2 {
constexpr int kTileRows = 4, kTileVectors = 2;
#include "masked_attention.inl"
}  // namespace lpd::cpu::avx2
LPD_TARGET_END
#endif
