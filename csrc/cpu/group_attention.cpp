// Which code of group_attention runs.
#include "lpd/group_attention.h"

#include <algorithm>

#include "lpd/cpu_variant.h"
#include "target.h"

namespace lpd::cpu {

#define LPD_DECLARE(variant)                                                 \
  namespace variant {                                                        \
  size_t group_attention_workspace_size(const GroupAttentionParams& params); \
  void group_attention(const GroupAttentionParams& params,                   \
                       int64_t begin,                                        \
                       int64_t end,                                          \
                       std::byte*);                                          \
  }
LPD_DECLARE(plain)
LPD_DECLARE(avx2)
LPD_DECLARE(avx512)
LPD_DECLARE(amx)
#undef LPD_DECLARE

// Enough for each of them: the variant may change before the kernel runs.
size_t group_attention_workspace_size(const GroupAttentionParams& params) {
  size_t size = plain::group_attention_workspace_size(params);
#if defined(LPD_X86)
  size = std::max({size, avx2::group_attention_workspace_size(params),
                   avx512::group_attention_workspace_size(params),
                   amx::group_attention_workspace_size(params)});
#endif
  return size;
}

void group_attention(const GroupAttentionParams& params,
                     int64_t begin,
                     int64_t end,
                     std::byte* workspace) {
  if (begin >= end || params.q_len == 0) return;
#if defined(LPD_X86)
  const Variant chosen = variant();
  // Tiles hold 16 rows; below that, filling them costs more than they save.
  constexpr int64_t kLeastRowsOfTiles = 8;
  if (chosen >= Variant::kAmx && params.dtype == Dtype::kBFloat16 &&
      params.q_len >= kLeastRowsOfTiles) {
    return amx::group_attention(params, begin, end, workspace);
  }
  if (chosen >= Variant::kAvx512) return avx512::group_attention(params, begin, end, workspace);
  if (chosen >= Variant::kAvx2) return avx2::group_attention(params, begin, end, workspace);
#endif
  plain::group_attention(params, begin, end, workspace);
}

}  // namespace lpd::cpu
