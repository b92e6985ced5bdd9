// The arithmetic of token_selection, specified to the bit: every implementation, on any device,
// goes through these functions and so draws the same token from the same numbers.
//
// Nothing here may be contracted or reordered. No product stands next to an addition except inside
// fma, so -ffp-contract and nvcc's -fmad find nothing to fuse; what would need -ffast-math is
// refused below. Assumed are the IEEE defaults: round to nearest even, subnormal numbers kept.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "lpd/inline.h"

#if defined(__FAST_MATH__)
#error "lpd/specified_math.h: -ffast-math changes specified results"
#endif

namespace lpd {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLog2E = 0x1.715476p+0f;
// A mass counts units of 2^-kMassBits of the mass of the row's maximum.
constexpr int kMassBits = 40;
// A mass this far below the maximum is 0: e^-29 < 2^-41. It also bounds exp2_poly.
constexpr float kNegligible = -29.0f;

LPD_INLINE uint32_t float_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  return std::bit_cast<uint32_t>(value);
#endif
}

LPD_INLINE float float_of_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}

// Classifier-free guidance. A token masked in the conditional half stays masked, whatever the
// unconditional half holds (-inf in both would give NaN).
LPD_INLINE float guided_logit(float cond, float uncond, float cfg_scale) {
  return cond == -kInfinity ? cond : fmaf(cfg_scale, cond - uncond, uncond);
}

LPD_INLINE float inverse_temperature(float temperature) {
#if defined(__CUDA_ARCH__)
  return __frcp_rn(temperature);
#else
  return 1.0f / temperature;
#endif
}

// The rounded product, as an fma: a bare one could be fused with the subtraction in `mass`.
LPD_INLINE float scaled_logit(float logit, float inverse_temperature) {
  return fmaf(logit, inverse_temperature, 0.0f);
}

// An integer in the order of the values; -0 and +0 share one. Not for NaN.
LPD_INLINE uint32_t ordered_key(float value) {
  const uint32_t bits = value == 0.0f ? 0u : float_bits(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

LPD_INLINE float value_of_key(uint32_t key) {
  return float_of_bits(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// 2^(exponent + bias), exponent = difference * log2(e), for -29 <= difference <= 0 and an integer
// bias that keeps the result normal. Range reduction to |f| <= 1/2 with the exact product inside
// fma, then a polynomial of degree 6 (minimax in relative error, 5.4e-9 with its coefficients in
// float32; constant term 1, so that 0 gives a power of two). Measured over every float32 argument:
// at most 0.96 ulp from 2^(difference * kLog2E), 4.6e-7 relative from e^difference (kLog2E is
// rounded). Monotone but for steps back of one ulp (1.5e-4 of the neighbours); nothing relies on
// that, since tokens are ordered by value.
LPD_INLINE float exp2_poly(float difference, int bias) {
  constexpr float kShift = 0x1.8p+23f;  // adding it rounds to an integer, found in the low bits
  const float shifted = fmaf(difference, kLog2E, kShift);
  const float f = fmaf(difference, kLog2E, -(shifted - kShift));
  float power = 0x1.4b0c3cp-13f;
  power = fmaf(power, f, 0x1.5fa782p-10f);
  power = fmaf(power, f, 0x1.3b222ep-7f);
  power = fmaf(power, f, 0x1.c6adc4p-5f);
  power = fmaf(power, f, 0x1.ebfbe6p-3f);
  power = fmaf(power, f, 0x1.62e432p-1f);
  power = fmaf(power, f, 1.0f);
  const uint32_t exponent = float_bits(shifted) - float_bits(kShift) + static_cast<uint32_t>(bias);
  return float_of_bits(float_bits(power) + (exponent << 23));
}

// round(2^40 * e^(value - maximum)), ties to even. 2^40 for the maximum itself; 0 from 2^-41 of it
// on, so also for -inf. `maximum` is finite, value <= maximum.
LPD_INLINE uint64_t mass(float value, float maximum) {
  const float difference = value - maximum;
  const float scaled = exp2_poly(difference > kNegligible ? difference : kNegligible, kMassBits);
#if defined(__CUDA_ARCH__)
  return __float2ull_rn(scaled);
#else
  // Adding 2^52 rounds to an integer, found in the fraction; unlike a call of rint it vectorises.
  constexpr uint64_t kFraction = (uint64_t{1} << 52) - 1;
  return std::bit_cast<uint64_t>(static_cast<double>(scaled) + 0x1p52) & kFraction;
#endif
}

// A value stays under top-p while the mass strictly above it is within this limit.
LPD_INLINE double top_p_limit(float top_p, uint64_t total) {
  return static_cast<double>(top_p) * static_cast<double>(total);
}

LPD_INLINE bool within_top_p(uint64_t mass_above, double limit) {
  return static_cast<double>(mass_above) <= limit;
}

// The drawn token is the first whose inclusive cumulative mass exceeds this. 0 <= uniform < 1 and
// total > 0.
LPD_INLINE uint64_t draw_target(double uniform, uint64_t total) {
  const uint64_t target = static_cast<uint64_t>(uniform * static_cast<double>(total));
  return target < total ? target : total - 1;
}

}  // namespace lpd
