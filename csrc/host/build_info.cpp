#include "build_info.h"

namespace lpd::host {
namespace {

#if defined(__clang__)
constexpr const char* kCompiler = __VERSION__;  // already says "Clang"
#elif defined(__GNUC__)
constexpr const char* kCompiler = "GCC " __VERSION__;
#else
constexpr const char* kCompiler = "unknown";
#endif

}  // namespace

BuildInfo build_info() {
  return {
      .version = LPD_VERSION,
      .compiler = kCompiler,
      .flags = LPD_CXX_FLAGS,
      .torch = LPD_TORCH_VERSION,
      .cuda = LPD_CUDA_VERSION,
  };
}

}  // namespace lpd::host
