// The loops of group_order that touch every free cell, one set per instruction set. All of them
// compute integers, so that the sets differ in speed only.
#pragma once

#include <cstdint>

namespace lpd::cpu {

// Arrays of cells have room for this many more than they hold: keys are drawn a register at a time.
constexpr int32_t kOrderPadding = 16;

// Number: unsigned and wide enough for the squared distance of any two cells of the grid.
template <class Number>
struct OrderKernels {
  // keys[i] = philox_order_key(seed, step, positions[i])
  void (*draw_keys)(int64_t seed,
                    uint32_t step,
                    const int32_t* positions,
                    int32_t count,
                    uint64_t* keys);

  // Lowers nearest[i] to the squared distance between cell i and the pick; returns the largest.
  Number (*shorten_nearest)(const Number* rows,
                            const Number* cols,
                            int32_t count,
                            Number pick_row,
                            Number pick_col,
                            Number* nearest);
};

struct OrderKernelSet {
  OrderKernels<uint16_t> narrow;  // twice as fast as with 32 bits, and enough for 181 x 181 cells
  OrderKernels<uint64_t> wide;    // enough for any grid
};

namespace plain {
extern const OrderKernelSet kOrderKernels;
}
namespace avx2 {
extern const OrderKernelSet kOrderKernels;
}
namespace avx512 {
extern const OrderKernelSet kOrderKernels;
}

}  // namespace lpd::cpu
