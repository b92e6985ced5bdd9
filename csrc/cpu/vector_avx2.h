// Eight floats in a register; see vector_plain.h for what the functions mean.
#pragma once

#include "half.h"
#include "target.h"

#if defined(LPD_X86)
#include <immintrin.h>

#include <cstdint>

LPD_TARGET_BEGIN(LPD_AVX2)
namespace lpd::cpu::avx2 {

using Vector = __m256;
using Mask = __m256;
constexpr int kLanes = 8;

inline Vector broadcast(float value) { return _mm256_set1_ps(value); }
inline Vector zero() { return _mm256_setzero_ps(); }

inline Vector load(const float* from) { return _mm256_loadu_ps(from); }
inline Vector load(const BFloat16* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vector load(const Float16* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

inline void load_pairs(const BFloat16* from, Vector& even, Vector& odd) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  even = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  odd = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(-0x10000)));
}

inline __m128i narrow_to_bfloat16(Vector x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 is_nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  const __m256i result = _mm256_castps_si256(
      _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), is_nan));
  const __m256i high = _mm256_srli_epi32(result, 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

inline void store(float* to, Vector x) { _mm256_storeu_ps(to, x); }
inline void store(BFloat16* to, Vector x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow_to_bfloat16(x));
}
inline void store(Float16* to, Vector x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

inline Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
inline Vector subtract(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
inline Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
// A step of Newton's after the instruction's 12 bits.
inline Vector reciprocal(Vector x) {
  const Vector guess = _mm256_rcp_ps(x);
  return _mm256_fmadd_ps(guess, _mm256_fnmadd_ps(x, guess, _mm256_set1_ps(1.0f)), guess);
}
inline Vector rough_reciprocal(Vector x) { return reciprocal(x); }
inline Vector maximum(Vector a, Vector b) { return _mm256_max_ps(a, b); }

inline Mask less(Vector a, Vector b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
inline Mask at_least(Vector a, Vector b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
inline Vector select(Mask mask, Vector yes, Vector no) { return _mm256_blendv_ps(no, yes, mask); }
inline Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }
inline bool all(Mask mask) { return _mm256_movemask_ps(mask) == 0xff; }

// For each mask the lanes under it, one a byte, the lowest first.
struct LanesUnderMask {
  uint64_t of[256] = {};
  constexpr LanesUnderMask() {
    for (int mask = 0; mask < 256; ++mask) {
      for (int lane = 0, place = 0; lane < kLanes; ++lane) {
        if (mask >> lane & 1) of[mask] |= static_cast<uint64_t>(lane) << 8 * place++;
      }
    }
  }
};
inline constexpr LanesUnderMask kLanesUnderMask;

inline int store_where(float* to, Mask mask, Vector x) {
  const int bits = _mm256_movemask_ps(mask);
  const __m128i lanes = _mm_cvtsi64_si128(static_cast<int64_t>(kLanesUnderMask.of[bits]));
  _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(x, _mm256_cvtepu8_epi32(lanes)));
  return __builtin_popcount(bits);
}

inline Vector scale_by_power_of_two(Vector x, Vector shifted, Vector shift) {
  const __m256i exponent =
      _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_castps_si256(shift));
  return _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(exponent, 23)));
}

inline Vector fraction(Vector x) { return subtract(x, _mm256_floor_ps(x)); }
inline Vector scale_by_floor(Vector x, Vector n) {
  const __m256i exponent = _mm256_cvtps_epi32(_mm256_floor_ps(n));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23);
  const Vector scaled = multiply(x, _mm256_castsi256_ps(power));
  return _mm256_andnot_ps(less(n, broadcast(-126.0f)), scaled);
}

inline float sum(Vector x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(Vector x) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline void transpose(Vector (&rows)[kLanes]) {
  Vector pairs[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  Vector fours[kLanes];  // column i % 4 of each half, rows 4 * (i / 4) onwards
  for (int i = 0; i < kLanes; i += 4) {
    fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}

// Integers of 64 bits in a register; the lower half of each is a 32-bit word, or all of it a
// product of two.
using Words = __m256i;
constexpr int kWords = 4;

inline Words broadcast_word(uint32_t value) { return _mm256_set1_epi64x(value); }
// Widens; no value may be negative.
inline Words load_words(const int32_t* from) {
  return _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline void store_words(uint64_t* to, Words x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x);
}
inline Words multiply_low_halves(Words a, Words b) { return _mm256_mul_epu32(a, b); }
inline Words upper_halves(Words x) { return _mm256_srli_epi64(x, 32); }
inline Words exclusive_or(Words a, Words b) { return _mm256_xor_si256(a, b); }
// Lower halves of both, side by side.
inline Words join_low_halves(Words upper, Words lower) {
  return _mm256_blend_epi32(_mm256_slli_epi64(upper, 32), lower, 0b01010101);
}

}  // namespace lpd::cpu::avx2
LPD_TARGET_END
#endif
