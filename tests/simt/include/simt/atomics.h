// Atomics, and loads and stores with a cache hint.
#pragma once

#include <type_traits>

#include "simt/intrinsics.h"

// Threads take turns, so a plain read, modify, write is atomic. What matters is that the runtime
// knows its kind, and that another thread may come first.
template <class T, class Update>
SIMT_INTRINSIC T simt_atomic(T* address, Update update, simt::Site site) {
  simt::device::reschedule();
  simt::device::access(address, sizeof(T), simt::device::Kind::kAtomic, site);
  const T before = *address;
  *address = update(before);
  return before;
}

#define SIMT_ATOMIC(name, update)                                                             \
  template <class T>                                                                          \
  SIMT_INTRINSIC T name(T* address, std::type_identity_t<T> value, SIMT_SITE) {               \
    return simt_atomic(address, [value](T old) SIMT_UNCHECKED -> T { return update; }, site); \
  }
SIMT_ATOMIC(atomicAdd, old + value)
SIMT_ATOMIC(atomicSub, old - value)
SIMT_ATOMIC(atomicExch, (static_cast<void>(old), value))
SIMT_ATOMIC(atomicMin, value < old ? value : old)
SIMT_ATOMIC(atomicMax, old < value ? value : old)
SIMT_ATOMIC(atomicAnd, old& value)
SIMT_ATOMIC(atomicOr, old | value)
SIMT_ATOMIC(atomicXor, old ^ value)
SIMT_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
SIMT_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
#undef SIMT_ATOMIC

template <class T>
SIMT_INTRINSIC T
atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value, SIMT_SITE) {
  return simt_atomic(
      address,
      [expected, value](T old) SIMT_UNCHECKED -> T { return old == expected ? value : old; }, site);
}

#define SIMT_LOAD(name, kind)                                                 \
  template <class T>                                                          \
  SIMT_INTRINSIC T name(const T* address, SIMT_SITE) {                        \
    simt::device::access(address, sizeof(T), simt::device::Kind::kind, site); \
    return *address;                                                          \
  }
SIMT_LOAD(__ldg, kRead)
SIMT_LOAD(__ldcs, kRead)
SIMT_LOAD(__ldcg, kCoherentRead)
#undef SIMT_LOAD

#define SIMT_STORE(name)                                                           \
  template <class T>                                                               \
  SIMT_INTRINSIC void name(T* address, std::type_identity_t<T> value, SIMT_SITE) { \
    simt::device::access(address, sizeof(T), simt::device::Kind::kWrite, site);    \
    *address = value;                                                              \
  }
SIMT_STORE(__stcg)
SIMT_STORE(__stcs)
#undef SIMT_STORE
