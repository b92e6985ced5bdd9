// fused_linear on any machine.
#include "fused_linear_layout.h"
#include "vector_plain.h"

namespace lpd::cpu::plain {

constexpr int kTileRows = 2;

#include "gelu.inl"
//
#include "layer_norm.inl"
//
#include "fused_linear_ends.inl"
//
#include "fused_linear_product.inl"

}  // namespace lpd::cpu::plain
