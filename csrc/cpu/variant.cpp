// Which variant of the CPU kernels runs.
#include <atomic>

#include "lpd/cpu_variant.h"
#include "target.h"

#if defined(LPD_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace lpd::cpu {
namespace {

#if defined(LPD_X86) && defined(__linux__)
// Linux lets a process use the tile registers only after it has asked to.
bool amx_permitted() {
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // CPUID 7.0, EDX
  constexpr int kArchReqXcompPerm = 0x1023, kXfeatureTileData = 18;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if ((edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) return false;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
}
#else
bool amx_permitted() { return false; }
#endif

Variant find_best_variant() {
#if defined(LPD_X86)
  const auto has = [](auto... supported) { return (... && (supported != 0)); };
  if (!has(__builtin_cpu_supports("avx2"), __builtin_cpu_supports("fma"),
           __builtin_cpu_supports("f16c"))) {
    return Variant::kPlain;
  }
  if (!has(__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512bw"),
           __builtin_cpu_supports("avx512dq"), __builtin_cpu_supports("avx512vl"))) {
    return Variant::kAvx2;
  }
  const bool amx = has(__builtin_cpu_supports("avx512bf16")) && amx_permitted();
  return amx ? Variant::kAmx : Variant::kAvx512;
#else
  return Variant::kPlain;
#endif
}

std::atomic<Variant>& chosen() {
  static std::atomic<Variant> variant = best_variant();
  return variant;
}

}  // namespace

Variant best_variant() {
  static const Variant best = find_best_variant();
  return best;
}

Variant variant() { return chosen().load(std::memory_order_relaxed); }

bool set_variant(Variant variant) {
  if (variant > best_variant()) return false;
  chosen().store(variant, std::memory_order_relaxed);
  return true;
}

}  // namespace lpd::cpu
