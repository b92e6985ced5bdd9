// What lpd_ext/_binary.py asks about the variant of the CPU kernels; variants are numbers here.
#include "lpd/cpu_variant.h"

#define LPD_EXPORT extern "C" __attribute__((visibility("default")))

LPD_EXPORT int lpd_ext_best_cpu_variant() { return static_cast<int>(lpd::cpu::best_variant()); }

LPD_EXPORT int lpd_ext_cpu_variant() { return static_cast<int>(lpd::cpu::variant()); }

LPD_EXPORT int lpd_ext_set_cpu_variant(int variant) {
  return lpd::cpu::set_variant(static_cast<lpd::cpu::Variant>(variant));
}
