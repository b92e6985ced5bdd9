// token_selection with vectors of sixteen.
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
#include "vector_avx512.h"

#if defined(LPD_X86)
LPD_TARGET_BEGIN(LPD_AVX512)
namespace lpd::cpu::avx512 {
namespace {

// kLanes masses; see token_selection_plain.cpp for what the functions mean.
struct Masses {
  __m512i low, high;
};

inline Masses no_masses() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
inline Masses add_masses(Masses a, Masses b) {
  return {_mm512_add_epi64(a.low, b.low), _mm512_add_epi64(a.high, b.high)};
}
inline uint64_t sum_masses(Masses a) {
  return static_cast<uint64_t>(_mm512_reduce_add_epi64(_mm512_add_epi64(a.low, a.high)));
}
inline void store_masses(uint64_t* to, Masses a) {
  _mm512_storeu_si512(to, a.low);
  _mm512_storeu_si512(to + 8, a.high);
}

// To nearest, ties to even.
inline Masses rounded(Vector x) {
  return {_mm512_cvtps_epi64(_mm512_castps512_ps256(x)),
          _mm512_cvtps_epi64(_mm512_extractf32x8_ps(x, 1))};
}

#include "token_selection_math.inl"

}  // namespace

#include "token_selection.inl"

}  // namespace lpd::cpu::avx512
LPD_TARGET_END
#endif
