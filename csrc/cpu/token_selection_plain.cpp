// token_selection in C++ alone: the specified arithmetic as its header has it, lane by lane. The
// other variants are tested against this one.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "lpd/specified_math.h"
#include "lpd/token_selection.h"
#include "token_selection_space.h"
#include "vector_plain.h"

namespace lpd::cpu::plain {
namespace {

// The masses of a vector of tokens.
struct Masses {
  uint64_t lane[kLanes];
};

inline Masses no_masses() { return {}; }
inline Masses add_masses(const Masses& a, const Masses& b) {
  Masses total;
  for (int i = 0; i < kLanes; ++i) total.lane[i] = a.lane[i] + b.lane[i];
  return total;
}
inline uint64_t sum_masses(const Masses& a) {
  uint64_t total = 0;
  for (const uint64_t mass : a.lane) total += mass;
  return total;
}
inline void store_masses(uint64_t* to, const Masses& a) { std::copy_n(a.lane, kLanes, to); }

inline Vector guided(const Vector& cond, const Vector& uncond, const Vector& cfg_scale) {
  return each_lane(
      [&](int i) { return guided_logit(cond.lane[i], uncond.lane[i], cfg_scale.lane[i]); });
}

inline Vector scaled(const Vector& value, const Vector& inverse_temperature) {
  return each_lane([&](int i) { return scaled_logit(value.lane[i], inverse_temperature.lane[i]); });
}

inline Masses masses_of(const Vector& value, const Vector& row_maximum) {
  Masses masses;
  for (int i = 0; i < kLanes; ++i) masses.lane[i] = mass(value.lane[i], row_maximum.lane[i]);
  return masses;
}

}  // namespace

#include "token_selection.inl"

}  // namespace lpd::cpu::plain
