// Run-time values that a kernel wants at compile time. A value without a kernel is an error here.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "elements.cuh"
#include "lpd/dtype.h"

namespace lpd::cuda {

// Calls function with a value of the element type.
template <class Function>
auto with_dtype(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::kFloat32:
      return function(float{});
    case Dtype::kBFloat16:
      return function(BFloat16{});
    case Dtype::kFloat16:
      return function(Float16{});
  }
  throw std::invalid_argument("dtype: expected float32, bfloat16 or float16, got number " +
                              std::to_string(static_cast<int>(dtype)));
}

// The same for what tensor cores multiply.
template <class Function>
auto with_half(Dtype dtype, const Function& function) {
  if (dtype == Dtype::kBFloat16) return function(BFloat16{});
  if (dtype == Dtype::kFloat16) return function(Float16{});
  throw std::invalid_argument("dtype: expected bfloat16 or float16, got float32");
}

// Calls function with `value`, one of kFirst and kOthers, as a constant.
template <int kFirst, int... kOthers, class Function>
auto with_constant(const char* name, int64_t value, const Function& function) {
  using Result = decltype(function(std::integral_constant<int, kFirst>{}));
  Result result{};
  const auto match = [&](auto candidate) {
    if (value != candidate) return false;
    result = function(candidate);
    return true;
  };
  if (match(std::integral_constant<int, kFirst>{}) ||
      (match(std::integral_constant<int, kOthers>{}) || ...)) {
    return result;
  }
  std::string supported = std::to_string(kFirst);
  ((supported += ", " + std::to_string(kOthers)), ...);
  throw std::invalid_argument(std::string(name) + ": expected one of " + supported + ", got " +
                              std::to_string(value));
}

}  // namespace lpd::cuda
