// masked_attention in C++ alone.
#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "lpd/masked_attention.h"
#include "vector_plain.h"

namespace lpd::cpu::plain {
constexpr int kTileRows = 2, kTileVectors = 4;
#include "masked_attention.inl"
}  // namespace lpd::cpu::plain
