// The 16-bit floats as storage: exact widening, narrowing rounded to nearest even.
#pragma once

#include <bit>
#include <cstdint>

#include "lpd/inline.h"

namespace lpd::cpu {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

LPD_INLINE float to_float(float value) { return value; }

LPD_INLINE float to_float(BFloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

// Free of branches, so that loops over it vectorise.
LPD_INLINE float to_float(Float16 value) {
  constexpr uint32_t kRebias = (127 - 15) << 23;
  constexpr uint32_t kOneExponent = 1u << 23;
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t magnitude = (value.bits & 0x7fffu) << 13;
  const float normal = std::bit_cast<float>(magnitude + kRebias);
  // Infinity and NaN keep the largest exponent.
  const float special = std::bit_cast<float>(magnitude + 2 * kRebias);
  // A subnormal has no implicit bit: put one there, then take it away again.
  const float subnormal = std::bit_cast<float>(magnitude + kRebias + kOneExponent) - 0x1p-14f;
  const float result = magnitude >= 0x7c00u << 13 ? special
                       : magnitude < kOneExponent ? subnormal
                                                  : normal;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(result) | sign);
}

template <class T>
T from_float(float value);

template <>
LPD_INLINE float from_float<float>(float value) {
  return value;
}

template <>
LPD_INLINE BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (value != value) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};  // stays a NaN
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <>
LPD_INLINE Float16 from_float<Float16>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;  // NaN
  } else if (magnitude >= 0x47800000u) {
    half = 0x7c00u;  // 2^16 and more: infinity
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14: the unit in the last place of 0.5 is 2^-24, the smallest subnormal.
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    constexpr uint32_t kRebias = (127 - 15) << 23;
    half = (magnitude - kRebias + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(half | sign)};
}

}  // namespace lpd::cpu
