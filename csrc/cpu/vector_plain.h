// A vector of floats as C++ alone has it: what vector_avx2.h and vector_avx512.h do in registers.
// Kernels are written once against these names and compiled in each of the namespaces.
#pragma once

#include <bit>
#include <cstdint>

#include "half.h"

namespace lpd::cpu::plain {

constexpr int kLanes = 4;

// What g++ and clang++ make of any machine's registers; loops over arrays end up in memory.
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

struct Vector {
  Lanes lane;
};

struct Mask {
  bool lane[kLanes];
};

template <class Function>
LPD_INLINE Vector each_lane(const Function& function) {
  Vector result;
#pragma GCC unroll 8
  for (int i = 0; i < kLanes; ++i) result.lane[i] = function(i);
  return result;
}

LPD_INLINE Vector broadcast(float value) {
  return each_lane([&](int) { return value; });
}
LPD_INLINE Vector zero() { return broadcast(0.0f); }

// Widens exactly.
template <class T>
LPD_INLINE Vector load(const T* from) {
  return each_lane([&](int i) { return to_float(from[i]); });
}

// The first and the second of kLanes pairs.
LPD_INLINE void load_pairs(const BFloat16* from, Vector& even, Vector& odd) {
  even = each_lane([&](int i) { return to_float(from[2 * i]); });
  odd = each_lane([&](int i) { return to_float(from[2 * i + 1]); });
}

// Narrows to nearest even; NaN stays NaN.
template <class T>
LPD_INLINE void store(T* to, const Vector& x) {
  for (int i = 0; i < kLanes; ++i) to[i] = from_float<T>(x.lane[i]);
}

LPD_INLINE Vector add(const Vector& a, const Vector& b) { return {a.lane + b.lane}; }
LPD_INLINE Vector subtract(const Vector& a, const Vector& b) { return {a.lane - b.lane}; }
LPD_INLINE Vector multiply(const Vector& a, const Vector& b) { return {a.lane * b.lane}; }
// a * b + c, rounded once where the machine has an instruction for it (not here).
LPD_INLINE Vector multiply_add(const Vector& a, const Vector& b, const Vector& c) {
  return {a.lane * b.lane + c.lane};
}
// 1 / x for normal numbers up to 2^126, within two units in the last place.
LPD_INLINE Vector reciprocal(const Vector& x) { return {1.0f / x.lane}; }
// The same, within 2^-14 of it, where that takes less.
LPD_INLINE Vector rough_reciprocal(const Vector& x) { return reciprocal(x); }
// Of a NaN and a number: b.
LPD_INLINE Vector maximum(const Vector& a, const Vector& b) {
  return {a.lane > b.lane ? a.lane : b.lane};
}

LPD_INLINE Mask less(const Vector& a, const Vector& b) {
  Mask mask;
  for (int i = 0; i < kLanes; ++i) mask.lane[i] = a.lane[i] < b.lane[i];
  return mask;
}
LPD_INLINE Mask at_least(const Vector& a, const Vector& b) {
  Mask mask;
  for (int i = 0; i < kLanes; ++i) mask.lane[i] = a.lane[i] >= b.lane[i];
  return mask;
}
LPD_INLINE Vector select(const Mask& mask, const Vector& yes, const Vector& no) {
  return each_lane([&](int i) { return mask.lane[i] ? yes.lane[i] : no.lane[i]; });
}
LPD_INLINE Mask both(const Mask& a, const Mask& b) {
  Mask mask;
  for (int i = 0; i < kLanes; ++i) mask.lane[i] = a.lane[i] && b.lane[i];
  return mask;
}
LPD_INLINE bool all(const Mask& mask) {
  bool result = true;
  for (int i = 0; i < kLanes; ++i) result = result && mask.lane[i];
  return result;
}

// Stores the lanes under the mask side by side and returns their number; writes kLanes floats.
LPD_INLINE int store_where(float* to, const Mask& mask, const Vector& x) {
  int count = 0;
  for (int i = 0; i < kLanes; ++i) {
    to[count] = x.lane[i];
    count += mask.lane[i];
  }
  return count;
}

// x * 2^n, where shifted = shift + n and shift = 1.5 * 2^23 puts n into the low bits. For results
// that are normal numbers.
LPD_INLINE Vector scale_by_power_of_two(const Vector& x,
                                        const Vector& shifted,
                                        const Vector& shift) {
  return each_lane([&](int i) {
    const uint32_t exponent =
        std::bit_cast<uint32_t>(shifted.lane[i]) - std::bit_cast<uint32_t>(shift.lane[i]);
    return std::bit_cast<float>(std::bit_cast<uint32_t>(x.lane[i]) + (exponent << 23));
  });
}

// x - floor(x), for x > -2^22.
LPD_INLINE Vector floor_of(const Vector& x) {
  const Lanes shift = broadcast(0x1.8p+23f).lane, nearest = x.lane + shift - shift;
  return {nearest > x.lane ? nearest - 1.0f : nearest};
}
LPD_INLINE Vector fraction(const Vector& x) { return subtract(x, floor_of(x)); }
// x * 2^floor(n) for n < 128; 0 for n < -126.
LPD_INLINE Vector scale_by_floor(const Vector& x, const Vector& n) {
  const Vector shifted = add(floor_of(n), broadcast(0x1.8p+23f + 127));
  const Vector power = each_lane(
      [&](int i) { return std::bit_cast<float>(std::bit_cast<uint32_t>(shifted.lane[i]) << 23); });
  return select(less(n, broadcast(-126.0f)), zero(), multiply(x, power));
}

LPD_INLINE float sum(const Vector& x) {
  float total = x.lane[0];
  for (int i = 1; i < kLanes; ++i) total += x.lane[i];
  return total;
}
LPD_INLINE float largest(const Vector& x) {
  float most = x.lane[0];
  for (int i = 1; i < kLanes; ++i) most = x.lane[i] > most ? x.lane[i] : most;
  return most;
}

// Row i becomes column i.
LPD_INLINE void transpose(Vector (&rows)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const float kept = rows[i].lane[j];
      rows[i].lane[j] = rows[j].lane[i];
      rows[j].lane[i] = kept;
    }
  }
}

}  // namespace lpd::cpu::plain
