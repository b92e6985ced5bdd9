// The primitives that primitives.cuh spells in PTX for a GPU: asynchronous copies, fragments,
// tensor cores, 16-bit floats.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "simt/intrinsics.h"

namespace simt {

SIMT_INTRINSIC void cp_async16(void* shared, const void* global, bool valid = true, SIMT_SITE) {
  device::copy_async(shared, global, 16, valid ? 16 : 0, site);
}
SIMT_INTRINSIC void cp_async4(void* shared, const void* global, bool valid = true, SIMT_SITE) {
  device::copy_async(shared, global, 4, valid ? 4 : 0, site);
}
SIMT_INTRINSIC void cp_async_commit() { device::commit_copies(); }
template <int kGroupsLeft>
SIMT_INTRINSIC void cp_async_wait() {
  device::wait_copies(kGroupsLeft);
}

SIMT_INTRINSIC void ldmatrix_x4(uint32_t (&registers)[4], const void* row, SIMT_SITE) {
  device::load_matrices(4, false, registers, row, site);
}
SIMT_INTRINSIC void ldmatrix_x4_trans(uint32_t (&registers)[4], const void* row, SIMT_SITE) {
  device::load_matrices(4, true, registers, row, site);
}
SIMT_INTRINSIC void ldmatrix_x2(uint32_t (&registers)[2], const void* row, SIMT_SITE) {
  device::load_matrices(2, false, registers, row, site);
}

SIMT_INTRINSIC void mma_bf16(float (&d)[4],
                             const uint32_t (&a)[4],
                             uint32_t b0,
                             uint32_t b1,
                             SIMT_SITE) {
  const uint32_t b[2] = {b0, b1};
  device::mma(device::Half::kBFloat16, d, a, b, site);
}
SIMT_INTRINSIC void mma_f16(float (&d)[4],
                            const uint32_t (&a)[4],
                            uint32_t b0,
                            uint32_t b1,
                            SIMT_SITE) {
  const uint32_t b[2] = {b0, b1};
  device::mma(device::Half::kFloat16, d, a, b, site);
}

// ---- 16-bit floats: to nearest, ties to even; every NaN becomes 0x7fff
constexpr uint16_t bf16_bits(float value) {
  if (value != value) return 0x7fff;
  const uint32_t bits = __float_as_uint(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
constexpr float bf16_float(uint16_t bits) { return __uint_as_float(uint32_t{bits} << 16); }
constexpr uint32_t pack_bf16(float low, float high) {
  return bf16_bits(low) | uint32_t{bf16_bits(high)} << 16;
}

constexpr uint16_t f16_bits(float value) {
  if (value != value) return 0x7fff;
  const uint32_t bits = __float_as_uint(value);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // 65520 and up
  if (magnitude < 0x38800000) {  // below 2^-14: a sum with 0.5 rounds to multiples of 2^-24
    const float sum = __uint_as_float(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (__float_as_uint(sum) - 0x3f000000));
  }
  const uint32_t rounded = magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | rounded >> 13);
}
constexpr float f16_float(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16, magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | magnitude << 13);
  if (magnitude < 0x400) {  // subnormal: the bits count multiples of 2^-24
    const float small = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -small : small;
  }
  return __uint_as_float(sign | ((magnitude << 13) + 0x38000000));
}
constexpr uint32_t pack_f16(float low, float high) {
  return f16_bits(low) | uint32_t{f16_bits(high)} << 16;
}

constexpr float max_or_nan(float a, float b) { return a != a || a > b ? a : b; }

constexpr void renew(float&) {}

// As ex2.approx.ftz: subnormal arguments and results count as zero.
inline float exp2_fast(float x) {
  const float result = std::exp2(x);
  return result < std::numeric_limits<float>::min() ? 0.0f : result;
}

}  // namespace simt
