// masked_attention for AVX-512.
#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "lpd/masked_attention.h"
#include "vector_avx512.h"

#if defined(LPD_X86)
LPD_TARGET_BEGIN(LPD_AVX512)
namespace lpd::cpu::avx512 {
constexpr int kTileRows = 4, kTileVectors = 4;
#include "masked_attention.inl"
}  // namespace lpd::cpu::avx512
LPD_TARGET_END
#endif
