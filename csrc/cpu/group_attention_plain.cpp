// group_attention in C++ alone.
#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "lpd/group_attention.h"
#include "vector_plain.h"

namespace lpd::cpu::plain {
constexpr int kTileRows = 2, kTileVectors = 4;
#include "group_attention.inl"
}  // namespace lpd::cpu::plain
