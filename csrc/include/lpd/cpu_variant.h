// The instruction sets that CPU kernels are written for. One binary holds all of them; which one
// runs is chosen when the library is loaded, from what the machine has.
#pragma once

namespace lpd::cpu {

// Each one includes those before it. A kernel without code of its own for one uses the one before.
enum class Variant {
  kPlain,   // C++ alone, on any machine
  kAvx2,    // with FMA and F16C
  kAvx512,  // F, BW, DQ and VL
  kAmx,     // tiles of bfloat16, and AVX512_BF16
};

// The most that this machine has; asks the kernel for the tile registers where there are any.
Variant best_variant();

// What kernels use: the best variant, until set_variant says otherwise.
Variant variant();

// Returns false, and changes nothing, where the machine lacks the variant.
bool set_variant(Variant variant);

}  // namespace lpd::cpu
