// CUDA's built-in variables and functions: barriers, shuffles, votes, bit casts, arithmetic.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "simt/device.h"

#define threadIdx (::simt::device::thread_index())
#define blockIdx (::simt::device::block_index())
#define blockDim (::simt::device::block_size())
#define gridDim (::simt::device::grid_size())
constexpr int warpSize = 32;

#define SIMT_INTRINSIC SIMT_UNCHECKED inline

// ---- Barriers and fences
SIMT_INTRINSIC void __syncthreads(SIMT_SITE) {
  simt::device::sync_block(simt::device::Barrier::kPlain, 0, site);
}
SIMT_INTRINSIC int __syncthreads_and(int predicate, SIMT_SITE) {
  return simt::device::sync_block(simt::device::Barrier::kAnd, predicate, site);
}
SIMT_INTRINSIC int __syncthreads_or(int predicate, SIMT_SITE) {
  return simt::device::sync_block(simt::device::Barrier::kOr, predicate, site);
}
SIMT_INTRINSIC int __syncthreads_count(int predicate, SIMT_SITE) {
  return simt::device::sync_block(simt::device::Barrier::kCount, predicate, site);
}
SIMT_INTRINSIC void __syncwarp(unsigned mask = ~0u, SIMT_SITE) {
  simt::device::sync_warp(mask, site);
}
// Memory is sequentially consistent here: a fence has nothing to do, and a missing one goes unseen.
SIMT_INTRINSIC void __threadfence() {}
SIMT_INTRINSIC void __threadfence_block() {}

// ---- Shuffles
template <class T>
SIMT_INTRINSIC T simt_shuffle(simt::device::Shuffle kind,
                              unsigned mask,
                              T value,
                              int argument,
                              int width,
                              simt::Site site) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = simt::device::shuffle(kind, mask, bits, argument, width, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T>
SIMT_INTRINSIC T __shfl_sync(unsigned mask, T value, int lane, int width = 32, SIMT_SITE) {
  return simt_shuffle(simt::device::Shuffle::kIndex, mask, value, lane, width, site);
}
template <class T>
SIMT_INTRINSIC T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE) {
  return simt_shuffle(simt::device::Shuffle::kUp, mask, value, static_cast<int>(delta), width,
                      site);
}
template <class T>
SIMT_INTRINSIC T
__shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE) {
  return simt_shuffle(simt::device::Shuffle::kDown, mask, value, static_cast<int>(delta), width,
                      site);
}
template <class T>
SIMT_INTRINSIC T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, SIMT_SITE) {
  return simt_shuffle(simt::device::Shuffle::kXor, mask, value, lanes, width, site);
}

// ---- Votes and reductions
SIMT_INTRINSIC unsigned __activemask() { return simt::device::active_mask(); }
SIMT_INTRINSIC unsigned __ballot_sync(unsigned mask, int predicate, SIMT_SITE) {
  return simt::device::vote(simt::device::Vote::kBallot, mask, predicate != 0, site);
}
SIMT_INTRINSIC int __any_sync(unsigned mask, int predicate, SIMT_SITE) {
  return simt::device::vote(simt::device::Vote::kAny, mask, predicate != 0, site);
}
SIMT_INTRINSIC int __all_sync(unsigned mask, int predicate, SIMT_SITE) {
  return simt::device::vote(simt::device::Vote::kAll, mask, predicate != 0, site);
}
SIMT_INTRINSIC unsigned __match_any_sync(unsigned mask, unsigned value, SIMT_SITE) {
  return simt::device::vote(simt::device::Vote::kMatchAny, mask, value, site);
}
#define SIMT_REDUCTION(name, type, kind)                                                         \
  SIMT_INTRINSIC type name(unsigned mask, type value, SIMT_SITE) {                               \
    return static_cast<type>(                                                                    \
        simt::device::vote(simt::device::Vote::kind, mask, static_cast<unsigned>(value), site)); \
  }
SIMT_REDUCTION(__reduce_add_sync, unsigned, kAdd)
SIMT_REDUCTION(__reduce_add_sync, int, kAdd)
SIMT_REDUCTION(__reduce_min_sync, unsigned, kMin)
SIMT_REDUCTION(__reduce_min_sync, int, kSignedMin)
SIMT_REDUCTION(__reduce_max_sync, unsigned, kMax)
SIMT_REDUCTION(__reduce_max_sync, int, kSignedMax)
SIMT_REDUCTION(__reduce_and_sync, unsigned, kAnd)
SIMT_REDUCTION(__reduce_or_sync, unsigned, kOr)
SIMT_REDUCTION(__reduce_xor_sync, unsigned, kXor)
#undef SIMT_REDUCTION

[[noreturn]] SIMT_INTRINSIC void __trap(SIMT_SITE) { simt::device::trap(site); }

// ---- Bits
constexpr unsigned __float_as_uint(float value) { return __builtin_bit_cast(unsigned, value); }
constexpr int __float_as_int(float value) { return __builtin_bit_cast(int, value); }
constexpr float __uint_as_float(unsigned bits) { return __builtin_bit_cast(float, bits); }
constexpr float __int_as_float(int bits) { return __builtin_bit_cast(float, bits); }
constexpr int __popc(unsigned bits) { return __builtin_popcount(bits); }
constexpr int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
constexpr int __clz(int bits) { return bits ? __builtin_clz(static_cast<unsigned>(bits)) : 32; }
constexpr int __ffs(int bits) { return __builtin_ffs(bits); }

// ---- Arithmetic. Macros where the C library declares, or may come to declare, the name.
#define __expf(x) ::std::exp(static_cast<float>(x))
#define __logf(x) ::std::log(static_cast<float>(x))
#define rsqrtf(x) (1.0f / ::std::sqrt(static_cast<float>(x)))
constexpr float __fdividef(float a, float b) { return a / b; }
constexpr float __fadd_rn(float a, float b) { return a + b; }
constexpr float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

// As CUDA's overloads: operands of two types meet in their common one, a NaN loses.
template <class A, class B>
  requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin(T(a), T(b));
  return std::min(T(a), T(b));
}
template <class A, class B>
  requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax(T(a), T(b));
  return std::max(T(a), T(b));
}
