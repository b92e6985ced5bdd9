// Which code of masked_attention runs.
#include "lpd/masked_attention.h"

#include <algorithm>

#include "lpd/cpu_variant.h"
#include "target.h"

namespace lpd::cpu {

#define LPD_DECLARE(variant)                                                   \
  namespace variant {                                                          \
  size_t masked_attention_workspace_size(const MaskedAttentionParams& params); \
  void masked_attention(const MaskedAttentionParams& params,                   \
                        int64_t begin,                                         \
                        int64_t end,                                           \
                        std::byte*);                                           \
  }
LPD_DECLARE(plain)
LPD_DECLARE(avx2)
LPD_DECLARE(avx512)
#undef LPD_DECLARE

// Enough for each of them: the variant may change before the kernel runs.
size_t masked_attention_workspace_size(const MaskedAttentionParams& params) {
  size_t size = plain::masked_attention_workspace_size(params);
#if defined(LPD_X86)
  size = std::max({size, avx2::masked_attention_workspace_size(params),
                   avx512::masked_attention_workspace_size(params)});
#endif
  return size;
}

void masked_attention(const MaskedAttentionParams& params,
                      int64_t begin,
                      int64_t end,
                      std::byte* workspace) {
  if (begin >= end || params.q_len == 0) return;
#if defined(LPD_X86)
  const Variant chosen = variant();
  if (chosen >= Variant::kAvx512) return avx512::masked_attention(params, begin, end, workspace);
  if (chosen >= Variant::kAvx2) return avx2::masked_attention(params, begin, end, workspace);
#endif
  plain::masked_attention(params, begin, end, workspace);
}

}  // namespace lpd::cpu
