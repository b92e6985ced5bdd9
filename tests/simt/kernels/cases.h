// One program holds all cases; `cases NAME` runs one and prints what came of it.
#pragma once

#include <cstddef>
#include <map>
#include <stdexcept>
#include <string>

#include "primitives.cuh"
#include "simt/runtime.h"

using Access = simt::Access;

std::map<std::string, void (*)()>& all_cases();

struct RegisteredCase {
  RegisteredCase(const char* name, void (*run)()) { all_cases()[name] = run; }
};

#define CASE(name)                                            \
  static void name();                                         \
  static const RegisteredCase name##_registered(#name, name); \
  static void name()

// `count` elements that kernels may touch, freed with the case.
template <class T>
class Buffer {
 public:
  Buffer(size_t count, Access access, const char* name)
      : data_(static_cast<T*>(simt::allocate(count * sizeof(T), access, name))) {}
  ~Buffer() { simt::release(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  operator T*() { return data_; }  // what a kernel takes

 private:
  T* data_;
};

template <class T, class U>
void expect_equal(const T& got, const U& wanted, const std::string& what) {
  if (got == wanted) return;
  throw std::logic_error(what + ": got " + std::to_string(got) + ", wanted " +
                         std::to_string(wanted));
}
