// Loops of group_order in C++ alone.
#include "group_order_kernels.h"
#include "lpd/inline.h"
#include "lpd/philox.h"

namespace lpd::cpu::plain {

void draw_keys(int64_t seed,
               uint32_t step,
               const int32_t* positions,
               int32_t count,
               uint64_t* keys) {
  for (int32_t i = 0; i < count; ++i) {
    keys[i] = philox_order_key(seed, step, static_cast<uint32_t>(positions[i]));
  }
}

#include "group_order.inl"

}  // namespace lpd::cpu::plain
