// token_selection with vectors of eight.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "lpd/specified_math.h"
#include "lpd/token_selection.h"
#include "target.h"
#include "token_selection_space.h"
#include "vector_avx2.h"

#if defined(LPD_X86)
LPD_TARGET_BEGIN(LPD_AVX2)
namespace lpd::cpu::avx2 {
namespace {

// kLanes masses; see token_selection_plain.cpp for what the functions mean.
struct Masses {
  __m256i low, high;
};

inline Masses no_masses() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Masses add_masses(Masses a, Masses b) {
  return {_mm256_add_epi64(a.low, b.low), _mm256_add_epi64(a.high, b.high)};
}
inline void store_masses(uint64_t* to, Masses a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a.low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 4), a.high);
}
inline uint64_t sum_masses(Masses a) {
  uint64_t lane[kLanes], total = 0;
  store_masses(lane, a);
  for (const uint64_t mass : lane) total += mass;
  return total;
}

// To nearest, ties to even: adding 2^52 leaves the integer in the fraction.
inline __m256i rounded(__m128 x) {
  const __m256d shifted = _mm256_add_pd(_mm256_cvtps_pd(x), _mm256_set1_pd(0x1p52));
  const __m256i fraction = _mm256_set1_epi64x((int64_t{1} << 52) - 1);
  return _mm256_and_si256(_mm256_castpd_si256(shifted), fraction);
}
inline Masses rounded(Vector x) {
  return {rounded(_mm256_castps256_ps128(x)), rounded(_mm256_extractf128_ps(x, 1))};
}

#include "token_selection_math.inl"

}  // namespace

#include "token_selection.inl"

}  // namespace lpd::cpu::avx2
LPD_TARGET_END
#endif
