// group_norm_silu on the CPU, in the variant that this machine has.
#include "lpd/group_norm_silu.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "lpd/cpu_variant.h"
#include "vector_avx2.h"
#include "vector_avx512.h"
#include "vector_plain.h"

namespace lpd::cpu {
namespace {

// Of channels in partials and workspace: whole vectors of every variant.
int64_t padded_channels(const GroupNormSiluParams& params) {
  return (params.channels + 15) / 16 * 16;
}

// Large enough that partial sums are few beside what they are of, small enough to stay in L2. A
// channel's sum goes over its pixels one by one: not many, for its rounding.
int64_t pixels_of_chunk(const GroupNormSiluParams& params) {
  constexpr int64_t kElements = 32768, kMostPixels = 256;
  return std::clamp<int64_t>(kElements / params.channels, 1, kMostPixels);
}

}  // namespace

int64_t group_norm_silu_chunks(const GroupNormSiluParams& params) {
  const int64_t pixels = pixels_of_chunk(params);
  return (params.pixels + pixels - 1) / pixels;
}

int64_t group_norm_silu_partials_size(const GroupNormSiluParams& params) {
  return params.batch * group_norm_silu_chunks(params) * 2 * padded_channels(params);
}

int64_t group_norm_silu_workspace_size(const GroupNormSiluParams& params) {
  return 3 * padded_channels(params);
}

}  // namespace lpd::cpu

namespace lpd::cpu::plain {
#include "group_norm_silu.inl"
}  // namespace lpd::cpu::plain

#if defined(LPD_X86)
LPD_TARGET_BEGIN(LPD_AVX2)
namespace lpd::cpu::avx2 {
#include "group_norm_silu.inl"
}  // namespace lpd::cpu::avx2
LPD_TARGET_END

LPD_TARGET_BEGIN(LPD_AVX512)
namespace lpd::cpu::avx512 {
#include "group_norm_silu.inl"
}  // namespace lpd::cpu::avx512
LPD_TARGET_END

LPD_TARGET_BEGIN(LPD_AMX)
namespace lpd::cpu::amx {
using namespace avx512;

// One instruction narrows here. It takes subnormal numbers as 0.
inline void store(BFloat16* to, Vector x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}
inline void store(float* to, Vector x) { avx512::store(to, x); }
inline void store(Float16* to, Vector x) { avx512::store(to, x); }

#include "group_norm_silu.inl"
}  // namespace lpd::cpu::amx
LPD_TARGET_END
#endif

namespace lpd::cpu {

void group_norm_silu_statistics(const GroupNormSiluParams& params,
                                int64_t begin,
                                int64_t end,
                                float* partials) {
#if defined(LPD_X86)
  if (variant() >= Variant::kAvx512) return avx512::statistics(params, begin, end, partials);
  if (variant() >= Variant::kAvx2) return avx2::statistics(params, begin, end, partials);
#endif
  plain::statistics(params, begin, end, partials);
}

void group_norm_silu_apply(const GroupNormSiluParams& params,
                           int64_t begin,
                           int64_t end,
                           const float* partials,
                           float* workspace) {
#if defined(LPD_X86)
  if (variant() >= Variant::kAmx) return amx::apply(params, begin, end, partials, workspace);
  if (variant() >= Variant::kAvx512) {
    return avx512::apply(params, begin, end, partials, workspace);
  }
  if (variant() >= Variant::kAvx2) return avx2::apply(params, begin, end, partials, workspace);
#endif
  plain::apply(params, begin, end, partials, workspace);
}

}  // namespace lpd::cpu
