// Sixteen floats in a register. The names are those of vector_avx2.h and vector_plain.h, so that a
// kernel written against them compiles for each; see vector_plain.h for what they mean.
#pragma once

#include "half.h"
#include "target.h"

#if defined(LPD_X86)
#include <immintrin.h>

#include <cstdint>

LPD_TARGET_BEGIN(LPD_AVX512)
namespace lpd::cpu::avx512 {

using Vector = __m512;
using Mask = __mmask16;
constexpr int kLanes = 16;

inline Vector broadcast(float value) { return _mm512_set1_ps(value); }
inline Vector zero() { return _mm512_setzero_ps(); }

inline Vector load(const float* from) { return _mm512_loadu_ps(from); }
inline Vector load(const BFloat16* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline Vector load(const Float16* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline void load_pairs(const BFloat16* from, Vector& even, Vector& odd) {
  const __m512i bits = _mm512_loadu_si512(from);
  even = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  odd = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-0x10000)));
}

inline __m256i narrow_to_bfloat16(Vector x) {
  const __m512i bits = _mm512_castps_si512(x);
  const Mask is_odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  __m512i result = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  result = _mm512_mask_add_epi32(result, is_odd, result, _mm512_set1_epi32(1));
  const Mask is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  result = _mm512_mask_or_epi32(result, is_nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(result, 16));
}

inline void store(float* to, Vector x) { _mm512_storeu_ps(to, x); }
inline void store(BFloat16* to, Vector x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow_to_bfloat16(x));
}
inline void store(Float16* to, Vector x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

inline Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
inline Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
inline Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
// A step of Newton's after the instruction's 14 bits.
inline Vector reciprocal(Vector x) {
  const Vector guess = _mm512_rcp14_ps(x);
  return _mm512_fmadd_ps(guess, _mm512_fnmadd_ps(x, guess, _mm512_set1_ps(1.0f)), guess);
}
inline Vector rough_reciprocal(Vector x) { return _mm512_rcp14_ps(x); }
inline Vector maximum(Vector a, Vector b) { return _mm512_max_ps(a, b); }

inline Mask less(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline Mask at_least(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline Vector select(Mask mask, Vector yes, Vector no) {
  return _mm512_mask_blend_ps(mask, no, yes);
}
inline Mask both(Mask a, Mask b) { return static_cast<Mask>(a & b); }
inline bool all(Mask mask) { return mask == 0xffff; }

// Compressed in a register: a compressing store is slow on some machines.
inline int store_where(float* to, Mask mask, Vector x) {
  _mm512_storeu_ps(to, _mm512_maskz_compress_ps(mask, x));
  return __builtin_popcount(mask);
}

inline Vector scale_by_power_of_two(Vector x, Vector shifted, Vector shift) {
  const __m512i exponent =
      _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_castps_si512(shift));
  return _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(exponent, 23)));
}

inline Vector fraction(Vector x) {
  return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
inline Vector scale_by_floor(Vector x, Vector n) {
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(n, broadcast(-126.0f), _CMP_NLT_UQ), x, n);
}

inline float sum(Vector x) { return _mm512_reduce_add_ps(x); }
inline float largest(Vector x) { return _mm512_reduce_max_ps(x); }

inline void transpose(Vector (&rows)[kLanes]) {
  Vector pairs[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  Vector fours[kLanes];  // column i % 4 of each quarter, rows 4 * (i / 4) onwards
  for (int i = 0; i < kLanes; i += 4) {
    fours[i] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    fours[i + 1] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    fours[i + 2] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    fours[i + 3] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    const Vector even_low = _mm512_shuffle_f32x4(fours[i], fours[i + 4], 0x88);
    const Vector odd_low = _mm512_shuffle_f32x4(fours[i], fours[i + 4], 0xdd);
    const Vector even_high = _mm512_shuffle_f32x4(fours[i + 8], fours[i + 12], 0x88);
    const Vector odd_high = _mm512_shuffle_f32x4(fours[i + 8], fours[i + 12], 0xdd);
    rows[i] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    rows[i + 4] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    rows[i + 8] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    rows[i + 12] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

using Words = __m512i;
constexpr int kWords = 8;

inline Words broadcast_word(uint32_t value) { return _mm512_set1_epi64(value); }
inline Words load_words(const int32_t* from) {
  return _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline void store_words(uint64_t* to, Words x) { _mm512_storeu_si512(to, x); }
inline Words multiply_low_halves(Words a, Words b) { return _mm512_mul_epu32(a, b); }
inline Words upper_halves(Words x) { return _mm512_srli_epi64(x, 32); }
inline Words exclusive_or(Words a, Words b) { return _mm512_xor_si512(a, b); }
inline Words join_low_halves(Words upper, Words lower) {
  return _mm512_mask_blend_epi32(0b0101010101010101, _mm512_slli_epi64(upper, 32), lower);
}

}  // namespace lpd::cpu::avx512
LPD_TARGET_END
#endif
